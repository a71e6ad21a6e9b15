"""Equal weights where they should differ: found from metadata alone, whole or shard by shard."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuits_over_time.utils.base import files
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.base.files import file_sha256
from circuits_over_time.utils.integrity.duplicates import (
    CheckpointHashes,
    DuplicateReport,
    _shared,
    find_duplicates,
    steps_to_leave_out,
)
from circuits_over_time.utils.models import local
from circuits_over_time.utils.models.family import Family, HubFamily, LocalFamily, resolve_family
from circuits_over_time.utils.models.known_families import FAMILIES, Damage
from tests.support.hub_server import HubServer
from tests.support.tiny_models import save_family


def problems(report: DuplicateReport) -> dict[tuple[int, str], set[str]]:
    """(step, problem) -> the others."""
    found: dict[tuple[int, str], set[str]] = {}
    for one in report.shared:
        found.setdefault((one.step, one.problem), set()).add(str(one.other))
    return found


def shards(*contents: int) -> dict[str, bytes]:
    total = len(contents)
    files = {
        f"model-{number:05}-of-{total:05}.safetensors": bytes([content]) * 50
        for number, content in enumerate(contents, 1)
    }
    index = {"weight_map": {f"tensor{number}": name for number, name in enumerate(files)}}
    return files | {"model.safetensors.index.json": json.dumps(index).encode()}


def test_equal_weights_are_found_without_fetching_any(pythia: HubFamily, served: HubServer) -> None:
    report = find_duplicates(pythia)
    assert problems(report) == {(2000, "equal weights"): {"3000"}, (3000, "equal weights"): {"2000"}}
    assert served.downloads("") == []


def test_one_equal_shard_of_several_is_found(served: HubServer, pythia: HubFamily) -> None:
    branches = served.repositories["EleutherAI/pythia-70m"]
    branches |= {"step0": shards(1, 2, 3), "step1000": shards(4, 5, 6), "step2000": shards(7, 5, 8)}
    branches["step3000"] = shards(9, 10, 11)
    report = find_duplicates(pythia)
    assert problems(report) == {(1000, "equal shard"): {"2000"}, (2000, "equal shard"): {"1000"}}
    table = report.table().set_index(["step", "file"])
    row = table.loc[(1000, "model-00002-of-00003.safetensors")]
    assert (row["problem"], row["same_as"], row["bytes"]) == ("equal shard", "2000", 50)
    assert len(table) == 12
    assert table["problem"].notna().sum() == 2


def test_a_step_that_holds_main_is_found_and_the_last_one_may(served: HubServer, tmp_path: Path) -> None:
    branches = served.repositories["EleutherAI/pythia-70m"]
    branches |= {"main": shards(9), "step0": shards(1), "step1000": shards(9), "step2000": shards(2)}
    branches["step3000"] = shards(9)
    family = resolve_family("pythia-70m", tmp_path)
    assert problems(find_duplicates(family)) == {(1000, "equal weights"): {"3000", "main"}}


def test_formats_of_the_same_step_are_compared_with_both_of_the_other(served: HubServer, pythia: HubFamily) -> None:
    branches = served.repositories["EleutherAI/pythia-70m"]
    branches["step0"] = {"model.safetensors": b"new 0", "pytorch_model.bin": b"old 0"}
    branches["step1000"] = {"pytorch_model.bin": b"old 0"}
    branches["step2000"] = {"model.safetensors": b"new 2"}
    branches["step3000"] = {"model.safetensors": b"new 3"}
    assert problems(find_duplicates(pythia)) == {(0, "equal weights"): {"1000"}, (1000, "equal weights"): {"0"}}


def test_missing_and_empty_revisions_are_in_the_table(served: HubServer, pythia: HubFamily) -> None:
    served.missing.add("step1000")
    served.repositories["EleutherAI/pythia-70m"]["step0"] = {"config.json": b"{}"}
    report = find_duplicates(pythia)
    assert report.missing == {
        0: "it holds no weights",
        1000: "checkpoints: revision step1000 of EleutherAI/pythia-70m is not on the hub; leave that step out",
    }
    table = report.table().set_index("step")
    assert table.loc[1000, "problem"].startswith("missing: checkpoints: revision step1000")


def test_steps_that_are_known_to_be_equal_for_a_reason_are_no_finding(served: HubServer, tmp_path: Path) -> None:
    branches = served.repositories["EleutherAI/pythia-70m"]
    branches |= {"step1": branches["step0"], "step2000": shards(5)}
    family = resolve_family("pythia-70m", tmp_path)
    report = find_duplicates(family)
    assert problems(report) == {(0, "equal as expected"): {"1"}, (1, "equal as expected"): {"0"}}
    assert report.suspicious == {}
    assert steps_to_leave_out(family, [0, 1], "error") == []
    assert all(damage.expected == (damage.steps == [0, 1]) for damage in FAMILIES[0].damage)


def test_a_sweep_over_equal_steps_is_refused_with_their_names(pythia: HubFamily) -> None:
    with pytest.raises(UserError) as caught:
        steps_to_leave_out(pythia, [0, 2000], "error")
    assert str(caught.value) == (
        "pythia-70m: step 2000 holds the weights of step 3000; leave these steps out of checkpoints, or pass "
        "on_duplicate_weights=skip or warn (python check_checkpoints.py lists all)"
    )
    assert steps_to_leave_out(pythia, [0, 1000], "error") == []
    assert steps_to_leave_out(pythia, [0, 2000, 3000], "skip") == [2000, 3000]
    assert steps_to_leave_out(pythia, [0, 2000, 3000], "warn") == []


def test_many_wrong_steps_are_told_in_one_line(served: HubServer, tmp_path: Path) -> None:
    branches = served.repositories["EleutherAI/pythia-70m"]
    branches |= {f"step{step}": shards(9) for step in range(4000, 44_000, 1000)}
    family = resolve_family("pythia-70m", tmp_path)
    with pytest.raises(UserError) as caught:
        steps_to_leave_out(family, family.steps, "error")
    assert "\n" not in str(caught.value)
    assert "and 32 more steps are like this" in str(caught.value)


def test_known_damage_is_named(pythia: HubFamily, caplog: pytest.LogCaptureFixture) -> None:
    damage = (Damage(("pythia-70m",), (1000,), "misses weights", "somebody"),)
    family = dataclasses.replace(pythia, damage=damage)
    with caplog.at_level(logging.WARNING):
        steps_to_leave_out(family, [1000], "warn")
    assert "pythia-70m step 1000 is known for trouble: it misses weights (somebody)" in caplog.text
    known = find_duplicates(family).table().set_index("step")["known"]
    assert (known[1000], known[0]) == ("misses weights (somebody)", "")


def test_without_the_hub_a_sweep_is_warned_and_goes_on(
    served: HubServer, pythia: HubFamily, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    served.status = 503
    with caplog.at_level(logging.WARNING):
        assert steps_to_leave_out(pythia, [0, 1000], "error") == []
    assert "pythia-70m: the weights of steps 0, 1000 are not checked for duplicates: model: the hub answered 503" in (
        caplog.text
    )


def test_what_is_on_disk_is_compared_without_the_hub(served: HubServer, pythia: HubFamily, tmp_path: Path) -> None:
    find_duplicates(pythia)
    served.status = 503
    later = resolve_family("pythia-70m", tmp_path)
    with pytest.raises(UserError, match="step 2000 holds the weights of step 3000"):
        steps_to_leave_out(later, [2000], "error")


@pytest.mark.parametrize("exact", [True, False])
def test_local_files_are_compared(exact: bool, twin_family: Path, tmp_path: Path) -> None:
    family = resolve_family(str(twin_family), tmp_path)
    report = find_duplicates(family, exact=exact)
    assert problems(report) == {(20, "equal weights"): {"30"}, (30, "equal weights"): {"20"}}
    file = twin_family / "step20" / "model.safetensors"
    assert report.held[20].hashes == {"model.safetensors": file_sha256(file)}


def test_a_sweep_reads_local_files_whole_only_where_samples_are_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = resolve_family(str(save_family(tmp_path / "own", {0: 0, 10: 1, 20: 2, 30: 2})), tmp_path)
    assert isinstance(family, LocalFamily)
    read: list[str] = []
    original = files.file_sha256

    def watched(path: Path) -> str:
        read.append(path.parent.name)
        return original(path)

    monkeypatch.setattr(files, "file_sha256", watched)
    find_duplicates(family, exact=False)
    assert sorted(read) == ["step20", "step30"]


def test_files_whose_samples_are_equal_but_not_their_content_differ(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "own", {0: 0, 10: 1})
    size = 40_000_000
    for step, place in ((0, 100_000), (10, 150_000)):  # between the samples
        with (folder / f"step{step}" / "model.safetensors").open("wb") as file:
            file.truncate(size)
            file.seek(place)
            file.write(b"x")
    family = resolve_family(str(folder), tmp_path)
    assert isinstance(family, LocalFamily)
    samples = [local.fingerprints(local.stamps(family.folders[step])) for step in (0, 10)]
    assert samples[0] == samples[1]
    assert find_duplicates(family, exact=False).shared == ()


CONTENTS = st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=3), min_size=1, max_size=6)


@given(contents=CONTENTS, of_main=st.lists(st.integers(0, 8), max_size=3))
def test_findings_are_those_of_comparing_every_pair(contents: list[list[int]], of_main: list[int]) -> None:
    held = {
        step: CheckpointHashes("", {f"f{n}": str(c) for n, c in enumerate(files)})
        for step, files in enumerate(contents)
    }
    main = CheckpointHashes("main", {f"f{n}": str(c) for n, c in enumerate(of_main)})
    family = Family("any", "any", tuple(held), dict.fromkeys(held, 0))
    found = {(one.step, one.file, str(one.other)) for one in _shared(family, held, main)}
    last = len(contents) - 1
    right = bool(set(contents[last]) & set(of_main))
    expected = set()
    for step, own in enumerate(contents):
        for n, content in enumerate(own):
            if step == last and right:
                continue
            others = {str(other) for other, theirs in enumerate(contents) if other != step and content in theirs}
            expected |= {(step, f"f{n}", other) for other in others}
            if content in of_main and step != last:
                expected.add((step, f"f{n}", "main"))
    assert found == expected
