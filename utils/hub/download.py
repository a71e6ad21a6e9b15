"""The files of a commit on the hub, and one of them brought to disk: resumed where it stopped, and hashed.

Bytes arrive in a hidden `.<name>.<hash>.part` next to the file. They stay there if the download ends early, also if the
process is killed, and the next attempt asks for the rest. (`huggingface_hub` resumes within one call only, and deletes
what it has when the call fails, so this calls the level below: its session, headers and `http_get`.)

A file that the user's own hub cache (below HF_HOME) holds at the same commit is linked or copied instead.
"""

from __future__ import annotations

import contextlib
import email.utils
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..base.errors import CheckpointUnusable, one_line
from ..base.files import file_sha256, make_folder

FORMATS = (("model", "safetensors"), ("pytorch_model", "bin"))
"""Names of files with weights, without shard and ending, and endings; the first format that is there counts."""

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds before the second, third, ... attempt."""
WAITS_BEFORE_AN_ANSWER = 2
"""How many of the waits there are where no connection can be made and none has been made before."""
LONGEST = 900.0
"""The longest wait that the hub may ask for; its limits count requests in windows of five minutes."""

_answered = threading.Event()  # Whether the hub has answered anything in this process.
_silent = threading.Event()  # Whether it was waited for in vain: once is enough where there is no network.

Arrived = Callable[[int], object]
"""Called with the number of bytes that have just arrived."""

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ListedFile:
    """A file of a commit."""

    size: int
    blob: str  # git's id of its content
    sha256: str | None  # of files in large-file storage


@dataclass(frozen=True)
class Listing:
    """The files of a commit, by name. `repository` is today's id, if it was renamed."""

    repository: str
    commit: str
    files: Mapping[str, ListedFile]

    def _by_format(self) -> list[dict[str, ListedFile]]:
        """The files with weights of each format that is there."""
        patterns = [rf"{stem}(-\d+-of-\d+)?\.{ending}" for stem, ending in FORMATS]
        found = [{name: self.files[name] for name in sorted(self.files) if re.fullmatch(p, name)} for p in patterns]
        return [files for files in found if files]

    @property
    def weights(self) -> list[str]:
        """The weights to fetch: those in safetensors, or in torch's own format if there are no others; never both."""
        return list(next(iter(self._by_format()), {}))

    @property
    def bytes_of_weights(self) -> int:
        return sum(self.files[name].size for name in self.weights)

    @property
    def formats(self) -> list[dict[str, str]]:
        """SHA-256 of the weights, one format at a time; without those of which the hub does not say every hash."""
        hashes = [{name: file.sha256 for name, file in files.items()} for files in self._by_format()]
        return [{name: sha256 for name, sha256 in one.items() if sha256} for one in hashes if all(one.values())]

    @property
    def weight_hashes(self) -> dict[str, str]:
        """SHA-256 of all weights, in both formats, as far as the hub says them."""
        return {name: file.sha256 for files in self._by_format() for name, file in files.items() if file.sha256}


def download_file(listing: Listing, name: str, folder: Path, arrived: Arrived = lambda count: None) -> str:
    """Download a file of a commit into a folder, unless it is there, and return the SHA-256 of its content.

    It is a CheckpointUnusable, and the file deleted, if what arrives has another hash than the hub says, twice; and the
    hub client's error if it did not arrive after several attempts.
    """
    target = folder / name
    make_folder(target.parent)
    for again in (False, True):
        if not target.is_file() and (again or not _from_cache(listing, name, target)):
            _fetch(listing, name, target, arrived)
        sha256 = file_sha256(target)
        if listing.files[name].sha256 in (None, sha256):
            return sha256
        target.unlink()
        log.warning("%s: arrived damaged%s", target, "" if again else "; downloading it once more")
    raise CheckpointUnusable(f"{target}: arrived damaged (SHA-256 differs from the hub's); it is deleted, run again")


def _fetch(listing: Listing, name: str, target: Path, arrived: Arrived) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers
    from tqdm import tqdm

    class Count(tqdm):
        """Shows nothing and hands the bytes on; `http_get` wants a class of bars."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **kwargs | {"disable": True})

        def update(self, n: float | None = 1) -> None:
            arrived(int(n or 0))

    file = listing.files[name]
    part = target.with_name(f".{target.name}.{(file.sha256 or listing.commit)[:16]}.part")

    def bytes_here() -> int:
        return part.stat().st_size if part.is_file() else 0

    def attempt() -> None:
        if (start := bytes_here()) > file.size > 0:
            part.unlink()
            start = 0
        with part.open("r+b" if start else "wb") as stream:
            stream.seek(start)
            try:
                http_get(
                    hf_hub_url(listing.repository, name, revision=listing.commit),
                    stream,
                    resume_size=start,
                    headers=build_hf_headers(),
                    expected_size=file.size or None,
                    tqdm_class=Count,
                )
            except HfHubHTTPError as error:
                if error.response.status_code != 416:
                    raise
                # It has no bytes beyond those that have arrived.
                raise CheckpointUnusable(
                    f"model: {name} of {listing.repository} at commit {listing.commit} is shorter than the hub says "
                    f"({start} of {file.size} bytes); leave that step out"
                ) from None
            stream.flush()
            os.fsync(stream.fileno())

    if start := bytes_here():
        arrived(min(start, file.size))
    retry(attempt, f"{name} of {listing.repository}", bytes_here)
    os.replace(part, target)


def _from_cache(listing: Listing, name: str, target: Path) -> bool:
    """Take the file from the user's hub cache. Deleting the link later leaves the cache as it is."""
    from huggingface_hub import constants, try_to_load_from_cache

    found = try_to_load_from_cache(listing.repository, name, cache_dir=constants.HF_HUB_CACHE, revision=listing.commit)
    source = Path(found).resolve() if isinstance(found, str) else None
    if source is None or not source.is_file() or source.stat().st_size != listing.files[name].size:
        return False
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with contextlib.suppress(OSError):
            os.link(source, temporary)
        if not temporary.is_file():
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def retry(
    request: Callable[[], T], what: str, progress: Callable[[], int] = lambda: 0, waits: Sequence[float] = WAITS
) -> T:
    """Make a request, and try again where that may help; raises what the last attempt did.

    A network that breaks down during a run is waited for; one that was never there is told of within seconds. `what` it
    asks for is logged. Whenever `progress`, the bytes that have arrived, is more than before, the `waits` (seconds)
    start anew; the hub may ask for longer ones.
    """
    from huggingface_hub.utils import httpx

    left, arrived, tried = iter(waits), progress(), 0
    while True:
        try:
            result = request()
            _answered.set()
            return result
        except Exception as error:
            reason = _passing_trouble(error)
            if reason is None:
                raise
            if (now := progress()) > arrived:
                left, arrived = iter(waits), now
            if not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                _answered.set()
            elif (tried == WAITS_BEFORE_AN_ANSWER or _silent.is_set()) and not _answered.is_set():
                _silent.set()
                raise
            tried += 1
            pause, asked = next(left, None), _retry_after(error)
            if pause is None or asked > LONGEST:
                raise
            pause = max(pause, asked)
            log.warning("%s: %s; trying again in %.0f s", what, reason, pause)
        time.sleep(pause)


def _passing_trouble(error: Exception) -> str | None:
    """What is wrong, if it may pass; None if it will not."""
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx  # its own client: httpx2 since huggingface_hub 2

    if isinstance(error, errors.OfflineModeIsEnabled):
        return None
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        return f"the hub answered {status}" if status in (408, 429) or status >= 500 else None
    if isinstance(error, (httpx.TransportError, ConnectionError, TimeoutError)):
        passing = not isinstance(error, (httpx.UnsupportedProtocol, httpx.LocalProtocolError))
        return one_line(error) if passing else None
    # The hub's client says this if a stream ends early.
    return "it broke off" if type(error) is OSError and "Consistency check failed" in str(error) else None


def _retry_after(error: Exception) -> float:
    """How long the hub asks to wait, in seconds; 0 if it does not say."""
    headers: Mapping[str, str] = getattr(getattr(error, "response", None), "headers", {})
    text = headers.get("Retry-After", "").strip()
    if text.isdigit():
        return float(text)
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError):
        return 0.0
