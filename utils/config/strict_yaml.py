"""YAML as configs use it: the plain types of the 1.2 core schema, every key once, and keys that are text."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from ..base.errors import UserError, suggest

Block = dict[str, Any]

_EXAMPLE = "write it as key=value, for example seed=1"


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` without the extra types and the guesses of YAML 1.1."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag not in ("tag:yaml.org,2002:str", _MERGE):
                name = key.value if isinstance(key, yaml.ScalarNode) else "[...]"
                raise _Refused(f"line {line}: key {name} is not text; put it in quotes")
            if key.value in seen and key.tag != _MERGE:
                raise _Refused(f"{key.value}: given twice (again on line {line}); keep one")
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_PLAIN = {"null", "bool", "int", "float", "str", "seq", "map"}
_Loader.yaml_implicit_resolvers = {}
_Loader.yaml_constructors = {
    tag: make
    for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in _PLAIN
}
_MERGE = "tag:yaml.org,2002:merge"
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?\d+(_\d+)*|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.\d+|\d+(_\d+)*(\.\d*)?)([eE][-+]?\d+)?", list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(node.value.replace("_", "")))
_Loader.add_constructor(
    "tag:yaml.org,2002:int",
    lambda loader, node: int(node.value, 16) if node.value.startswith("0x") else int(node.value.replace("_", "")),
)


class _Refused(Exception):
    """YAML that is well formed but not a config."""


def read_yaml(path: Path) -> Block:
    """The block of keys in a config file. An empty file is an empty block.

    Raises:
        UserError: if the file is missing or unreadable, is not YAML, has a key twice or is not a block of keys.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{_other_configs(path)}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a YAML file") from None
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
    return keys, _parse(value, f"command line: {key}")


def merge(data: Block, keys: tuple[str, ...], value: Any) -> None:
    """Apply one override to `data`, in place. Blocks are merged key by key.

    Raises:
        UserError: if a key on the way holds a value instead of a block.
    """
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


def _parse(text: str, where: str) -> Any:
    try:
        value = yaml.load(text, _Loader)  # A SafeLoader with fewer types.
    except _Refused as error:
        raise UserError(f"{where}: {error}") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise UserError(f"{where}: {place}not valid YAML ({' '.join(problem.split())})") from None
    except RecursionError:
        raise UserError(f"{where}: blocks or lists are nested too deeply; write fewer levels") from None
    try:
        json.dumps(value)
    except ValueError:  # A value that holds itself.
        raise UserError(f"{where}: an alias (*) is inside the value it names; write the value out") from None
    return value


def _other_configs(path: Path) -> str:
    try:
        names = sorted(item.name for item in path.parent.iterdir() if item.suffix in (".yml", ".yaml"))
    except OSError:
        return f"; the folder {path.parent} is missing too"
    return suggest(path.name, names, listing="the folder has") if names else ""
