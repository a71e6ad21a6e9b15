"""Hugging Face models really in double precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.models.gptj.modeling_gptj import create_sinusoidal_positions


class Float64(TorchFunctionMode):
    """Reads every float32 that code asks for as float64.

    Hugging Face computes norms, softmax and rotary tables in float32, whatever the weights are. Within this mode a
    model in float64 stays in float64, so that nothing is left of a difference which rounding could hide.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        named = {name: torch.float64 if arg is torch.float32 else arg for name, arg in (kwargs or {}).items()}
        return func(*args, **named)


def in_float64(model: PreTrainedModel) -> PreTrainedModel:
    """The model in float64, with the tables that it computed when it was made."""
    model = model.double()
    for module in model.modules():
        if hasattr(module, "pos_embd_dim"):  # GPT-J's, in its attention until transformers 5.23
            with Float64():
                module.embed_positions = create_sinusoidal_positions(module.max_positions, module.pos_embd_dim)
    return model
