"""Claims: who holds one, when it is stale, and what is left behind."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.sweep.claims import Claims, Owner

NAME = "demo/tiny/step000010"


def put(root: Path, owner: Owner, name: str = NAME, age: float = 0.0) -> Path:
    """A claim of another process, whose heart beat `age` seconds ago."""
    path = root / ".claims" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(owner)))
    os.utime(path, (time.time() - age,) * 2)
    return path


def elsewhere(token: str = "t") -> Owner:
    """A process on another machine, whose id says nothing here."""
    return Owner("another", os.getpid(), "another boot", "1", token)


def ended() -> Owner:
    """A process of this machine that has ended."""
    mine = Claims(Path("unused")).owner
    child = multiprocessing.get_context("fork").Process(target=int)
    child.start()
    pid = child.pid
    child.join()
    assert pid is not None
    return dataclasses.replace(mine, pid=pid, started="1", token="dead")


def test_one_of_two_gets_a_claim_and_the_other_gets_it_when_it_is_given_up(tmp_path: Path) -> None:
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        assert first.acquire([NAME])
        assert not second.acquire([NAME])
        assert second.holders("demo/tiny") == {NAME: first.owner}
        assert first.holders("demo/tiny") == {}
        first.release([NAME])
        assert second.acquire([NAME])


def test_a_claim_names_host_process_and_start(tmp_path: Path) -> None:
    with Claims(tmp_path) as claims:
        claims.acquire([NAME])
        said = json.loads((tmp_path / ".claims" / NAME).read_text())
        assert said["pid"] == os.getpid()
        assert said["host"] == os.uname().nodename
        assert claims.others("demo/tiny") == []


def test_all_or_none_of_several_are_claimed(tmp_path: Path) -> None:
    put(tmp_path, elsewhere(), "b/tiny/step000010")
    with Claims(tmp_path) as claims:
        assert not claims.acquire(["a/tiny/step000010", "b/tiny/step000010"])
        assert not (tmp_path / ".claims" / "a/tiny/step000010").exists()


def test_a_dead_process_of_this_machine_holds_nothing(tmp_path: Path) -> None:
    put(tmp_path, ended())
    with Claims(tmp_path) as claims:
        assert claims.others("demo/tiny") == []
        assert claims.acquire([NAME])


def test_a_later_process_with_the_same_id_is_not_the_owner(tmp_path: Path) -> None:
    mine = Claims(tmp_path).owner
    put(tmp_path, dataclasses.replace(mine, started="1", token="before"))
    with Claims(tmp_path) as claims:
        assert claims.acquire([NAME])


@pytest.mark.parametrize(("age", "taken_over"), [(50.0, False), (200.0, True)])
def test_elsewhere_only_the_heartbeat_tells(age: float, taken_over: bool, tmp_path: Path) -> None:
    put(tmp_path, elsewhere(), age=age)
    with Claims(tmp_path, stale=120) as claims:
        assert (claims.others("demo/tiny") == []) is taken_over
        assert claims.acquire([NAME]) is taken_over


def test_an_unreadable_claim_goes_stale_too(tmp_path: Path) -> None:
    path = put(tmp_path, elsewhere())
    path.write_bytes(b"")
    with Claims(tmp_path, stale=120) as claims:
        assert not claims.acquire([NAME])
        os.utime(path, (1, 1))
        assert claims.acquire([NAME])


def test_the_heart_beats_while_a_claim_is_held(tmp_path: Path) -> None:
    with Claims(tmp_path, beat=0.01) as claims:
        claims.acquire([NAME])
        path = tmp_path / ".claims" / NAME
        os.utime(path, (1, 1))
        for _ in range(500):
            if path.stat().st_mtime > 1:
                break
            time.sleep(0.01)
        assert path.stat().st_mtime > 1


def test_claims_of_one_process_are_one_file_that_others_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"demo/tiny/step{step:06d}" for step in range(5)]
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        assert first.acquire(names)
        assert len({(tmp_path / ".claims" / name).stat().st_ino for name in names}) == 1
        read = list[Path]()
        monkeypatch.setattr(
            "circuits_over_time.utils.sweep.claims._read", lambda path: read.append(path) or first.owner
        )
        assert second.holders("demo/tiny") == dict.fromkeys(names, first.owner)
        assert second.holders("demo/tiny") == dict.fromkeys(names, first.owner)
        assert len(read) == 1


def test_every_claim_of_a_dead_process_is_seen(tmp_path: Path) -> None:
    """All of its claims are one file, by whatever name the first of them is found."""
    first = put(tmp_path, ended(), "demo/tiny/step000010")
    for step in (0, 20, 30):
        os.link(first, first.with_name(f"step{step:06d}"))
    claims = Claims(tmp_path)
    names = {f"demo/tiny/step{step:06d}" for step in (0, 10, 20, 30)}
    for _ in range(2):
        assert claims.holders("demo/tiny") == dict.fromkeys(names)
    assert claims.acquire(sorted(names))


def test_a_claim_that_cannot_be_read_is_no_free_checkpoint_and_goes_stale(tmp_path: Path) -> None:
    path = put(tmp_path, elsewhere(), "demo/tiny/step000010")
    path.write_text("{")
    with Claims(tmp_path, stale=5.0) as claims:
        assert claims.holders("demo/tiny") == {"demo/tiny/step000010": None}
        assert not claims.acquire(["demo/tiny/step000010"])
        os.utime(path, (time.time() - 6, time.time() - 6))
        assert claims.acquire(["demo/tiny/step000010"])


def test_after_a_pause_a_new_claim_is_not_as_old_as_the_last_one(tmp_path: Path) -> None:
    with Claims(tmp_path, stale=120) as first, Claims(tmp_path, stale=120) as second:
        first.acquire([NAME])
        first.release([NAME])
        for path in (tmp_path / ".claims").glob(".*"):
            os.utime(path, (1, 1))
        first.acquire([NAME])
        elsewhere_now = dataclasses.replace(first.owner, machine="another boot")
        (tmp_path / ".claims" / NAME).write_text(json.dumps(asdict(elsewhere_now)))  # Its heartbeat alone tells.
        assert not second.acquire([NAME])


def test_who_comes_late_to_an_unclaimed_checkpoint_does_not_look_at_the_claim(tmp_path: Path) -> None:
    put(tmp_path, ended())
    with Claims(tmp_path) as claims:
        assert not claims.acquire([NAME], unclaimed=True)
        assert claims.acquire([NAME])


def test_a_claim_that_another_took_over_is_left_alone(tmp_path: Path) -> None:
    with Claims(tmp_path) as claims:
        claims.acquire([NAME])
        path = put(tmp_path, elsewhere())
        claims.release([NAME])
        assert path.exists()


def test_a_live_claim_that_is_taken_by_mistake_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at a stale claim and its removal, another process took it over."""
    put(tmp_path, ended())
    rename = os.rename

    def late(old: Any, new: Any) -> None:
        put(tmp_path, elsewhere("quicker"))
        rename(old, new)

    with Claims(tmp_path) as claims:
        monkeypatch.setattr(os, "rename", late)
        assert not claims.acquire([NAME])
        monkeypatch.undo()
        assert json.loads((tmp_path / ".claims" / NAME).read_text())["token"] == "quicker"


def test_without_hard_links_a_claim_is_still_exclusive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        assert first.acquire([NAME])
        assert not second.acquire([NAME])
        assert second.holders("demo/tiny") == {NAME: first.owner}


def test_nothing_is_left_at_the_end_not_even_of_killed_processes(tmp_path: Path) -> None:
    put(tmp_path, ended(), "demo/tiny/step000020")
    put(tmp_path, ended(), "demo/tiny/.step000030.dead")
    with Claims(tmp_path) as claims:
        claims.acquire([NAME])
    assert list(tmp_path.iterdir()) == []


def test_claims_of_others_stay_at_the_end(tmp_path: Path) -> None:
    path = put(tmp_path, elsewhere(), "demo/tiny/step000020")
    with Claims(tmp_path) as claims:
        claims.acquire([NAME])
    assert path.exists()
    assert not (tmp_path / ".claims" / NAME).exists()


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / ".claims").write_text("a file, and no folder")
    with Claims(tmp_path) as claims, pytest.raises(UserError, match=r"^results_dir: .* cannot be written \(.*\); free"):
        claims.acquire([NAME])


@pytest.mark.slow
def test_of_many_processes_each_claim_has_one_holder(tmp_path: Path) -> None:
    """Eight processes run for the same forty claims, some of them stale; each writes down what it got."""
    names = [f"demo/tiny/step{step:06d}" for step in range(40)]
    for name in names[::3]:
        put(tmp_path, ended(), name)
    context = multiprocessing.get_context("fork")
    start = context.Event()

    def run(number: int) -> None:
        start.wait()
        with Claims(tmp_path) as claims:
            for name in names:
                if claims.acquire([name]):
                    with (tmp_path / f"{number}.txt").open("a") as file:
                        file.write(f"{name}\n")
            done.wait()

    done = context.Barrier(8)
    processes = [context.Process(target=run, args=(number,)) for number in range(8)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    got = [line for path in tmp_path.glob("*.txt") for line in path.read_text().split()]
    assert sorted(got) == names
