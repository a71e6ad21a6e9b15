"""Does the algorithm that solves IOI stay the same? Three levels of heads, recognised by effect and by role.

After Tigges et al. 2024 (arXiv 2407.10827, section 4) and Wang et al. 2022 (arXiv 2211.00593). `levels.py` measures the
levels, by the definitions of `definitions.py` and the criteria of `roles.py`. `backup.py` ablates the name movers.
"""

from __future__ import annotations

from ..models.checkpoint import LoadedCheckpoint
from ..results.store import Result
from ..tasks import Task
from .backup import backup_table, without_backup
from .inputs import IoiInputs, gather
from .keys import IoiConsistencyConfig
from .levels import Levels


def measure(
    checkpoint: LoadedCheckpoint, config: IoiConsistencyConfig, inputs: IoiInputs, task: Task | None
) -> dict[str, Result]:
    """The levels of one checkpoint, their heads, and what backs up the name movers."""
    facts = gather(checkpoint, config, inputs)
    prompts = inputs.prompts.to(checkpoint.weights.device)
    levels = Levels(checkpoint.weights, prompts, inputs.variants, facts, config)
    found, roles = levels.run()
    if config.backup:
        backup = backup_table(levels.runs, roles, config.backup_ablation, levels.scale)
    else:
        backup = without_backup("not measured: backup is false")
    return {
        "ioi_consistency": Result(found.levels, json={"inputs": facts.sources}),
        "ioi_consistency_heads": Result(found.heads),
        "ioi_consistency_signals": Result(found.signals),
        "ioi_backup": Result(backup.assign(definitions=config.definitions)),
    }
