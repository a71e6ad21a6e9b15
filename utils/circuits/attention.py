"""What heads look at and what they write: their attention on one prompt of a task, and their direct effect on tokens.

The prompt is the first that circuits are evaluated on. The direct effect of a head on a token is what its output at the
end of the prompt adds to the token's logit, through the final norm with the scale of the run, less its mean over the
vocabulary, which no softmax sees.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from circuits_over_time.edge_attribution_patching.graph import head_named
from circuits_over_time.edge_attribution_patching.model.forward import (
    LayerActivations,
    Unembedding,
    embed,
    forward,
)
from circuits_over_time.edge_attribution_patching.model.norms import normalise
from circuits_over_time.edge_attribution_patching.model.packed_tokens import PackedTokens
from circuits_over_time.edge_attribution_patching.model.transfer import to_device
from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights

from ..models.checkpoint import LoadedCheckpoint
from ..results.kinds import KINDS
from ..results.store import Result
from ..tasks import Prompts

MOST_TOKENS = 48
"""Of a longer prompt, so many tokens at its end are kept."""
N_TOKENS = 5
"""How many tokens are kept of those that a head raises, and of those that it lowers."""
_ROWS = 8192
"""Tokens of the vocabulary whose logits are worked out at once."""


def attention_result(checkpoint: LoadedCheckpoint, prompts: Prompts, heads: Sequence[str]) -> Result:
    """The table and the patterns of some heads (`a3.h1`) on the first of the prompts."""
    n_tokens, tokenizer = int(prompts.lengths[0]), checkpoint.tokenizer
    tokens = prompts.clean[0, :n_tokens].cpu()
    first = max(0, n_tokens - MOST_TOKENS)
    places = sorted(at for name in heads if (at := head_named(name)))
    rows, patterns = [], dict[str, list[list[float]]]()
    if places:
        pattern, effects = heads_on_prompt(checkpoint.weights, tokens, places)
        n_each = min(N_TOKENS, effects.shape[1] // 2)
        both = torch.stack((effects, -effects)).topk(n_each, dim=-1)
        values, found, pattern = both.values.cpu(), both.indices.cpu(), pattern[:, first:, first:].cpu()
        for place, (layer, head) in enumerate(places):
            # Causal: a query has as many keys as its own place.
            queries = enumerate(pattern[place].tolist(), start=1)
            patterns[f"a{layer}.h{head}"] = [[round(value, 3) for value in keys[:n]] for n, keys in queries]
            for sign in (0, 1):
                for token, value in zip(found[sign, place].tolist(), values[sign, place].tolist(), strict=True):
                    rows.append((layer, head, token, token_text(tokenizer, token), -value if sign else value))
    table = pd.DataFrame(rows, columns=list(KINDS["attention"].columns))
    shown = [token_text(tokenizer, token) for token in tokens[first:].tolist()]
    return Result(table, json={"tokens": shown, "left_out": first, "heads": patterns})


@torch.inference_mode()
def heads_on_prompt(
    weights: ModelWeights, tokens: Int[Tensor, " position"], heads: Sequence[tuple[int, int]]
) -> tuple[Float[Tensor, "head query key"], Float[Tensor, "head vocab"]]:
    """Attention probabilities of heads (layer, head) on a prompt, and their direct effect on the logits at its end.

    Effects are in logits, before a soft cap where the model has one.
    """
    patterns: list[Tensor] = []
    outputs: list[Tensor] = []

    def keep(layer: LayerActivations) -> None:
        patterns.append(layer.pattern[0].float())
        W_O = weights.layers[layer.layer].W_O_scaled.to(weights.device)
        outputs.append((layer.written[-1, :, None].to(W_O.dtype) @ W_O)[:, 0])  # [head, d_model]

    on_cpu = PackedTokens.whole(torch.tensor([len(tokens)])).made_for(weights)
    numbers = torch.tensor([layer * weights.n_heads + head for layer, head in heads])
    layout, tokens, numbers = to_device((on_cpu, tokens, numbers), weights.device)
    final = forward(weights, layout, embed(weights, layout, tokens), visit=keep)
    _, inverse_scale = normalise(weights.final_norm, final[-1:])
    unembedding = Unembedding(weights, centre_vocabulary=True)
    normalised = (torch.cat(outputs)[numbers] * inverse_scale).to(unembedding.dtype)
    vocabulary = range(0, weights.d_vocab, _ROWS)
    effects = [normalised @ unembedding.rows(slice(start, start + _ROWS)).T for start in vocabulary]
    return torch.cat(patterns)[numbers], torch.cat(effects, dim=1)


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token as text in one line: what cannot be printed is written out (`\\n`), and never empty."""
    text = tokenizer.decode([token]) or str(tokenizer.convert_ids_to_tokens(token))
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
