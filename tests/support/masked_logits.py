"""Logits under edge masks, for tests that compare them with those of other implementations."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from edge_attribution_patching.forward import unembed
from edge_attribution_patching.patching import evaluate_masks_final
from edge_attribution_patching.patching_runs import PreparedRuns
from edge_attribution_patching.weights import ModelWeights


def masked_logits(weights: ModelWeights, runs: PreparedRuns, masks: Tensor, **options: Any) -> Tensor:
    """Logits at the answers under each mask, [mask, prompt, vocab]."""
    return unembed(weights, evaluate_masks_final(weights, runs, masks, **options))
