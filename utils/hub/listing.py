"""What the hub says about checkpoints before any weights are fetched: names, commits, files, sizes and hashes.

One request lists a repository's branches and tags with their commits (`names.json`). One request for each commit lists
its files with sizes and SHA-256; a commit never changes, so the answer is kept for good (`.listings/<commit>.json`).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path

from ..base.background import in_background
from ..base.errors import CheckpointUnusable, HubUnreachable, UserError, one_line
from ..base.files import read_json, write_json
from .download import WAITS, ListedFile, Listing, retry

NAMES, LISTINGS = "names.json", ".listings"
AT_ONCE = 8
"""How many listings are asked for at the same time."""
log = logging.getLogger(__name__)


def downloads_of(cache_dir: Path, repository: str) -> Path:
    """Where a repository's checkpoints are downloaded to."""
    return cache_dir / repository.replace("/", "--")


def published_names(repository: str, downloads: Path) -> dict[str, str | None]:
    """A repository's branches, then its tags, each with its commit. Without the hub, those that it listed before, which
    are kept in `downloads`, where its checkpoints go; HubUnreachable if there are none.
    """
    from huggingface_hub import HfApi

    known = read_json(kept := downloads / NAMES)
    _never_hang()
    try:
        with hub_errors_as_user_errors(repository):
            waits = WAITS if known is None else WAITS[:2]  # Where there is no network, do not make every run wait.
            refs = retry(lambda: HfApi().list_repo_refs(repository), f"branches of {repository}", waits=waits)
    except HubUnreachable as error:
        if known is None:
            raise
        log.warning("%s; taking the branches and tags that it listed before (%s)", error, kept)
        # Before commits were kept, the names were lists.
        commits = [dict.fromkeys(part) | (part if isinstance(part, dict) else {}) for part in known.values()]
        return {name: commit for part in commits for name, commit in part.items()}
    branches, tags = ({ref.name: ref.target_commit for ref in part} for part in (refs.branches, refs.tags))
    with contextlib.suppress(UserError):  # Downloading a checkpoint will tell if the cache cannot be written to.
        write_json(kept, {"branches": branches, "tags": tags})
    return {**branches, **{name: commit for name, commit in tags.items() if name not in branches}}


def listing_of(repository: str, revision: str, downloads: Path, commit: str | None = None) -> Listing:
    """The files of a revision. If its commit is known, a listing that is kept in `downloads` needs no request.

    It is a CheckpointUnusable if the revision is missing, HubUnreachable if the hub did not answer, and a UserError if
    the repository is missing or closed.
    """
    if commit is not None and (known := read_json(downloads / LISTINGS / f"{commit}.json")) is not None:
        return Listing(known["repository"], commit, {name: ListedFile(*file) for name, file in known["files"].items()})
    from huggingface_hub import HfApi, constants

    _never_hang()
    with hub_errors_as_user_errors(repository, revision):
        info = retry(
            lambda: HfApi().model_info(
                repository, revision=revision, files_metadata=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
            ),
            f"revision {revision} of {repository}",
        )
    files = {
        file.rfilename: ListedFile(
            (file.lfs.size if file.lfs is not None else file.size) or 0,
            file.blob_id or "",
            None if file.lfs is None else file.lfs.sha256,
        )
        for file in info.siblings or []
    }
    listing = Listing(info.id, info.sha or revision, files)
    with contextlib.suppress(UserError):
        plain = {name: [file.size, file.blob, file.sha256] for name, file in files.items()}
        write_json(downloads / LISTINGS / f"{listing.commit}.json", {"repository": listing.repository, "files": plain})
    return listing


def in_parallel(
    listing: Callable[[int], Listing], steps: Sequence[int], advance: Callable[[], object] = lambda: None
) -> dict[int, Listing | CheckpointUnusable]:
    """Many steps' listings in order, or what is wrong; after the first `HubUnreachable` no more is asked for."""
    left, running = list(reversed(steps)), dict[Future[Listing], int]()
    found: dict[int, Listing | CheckpointUnusable] = {}
    while left or running:
        while left and len(running) < AT_ONCE:
            step = left.pop()
            running[in_background(listing, step)] = step
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            step = running.pop(future)
            try:
                found[step] = future.result()
            except HubUnreachable as error:
                return {each: found.get(each, error) for each in steps}
            except CheckpointUnusable as error:
                found[step] = error
            advance()
    return {step: found[step] for step in steps}


@contextlib.contextmanager
def hub_errors_as_user_errors(repository: str, revision: str | None = None) -> Iterator[None]:
    """Turns the hub client's errors into one line each, without secrets."""
    from huggingface_hub import errors

    named = repository if revision is None else f"revision {revision} of {repository}"
    try:
        yield
    except errors.GatedRepoError:
        raise UserError(f"model: {repository} is gated; accept its terms on the hub and run: hf auth login") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"model: {repository} is not on the hub (or private); check the name, or name a folder of step{{n}} folders"
        ) from None
    except errors.RevisionNotFoundError:
        raise CheckpointUnusable(f"checkpoints: {named} is not on the hub; leave that step out") from None
    except errors.HFValidationError:
        raise UserError(f"model: '{repository}' is not a hub id; write it as organisation/name") from None
    except UnicodeEncodeError:
        raise UserError(
            "HF_TOKEN: the token holds characters that none can have; set it again (hf auth login)"
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        way_out = "try again later" if status >= 500 or status == 429 else "check the name and your access"
        raise HubUnreachable(f"model: the hub answered {status} for {named}; {way_out}") from None
    except (errors.HTTPError, errors.LocalEntryNotFoundError, ConnectionError, TimeoutError) as error:
        raise HubUnreachable(
            f"model: {named}: the hub cannot be reached ({one_line(error)}); connect, or measure checkpoints that you "
            "have"
        ) from None
    except OSError as error:
        if "Consistency check failed" in str(error):
            raise HubUnreachable(f"model: {named}: the download breaks off each time; try again later") from None
        raise UserError(
            f"model: {named} cannot be stored ({one_line(error)}); free space or name another cache_dir"
        ) from None


def _never_hang() -> None:
    """Give the hub's client a time limit where it has none of its own (it lists branches without one)."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    session = get_session()
    if session.timeout.read is None:
        session.timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
