"""What a sweep will need, for `--dry-run`: download, disk and memory from metadata, and whether its prompts fit.

Sizes of files come from the hub's listing or the local disk. The number of parameters follows from the size of the
weights and the number format that config.json names. Activations are not counted: they depend on `batch_size`.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from circuits_over_time.edge_attribution_patching.model.memory import BYTES

from ..base.errors import CheckpointUnusable, HubUnreachable, UserError
from ..config.keys import MemoryKeys, errors_named
from ..models.checkpoint import resolve_device
from ..models.family import Family, HubFamily, LocalFamily
from ..models.known_families import known_shape, known_size
from ..models.tokenizers import PlainShape, WordTokenizer, plain_shape, plain_tokenizer
from ..models.weight_files import weight_files
from ..tasks.prompts import require_length, token_rows
from .cards import on_cards
from .plan import Job, Sweep


class Needed(NamedTuple):
    """What measurements take as far as it is known without torch."""

    # About how many each measurement of a job and a task takes, where that is known: in a forward pass two for each
    # token and each parameter outside the embeddings.
    operations: Mapping[tuple[Job, str | None], float] = {}
    cards: str = ""  # whether the model and a batch fit on usual GPUs; empty where that is not known


@dataclass(frozen=True)
class Estimate:
    """What measuring some checkpoints takes, in bytes."""

    download: int
    disk: int  # the most weights that will be there for these steps at once; 0 for a local family
    # The most that weights take at once, while a checkpoint is loaded: a file of weights and a model in the format
    # asked for, twice if that is not the file's. On a GPU, the model is there and the file in CPU memory.
    memory: int | None  # None if no config is at hand
    unknown: tuple[int, ...]  # steps whose sizes are not known
    from_shape: bool = False  # whether sizes follow from the model's shape, because the hub did not answer


def estimate(
    family: Family, steps: Sequence[int], dtype: str, keep: Literal["all", "none"] | int, prefetch: bool
) -> Estimate:
    """What measuring unfinished steps takes, loaded as `dtype`; `keep` and `prefetch` are as in the config."""
    sizes, on_disk = _sizes(family, steps)
    listed = family.listings(steps).values() if isinstance(family, HubFamily) else ()
    of_shape = known_size(family.name) if any(isinstance(one, HubUnreachable) for one in listed) else None
    if from_shape := of_shape is not None and len(sizes) < len(steps):
        sizes = dict.fromkeys(steps, of_shape[1]) | sizes
    known = [step for step in steps if step in sizes]
    unknown = tuple(step for step in steps if step not in sizes)
    to_fetch = [step for step in known if step not in on_disk]
    disk = 0
    if isinstance(family, HubFamily):
        held = sum(sizes[step] for step in known if step in on_disk)
        at_once = len(to_fetch) if keep == "all" else (0 if keep == "none" else keep) + 1 + int(prefetch)
        windows = [to_fetch[start : start + at_once] for start in range(max(len(to_fetch) - at_once, 0) + 1)]
        disk = held + max(sum(sizes[step] for step in window) for window in windows)
    return Estimate(
        sum(sizes[step] for step in to_fetch), disk, _memory(family, known, sizes, dtype), unknown, from_shape
    )


def format_estimate(estimate: Estimate) -> str:
    """An estimate in one line, for `--dry-run`."""
    if estimate.unknown and not estimate.disk and not estimate.memory:
        return "sizes are not known: the hub did not answer"
    parts = [f"download {size(estimate.download)}", f"peak disk {size(estimate.disk)}"]
    parts.append("peak memory unknown" if estimate.memory is None else f"peak memory {size(estimate.memory)}")
    if estimate.from_shape:
        parts = [f"{', '.join(parts)}, from the model's shape because the hub did not answer"]
    missing = len(estimate.unknown)
    more = f", and {missing} checkpoint{'s'[: missing != 1]} of unknown size" if missing else ""
    return f"{', '.join(parts)} (weights alone){more}"


def size(count: float) -> str:
    """`512 B`, `1.6 MB`, `24.0 GB`: in powers of 1000, as the hub shows sizes."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _sizes(family: Family, steps: Sequence[int]) -> tuple[dict[int, int], set[int]]:
    """Bytes of weights of each step, where known, and which steps are on disk."""
    if isinstance(family, HubFamily):
        listed = family.listings(steps)
        known = {step: one for step, one in listed.items() if not isinstance(one, CheckpointUnusable)}
        found = {step: one.bytes_of_weights for step, one in known.items()}
        complete = {step for step in steps if family.is_complete(step)}
        for step in complete - found.keys():
            found[step] = _bytes_in(family.folder(step))
        return {step: count for step, count in found.items() if count}, complete
    sizes = {}
    if isinstance(family, LocalFamily):
        for step in steps:
            try:
                sizes[step] = _bytes_in(family.folders[step])
            except CheckpointUnusable:
                continue
    return sizes, set(sizes)


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in weight_files(folder))


def _memory(family: Family, steps: Sequence[int], sizes: dict[int, int], dtype: str) -> int | None:
    if not steps:
        return 0
    largest = max(sizes[step] for step in steps)
    try:
        stored = plain_shape(family.fetch_small(steps[0])).dtype
    except CheckpointUnusable:
        stored = ""
    if not stored:
        of_shape = known_size(family.name)
        return None if of_shape is None else largest + 2 * of_shape[0] * BYTES[dtype]
    model = largest // BYTES.get(stored, 4) * BYTES[dtype]
    # In another format than the file's, the model shares no memory with the file, and some tensors exist twice while
    # the engine's weights are made from it.
    return largest + model * (1 if dtype == stored else 2)


def refuse_unfit(sweep: Sweep) -> Needed:
    """Refuse what the run will refuse before it loads weights: a device that is not there, input that does not fit.

    Input is checked by the files of the tokenizer and the config alone, without torch and transformers.
    """
    config = sweep.jobs[0].config
    if sweep.missing and config.executor == "local" and config.device not in ("auto", "cpu"):
        resolve_device(config.device)
    jobs = [job for job in sweep.jobs if job.analysis.inputs is not None and sweep.missing_of(job)]
    if not jobs:
        return Needed()
    tokenizer: Any
    try:
        folder = sweep.family.fetch_small(min(sweep.missing))
    except CheckpointUnusable:  # The run leaves it out, and says why.
        return needed_of_known(jobs, sweep.family.name) if isinstance(sweep.family, HubFamily) else Needed()
    if (tokenizer := plain_tokenizer(folder)) is None:
        return Needed()
    shape = plain_shape(folder)
    sizes, _ = _sizes(sweep.family, [min(sweep.missing)])
    return _needed(jobs, tokenizer, shape, sum(sizes.values()) // BYTES.get(shape.dtype, 4))


def needed_of_known(jobs: Sequence[Job], model: str) -> Needed:
    """The same for a known model whose files are not here: its prompts are counted in words, and nothing is refused."""
    shape, size = known_shape(model), known_size(model)
    return Needed() if shape is None or size is None else _needed(jobs, WordTokenizer(), shape, size[0])


def _reads_others(job: Job, jobs: Sequence[Job]) -> bool:
    """Whether all that an analysis may take from results, or else measure itself, is measured by others of a suite."""
    of_task = getattr(job.config, "task", None)
    made = {
        kind.name
        for other in jobs
        for kind in other.analysis.kinds
        if other is not job and any(task is None or task.name == of_task for task in other.tasks)
    }
    return hasattr(job.config, "require_stored") and {kind.name for kind in job.analysis.reads} <= made


def _needed(jobs: Sequence[Job], tokenizer: Any, shape: PlainShape, parameters: int) -> Needed:
    operations: dict[tuple[Job, str | None], float] = defaultdict(float)
    cards = (0, "")
    embeddings = shape.d_vocab * shape.d_model * (1 if shape.tied else 2)
    in_blocks = max(0, parameters - embeddings)
    for job in jobs:
        if job.analysis.inputs is None:
            continue
        names = [task.name if task else None for task in job.tasks]
        refusals = errors_named(f"{job.where}: " if job.where else "", job.analysis.schema)
        with contextlib.suppress(UserError) if isinstance(tokenizer, WordTokenizer) else refusals:
            config = job.config
            if _reads_others(job, jobs):
                config = config.model_copy(update={"require_stored": True})
            for part in job.analysis.inputs(config, tokenizer, shape):
                lengths = [0]
                if part.pairs:
                    rows, others = token_rows(tokenizer, part.pairs, getattr(job.config, "prepend_bos", False))
                    lengths = [len(row) for row in rows]
                    require_length(part.task, lengths, [pair.clean for pair in part.pairs], shape.n_positions)
                    if isinstance(job.config, MemoryKeys):
                        cards = max(cards, on_cards(job.config, shape, parameters, rows, others))
                # Scores without a task take IOI prompts, too.
                unit = job, part.task if part.task in names else None
                operations[unit] += 2 * in_blocks * (sum(lengths) * part.passes + part.tokens)
    return Needed(operations, cards[1])
