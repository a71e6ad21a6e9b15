"""YAML as configs use it: the plain types of the 1.2 core schema, every key once, and keys that are text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ..base.errors import UserError, suggest

Block = dict[str, Any]

MOST_VALUES = 100_000
"""In a config."""

_EXAMPLE = "write it as key=value, for example seed=1"


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` without the extra types and the guesses of YAML 1.1, which knows the key of every value."""

    def __init__(self, text: str, path: Sequence[str] = ()) -> None:
        super().__init__(text)
        self._path: list[str | int] = [*path]
        self._open: list[str | None] = []  # anchors of the values that are being read
        self._n_values, self._sizes = 0, dict[str | None, int]()  # aliases written out; of each anchor's value

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()
        part = index.value if isinstance(index, yaml.ScalarNode) else index
        self._path += [part] if isinstance(part, str | int) else []
        if (tag := getattr(event, "tag", None)) is not None:
            shown = tag.replace("tag:yaml.org,2002:", "!!")
            raise _Refused(f"{self._where(event)}the tag {shown} is not read; leave it out (text may stand in quotes)")
        if isinstance(event, yaml.AliasEvent) and event.anchor in self._open:
            raise _Refused(f"{self._where(event)}an alias (*) is inside the value it names; write the value out")
        self._open.append(event.anchor)
        before = self._n_values
        self._n_values += self._sizes.get(event.anchor, 1) if isinstance(event, yaml.AliasEvent) else 1
        if self._n_values > MOST_VALUES:  # A few aliases of aliases are enough to fill all memory.
            raise _Refused(f"{self._where(event)}more than {MOST_VALUES:,} values, aliases written out; write fewer")
        node = super().compose_node(parent, index)
        self._open.pop()
        self._sizes[event.anchor] = self._n_values - before
        if isinstance(node, yaml.MappingNode):
            self._check_keys(node)
        if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and self._is_name():
            node.tag = f"{_TAG}str"  # A model may be called 007 or 1e5.
        if isinstance(part, str | int):
            self._path.pop()
        return node

    def _check_keys(self, block: yaml.MappingNode) -> None:
        seen: set[str] = set()
        for key, _ in block.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag not in (f"{_TAG}str", f"{_TAG}merge"):
                name = key.value if isinstance(key, yaml.ScalarNode) else "[...]"
                raise _Refused(f"line {key.start_mark.line + 1}: key {name} is not text; put it in quotes")
            if key.value in seen and key.tag == f"{_TAG}str":
                again = f"given twice (again on line {key.start_mark.line + 1}); keep one"
                raise _Refused(f"{written((*self._path, key.value))}{again}")
            seen.add(key.value)

    def _is_name(self) -> bool:
        """Whether the value at hand names a model: in `model`, unless it is a block, and in groups of models."""
        first, *rest = self._path or [""]
        return first == "seeds" or (first == "model" and not any(isinstance(part, str) for part in rest))

    def _where(self, event: Any) -> str:
        return written(self._path) or f"line {event.start_mark.line + 1}: "


_TAG = "tag:yaml.org,2002:"
_NUMBERS = (f"{_TAG}int", f"{_TAG}float")
_Loader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?\d+(_\d+)*|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.\d+|\d+(_\d+)*(\.\d*)?)([eE][-+]?\d+)?", list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(rf"(?:{_pattern})\Z"), _first)
_Loader.add_constructor(f"{_TAG}float", lambda loader, node: float(node.value.replace("_", "")))
_Loader.add_constructor(
    f"{_TAG}int",
    lambda loader, node: int(node.value, 16) if node.value.startswith("0x") else int(node.value.replace("_", "")),
)


class _Refused(Exception):
    """YAML that is well formed but not a config."""


def written(key: Sequence[str | int]) -> str:
    """A key as errors begin with it: `analyses[0].eap.ig_steps: `; nothing for none."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return f"{text}: " if text else ""


def read_yaml(path: Path) -> Block:
    """The block of keys in a config file, empty for an empty file; a UserError if it cannot be read as one."""
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{_other_configs(path)}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except (OSError, ValueError, RuntimeError) as error:  # A name may hold \\0, or `~` and a user that there is not.
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason}); name a YAML file") from None
    value = _parse(text, str(path))
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no keys; write lines like 'model: pythia-160m'")
    return value


def parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    """`eap.ig_steps=30` -> (("eap", "ig_steps"), 30)."""
    key, equals, value = text.partition("=")
    keys = tuple(part.strip() for part in key.split("."))
    if not equals or not all(keys):
        raise UserError(f"command line: '{text}' is not an override; {_EXAMPLE}")
    return keys, _parse(value, f"command line: {key}", keys)


def merge(data: Block, keys: tuple[str, ...], value: Any) -> None:
    """Apply one override to `data`, in place, blocks key by key; a UserError if a key on the way holds a value."""
    for depth, key in enumerate(keys[:-1], start=1):
        below = data.setdefault(key, {})
        if below is None:
            below = data[key] = {}
        if not isinstance(below, dict):
            path, rest = ".".join(keys[:depth]), ".".join(keys[depth:])
            raise UserError(f"command line: {'.'.join(keys)}: {path} is {below!r} and has no key '{rest}'")
        data = below
    last = keys[-1]
    if isinstance(value, dict) and isinstance(data.get(last), dict):
        for key, item in value.items():
            merge(data[last], (key,), item)
    else:
        data[last] = value


def _parse(text: str, where: str, path: Sequence[str] = ()) -> Any:
    try:
        return _Loader(text, path).get_single_data()
    except _Refused as error:
        raise UserError(f"{where}: {error}") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        place = key = ""
        if mark is not None:
            place = f"line {mark.line + 1}, column {mark.column + 1}: "
            # The key of the line, or of the one above that the value began on.
            above = "\n".join(text.split("\n")[: mark.line + 1])
            key = f"{keys[-1]}: " if (keys := re.findall(r"^[ -]*([\w.]+) *:", above, re.MULTILINE)) else ""
        raise UserError(
            f"{where}: {place}{key}not valid YAML ({' '.join(problem.split())}); check quotes, brackets, indents"
        ) from None
    except RecursionError:
        raise UserError(f"{where}: blocks or lists are nested too deeply; write fewer levels") from None
    except ValueError:  # Python reads no more than 4,300 digits.
        raise UserError(f"{where}: a number has too many digits; write a smaller one") from None


def _other_configs(path: Path) -> str:
    try:
        names = sorted(item.name for item in path.parent.iterdir() if item.suffix in (".yml", ".yaml"))
    except OSError:
        return f"; the folder {path.parent} is missing too"
    return suggest(path.name, names, listing="the folder has") if names else ""
