"""Who measures what: claims, with which any number of processes share one results folder.

A process that takes a checkpoint puts a file `<results_dir>/.claims/<analysis>/<model>/step000010` there, which says
its host and process id. The file's modification time is the heartbeat: a thread renews it every few seconds. Other
processes leave that checkpoint alone until its results are there, or the claim is stale. A claim is stale if its
process no longer runs on this very machine, or, wherever it was made, if its heartbeat stopped. All claims of a process
are hard links to one file, so whoever has read one of them knows them all.

This asks of a shared file system what local disks, NFS, Lustre and the like all do: making a hard link fails if the
name is taken (where there are no hard links, creating a file with O_EXCL does), and a file's time is set by one clock,
that of the file server, so the clocks of the machines may differ.

A claim saves work and protects nothing: results are written whole and the same results have the same bytes. If a
process that was suspended for minutes wakes up, two processes may measure the same checkpoint, and both write the same
files.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..base.errors import UserError
from ..base.files import is_running
from ..models.family import Family
from .plan import Measurement, Sweep

FOLDER, RUNS = ".claims", ".runs"
BEAT, STALE, CHECK = 10.0, 120.0, 1.0


@dataclass(frozen=True)
class Owner:
    """Who made a claim."""

    host: str
    pid: int
    machine: str  # since its last start, and the processes visible there: only where it is equal, ids can be compared
    started: str  # when the process started, in the kernel's count; tells it from a later one with the same id
    token: str  # unlike that of every other `Claims`

    def is_gone(self) -> bool:
        """Whether the process is known to have ended. False if it may run where this process cannot see it."""
        if self.machine != _machine():
            return False
        return not is_running(self.pid) or _started(self.pid) != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Claims:
    """The claims of this process on one results folder; heartbeats and the limit without one are in seconds."""

    def __init__(self, root: Path, beat: float = BEAT, stale: float = STALE) -> None:
        self.folder, self.beat, self.stale = root / FOLDER, beat, stale
        pid = os.getpid()
        self.owner = Owner(socket.gethostname(), pid, _machine(), _started(pid), uuid.uuid4().hex)
        self._card = self.folder / f".{self.owner.token}"
        self._held: set[str] = set()
        self._seen: dict[int, Owner | None] = {}
        self._gone: dict[str, bool] = {}
        self._checked = float("-inf")
        self._stop = threading.Event()
        self._beating: threading.Thread | None = None

    def __enter__(self) -> Claims:
        return self

    def acquire(self, names: Sequence[str], *, unclaimed: bool = False) -> bool:
        """Claim all of these names (`<analysis>/<model>/step000010`), in the order that all processes keep, or none.

        Returns whether they are now this process's. `unclaimed`: they were just seen without a claim. One that is there
        now is so new that it cannot be stale, and is not looked at: where many processes want the same, most learn at
        once that they are late.
        """
        mine: list[str] = []
        for name in names:
            if (unclaimed and (self.folder / name).exists()) or not self._acquire(name):
                self.release(mine)
                return False
            mine.append(name)
        return True

    def enter(self, run: str) -> None:
        """Say that this process writes the results of a run: `<analysis>/<model>/<task>`."""
        self.acquire([f"{RUNS}/{run}/{self.owner.token}"])

    def entered(self, run: str) -> list[Owner]:
        """The other processes that write the results of a run. In this one, an earlier training may not have ended."""
        here = replace(self.owner, token="")
        return [owner for owner in self.others(f"{RUNS}/{run}") if replace(owner, token="") != here]

    def release(self, names: Iterable[str]) -> None:
        """Give claims up. Those that another process has taken over stay."""
        for name in names:
            self._held.discard(name)
            path = self.folder / name
            with contextlib.suppress(OSError):
                if _read(path) == self.owner:
                    path.unlink()

    def holders(self, prefix: str) -> dict[str, Owner | None]:
        """The claims of others below `<analysis>/<model>`, without a look at their heartbeats: name -> who holds it.
        None if the claim is known to be stale, or cannot be read.
        """
        found: dict[str, Owner | None] = {}
        now = time.monotonic()
        if now - self._checked > CHECK:
            self._gone, self._checked = {}, now
        seen: dict[int, Owner | None] = {}
        try:
            entries = [(entry.name, entry.inode()) for entry in os.scandir(self.folder / prefix)]
        except OSError:
            return {}
        for name, inode in entries:
            if name.startswith("."):
                continue
            # What a claim says never changes, so each process is read once. Whoever takes a claim over reads it again.
            if inode not in seen:
                known = self._seen.get(inode)
                seen[inode] = _read(self.folder / prefix / name) if known is None else known
            owner = seen[inode]
            if owner is None:  # It is being written, or its process was killed at that: only the heartbeat tells.
                found[f"{prefix}/{name}"] = None
            elif owner.token != self.owner.token:
                if owner.token not in self._gone:
                    self._gone[owner.token] = owner.is_gone()
                found[f"{prefix}/{name}"] = None if self._gone[owner.token] else owner
        # Another process may be given the inode of one that is gone: it is read again next time.
        gone = [inode for inode, owner in seen.items() if owner is not None and self._gone.get(owner.token)]
        self._seen |= seen | dict.fromkeys(gone)
        return found

    def others(self, prefix: str) -> list[Owner]:
        """The other processes with live claims below `<analysis>/<model>`."""
        found: dict[Owner, None] = {}
        now = self._now(self.folder / prefix)
        _, _, names = next(os.walk(self.folder / prefix), ("", [], []))  # None where another process is tidying up.
        for path in [self.folder / prefix / name for name in names if not name.startswith(".")]:
            owner = _read(path)
            if owner is not None and owner != self.owner and not self._is_stale(path, owner, now):
                found[owner] = None
        return list(found)

    def __exit__(self, *raised: object) -> None:
        # Give all claims up, and delete what killed processes left.
        self._stop.set()
        self.release(list(self._held))
        with contextlib.suppress(OSError):
            self._card.unlink()
        if not self.folder.is_dir():
            return
        now = self._now(self.folder)
        for path in [Path(where, name) for where, _, names in os.walk(self.folder) for name in names]:
            with contextlib.suppress(OSError):
                owner = _read(path)
                if path.name.startswith(".") and not (owner is None or owner.is_gone()):
                    continue
                if self._is_stale(path, owner, now):
                    path.unlink()
        for folder, _, _ in os.walk(self.folder, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)

    def _acquire(self, name: str) -> bool:
        path = self.folder / name
        try:
            for _ in range(3):  # Another process may delete an empty folder in between, or take the claim over first.
                path.parent.mkdir(parents=True, exist_ok=True)
                try:  # The file that all of this process's claims are links to, as fresh as the claim.
                    os.utime(self._card)
                except FileNotFoundError:
                    self._card.write_text(json.dumps(asdict(self.owner)), encoding="utf-8")
                if _link(self._card, path):
                    self._held.add(name)
                    if self._beating is None:
                        self._beating = threading.Thread(target=self._keep_beating, daemon=True)
                        self._beating.start()
                    return True
                if not self._remove_stale(path):
                    return False
        except OSError as error:
            raise UserError(
                f"results_dir: {path} cannot be written ({error.strerror}); free space or name another folder"
            ) from error
        return False

    def _remove_stale(self, path: Path) -> bool:
        """Delete a claim if it is stale; returns whether the name is free now."""
        try:
            now = self._now(path.parent)
            owner = _read(path)
            if not self._is_stale(path, owner, now):
                return not path.exists()
            taken = path.with_name(f".{path.name}.{self.owner.token}.stale")
            os.rename(path, taken)
        except FileNotFoundError:
            return True
        if _read(taken) != owner:  # In between another process took it over: it gets its claim back.
            with contextlib.suppress(OSError):
                os.link(taken, path)
            taken.unlink(missing_ok=True)
            return False
        taken.unlink(missing_ok=True)
        return True

    def _is_stale(self, path: Path, owner: Owner | None, now: float) -> bool:
        if owner is not None and owner.is_gone():
            return True
        try:
            return now - path.stat().st_mtime > self.stale
        except FileNotFoundError:
            return False

    def _now(self, folder: Path) -> float:
        """The time by the file system's clock; 0 if there is no such folder."""
        probe = folder / f".now.{self.owner.token}"
        try:
            probe.touch()
            return probe.stat().st_mtime
        except OSError:
            return 0.0
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()

    def _keep_beating(self) -> None:
        while not self._stop.wait(self.beat):
            for path in [self._card, *(self.folder / name for name in list(self._held))]:
                with contextlib.suppress(OSError):
                    os.utime(path)


def _link(written: Path, path: Path) -> bool:
    """Give the claim its name, if the name is free."""
    try:
        os.link(written, path)
    except (FileExistsError, FileNotFoundError):
        return False
    except OSError:  # No hard links here.
        try:
            with path.open("xb") as file:
                file.write(written.read_bytes())
        except FileExistsError:
            return False
    return True


def _read(path: Path) -> Owner | None:
    """Who made a claim; None if it is gone, or not whole."""
    try:
        said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Owner(**said)
    except (OSError, ValueError, TypeError):
        return None


@functools.cache
def _machine() -> str:
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(pid: int) -> str:
    try:
        # The name of the program, in brackets, may hold spaces. The 22nd field is the start.
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[19].decode()
    except (OSError, IndexError):
        return ""


Holders = dict[int, Owner | None]
"""Step -> whose claim it has; None if that is known to be stale."""
LOOK = 5.0
"""Seconds between two looks at the heartbeats of others."""


@dataclass(frozen=True)
class ClaimedCheckpoint:
    """A checkpoint of a model's queue that this process has claimed."""

    queue: WorkQueue
    step: int
    missing: list[Measurement]

    @property
    def family(self) -> Family:
        return self.queue.sweep.family


class WorkQueue:
    """One model's unfinished checkpoints, as this process and others take them one by one."""

    def __init__(self, sweep: Sweep, steps: list[int], claims: Claims) -> None:
        self.sweep, self.claims = sweep, claims
        self.left = list(steps)  # those that this process neither took nor saw finished
        self.elsewhere = 0  # how many measurements others have made since the run was planned
        self._looked = time.monotonic()
        self._names: dict[int, list[str]] = {}
        for step in steps:
            analyses = sorted({what.job.analysis.name for what in sweep.missing[step]})
            self._names[step] = [f"{analysis}/{sweep.family.name}/step{step:06d}" for analysis in analyses]
        # The first name that a step is claimed under stands for it.
        self._steps = {names[0]: step for step, names in self._names.items()}

    def holders(self) -> Holders:
        """Which of the steps left are claimed by others, and by whom."""
        prefixes = {name.rpartition("/")[0] for name in self._steps}
        held = {name: owner for prefix in prefixes for name, owner in self.claims.holders(prefix).items()}
        return {step: held[name] for name, step in self._steps.items() if name in held and step in self.left}

    def take(self, holders: Holders, *, ahead: bool = False, leave: int = 0) -> ClaimedCheckpoint | None:
        """Claim the first step that can be had; None if nothing is left, or others have claimed all that is.

        `holders` is what `holders` returned just now. `ahead`: for later, while this process measures another; then
        claims of others are left alone. With `leave`, none is claimed unless more than so many steps are free.
        """
        if leave:
            self._drop_finished()
            if len(self.left) - sum(holders.get(step) is not None for step in self.left) <= leave:
                return None
        # A claim whose process seems to live is tried too, for its heart may have stopped, but not all the time.
        patient = ahead or time.monotonic() - self._looked < LOOK
        if not patient:
            self._looked = time.monotonic()
        for step in list(self.left):
            if step not in self.left or (patient and holders.get(step) is not None):
                continue
            if not self._missing(step):
                self._drop_finished()
                continue
            # Of many processes that want the same unclaimed step, most learn at once that they are late.
            if not self.claims.acquire(self._names[step], unclaimed=step not in holders):
                continue
            self.left.remove(step)
            missing = self._missing(step)  # Once more: it may have been finished just before it was claimed.
            self.elsewhere += len(self.sweep.missing[step]) - len(missing)
            if missing:
                return ClaimedCheckpoint(self, step, missing)
            self.give_back(step)
        return None

    def give_back(self, step: int) -> None:
        self.claims.release(self._names[step])

    def _missing(self, step: int) -> list[Measurement]:
        return [what for what in self.sweep.missing[step] if not what.done(step)]

    def _drop_finished(self) -> None:
        """Leave out every step that others have finished. Folders are listed once, not searched for each step."""
        finished: dict[Measurement, set[int]] = {}
        for step in list(self.left):
            for what in self.sweep.missing[step]:
                if what not in finished:
                    finished[what] = set.intersection(*(set(folder.steps()) for folder in what.folders))
            if all(step in finished[what] for what in self.sweep.missing[step]):
                self.left.remove(step)
                self.elsewhere += len(self.sweep.missing[step])
