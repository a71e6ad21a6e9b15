"""The nonlinearities of MLPs, by the names that configs use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

Activation = Callable[[Tensor], Tensor]

_gelu_tanh = partial(F.gelu, approximate="tanh")

FUNCTIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": F.relu,
    "silu": F.silu,
}

ACTIVATIONS = (*FUNCTIONS, "xielu")
"""Names of all activations."""


def read_activation(name: str, tensors: Mapping[str, Tensor], prefix: str) -> Activation:
    """An activation by its name in the config; parameters that it may have are in the model's state below a prefix."""
    if name == "xielu":
        return partial(xielu, **{part: tensors[prefix + part] for part in ("alpha_p", "alpha_n", "beta", "eps")})
    return FUNCTIONS[name]


def xielu(x: Tensor, *, alpha_p: Tensor, alpha_n: Tensor, beta: Tensor, eps: Tensor) -> Tensor:
    """xIELU with its learned slopes (Huang and Schlag 2024, arXiv 2411.13010), as Apertus has it."""
    above = F.softplus(alpha_p) * x * x
    below = (torch.expm1(torch.min(x, eps)) - x) * (beta + F.softplus(alpha_n))
    return torch.where(x > 0, above, below) + beta * x
