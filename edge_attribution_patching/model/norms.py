"""Norms of the residual stream, and of queries and keys.

Where a residual stream is read through a normalisation n = (x - mean(x)) / s, gain, bias and centring are folded into
the projections that follow (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"): q = n @ W + b,
with W centred over d_model. RMSNorm is the same without the centring.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Norm:
    """LayerNorm (`center=True`) or RMSNorm (`center=False`, bias zero): (x - mean) / sqrt(var + eps) * gain + bias."""

    gain: Float[Tensor, " size"]
    bias: Float[Tensor, " size"]
    eps: float
    center: bool = True


def normalise(norm: Norm, x: Tensor, *, frozen: bool = False) -> tuple[Tensor, Tensor]:
    """The normalised residual stream without gain and bias, and 1 / s, with s the norm's scale ([..., 1]).

    With `frozen`, gradients take the scale for a constant.
    """
    if frozen:
        inverse_scale = inverse_rms(norm, x := centred(norm, x)).detach()
        return (x * inverse_scale).to(x.dtype), inverse_scale
    if norm.center:
        normalised, _, inverse_scale = torch.native_layer_norm(x, (x.shape[-1],), None, None, norm.eps)
        return normalised, inverse_scale
    inverse_scale = inverse_rms(norm, x)
    return (x * inverse_scale).to(x.dtype), inverse_scale


def inverse_rms(norm: Norm, x: Tensor) -> Float[Tensor, "... 1"]:
    """1 / s of a norm for x that is centred where the norm centres, in float32 or better."""
    precise = torch.promote_types(x.dtype, torch.float32)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=precise)
    return torch.rsqrt(length.square() / x.shape[-1] + norm.eps)


def centred(norm: Norm, x: Float[Tensor, "*stack d_model"]) -> Float[Tensor, "*stack d_model"]:
    """The part of a residual stream that a norm sees: without its mean over d_model, where the norm centres."""
    return x - x.mean(-1, keepdim=True) if norm.center else x


def apply_norm(norm: Norm | None, x: Tensor, *, frozen: bool = False) -> Tensor:
    """LayerNorm or RMSNorm with its gain and bias; x itself without a norm. `frozen` as in `normalise`."""
    if norm is None:
        return x
    if frozen:
        return (normalise(norm, x, frozen=True)[0] * norm.gain + norm.bias).to(x.dtype)
    if norm.center:
        return F.layer_norm(x, (x.shape[-1],), norm.gain, norm.bias, norm.eps)
    return (x * inverse_rms(norm, x) * norm.gain).to(x.dtype)


def value_mean(norm: Norm | None, W_V: Float[Tensor, "kv_head d_head d_model"]) -> Float[Tensor, "kv_head d_head"]:
    """What `fold_norm` takes out of the projection to v where the norm centres, in float32 or better."""
    precise = torch.promote_types(W_V.dtype, torch.float32)
    if norm is None or not norm.center:
        return W_V.new_zeros(W_V.shape[:2], dtype=precise)
    return (W_V.to(precise) @ norm.gain.to(precise)) / W_V.shape[-1]


def fold_norm(
    norm: Norm | None, W: Float[Tensor, "qkv_head d_head d_model"], b: Float[Tensor, "qkv_head d_head"]
) -> tuple[Float[Tensor, "qkv_head d_head d_model"], Float[Tensor, "qkv_head d_head"]]:
    """Projections and biases that read the normalised residual stream as the raw ones read the norm's output.

    Computed in float32 or better; the projections are centred over d_model where the norm centres.
    """
    if norm is None:
        return W.contiguous(), b.contiguous()
    precise = torch.promote_types(W.dtype, torch.float32)
    # n @ (gain * W) + bias @ W is what W makes of the norm's output. Centring W takes the mean of x out of the first.
    folded = W.to(precise)
    b_folded = b.to(precise) + folded @ norm.bias.to(precise)
    folded = folded * norm.gain.to(precise)
    if norm.center:
        folded = folded - folded.mean(dim=-1, keepdim=True)
    return folded.to(W.dtype).contiguous(), b_folded.to(W.dtype).contiguous()
