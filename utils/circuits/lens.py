"""What a model does on prompts as they are: its logits, its attention, and what heads and MLPs write to the logits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuits_over_time.edge_attribution_patching.model.forward import (
    LayerActivations,
    Unembedding,
    embed,
    forward,
    unembed,
)
from circuits_over_time.edge_attribution_patching.model.norms import normalise
from circuits_over_time.edge_attribution_patching.model.packed_tokens import PackedTokens

from ..base.errors import UserError
from ..tasks import Task
from ..tasks.prompts import bos_token
from ..tasks.vocabulary import encode, require_embedded
from .handle import Model, names_in, require_model, task_prompts


def logit_lens(
    model: Model, task: Task, nodes: str | Sequence[str], keys: Mapping[str, Any]
) -> dict[str, Float[Tensor, "prompt vocab"]]:
    """What nodes write to the logits at the end of a task's clean prompts; see `cot.logit_lens`."""
    settings, prompts = task_prompts(model, task, keys)
    weights, known = model.weights, model.graph.forward_nodes
    names = names_in(nodes, f"nodes: {nodes!r} is not a list of names")
    for name in names:
        if name not in known:
            raise UserError(
                f"nodes: the model has no {name!r}; there are input, a0.h0, ... {known[-2]}, m0, ... {known[-1]}"
            )
    directions = Unembedding(weights, centre_vocabulary=True).rows(slice(None))  # [vocab, d_model]
    lens = {name: torch.zeros(len(prompts), weights.d_vocab) for name in names}
    for index in torch.arange(len(prompts)).split(settings.batch_size):
        batch = prompts.select(index)
        packed = PackedTokens.whole(batch.lengths)
        written: dict[str, Tensor] = {}

        def watch(layer: LayerActivations, packed: PackedTokens = packed, written: dict[str, Tensor] = written) -> None:
            z, W_O = layer.written[packed.last], weights.layers[layer.layer].W_O_scaled.to(weights.device)
            for head in range(weights.n_heads):
                if (name := f"a{layer.layer}.h{head}") in lens:
                    written[name] = z[:, head].to(W_O.dtype) @ W_O[head]
            written[f"m{layer.layer}"] = layer.mlp_out[packed.last]

        with torch.inference_mode():
            x = embed(weights, packed, packed.pack(batch.clean))
            written["input"] = x[packed.last]
            # The final norm divides everything by one scale, that of the whole run.
            _, inverse_scale = normalise(weights.final_norm, forward(weights, packed, x, visit=watch)[packed.last])
            for name, logits in lens.items():
                logits[index] = ((written[name] * inverse_scale).to(directions.dtype) @ directions.T).float().cpu()
    return lens


def logits_of(
    model: Model, prompts: str | Sequence[str], start_token: bool | None, batch_size: int = 32
) -> Float[Tensor, "prompt vocab"]:
    """The logits of the next token after each prompt; see `cot.logits`."""
    texts = [prompts] if isinstance(prompts, str) else list(prompts) if isinstance(prompts, Iterable) else [prompts]
    rows = [torch.tensor(_tokens(model, text, start_token)) for text in texts]
    found = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        packed = PackedTokens.whole(torch.tensor([len(row) for row in batch], device=model.weights.device))
        with torch.inference_mode():
            x = embed(model.weights, packed, torch.cat(batch).to(model.weights.device))
            found.append(unembed(model.weights, forward(model.weights, packed, x, last_layer="answers")).float().cpu())
    return torch.cat(found) if found else torch.zeros(0, require_model(model).weights.d_vocab)


def attention_of(
    model: Model, prompt: str, start_token: bool | None
) -> tuple[list[str], Float[Tensor, "layer head query key"]]:
    """The tokens of a prompt, and the attention of every head between them."""
    tokens = torch.tensor(_tokens(model, prompt, start_token), device=require_model(model).weights.device)
    packed = PackedTokens.whole(torch.tensor([len(tokens)], device=tokens.device))
    patterns: list[Tensor] = []
    with torch.inference_mode():
        x = embed(model.weights, packed, tokens)
        forward(model.weights, packed, x, visit=lambda layer: patterns.append(layer.pattern[0]))
    return [str(model.tokenizer.decode([token])) for token in tokens.tolist()], torch.stack(patterns).float().cpu()


def _tokens(model: Model, prompt: str, start_token: bool | None) -> list[int]:
    """A prompt's tokens, with one start token in front if it is asked for."""
    if not isinstance(prompt, str):
        raise TypeError(f"prompt: {prompt!r} is not text")
    ids = encode(require_model(model).tokenizer, [prompt])[0]
    if (model.start_token is True if start_token is None else start_token) and (
        first := bos_token(model.tokenizer)
    ) not in ids[:1]:
        ids = [first, *ids]
    if not 0 < len(ids) <= model.weights.n_positions:
        raise UserError(f"prompt: has {len(ids)} tokens; the model takes 1 to {model.weights.n_positions}")
    require_embedded(torch.tensor([ids]), model.weights.d_vocab, "prompt", [prompt])
    return ids
