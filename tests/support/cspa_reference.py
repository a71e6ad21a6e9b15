"""CSPA written straight from its definition, slowly: one head and one sequence at a time, in explicit tensors.

Shares nothing with `utils/heads/cspa_scores.py`: activations come from a TransformerBridge's hooks, every source's
output is a vector of the residual stream, projections are explicit and logits are full. Everything is computed in
float64.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights


def activations(bridge: TransformerBridge, tokens: Int[Tensor, "sequence position"]) -> dict[str, Tensor]:
    """What the definition needs of a run, in float64."""
    wanted = ("hook_resid_pre", "attn.hook_v", "attn.hook_pattern", "ln_final.hook_in")
    _, cache = bridge.run_with_cache(tokens, names_filter=lambda name: name.endswith(wanted))
    return {name: tensor.double() for name, tensor in cache.items()}


def value_outputs(cache: dict[str, Tensor], weights: ModelWeights, layer: int, head: int) -> Tensor:
    """o_s = v_s W_O, [sequence, key, d_model]."""
    v = cache[f"blocks.{layer}.attn.hook_v"]
    v = v.reshape(*v.shape[:2], weights.n_heads, weights.d_head)
    return v[:, :, head] @ weights.layers[layer].W_O[head].double()


def mean_output(cache: dict[str, Tensor], weights: ModelWeights, layer: int, head: int) -> Tensor:
    """mu, [position, d_model]."""
    pattern = cache[f"blocks.{layer}.attn.hook_pattern"][:, head]
    return (pattern @ value_outputs(cache, weights, layer, head)).mean(dim=0)


def logits_of(weights: ModelWeights, resid: Float[Tensor, "position d_model"], scale: Tensor) -> Tensor:
    """Final norm with a given scale, and the unembedding."""
    norm = weights.final_norm
    centred = resid - resid.mean(dim=-1, keepdim=True) if norm.center else resid
    normalised = centred / scale * norm.gain.double() + norm.bias.double()
    logits = normalised @ weights.unembed.double().T
    return logits if weights.unembed_bias is None else logits + weights.unembed_bias.double()


def unembedding_directions(weights: ModelWeights) -> Float[Tensor, "vocab d_model"]:
    """W_U with the final norm's gain folded in, centred over the vocabulary and over d_model (LayerNorm)."""
    directions = weights.unembed.double() * weights.final_norm.gain.double()
    directions = directions - directions.mean(dim=0)
    return directions - directions.mean(dim=1, keepdim=True) if weights.final_norm.center else directions


def kept(
    sequence: list[int], destination: int, logit_lens: Tensor, function_words: set[int], settings: dict[str, Any]
) -> list[int]:
    """The sources that are kept at a destination."""
    last = destination if settings["keep_self_attention"] else destination - 1
    sources = list(range(last + 1))
    if "qk" not in settings["interventions"]:
        return sources
    sources = [source for source in sources if sequence[source] not in function_words]
    count = math.ceil(Decimal(str(settings["k_unembeddings"])) * (destination + 1))
    distinct = sorted({sequence[source] for source in sources}, key=lambda token: -float(logit_lens[token]))
    return [source for source in sources if sequence[source] in distinct[:count]]


def cspa_of_head(
    bridge: TransformerBridge,
    weights: ModelWeights,
    tokens: Int[Tensor, "sequence position"],
    mean_tokens: Int[Tensor, "sequence position"],
    function_words: set[int],
    layer: int,
    head: int,
    *,
    interventions: tuple[str, ...] = ("ov", "qk"),
    k_unembeddings: float = 0.05,
    keep_self_attention: bool = True,
    negative_only: bool = True,
) -> dict[str, float]:
    """Score, divergences and losses of one head."""
    settings = {
        "interventions": interventions,
        "k_unembeddings": k_unembeddings,
        "keep_self_attention": keep_self_attention,
    }
    cache = activations(bridge, tokens)
    mean = mean_output(activations(bridge, mean_tokens), weights, layer, head)
    outputs = value_outputs(cache, weights, layer, head)
    directions = unembedding_directions(weights)
    units = directions / directions.norm(dim=1, keepdim=True)
    sums = {"kl_cspa": 0.0, "kl_ablated": 0.0, "loss": 0.0, "loss_cspa": 0.0, "loss_ablated": 0.0}
    for row, sequence in enumerate(tokens.tolist()):
        n = len(sequence)
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"][row, head]
        resid_pre = cache[f"blocks.{layer}.hook_resid_pre"][row]
        final = cache["ln_final.hook_in"][row]
        centred = final - final.mean(dim=-1, keepdim=True) if weights.final_norm.center else final
        scale = (centred.square().mean(dim=-1, keepdim=True) + weights.final_norm.eps).sqrt()
        # What moves from each source to each destination, and the mean's share of it.
        moved = pattern[:, :, None] * outputs[row][None, :, :]
        ablated = pattern[:, :, None] * mean[:n, None, :]
        preserved = ablated.clone()
        for destination in range(n):
            # The final scale of the run leaves the order as it is.
            logit_lens = directions @ resid_pre[destination] / scale[destination]
            for source in kept(sequence, destination, logit_lens, function_words, settings):
                difference = moved[destination, source] - ablated[destination, source]
                if "ov" in interventions:
                    unit = units[sequence[source]]
                    component = float(difference @ unit)
                    difference = (min(component, 0.0) if negative_only else component) * unit
                preserved[destination, source] += difference
        original = logits_of(weights, final, scale).log_softmax(-1)
        head_output = moved.sum(dim=1)
        next_tokens = torch.tensor(sequence[1:])
        sums["loss"] -= float(original[:-1].gather(1, next_tokens[:, None]).sum())
        for name, output in (("cspa", preserved.sum(dim=1)), ("ablated", ablated.sum(dim=1))):
            changed = logits_of(weights, final - head_output + output, scale).log_softmax(-1)
            sums[f"kl_{name}"] += float((original.exp() * (original - changed)).sum())
            sums[f"loss_{name}"] -= float(changed[:-1].gather(1, next_tokens[:, None]).sum())
    positions = tokens.numel()
    result = {
        name: total / (positions if name.startswith("kl") else positions - len(tokens)) for name, total in sums.items()
    }
    return {"score": 1 - result["kl_cspa"] / result["kl_ablated"], **result}
