"""Checks a config against its schema, and tells in lines that a user can act on what is wrong with it."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from ..base.errors import UserError, closest, did_you_mean, suggest
from .strict_yaml import written

Key = tuple[str | int, ...]
Schema = TypeVar("Schema", bound=pydantic.BaseModel)

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
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "string_too_short": "text; it is empty",
    "literal_error": "{expected}",
}


def checked(
    schema: type[Schema],
    data: dict[str, Any],
    path: Path | None = None,
    changed: Sequence[tuple[str, ...]] = (),
) -> Schema:
    """A config from its keys: the file's, with the overrides applied.

    `path` is the file, or what errors call it; None without one. `changed` are the keys given on the command line. The
    UserError has one line for each refused key: where it was given, the key, the value and the way out.
    """
    for key, value in data.items():
        if _NO_NAME.search(json.dumps([key, value], ensure_ascii=False)):
            where = given_in((key,), path, changed)
            raise UserError(f"{where}: {ascii(key)[1:-1]}: holds \\0 or half a character, which no name has; remove it")
    try:
        # Strict mode of JSON: text is never taken for a number, nor 1 for true, but a path may be written as text.
        return schema.model_validate_json(json.dumps(data), strict=True)
    except pydantic.ValidationError as error:
        raise UserError("\n".join(explain(error, schema, data, path, changed))) from None


# As JSON writes the character \\0, and half of a character that lies beyond the first 65,536.
_NO_NAME = re.compile(r"(?<!\\)(?:\\\\)*\\u0000|[\ud800-\udfff]")


def explain(
    error: pydantic.ValidationError,
    schema: type[pydantic.BaseModel],
    data: dict[str, Any],
    path: Path | None,
    changed: Sequence[tuple[str, ...]],
) -> list[str]:
    """The lines of what pydantic found in `data`; arguments as of `checked`."""
    found: dict[Key, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        found.setdefault(_key(details, data), []).append(details)
    lines = []
    for key, reasons in found.items():
        if any(len(other) > len(key) and other[: len(key)] == key for other in found):
            continue  # Another member of a union matched further down: its error says more.
        reason = _reason(key, reasons, schema)
        if isinstance(reasons[0]["input"], dict) and (named := key_of(reason)):  # by a check of several keys of a block
            key, reason = (*key, *named), reason.partition(": ")[2]
        lines.append(f"{given_in(key, path, changed)}: {written(key)}{reason}")
    return lines


def _key(details: ErrorDetails, data: Any) -> Key:
    """The key an error is about: pydantic's location without the names of union members."""
    key: Key = ()
    part: Any
    for part in details["loc"]:
        if (isinstance(data, dict) and part in data) or (
            isinstance(data, list) and isinstance(part, int) and part < len(data)
        ):
            data = data[part]
        elif details["type"] == "missing" and part == details["loc"][-1]:
            data = None
        else:
            continue
        key = (*key, part)
    return key


def key_of(line: str) -> tuple[str, ...]:
    """The key that a line begins with, as in `eap.ig_steps: ...`; nothing if there is none."""
    found = re.match(r"([A-Za-z_]\w*(?:\.\w+)*)(?:\[\d+\])*: ", line)
    return tuple(found[1].split(".")) if found else ()


def given_in(key: Key, path: Path | None, changed: Sequence[tuple[str, ...]]) -> str:
    """Where a key was given: `command line`, or its file."""
    there = path is None or any(given[: len(key)] == key[: len(given)] for given in changed)
    return "command line" if there else str(path)


def _reason(key: Key, reasons: list[ErrorDetails], schema: type[pydantic.BaseModel]) -> str:
    first = reasons[0]
    if first["type"] == "extra_forbidden":
        return f"unknown key{_known_keys(key, schema)}"
    if first["type"] == "missing":
        name = written(key)[:-2]
        if isinstance(key[-1], int):
            return f"missing; {written(key[:-1])[:-2]} is a list of {key[-1] + 1}"
        return f"missing; write it in the config or pass {name}=... on the command line"
    for reason in reasons:
        if reason["type"] in ("value_error", "assertion_error"):  # Raised by a schema's own validator.
            return str(reason["ctx"]["error"])
    field = dict(all_keys(schema)).get(".".join(part for part in key if isinstance(part, str)))
    # A union refuses a value once for each of its members.
    expected = list(dict.fromkeys(_expected(reason, field) for reason in reasons))
    close = None
    if first["type"] == "literal_error" and isinstance(first["input"], str):
        close = closest(first["input"], re.findall(r"'([^']*)'", expected[0]))
    default = why = ""
    if isinstance(first["input"], str) and "a list" in expected and len(_shown(first["input"])) < 60:
        why = f"; write [{first['input']}]"
    if field is not None:
        if field.default is not PydanticUndefined and isinstance(key[-1], str):  # A member of a list has no default.
            default = f" (default: {_shown(field.default)})"
        if first["type"].startswith("less_than") and "reason" in extra(field):
            why = f"; {extra(field)['reason']}"
    return f"{_shown(first['input'])} is not {' or '.join(expected)}{did_you_mean(close)}{default}{why}"


def extra(field: FieldInfo) -> dict[str, Any]:
    """What `key` notes of a field."""
    noted = field.json_schema_extra
    return dict(noted) if isinstance(noted, dict) else {}


_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def _expected(details: ErrorDetails, field: FieldInfo | None) -> str:
    """`a whole number`, `a number > 0 and <= 1`."""
    context = details.get("ctx", {})
    if not _SIGNS.keys() & context:
        known = _EXPECTED.get(details["type"])
        return f"accepted ({details['msg']})" if known is None else known.format(**context)
    bounds = [] if field is None else field.metadata
    limits = {sign: getattr(bound, sign) for bound in bounds for sign in _SIGNS if hasattr(bound, sign)}
    if details["type"].startswith("greater"):
        # A number of millions is no help to who asks for less than the smallest.
        limits = {sign: limit for sign, limit in limits.items() if limit <= 1000}
    limits |= context
    # Floats without their `.0`, and whole numbers with all their digits.
    shown = {sign: limit if isinstance(limit, int) else f"{limit:g}" for sign, limit in limits.items()}
    return "a number " + " and ".join(f"{text} {shown[sign]}" for sign, text in _SIGNS.items() if sign in shown)


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
    everywhere = [known for known, _ in all_keys(schema)]
    prefix = "".join(f"{part}." for part in block)
    here = [known for known in everywhere if known.startswith(prefix) and "." not in known[len(prefix) :]]
    if (close := closest(name, [known[len(prefix) :] for known in here])) is not None:
        return did_you_mean(f"{prefix}{close}")
    by_last = {known.rpartition(".")[2]: known for known in reversed(everywhere)}
    elsewhere = closest(name, by_last, cutoff=0.8)
    return suggest(name, here) if elsewhere is None else did_you_mean(by_last[elsewhere])


def all_keys(schema: type[pydantic.BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of a config as `eap.ig_steps`, with its field."""
    for name, field in schema.model_fields.items():
        yield f"{prefix}{name}", field
        # Blocks in a dictionary go by names of the user's own.
        for block in () if typing.get_origin(field.annotation) is dict else blocks_in(field.annotation):
            yield from all_keys(block, f"{prefix}{name}.")


def blocks_in(annotation: Any) -> list[type[pydantic.BaseModel]]:
    """The schemas of blocks that an annotation names, wherever they stand in it (`CspaKeys | None`)."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [annotation]
    return [block for part in typing.get_args(annotation) for block in blocks_in(part)]
