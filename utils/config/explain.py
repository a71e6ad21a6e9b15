"""What pydantic finds wrong with a config, told in lines that a user can act on."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pydantic
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from ..base.errors import closest, did_you_mean, suggest

Key = tuple[str | int, ...]

_EXPECTED = {
    "string_type": "text",
    "path_type": "a path",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a block of keys",
    "model_type": "a block of keys",
    "none_required": "null",
    "greater_than": "a number > {gt:g}",
    "greater_than_equal": "a number >= {ge:g}",
    "less_than": "a number < {lt:g}",
    "less_than_equal": "a number <= {le:g}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "literal_error": "{expected}",
}


def explain(
    error: pydantic.ValidationError,
    schema: type[pydantic.BaseModel],
    data: dict[str, Any],
    path: Path | None,
    changed: Sequence[tuple[str, ...]],
) -> list[str]:
    """One line per refused key: where it was given, the key, the value and the way out.

    Args:
        error: what pydantic found in `data`.
        data: the file's keys with the overrides applied.
        changed: the keys given on the command line.
    """
    found: dict[Key, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        found.setdefault(_key(details, data), []).append(details)
    lines = []
    for key, reasons in found.items():
        if any(len(other) > len(key) and other[: len(key)] == key for other in found):
            continue  # Another member of a union matched further down: its error says more.
        where = "command line" if path is None or _given_there(key, changed) else str(path)
        lines.append(f"{where}: {_written(key)}{_reason(key, reasons, schema)}")
    return lines


def _key(details: ErrorDetails, data: Any) -> Key:
    """The key an error is about: pydantic's location without the names of union members."""
    key: Key = ()
    part: Any
    for part in details["loc"]:
        if (isinstance(data, dict) and part in data) or (isinstance(data, list) and isinstance(part, int)):
            data = data[part]
        elif details["type"] == "missing" and part == details["loc"][-1]:
            data = None
        else:
            continue
        key = (*key, part)
    return key


def _written(key: Key) -> str:
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return f"{text}: " if text else ""


def _given_there(key: Key, changed: Sequence[tuple[str, ...]]) -> bool:
    return any(given[: len(key)] == key[: len(given)] for given in changed)


def _reason(key: Key, reasons: list[ErrorDetails], schema: type[pydantic.BaseModel]) -> str:
    first = reasons[0]
    if first["type"] == "extra_forbidden":
        return f"unknown key{_known_keys(key, schema)}"
    if first["type"] == "missing":
        name = _written(key)[:-2]
        return f"missing; write it in the config or pass {name}=... on the command line"
    for reason in reasons:
        if reason["type"] in ("value_error", "assertion_error"):  # Raised by a schema's own validator.
            return str(reason["ctx"]["error"])
    # A union refuses a value once for each of its members.
    expected = list(dict.fromkeys(_expected(reason) for reason in reasons))
    close = None
    if first["type"] == "literal_error" and isinstance(first["input"], str):
        close = closest(first["input"], re.findall(r"'([^']*)'", expected[0]))
    field = dict(_all_keys(schema)).get(".".join(map(str, key)))
    default = "" if field is None or field.default is PydanticUndefined else f" (default: {_shown(field.default)})"
    return f"{_shown(first['input'])} is not {' or '.join(expected)}{did_you_mean(close)}{default}"


def _expected(details: ErrorDetails) -> str:
    known = _EXPECTED.get(details["type"])
    return f"accepted ({details['msg']})" if known is None else known.format(**details.get("ctx", {}))


def _shown(value: Any) -> str:
    """A value as YAML would write it, cut at 60 characters."""
    if isinstance(value, Path | str):
        text = f"'{value}'"
    elif isinstance(value, pydantic.BaseModel):
        text = "a block of keys"
    else:
        text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _known_keys(key: Key, schema: type[pydantic.BaseModel]) -> str:
    """A known key close to a misspelt one: in the same block first, then anywhere in the config."""
    *block, name = [str(part) for part in key]
    everywhere = [known for known, _ in _all_keys(schema)]
    prefix = "".join(f"{part}." for part in block)
    here = [known for known in everywhere if known.startswith(prefix) and "." not in known[len(prefix) :]]
    if (close := closest(name, [known[len(prefix) :] for known in here])) is not None:
        return did_you_mean(f"{prefix}{close}")
    by_last = {known.rpartition(".")[2]: known for known in reversed(everywhere)}
    elsewhere = closest(name, by_last, cutoff=0.8)
    return suggest(name, here) if elsewhere is None else did_you_mean(by_last[elsewhere])


def _all_keys(schema: type[pydantic.BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of a config as `eap.ig_steps`, with its field."""
    for name, field in schema.model_fields.items():
        yield f"{prefix}{name}", field
        for block in blocks_in(field.annotation):
            yield from _all_keys(block, f"{prefix}{name}.")


def blocks_in(annotation: Any) -> list[type[pydantic.BaseModel]]:
    """The schemas of blocks that an annotation names, wherever they stand in it (`CspaKeys | None`)."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [annotation]
    return [block for part in typing.get_args(annotation) for block in blocks_in(part)]
