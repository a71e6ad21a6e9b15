"""Before a sweep: are the weights what they claim to be? Metadata tells, and only a sweep with work to do asks."""

from __future__ import annotations

from dataclasses import replace

from tqdm import tqdm

from utils.models.integrity import screen
from utils.run.plan import Sweep


def screened(sweep: Sweep) -> Sweep:
    """A sweep without the checkpoints that `on_duplicate_weights: skip` leaves out.

    Raises:
        UserError: if it is `error`, and checkpoints to measure hold another step's weights.
    """
    if not sweep.missing:
        return sweep
    family, config = sweep.family, sweep.jobs[0].config
    with tqdm(total=len(family.steps), disable=None, dynamic_ncols=True, leave=False) as bar:
        bar.set_description_str(f"{family.name}: comparing weights")
        left_out = screen(family, list(sweep.missing), config.on_duplicate_weights, bar.update)
    if not left_out:
        return sweep
    return replace(sweep, missing={step: left for step, left in sweep.missing.items() if step not in left_out})
