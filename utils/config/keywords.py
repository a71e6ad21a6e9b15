"""Settings from the keywords of a caller in Python, with errors in the caller's words."""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

import pydantic

from .explain import explain

Schema = TypeVar("Schema", bound=pydantic.BaseModel)


def validated(schema: type[Schema], values: dict[str, Any], given: dict[str, Any]) -> Schema:
    """Settings from values, some of which the caller gave; a TypeError or a ValueError if one is wrong."""
    try:
        return schema.model_validate_json(json.dumps(values, default=_plain), strict=True)
    except pydantic.ValidationError as error:
        lines = [line.removeprefix("command line: ") for line in explain(error, schema, given, None, [])]
        lines = [re.sub(r"write it in the config or (pass \S+) on the command line", r"\1", line) for line in lines]
        is_type = all(one["type"].endswith("_type") for one in error.errors())
        raise (TypeError if is_type else ValueError)("\n".join(map(_as_keyword, lines))) from None


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy and torch, and ranges, as those of Python; a path, or anything else, as text."""
    return value.tolist() if hasattr(value, "tolist") else list(value) if isinstance(value, range) else str(value)


def _as_keyword(line: str) -> str:
    """`n_prompts: 0 is not ...` as `n_prompts=0: not ...`, with Python's constants."""
    line = re.sub(r"^([\w.]+): (\S+|'.*?') is not ", r"\1=\2: not ", line)
    for yaml, python in {"null": "None", "NaN": "nan", "Infinity": "inf", "true": "True", "false": "False"}.items():
        line = re.sub(rf"(=|not |or |default: ){yaml}\b", rf"\1{python}", line)
    return line
