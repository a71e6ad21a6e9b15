"""The tables of configs/README.md, written from the code: keys, columns of results, families of models.

    python -m utils.config.document        (or: make docs)

Markers on the page say which table goes where. `<!-- keys: utils.circuits.keys.CircuitsConfig -->` asks for the keys of that
schema, `<!-- results: get_circuits_over_time.py -->` for the files that a script writes, `<!-- models: families -->`
for the known families and `<!-- models: architectures -->` for the architectures. Each table ends at `<!-- end -->`;
everything outside them is written by hand.

A key is explained once, in the first table that has it. Later tables leave out the keys that they inherit from a schema
above, and point to that table where a block of their own holds the same key.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from circuits_over_time.edge_attribution_patching.model.architecture_table import ARCHITECTURES
from circuits_over_time.utils.base.progress import configure_logging
from circuits_over_time.utils.config.explain import blocks_in
from circuits_over_time.utils.config.keys import is_execution
from circuits_over_time.utils.models.known_families import FAMILIES, Damage, FamilyRecord
from circuits_over_time.utils.results.comparison import COMPARISONS
from circuits_over_time.utils.results.kinds import KINDS, WITHOUT_STEPS, ResultSchema

log = logging.getLogger(__name__)

PAGE = Path(__file__).resolve().parents[2] / "configs" / "README.md"
PLACE = re.compile(r"(<!-- (keys|results|models): (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)

Schema = type[pydantic.BaseModel]
Key = tuple[Schema, str]
"""The class that declares a key, and the key's name: the same in every schema that inherits it."""


@dataclass(frozen=True)
class Row:
    """One line of a table of keys: a key with its meaning, or (`meaning` empty) one that is explained at `place`."""

    key: str
    default: str
    meaning: str = ""
    free: bool = False
    place: str = ""


@dataclass
class Page:
    """What the page has explained so far.

    Attributes:
        places: key -> heading of the section that explains it.
        schemas: schema -> heading of the section with its table.
    """

    places: dict[Key, str] = field(default_factory=dict)
    schemas: dict[Schema, str] = field(default_factory=dict)

    def keys(self, schema: Schema, heading: str) -> str:
        """A schema's table, without the keys of the schemas above that it inherits from."""
        above = [known for known in self.schemas if known in schema.__mro__]
        inherited = {name for known in above for name in known.model_fields if _key(schema, name) == _key(known, name)}
        rows = list(self._rows(schema, schema.model_construct(), heading, set(inherited), ""))
        nearest = [known for known in above if not any(known in other.__mro__[1:] for other in above)]
        links = " and ".join(_link(self.schemas[known]) for known in nearest)
        self.schemas[schema] = heading
        if not rows:
            return f"It has the keys of {links} and no others.\n"
        return (f"In addition to {links}:\n\n" if links else "") + _table(rows)

    def _rows(
        self, schema: Schema, values: pydantic.BaseModel, heading: str, skipped: set[str], prefix: str
    ) -> Iterator[Row]:
        for name, info in schema.model_fields.items():
            if name in skipped:
                continue
            key, written = _key(schema, name), f"{prefix}{name}"
            default = getattr(values, name, PydanticUndefined)
            usual = info.get_default() == default
            inner = blocks_in(info.annotation)
            if usual and key in self.places:
                yield Row(written, _shown(default), place=self.places[key])
                continue
            self.places.setdefault(key, heading)
            meaning = info.description or (inner[0].__doc__ if inner else "") or ""
            shown = "" if isinstance(default, pydantic.BaseModel) else _shown(default)
            yield Row(written, shown, _meaning(meaning, info), is_execution(info))
            for block in inner:
                given = default if isinstance(default, block) else block.model_construct()
                within = list(self._rows(block, given, heading, set(), f"{written}."))
                places = {row.place for row in within}
                yield from within if len(places) > 1 or "" in places else [Row(f"{written}.*", "", place=places.pop())]


def document(page: str) -> str:
    """The page with its tables as the code has them.

    Raises:
        ValueError: if there is nothing of a marker's name, or it has no end.
    """
    so_far = Page()

    def rewrite(place: re.Match[str]) -> str:
        marker, what, name, end = place.groups()
        if re.search(r"<!-- (keys|results|models):", place[0][len(marker) :]):
            raise ValueError(f"{marker.strip()}: no <!-- end --> before the next marker")
        if what == "results":
            table = results_table(name)
        elif what == "models":
            table = models_table(name)
        else:
            heading = re.findall(r"^#+ (.*)$", page[: place.start()], re.MULTILINE)[-1]
            table = so_far.keys(find_schema(name), heading)
        return f"{marker}\n{table}\n{end}"

    return PLACE.sub(rewrite, page)


def documented(page: str, what: Literal["keys", "results", "models"]) -> list[str]:
    """The schemas (`keys`), scripts (`results`) or lists (`models`) that have a table on the page."""
    return [place[3] for place in PLACE.finditer(page) if place[2] == what]


def find_schema(name: str) -> Schema:
    """The schema of a dotted name, `utils.circuits.CircuitsConfig`.

    Raises:
        ValueError: if there is none.
    """
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(f"circuits_over_time.{module}"), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"<!-- keys: {name} -->: there is no such schema ({error})") from None
    if not (isinstance(found, type) and issubclass(found, pydantic.BaseModel)):
        raise ValueError(f"<!-- keys: {name} -->: this is not a schema")
    return found


def results_table(script: str) -> str:
    """The files of a script, column by column.

    Raises:
        ValueError: if no kind of result comes from this script.
    """
    kinds = [kind for kind in (*KINDS.values(), *WITHOUT_STEPS) if kind.script == script]
    comparisons = [table for table in COMPARISONS.values() if table.script == script]
    if not kinds and not comparisons:
        raise ValueError(f"<!-- results: {script} -->: no kind of result names this script")
    lines = [_line("file", "column", "meaning"), _line("---", "---", "---")]
    for kind in kinds:
        lines += _files(kind)
    for table in comparisons:
        file = f"`comparison/{table.name}.csv`"
        for column, meaning in table.columns.items():
            lines.append(_line(file, f"`{column}`", _cell(meaning)))
            file = ""
    return "\n".join(lines) + "\n"


def _files(kind: ResultSchema) -> Iterator[str]:
    file = f"`{kind.name}/.../step*.csv`"
    for column, meaning in kind.columns.items():
        yield _line(file, f"`{column}`", _cell(meaning))
        file = ""
    for suffix, meaning in kind.companions.items():
        yield _line(f"`{kind.name}/.../step*{suffix}`", "", _cell(meaning))
    for name, columns in kind.summaries.items():
        file = f"`{kind.name}/.../{name}.csv`" + (", when a model's sweep ends" if kind.columns else "")
        for column, meaning in columns.items():
            yield _line(file, f"`{column}`", _cell(meaning))
            file = ""


def models_table(name: str) -> str:
    """The known families of checkpoints (`families`), or the architectures that can be read (`architectures`).

    Raises:
        ValueError: for another name.
    """
    if name == "architectures":
        return ", ".join(f"`{architecture}`" for architecture in sorted(ARCHITECTURES)) + "\n"
    if name != "families":
        raise ValueError(f"<!-- models: {name} -->: name families or architectures")
    lines = [_line("models", "trained with a start token", "known trouble"), _line("---", "---", "---")]
    for family in FAMILIES:
        start = {True: "yes", False: "no", None: "not known"}[family.prepend_bos]
        trouble = "<br>".join(_cell(_trouble(damage, family)) for damage in family.damage)
        lines.append(_line(_some(list(family.models)), start, trouble))
    return "\n".join(lines) + "\n"


def _trouble(damage: Damage, family: FamilyRecord) -> str:
    models = "every model" if len(damage.models) == len(family.models) > 1 else _some(list(damage.models))
    step = "step" if len(damage.steps) == 1 else "steps"
    steps = f", {step} {' and '.join(map(str, damage.steps))}" if damage.steps else ""
    return f"{models}{steps}: {damage.problem} ({damage.source})"


def _some(names: list[str], most: int = 5) -> str:
    """Names, of many only the first ones."""
    text = ", ".join(f"`{name}`" for name in names[:most])
    return text if len(names) <= most else f"{text} and {len(names) - most} more"


def _key(schema: Schema, name: str) -> Key:
    """Where a key is from: the first class that says this of it. A class that repeats a key adds nothing."""
    meaning = schema.model_fields[name].description
    schemas = [cls for cls in reversed(schema.__mro__) if issubclass(cls, pydantic.BaseModel)]
    named = [cls for cls in schemas if name in vars(cls).get("__annotations__", {})]
    return next((cls, name) for cls in named if cls.model_fields[name].description == meaning)


def _table(rows: list[Row]) -> str:
    lines = [_line("key", "default", "meaning", "free"), _line("---", "---", "---", "---")]
    while rows:
        row, *rows = rows
        if not row.place:
            lines.append(_line(f"`{row.key}`", row.default, row.meaning, "yes" if row.free else ""))
            continue
        names = [row.key]
        while rows and rows[0].place == row.place:
            names.append(rows.pop(0).key)
        lines.append(_line(", ".join(f"`{name}`" for name in names), "", f"As in {_link(row.place)}.", ""))
    return "\n".join(lines) + "\n"


def _link(heading: str) -> str:
    """A link to a section, by the anchor that GitHub gives its heading."""
    anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
    return f"[{heading}](#{anchor})"


def _meaning(text: str, info: FieldInfo) -> str:
    """A key's meaning, followed by its choices where the docstring does not name them all."""
    text = _cell(text)
    choices = [json.dumps(choice).strip('"') for choice in _choices(info.annotation)]
    if all(f"`{choice}`" in text for choice in choices):
        return text
    return f"{text.removesuffix('.')}: {', '.join(f'`{choice}`' for choice in choices)}."


def _choices(annotation: Any) -> list[Any]:
    """The literal values that an annotation names, wherever they stand in it."""
    if typing.get_origin(annotation) is Literal:
        return list(typing.get_args(annotation))
    return [choice for part in typing.get_args(annotation) for choice in _choices(part)]


def _line(*cells: str) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _shown(default: Any) -> str:
    if default is PydanticUndefined:
        return "(needed)"
    if isinstance(default, list | tuple):
        return f"`[{', '.join(str(item) for item in default)}]`"
    if isinstance(default, str | Path):
        return f"`{default}`"
    return f"`{json.dumps(default, default=str)}`"


def main() -> None:
    """Write the page anew."""
    configure_logging()
    before = PAGE.read_text(encoding="utf-8")
    after = document(before)
    PAGE.write_text(after, encoding="utf-8")
    log.info("%s: %s", PAGE, "its tables were up to date" if after == before else "its tables are new")


if __name__ == "__main__":
    main()
