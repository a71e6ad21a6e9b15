"""The tables in the documentation, written from the code.

    python -m tools.reference        (or: make docs)

A page asks for a table with `<!-- table: keys -->`, and the table ends at `<!-- end -->`. What stands outside is
written by hand. `TABLES` says which tables there are.
"""

from __future__ import annotations

import ast
import importlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pydantic
from pydantic_core import PydanticUndefined

from circuits_over_time.edge_attribution_patching.model.architecture_table import ARCHITECTURES
from circuits_over_time.utils.base.errors import shortened
from circuits_over_time.utils.base.progress import configure_logging
from circuits_over_time.utils.comparison.keys import ComparisonConfig
from circuits_over_time.utils.config.explain import blocks_in
from circuits_over_time.utils.config.keys import BaseConfig, TaskConfig, is_execution
from circuits_over_time.utils.models.known_families import FAMILIES, Damage, FamilyRecord
from circuits_over_time.utils.models.weight_files import TRAINING_FOLDERS
from circuits_over_time.utils.results.comparison import COMPARISONS
from circuits_over_time.utils.results.kinds import KINDS, WITHOUT_STEPS
from circuits_over_time.utils.sweep.suite import SuiteConfig, find_analysis
from circuits_over_time.utils.tasks.metrics import ALL_METRICS
from circuits_over_time.utils.tasks.registry import TASKS
from circuits_over_time.utils.toy.keys import FamilyConfig

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("configs/README.md", "docs/results.md", "docs/models.md", "docs/tasks.md")
PLACE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

Schema = type[pydantic.BaseModel]
NO_ANALYSIS: dict[str, Schema] = {
    "check_checkpoints.py": importlib.import_module("circuits_over_time.check_checkpoints").CheckConfig,
    "compare_circuits.py": ComparisonConfig,
    "make_toy_checkpoints.py": FamilyConfig,
    "run_suite.py": SuiteConfig,
}
"""Root scripts that measure nothing, with their keys."""


def document(page: str) -> str:
    """The page with its tables as the code has them; a ValueError for a marker of no table, or without an end."""

    def rewrite(place: re.Match[str]) -> str:
        whole, marker, name, end = place[0], *place.groups()
        if name not in TABLES or whole.count("<!-- table:") > 1:
            raise ValueError(f"{marker.strip()}: no such table, or no <!-- end --> before the next marker")
        return f"{marker}\n{TABLES[name]()}\n{end}"

    return PLACE.sub(rewrite, page)


def keys() -> str:
    """The keys of every script: first those that all share, then each script's own."""
    shared: dict[str, Schema] = {"Every script": BaseConfig, "Every script with tasks": TaskConfig}
    sections = shared | {script: schema for script in scripts() if (schema := schema_of(script))}
    return "\n".join(keys_of(schema, heading, shared) for heading, schema in sections.items())


def keys_of(schema: Schema, heading: str, shared: dict[str, Schema]) -> str:
    """One schema's section, without the keys that it inherits from a shared one (heading -> schema)."""
    text = f"## {heading}\n\n" + (f"{_summary(ROOT / heading)}\n\n" if heading.endswith(".py") else "")
    bases = {above: base for above, base in shared.items() if base in schema.__mro__[1:]}
    inherited = {row for base in bases.values() for row in _rows(base)}
    rows = [row for row in _rows(schema) if row not in inherited]
    if bases:
        above = [*bases][-1].lower()
        text += f"The keys of [{above}](#{above.replace(' ', '-')}){', and' if rows else '.'}\n\n"
    return text + (table(("key", "default", "meaning", "free"), rows) if rows else "")


def _rows(schema: Schema, values: pydantic.BaseModel | None = None, prefix: str = "") -> Iterator[tuple[str, ...]]:
    """(key, default, meaning, free) of every key, a block's below it."""
    values = values or schema.model_construct()
    for name, info in schema.model_fields.items():
        default, blocks = getattr(values, name, PydanticUndefined), blocks_in(info.annotation)
        meaning = info.description or (blocks[0].__doc__ if blocks else "") or ""
        shown = "" if isinstance(default, pydantic.BaseModel) else _shown(default)
        yield f"`{prefix}{name}`", shown, meaning, "yes" if is_execution(info) else ""
        for block in blocks:
            below = f"{prefix}{name}.{'NAME.' * isinstance(default, dict)}"
            yield from _rows(block, default if isinstance(default, block) else None, below)


def columns() -> str:
    """The files of every script, column by column."""
    head = ("file", "column", "meaning")
    return "\n".join(f"### {script}\n\n{table(head, rows)}" for script in scripts() if (rows := [*_files(script)]))


def _files(script: str) -> Iterator[tuple[str, ...]]:
    files: list[tuple[str, Mapping[str, str]]] = []
    for kind in (*KINDS.values(), *WITHOUT_STEPS):
        if kind.script == script:
            files.append((f"{kind.name}/.../step*.csv", kind.columns))
            files += [(f"{kind.name}/.../step*{suffix}", {"": text}) for suffix, text in kind.companions.items()]
            files += [(f"{kind.name}/.../{name}.csv", columns) for name, columns in kind.summaries.items()]
    if script == "compare_circuits.py":
        files += [(f"comparison/{name}.csv", columns) for name, columns in COMPARISONS.items()]
    for file, columns in files:
        for number, (column, meaning) in enumerate(columns.items()):
            yield "" if number else f"`{file}`", f"`{column}`" if column else "", meaning


def figures() -> str:
    """Every figure script with the first line of its docstring, where file names stand in brackets."""
    paths = sorted((ROOT / "plotting").glob("plot_*.py"))
    rows = ((f"`{path.name}`", re.sub(r"\((figures/\S+)\)", r"(`\1`)", _summary(path))) for path in paths)
    return table(("script", "what it does"), rows)


def tasks() -> str:
    """The built-in tasks, with the first line of each module's docstring."""
    rows = (
        (f"`{name}`", _summary(ROOT / "utils" / "tasks" / f"{name}.py"), f"`{task.primary}`")
        for name, task in TASKS.items()
    )
    return table(("task", "about", "primary metric"), rows)


def metrics() -> str:
    """The metrics, with the docstring of each function."""
    rows = ((f"`{name}`", one.function.__doc__ or "", "yes" * one.differentiable) for name, one in ALL_METRICS.items())
    return table(("metric", "of one prompt", "differentiable"), rows)


def families() -> str:
    """The known families of checkpoints, and what is known to be wrong with them."""
    start = {True: "yes", False: "no", None: "not known"}
    rows = (
        (_some(family.models), start[family.prepend_bos], "<br>".join(_trouble(d, family) for d in family.damage))
        for family in FAMILIES
    )
    return table(("models", "trained with a start token", "known trouble"), rows)


def architectures() -> str:
    """The architectures that can be read."""
    return ", ".join(f"`{name}`" for name in sorted(ARCHITECTURES)) + "\n"


def training_folders() -> str:
    """What training libraries leave at a step, and what to do with it."""
    shown = {"folder": "STEP", "parent": "RUN", "name": "NAME", "file": "FOLDER"}
    rows = [(one["library"], one["holds"], one["way_out"]) for one in TRAINING_FOLDERS["read"]]
    rows += [(one["library"], one["holds"], one["way_out"].format(**shown)) for one in TRAINING_FOLDERS["refused"]]
    return table(("written by", "what is there", "what to do"), rows)


TABLES: dict[str, Callable[[], str]] = {
    table_of.__name__: table_of
    for table_of in (keys, columns, figures, tasks, metrics, families, architectures, training_folders)
}


def scripts() -> list[str]:
    """The root scripts, those that measure first and in the order of the kinds of results."""
    measuring = [kind.script for kind in KINDS.values()]
    return list(dict.fromkeys([*measuring, *sorted(path.name for path in ROOT.glob("*.py"))]))


def schema_of(script: str) -> Schema | None:
    """The keys of a root script; None for the library, which has none."""
    measuring = {kind.script for kind in KINDS.values()}
    return find_analysis(script).schema if script in measuring else NO_ANALYSIS.get(script)


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    cells = [
        [" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in (head, ("---",) * len(head), *rows)
    ]
    return "".join("|" + "".join(f" {cell} |" if cell else " |" for cell in row) + "\n" for row in cells)


def _summary(path: Path) -> str:
    """The first line of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].rstrip(":")


def _trouble(damage: Damage, family: FamilyRecord) -> str:
    models = "every model" if len(damage.models) == len(family.models) > 1 else _some(damage.models)
    steps = f", step{'s' * (len(damage.steps) > 1)} {' and '.join(map(str, damage.steps))}" if damage.steps else ""
    return f"{models}{steps}: {damage.problem} ({damage.source})"


def _some(names: Iterable[str]) -> str:
    return shortened([f"`{name}`" for name in names], 5)


def _shown(default: Any) -> str:
    if default is PydanticUndefined:
        return "(needed)"
    if isinstance(default, list | tuple):
        return f"`[{', '.join(str(item) for item in default)}]`"
    return f"`{default}`" if isinstance(default, str | Path) else f"`{json.dumps(default, default=str)}`"


def main() -> None:
    configure_logging()
    for name in PAGES:
        before = (ROOT / name).read_text(encoding="utf-8")
        (ROOT / name).write_text(after := document(before), encoding="utf-8")
        log.info("%s: %s", name, "was up to date" if after == before else "is new")


if __name__ == "__main__":
    main()
