"""Succession score of every attention head (Gould et al. 2023, arXiv 2312.09230).

A successor head moves "Monday" to "Tuesday" and "2" to "3" by its weights alone. For each head we compute

    x = MLP0(E[token])        E: token embedding; MLP0: first MLP with its own LayerNorm and all its biases
    logits = U g_f C W_O^T W_V^T g C x

where g and g_f are the gains of the head's input norm and of the final norm, C takes out the mean over d_model (in
LayerNorm models only) and U is the unembedding. A pair (token, successor) succeeds if the successor's logit exceeds
those of all other successors in the list that the pair comes from; a tie fails. The score is the share of pairs that
succeed.

A list is a class of words in one spelling (a case, with or without a leading space), so a score says whether a head
counts, not whether it keeps the spelling. Of a list, the pairs count whose words are both single tokens. A list with
only one such pair has nothing to confuse it with, so it is left out.

Where this differs from Gould et al.:
- MLP0 reads the embedding through its own LayerNorm in every architecture. In sequential blocks it then lacks what
  attention 0 would add; in parallel blocks (Pythia) MLP0 reads the embedding anyway.
- MLP0's output alone is the effective embedding, without the token embedding added to it.
- The gains of the norms and the centring are part of the map. The scales of the norms are positive and so change no
  order. The biases of V, O, both norms and the unembedding are the same whatever the token, and are left out.
- More words: roman numerals to XX, ordinals to twentieth, three spellings of a word and two of a letter, each with and
  without a leading space. After the last day or month comes the first.

The study (Tigges et al. 2024, arXiv 2407.10827) has no norm anywhere: MLP0 reads E[token] as it is, and

    logits = U W_O^T W_V^T x

with the projections as the checkpoint stores them. All of it is computed in the number format of the weights, and a
successor that ties for the highest logit is right. In bfloat16 that happens, and a head that writes nothing scores 1.
Its spellings are the words as written here and with the first letter in lower case; letters and roman numerals come in
capitals only, and ordinals go to tenth. Numbers have no case, so each of their pairs counts twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from circuits_over_time.edge_attribution_patching.model.architectures import Shape
from circuits_over_time.edge_attribution_patching.model.forward import Unembedding, embed_tokens, mlp
from circuits_over_time.edge_attribution_patching.model.transfer import largest_of, require_finite, to_device
from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights

from ..base.errors import UserError
from ..models.checkpoint import LoadedCheckpoint
from ..results.store import Result
from ..tasks import Task
from ..tasks.vocabulary import require_embedded
from .keys import Definition, SuccessorConfig
from .successor_words import CLASSES, Pairs, some_pairs


def prepare(config: SuccessorConfig, tokenizer: PreTrainedTokenizerBase, shape: Shape) -> dict[str, list[Pairs]]:
    """The pairs of words and successors; a UserError if the tokenizer splits all, or the model does not embed one."""
    pairs = some_pairs(tokenizer, config)
    used = torch.tensor([[token] for lists in pairs.values() for listed in lists for pair in listed for token in pair])
    require_embedded(used, shape.d_vocab, "succession", tokenizer.batch_decode(used))
    return pairs


def measure(
    checkpoint: LoadedCheckpoint, config: SuccessorConfig, inputs: dict[str, list[Pairs]], task: Task | None
) -> dict[str, Result]:
    """The scores of every head, one row each; under `study` a UserError if a norm hides the stored value projection."""
    weights = checkpoint.weights
    try:
        result = succession(weights, inputs, config.head_scores)
    except ZeroDivisionError as error:
        raise UserError(f"head_scores: study: step {checkpoint.step}: {error}; use standard") from None
    table = pd.DataFrame(product(range(weights.n_layers), range(weights.n_heads)), columns=["layer", "head"])
    table["value"] = result.overall().flatten().tolist()
    table["pairs"] = n_pairs = sum(result.pairs(name) for name in CLASSES)
    table["se"] = (table["value"] * (1 - table["value"]) / n_pairs) ** 0.5
    right = (table["value"] * n_pairs).round().astype(int)
    ends = [stats.binomtest(n_right, n_pairs).proportion_ci(method="wilson") for n_right in right.tolist()]
    table["low"], table["high"] = [end.low for end in ends], [end.high for end in ends]
    table["chance"] = chance_level(inputs)
    table["class_mean"] = result.class_mean().flatten().tolist()
    table["class_mean_se"] = result.class_mean_error().flatten().tolist()
    for name in CLASSES:
        table[name] = result.share(name).flatten().tolist()
        table[f"{name}_pairs"] = result.pairs(name)
    return {"successor": Result(table)}


def chance_level(pairs: dict[str, list[Pairs]]) -> float:
    """The share of pairs that a head gets right which ranks the successors of a list at random."""
    lists = [of_list for of_class in pairs.values() for of_list in of_class]
    of_pair = [1 / len({successor for _, successor in of_list}) for of_list in lists for _ in of_list]
    return sum(of_pair) / len(of_pair)


@dataclass(frozen=True)
class Succession:
    """Which pairs every head gets right."""

    right: dict[str, Bool[Tensor, "layer head pair"]]  # by class, list after list

    def pairs(self, name: str) -> int:
        """Number of a class's pairs."""
        return self.right[name].shape[-1]

    def share(self, name: str) -> Float[Tensor, "layer head"]:
        """Share of a class's pairs that each head gets right; NaN for a class without pairs."""
        return self.right[name].float().mean(dim=-1)

    def class_mean(self) -> Float[Tensor, "layer head"]:
        """Mean of the shares of the classes that have pairs, each class with the same weight."""
        return torch.stack([self.share(name) for name in self.right if self.pairs(name)]).mean(dim=0)

    def class_mean_error(self) -> Float[Tensor, "layer head"]:
        """Its standard error, binomial in every class."""
        shares = {name: self.share(name).double() for name in self.right if self.pairs(name)}
        variances = [share * (1 - share) / self.pairs(name) for name, share in shares.items()]
        return torch.stack(variances).sum(dim=0).sqrt() / len(shares)

    def overall(self) -> Float[Tensor, "layer head"]:
        """Share of all pairs that each head gets right."""
        return torch.cat(list(self.right.values()), dim=-1).float().mean(dim=-1)


@torch.inference_mode()
def succession(weights: ModelWeights, pairs: dict[str, list[Pairs]], definition: Definition = "standard") -> Succession:
    """Run every head's OV circuit on the first MLP's output and see which successors win (see above).

    A ValueError if no class has pairs; under `study` a ZeroDivisionError if a norm hides what the checkpoint stores.
    """
    # Each list as [source or successor, pair]; what any list needs is worked out once for all, on the CPU.
    lists = [torch.tensor(of_list).T.contiguous() for of_class in pairs.values() for of_list in of_class]
    if not lists:
        raise ValueError("no class has a pair of single tokens under this tokenizer")
    sources, successors = (ids.unique() for ids in torch.cat(lists, dim=1))
    # Only the successors of a pair's own list compete with its own.
    places = []
    for source, successor in lists:
        candidates, own = successor.unique(return_inverse=True)
        places.append((torch.searchsorted(sources, source), torch.searchsorted(successors, candidates), own))
    sources, successors, places = to_device((sources, successors, places), weights.device)
    bottom, study = weights.layers[0], definition == "study"
    if study:
        bottom, read = replace(bottom, mlp_norm=None, mlp_post_norm=None), weights.unembed[successors]
    else:
        read = Unembedding(weights).rows(successors)
    x = mlp(bottom, embed_tokens(weights, sources)).to(read.dtype)
    require_finite({"layer 0": largest_of(x)}, weights.dtype)
    layers = []
    for layer in weights.layers:
        W_V, W_O = (layer.stored_W_V(), layer.W_O) if study else (layer.W_V, layer.W_O_scaled)
        values = layer.per_head(x.to(layer.device) @ W_V.to(read.dtype).transpose(1, 2))  # [head, source, d_head]
        reads = W_O.to(read.dtype) @ read.to(layer.device).T  # [head, d_head, successor]
        values, reads = to_device((values, reads), weights.device)
        wins = [_wins(values[:, source] @ reads[..., some], own, ties=study) for source, some, own in places]
        layers.append(torch.cat(wins, dim=-1))
    sizes = [sum(map(len, of_class)) for of_class in pairs.values()]
    right = torch.stack(layers).cpu().split(sizes, dim=-1)
    return Succession(dict(zip(pairs, right, strict=True)))


def _wins(
    logits: Float[Tensor, "head pair candidate"], own: Int[Tensor, " pair"], ties: bool
) -> Bool[Tensor, "head pair"]:
    """Whether each pair's own candidate has a higher logit than every other one; with `ties`, at least as high."""
    column = own[None, :, None].expand(len(logits), -1, 1)
    own_logit = logits.gather(2, column)[..., 0]
    others = logits.scatter(2, column, float("-inf")).amax(dim=2)
    return own_logit >= others if ties else own_logit > others
