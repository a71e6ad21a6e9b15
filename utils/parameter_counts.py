"""How many parameters a model has, found without loading it."""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.errors import UserError

# Layers, residual width and rows of the embedding of the Pythia suite (Biderman et al. 2023, table 1 and the models'
# configs).
PYTHIA_SHAPES: dict[str, tuple[int, int, int]] = {
    "14m": (6, 128, 50304),
    "31m": (6, 256, 50304),
    "70m": (6, 512, 50304),
    "160m": (12, 768, 50304),
    "410m": (24, 1024, 50304),
    "1b": (16, 2048, 50304),
    "1.4b": (24, 2048, 50304),
    "2.8b": (32, 2560, 50304),
    "6.9b": (32, 4096, 50432),
    "12b": (36, 5120, 50688),
}


def neox_parameters(n_layers: int, d_model: int, vocab: int) -> int:
    """Parameters of a GPT-NeoX model with untied embeddings and MLPs four times as wide as the residual stream.

    A layer has attention (4 d^2 + 4 d), an MLP (8 d^2 + 5 d) and two LayerNorms (4 d). One more LayerNorm comes last.
    """
    return 2 * vocab * d_model + n_layers * (12 * d_model**2 + 13 * d_model) + 2 * d_model


def safetensors_parameters(path: Path) -> int:
    """Parameters in a safetensors file, from its header alone.

    Raises:
        UserError: if it is not a safetensors file.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header: dict[str, Any] = json.loads(file.read(length))
    except (struct.error, ValueError) as error:
        raise UserError(f"{path}: not a safetensors file ({error}); save the checkpoint again") from error
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def parameter_count(model: str, sources: Mapping[str, str | Path] | None = None) -> int | None:
    """Parameters of a model, with embeddings.

    Args:
        model: its name in a results folder, such as `pythia-160m-seed3`.
        sources: folders of local families by model name. The weights in one `step{n}` folder are counted.

    Returns:
        For a Pythia model the count that follows from its shape, for a local family that of its weights, else None.
    """
    size = model.removeprefix("pythia-").split("-")[0] if model.startswith("pythia-") else ""
    if size in PYTHIA_SHAPES:
        return neox_parameters(*PYTHIA_SHAPES[size])
    folder = Path((sources or {}).get(model, ""))
    for step in sorted(folder.glob("step*")) if model in (sources or {}) else []:
        if files := sorted(step.glob("model*.safetensors")):
            return sum(safetensors_parameters(path) for path in files)
    return None
