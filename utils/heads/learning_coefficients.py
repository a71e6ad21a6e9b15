"""The local learning coefficient (LLC) of the whole model and of single heads, by devinterp (Lau et al. 2023,
arXiv 2308.12108; of heads with all else fixed: Wang et al. 2024, arXiv 2410.02984).

LLC = n_beta * (E[loss] - loss at the checkpoint), in nats times sequences, over draws of SGLD chains around the
checkpoint. The mean is over the draws after burn-in, which we take from the trace of losses: that of devinterp 2.0.1
counts burn-in. Parameters are those of the engine, with the norm before attention folded into its projections.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import io
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuits_over_time.edge_attribution_patching.graph import head_named
from circuits_over_time.edge_attribution_patching.model.architectures import Shape
from circuits_over_time.edge_attribution_patching.model.forward import embed, forward, unembed
from circuits_over_time.edge_attribution_patching.model.packed_tokens import PackedTokens
from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights
from circuits_over_time.edge_attribution_patching.statistics import standard_error

from ..models.checkpoint import LoadedCheckpoint
from ..results.kinds import KINDS
from ..results.store import Result
from ..tasks.vocabulary import require_embedded
from .corpus import Corpus, draw_sequences
from .learning_keys import LearningConfig, SamplerKeys, require_devinterp, require_fit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HIGHEST_R_HAT = 1.1
"""Chains whose R-hat (Gelman and Rubin 1992) is higher have not converged."""
NO_PARAMETERS = ("attn_norm", "V_mean", "rotary")
"""Fields that the forward pass does not read, because they are folded into others; and tables of angles."""
HEAD_PARAMETERS = ("W_qkv", "b_qkv", "W_O")


class EngineModel(nn.Module):
    """The engine's weights as parameters, by their names (`layers.0.W_qkv`), and the loss of every next token."""

    def __init__(self, weights: ModelWeights) -> None:
        super().__init__()
        self.weights = weights
        self.names: dict[str, str] = {}  # A name with dots -> that of the parameter
        for name, tensor in _tensors_of(weights):
            self.names[name] = name.replace(".", "/")
            self.register_parameter(self.names[name], nn.Parameter(tensor.detach().float().clone()))

    def losses(self, tokens: Int[Tensor, "sequence position"]) -> Float[Tensor, "sequence position-1"]:
        """Nats of each token but the first; NaN, which ends a chain, where activations are not finite."""
        own = {name: getattr(self, parameter) for name, parameter in self.names.items()}
        weights = _with_tensors(self.weights, own)
        layout = PackedTokens.whole(torch.full((len(tokens),), tokens.shape[1])).made_for(weights)
        try:
            final = forward(weights, layout, embed(weights, layout, tokens.flatten()))
            logits = unembed(weights, final).view(*tokens.shape, -1)[:, :-1]
        except FloatingPointError:
            return next(iter(own.values())).sum() * torch.full((len(tokens), tokens.shape[1] - 1), torch.nan)
        return nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")

    def head_masks(self, layer: int, head: int) -> dict[str, Tensor]:
        """What belongs to one head: its rows of q, of k and v too unless other heads share them, and what it writes."""
        of_layer = self.weights.layers[layer]
        rows = [head] if of_layer.group > 1 else [of_layer.rows(letter).start + head for letter in ("q", "k", "v")]
        masks = {}
        for name in HEAD_PARAMETERS:
            if (parameter := self.names.get(f"layers.{layer}.{name}")) is None:
                continue
            masks[parameter] = torch.zeros_like(getattr(self, parameter))
            masks[parameter][[head] if name == "W_O" else rows] = 1
        return masks


def _tensors_of(record: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The floating-point fields of a record and of those in it, by name. A tied output layer comes once, and what is
    zero throughout not at all: such biases are no parameters of most models."""
    seen: set[int] = set()
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        parts = enumerate(value) if isinstance(value, tuple) else ()
        if (
            isinstance(value, Tensor)
            and value.is_floating_point()
            and field.name not in NO_PARAMETERS
            and bool(value.any())
        ):
            if value.data_ptr() not in seen:
                yield prefix + field.name, value
            seen.add(value.data_ptr())
        elif dataclasses.is_dataclass(value) and field.name not in NO_PARAMETERS:
            yield from _tensors_of(value, f"{prefix}{field.name}.")
        for number, part in parts:
            if dataclasses.is_dataclass(part):
                yield from _tensors_of(part, f"{prefix}{field.name}.{number}.")


def _with_tensors(record: Any, own: dict[str, Tensor], prefix: str = "") -> Any:
    """The same record with other tensors, by the names of `_tensors_of`."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(record):
        name, value = prefix + field.name, getattr(record, field.name)
        if name in own:
            changes[field.name] = own[name]
        elif isinstance(value, tuple):
            changes[field.name] = tuple(
                _with_tensors(part, own, f"{name}.{number}.") if dataclasses.is_dataclass(part) else part
                for number, part in enumerate(value)
            )
        elif dataclasses.is_dataclass(value) and field.name not in NO_PARAMETERS:
            changes[field.name] = _with_tensors(value, own, f"{name}.")
    if isinstance(record, ModelWeights) and "unembed" not in own:
        changes["unembed"] = own["embed"]
    return dataclasses.replace(record, **changes)


def prepare(
    config: LearningConfig, tokenizer: PreTrainedTokenizerBase, shape: Shape
) -> Int[Tensor, "sequence position"]:
    """Draw the text; a UserError if devinterp is not installed, there is too little text, or no such head."""
    require_devinterp()
    require_fit(config, shape)
    corpus = Corpus(config.corpus, config.corpus_split, config.corpus_field)
    tokens = torch.tensor(draw_sequences(corpus, tokenizer, config.n_sequences, config.seq_len, config.seed))
    require_embedded(tokens, shape.d_vocab, "corpus", tokenizer.batch_decode(tokens))
    return tokens


def measure(checkpoint: LoadedCheckpoint, config: LearningConfig, inputs: Tensor, task: None) -> dict[str, Result]:
    """One row for the whole model, and one for each head asked for."""
    model, shape = EngineModel(checkpoint.weights), checkpoint.weights
    every = [(layer, head) for layer in range(shape.n_layers) for head in range(shape.n_heads)]
    named = [place for name in config.heads if (place := head_named(name))]
    rows = []
    for at in [None, *(every if "all" in config.heads else named)]:
        masks = None if at is None else model.head_masks(*at)
        trace, initial = sample_losses(model, inputs, config.sampler, masks, config.seed)
        layer, head = (None, None) if at is None else at
        rows.append({"layer": layer, "head": head, **estimate(trace, initial, config.sampler.n_beta)})
    about = {"devinterp": importlib.metadata.version("devinterp"), "sample": config.sampler.model_dump()}
    table = pd.DataFrame(rows, columns=list(KINDS["learning_coefficients"].columns))
    return {"learning_coefficients": Result(table.astype({"layer": "Int64", "head": "Int64"}), json=about)}


def sample_losses(
    model: EngineModel,
    tokens: Int[Tensor, "sequence position"],
    keys: SamplerKeys,
    masks: dict[str, Tensor] | None,
    seed: int,
) -> tuple[Float[Tensor, "chain draw"], float]:
    """The mean loss of every step of every chain after burn-in, NaN once a chain failed; and that at the checkpoint."""
    from datasets import Dataset
    from devinterp.slt.sampling import sample  # type: ignore[import-not-found]

    dataset = Dataset.from_dict({"input_ids": tokens.tolist()}).with_format("torch")
    logging.getLogger("devinterp").setLevel(logging.WARNING)
    quiet = contextlib.redirect_stderr(io.StringIO())  # Its bars would break ours.
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), quiet, torch.random.fork_rng():
        warnings.simplefilter("ignore")  # Failed chains are told by their trace.
        found = sample(
            model,
            dataset,
            {},
            **keys.model_dump(),
            param_masks=masks,
            loss_fn=lambda sampled, ids: sampled.losses(ids),
            init_seed=seed,
            match_sampling_input_ids_across_chains=False,  # The error over chains counts which text they read.
            device="cpu",
            output_path=Path(folder) / "samples.zarr",
        ).dataset
        trace = torch.tensor(found.sampling_loss_micro.mean(dim=["batch_sampling", "token_pos"], skipna=False).values)
        initial = float(found.init_loss.values.mean())
    return trace[:, keys.num_burnin_steps :].double(), initial


def estimate(trace: Float[Tensor, "chain draw"], initial: float, n_beta: float) -> dict[str, Any]:
    """The LLC of losses of draws after burn-in, its error over chains, R-hat, and why not to trust it, if so."""
    by_chain = n_beta * (trace.mean(dim=1) - initial)
    # Gelman and Rubin: the spread between chains' means against that within chains.
    n_chains, n_draws = trace.shape
    within, between = trace.var(dim=1).mean(), trace.mean(dim=1).var()
    r_hat = float(torch.sqrt((n_draws - 1) / n_draws + between / within))
    llc, error, reason = float(by_chain.mean()), standard_error(by_chain), None
    if not math.isfinite(llc):
        failed = int((~trace.isfinite()).any(dim=1).sum())
        llc, error, r_hat = (math.nan,) * 3
        reason = f"{failed} of {n_chains} chains diverged; lower sampler.lr"
    elif llc < 0:
        reason = "negative: the checkpoint is no minimum, or sampler.lr is too high"
    elif r_hat > HIGHEST_R_HAT:
        reason = f"chains have not converged (R-hat {r_hat:.2f}, above {HIGHEST_R_HAT}); raise sampler.num_burnin_steps"
    return {"llc": llc, "llc_se": error, "r_hat": r_hat, "initial_loss": initial, "reason": reason}
