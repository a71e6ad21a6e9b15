"""Is the IOI algorithm the same at every checkpoint? Heads by role and effect, at three levels.

    python get_ioi_consistency.py -c configs/ioi_consistency_160m.yml

Writes, for every checkpoint, with the levels name_movers, s_inhibition and induction of `utils/ioi/consistency.py`
(Tigges et al. 2024, arXiv 2407.10827):

results/ioi_consistency/<model>/step{n}.csv          the share of each level's effect that heads in its role have
results/ioi_consistency_heads/<model>/step{n}.csv    effect, scores, attention and role of every head of the circuit
results/ioi_consistency_signals/<model>/step{n}.csv  the candidates for S-inhibition under four variants of the prompt
results/ioi_consistency/<model>/role_handover.csv    from when to when each head holds a role

The circuit and the copy, induction, duplicate-token and CSPA scores are read from the results where they are there, and
computed where not. Keys: configs/README.md. Figure: plotting/plot_ioi_consistency.py.
"""

import sys

from transformers import PreTrainedTokenizerBase

from utils.ioi.consistency import ioi_consistency, ioi_prompts
from utils.ioi.handover import role_handover
from utils.ioi.inputs import gather
from utils.ioi.keys import IoiConsistencyConfig
from utils.models.family import LoadedCheckpoint
from utils.results.store import Store
from utils.runner import Analysis, Result, main


def check(config: IoiConsistencyConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse prompts that cannot be built."""
    ioi_prompts(config, tokenizer)


def measure(checkpoint: LoadedCheckpoint, config: IoiConsistencyConfig, task: str | None) -> dict[str, Result]:
    """The levels of one checkpoint and their heads."""
    facts = gather(checkpoint, config)
    prompts, variants = ioi_prompts(config, checkpoint.tokenizer)
    found = ioi_consistency(checkpoint.weights, prompts, variants, facts, config)
    return {
        "ioi_consistency": Result(found.levels, json={"inputs": facts.sources}),
        "ioi_consistency_heads": Result(found.heads),
        "ioi_consistency_signals": Result(found.signals),
    }


def finish(config: IoiConsistencyConfig, store: Store, model: str) -> None:
    """Say who holds each role from when to when, over all steps that are there."""
    heads = store.read_tables("ioi_consistency_heads", model)
    table = role_handover(heads, store.steps("ioi_consistency_heads", model))
    store.write_summary("ioi_consistency", model, None, "role_handover", table)


KINDS = ("ioi_consistency", "ioi_consistency_heads", "ioi_consistency_signals")
ANALYSIS = Analysis("get_ioi_consistency", IoiConsistencyConfig, KINDS, measure, check=check, finish=finish)

if __name__ == "__main__":
    sys.exit(main(ANALYSIS))
