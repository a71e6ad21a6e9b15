"""Logits under edge masks, for tests that compare them with those of other implementations."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from circuits_over_time.edge_attribution_patching.model.forward import unembed
from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights
from circuits_over_time.edge_attribution_patching.patching.forward import evaluate_masks_final
from circuits_over_time.edge_attribution_patching.patching.runs import PreparedRuns


def masked_logits(weights: ModelWeights, runs: PreparedRuns, masks: Tensor, **options: Any) -> Tensor:
    """Logits at the answers under each mask, [mask, prompt, vocab]."""
    return unembed(weights, evaluate_masks_final(weights, runs, masks, **options))
