"""What a sweep will need, for `--dry-run`: bytes from metadata, time from what was measured here before."""

from __future__ import annotations

from utils.models.estimate import estimate, told
from utils.progress import duration
from utils.run.plan import Sweep
from utils.run.times import Times


def needs(sweep: Sweep) -> str:
    """Two lines at most, each indented; nothing if there is nothing to measure.

    Raises:
        UserError: if the repository is missing or closed.
    """
    if not sweep.missing:
        return ""
    config = sweep.jobs[0].config
    found = estimate(sweep.family, list(sweep.missing), config.dtype, config.keep_checkpoints, config.prefetch)
    return f"  needs: {told(found)}\n{_time(sweep)}"


def _time(sweep: Sweep) -> str:
    usual = {job: Times(job.analysis.name, job.config).usual(sweep.family.name) for job in sweep.jobs}
    left = [(one.job, one.task.name if one.task else None) for here in sweep.missing.values() for one in here]
    known = [usual[job][task] for job, task in left if task in usual[job]]
    if not known:
        return ""
    part = "" if len(known) == len(left) else f" for {len(known)} of {len(left)} measurements"
    return f"  time: about {duration(sum(known))}{part}, as measured here before, without loading\n"
