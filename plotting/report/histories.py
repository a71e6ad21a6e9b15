"""Scores of edges at every checkpoint, in a circuit there or not, small enough for the page."""

import base64
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from circuits_over_time.utils.results.checked import Damaged
from circuits_over_time.utils.results.store import ResultsFolder

logger = logging.getLogger("plotting")

# Bytes of base64 that all records of the page may take for this.
BUDGET = 4_000_000


def score_histories(
    folder: ResultsFolder, edges: Sequence[tuple[str, str]], counts: Sequence[int], budget: int
) -> dict[str, Any] | None:
    """The scores of edges at the folder's steps, from the tensors next to its tables.

    If not all fit into the budget, the edges that are in the circuit of the most checkpoints come first.

    Args:
        folder: graphs of one model and task.
        counts: at how many checkpoints each is in the circuit.
        budget: bytes of base64.

    Returns:
        `edges`, the numbers of those that are there; `scale` and `data`: little-endian float16 [edge, step] in base64,
        to be multiplied with the scale, NaN where a checkpoint has no tensors. None if none has any.

    Raises:
        ValueError: if the tensors lack a node of an edge.
    """
    steps = folder.steps()
    if not edges or not any(folder.has(step, ".pt") for step in steps):
        return None
    most = budget * 3 // 4 // (2 * len(steps))
    kept = sorted(range(len(edges)), key=lambda edge: (-counts[edge], edge))[:most]
    if not kept:
        return None
    values = np.full((len(kept), len(steps)), np.nan, dtype=np.float32)
    for column, step in enumerate(steps):
        if not folder.has(step, ".pt"):
            continue
        try:
            _, stored = folder.read_circuit(step)
        except Damaged as error:
            logger.warning("histories of edges: step %d left out: %s", step, error)
            continue
        sources = {name: i for i, name in enumerate(stored["forward_nodes"])}
        targets = {name: i for i, name in enumerate(stored["backward_nodes"])}
        try:
            rows, columns = zip(*((sources[u], targets[v]) for u, v in (edges[edge] for edge in kept)), strict=True)
        except KeyError as missing:
            raise ValueError(f"step{step:06d}.pt has no node {missing}, but a circuit has") from None
        values[:, column] = stored["scores"].numpy()[rows, columns]
    scale = float(f"{np.nanmax(np.abs(values)):.6g}") or 1.0
    data = (values / scale).astype("<f2").tobytes()
    return {"edges": kept, "scale": scale, "data": base64.b64encode(data).decode()}
