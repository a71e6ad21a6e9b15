"""Damaged results under everything that reads them: one line or sound numbers, never a traceback, and no code is run.

The fast part puts each kind of damage under the readers of tables, circuits and records, and every figure and the
comparison before folders in which everything is damaged in another way. The long part draws damage at random.
"""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from circuits_over_time.plotting import plot_task_performance
from circuits_over_time.plotting.parts.export import figure_main
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.results.checked import Damaged
from circuits_over_time.utils.results.store import Store, csv_bytes, read_csv
from tests.support.damage import (
    FIGURES,
    IN_REPORT,
    LIGHT,
    MODEL,
    READERS,
    RECORDS,
    SEEDS,
    TABLES,
    TENSORS,
    compared,
    make_results,
)

KINDS = [
    *((f"{name}, bare", "*.csv", TABLES[name]) for name in TABLES),
    *(
        (f"{name}, recorded", "*.csv", TABLES[name])
        for name in ("cut off", "infinity", "rows twice", "gone", "link loop")
    ),
    *((f"{name}, recorded", "*.pt", TENSORS[name]) for name in TENSORS),
    *((f"{name}, recorded", "run.json", RECORDS[name]) for name in RECORDS),
]
"""Name, the files it is done to, and the damage. In a `bare` folder no run.json has hashes."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `recorded` and `bare` of sound results, compared. Do not change them."""
    folder = tmp_path_factory.mktemp("sound")
    for name in ("recorded", "bare"):
        compared(make_results(folder / name, recorded=name == "recorded"))
    return folder


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where to put damaged results. A pickle that runs leaves a file in the working folder."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "results"
    assert not (tmp_path / "evil-was-here").exists()


def told(read: Callable[[Path], object], root: Path) -> None:
    """A reader reads a folder, or refuses it in one line."""
    line = ""
    try:
        read(root)
    except UserError as error:
        line = str(error)
    assert "\n" not in line


def files(root: Path, pattern: str) -> list[Path]:
    """One checkpoint's files of every kind, or all records."""
    if pattern == "run.json":
        return sorted(root.rglob(pattern))
    return sorted(path for step in (512, 10) for path in root.rglob(f"step{step:06d}{pattern[1:]}"))


@pytest.mark.parametrize(("name", "pattern", "damage"), KINDS, ids=[kind[0] + kind[1] for kind in KINDS])
def test_readers_name_what_is_damaged_and_read_the_rest(
    name: str, pattern: str, damage: Callable[[Path], None], sound: Path, results: Path
) -> None:
    def others(folder: str, names: list[str]) -> set[str]:
        # Where tables are damaged, those of other steps are looked at too, in one kind for all.
        kept = pattern == "*.csv" and f"/task_performance/{MODEL}" in folder
        return set() if kept else shutil.ignore_patterns("step143000*", "step000020*")(folder, names)

    shutil.copytree(sound / name.rpartition(", ")[2], results, ignore=others)
    damaged = files(results, pattern)
    assert damaged
    for path in damaged:
        damage(path)
    for read in LIGHT.values():
        told(read, results)
    if pattern == "*.csv" and not name.startswith(("gone", "link loop", "folder", "pipe")):
        # Those are not there. What is there is left out by name where it cannot be right.
        store, undamaged = Store(results), Store(sound / "recorded")
        kept = store.read_tables("task_performance", MODEL)
        all_rows = undamaged.read_tables("task_performance", MODEL)
        assert kept.equals(all_rows[all_rows["step"] != 512].reset_index(drop=True)), name
        (line,) = store.left_out
        path = results / "task_performance" / MODEL / "ioi" / "step000512.csv"
        assert line.startswith(f"step 512 of {path.parent} left out: {path} is damaged (")
        assert line.endswith(" repair=true")
        with pytest.raises(Damaged):
            store.folder("task_performance", MODEL, "ioi").read_table(512)
    if pattern == "*.pt":
        with pytest.raises(UserError):
            Store(results).folder("graphs", SEEDS[0], "ioi").read_circuit(10)


@pytest.mark.parametrize("number", range(2))
def test_figures_comparison_and_report_read_folders_where_everything_is_damaged(
    number: int, sound: Path, results: Path
) -> None:
    shutil.copytree(sound / ("recorded", "bare")[number], results)
    spoil(results, random.Random(number), share=0.3)
    for read in [*FIGURES.values(), READERS["comparison"]]:
        told(read, results)


def spoil(root: Path, rng: random.Random, share: float) -> None:
    """Damage files at random."""
    for path in sorted(path for path in root.rglob("*") if path.is_file() and ".parts" not in path.parts):
        if rng.random() < share:
            kinds = {".csv": TABLES, ".pt": TENSORS}.get(path.suffix, RECORDS)
            name = rng.choice(list(kinds))
            try:
                kinds[name](path)
            except (ValueError, KeyError):  # A table without a column of numbers, and the like.
                path.write_bytes(b"")


@pytest.mark.endurance
@pytest.mark.parametrize("number", range(40))
def test_random_damage_under_every_reader(number: int, sound: Path, results: Path) -> None:
    rng = random.Random(f"damage {number}")
    shutil.copytree(sound / rng.choice(["recorded", "bare"]), results)
    spoil(results, rng, share=rng.choice([0.02, 0.1, 0.5, 1.0]))
    for name, read in READERS.items():
        if number % 4 == 0 or name not in IN_REPORT:
            told(read, results)


def test_results_in_a_renamed_folder_are_left_out_by_every_figure(sound: Path, results: Path) -> None:
    shutil.copytree(sound / "recorded", results)
    for path in list(results.glob("*/*")):
        if path.is_dir():
            path.rename(path.with_name(f'<img src=x onerror=alert(1)>"{path.name}'))
    store = Store(results)
    with pytest.raises(UserError, match="damaged results only"):
        store.read_tables("task_performance")
    (line,) = store.left_out
    assert f"(is of model {MODEL}, not <img" in line
    assert "give its folder its old name back, or run: " in line
    for read in [*FIGURES.values(), READERS["comparison"], READERS["report"]]:
        told(read, results)


def test_the_page_of_a_figure_says_what_is_left_out_and_how_to_mend_it(sound: Path, results: Path) -> None:
    shutil.copytree(sound / "recorded", results)
    table = results / "task_performance" / MODEL / "ioi" / "step000512.csv"
    table.write_bytes(csv_bytes(read_csv(table).assign(value=99.0)))
    assert figure_main(plot_task_performance.FIGURE, ["-r", str(results), "-o", "figures"]) == 0
    page = Path("figures/task_performance.html").read_text()
    assert (
        f"step 512 of {table.parent} left out: {table} is damaged (not what was written); to measure it again" in page
    )
    assert "repair=true</p>" in page
    sound_page = ["-r", str(sound / "recorded"), "-o", "sound"]
    assert figure_main(plot_task_performance.FIGURE, sound_page) == 0
    assert "left out" not in Path("sound/task_performance.html").read_text().rpartition("</script>")[2]


def test_the_report_lists_what_is_left_out(sound: Path, results: Path) -> None:
    shutil.copytree(sound / "recorded" / "task_performance", results / "task_performance")
    (results / "task_performance" / MODEL / "ioi" / "step000512.csv").write_bytes(b"")
    page, _ = READERS["report"](results)  # type: ignore[misc]
    assert "task_performance/pythia-70m/ioi left out: " in page


def test_a_comparison_says_in_its_record_what_it_left_out(
    sound: Path, results: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(sound / "recorded", results)
    graphs = Store(results).folder("graphs", SEEDS[0], "ioi")
    graphs.file(10, ".pt").unlink()
    caplog.set_level(logging.ERROR, logger="circuits_over_time")
    similarity = compared(results)["similarity"]
    assert 10 not in set(similarity.loc[similarity["model"] == SEEDS[0], "step"])
    assert "step000010.pt is damaged (it is gone)" in (results / "comparison" / "run.json").read_text()
