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
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from circuits_over_time.edge_attribution_patching.graph import head_named
from circuits_over_time.edge_attribution_patching.model.architectures import Shape
from circuits_over_time.edge_attribution_patching.model.forward import embed, forward, unembed
from circuits_over_time.edge_attribution_patching.model.packed_tokens import PackedTokens
from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights
from circuits_over_time.edge_attribution_patching.statistics import standard_error

from ..base.errors import UserError
from ..base.files import read_json
from ..models.checkpoint import LoadedCheckpoint
from ..results.kinds import KINDS
from ..results.store import Result
from ..tasks.vocabulary import require_embedded
from ..toy.batches import TextSource
from ..toy.family import MANIFEST
from ..toy.keys import TextConfig
from .corpus import Corpus, draw_sequences
from .learning_keys import LearningConfig, SamplerKeys, require_devinterp, require_fit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HIGHEST_R_HAT = 1.1
"""Chains whose R-hat (Gelman and Rubin 1992) is higher have not converged."""
NO_PARAMETERS = ("attn_norm", "V_mean", "rotary")
"""Fields that the forward pass does not read, because they are folded into others; and tables of angles."""
HEAD_PARAMETERS = ("W_qkv", "b_qkv", "W_O")


@dataclasses.dataclass(frozen=True)
class Text:
    """Sequences of tokens."""

    tokens: Int[Tensor, "sequence position"]
    begins: Bool[Tensor, "sequence position"]  # where attention begins anew
    weight: Float[Tensor, "sequence position-1"]  # by which losses count; 1 in the mean

    @classmethod
    def joined(cls, tokens: Int[Tensor, "sequence position"]) -> Text:
        """Running text: attention goes back to the beginning of the sequence."""
        begins = (torch.arange(tokens.shape[1]) == 0).expand(tokens.shape)
        return cls(tokens, begins, torch.ones_like(tokens[:, 1:], dtype=torch.float32))

    @classmethod
    def of_family(cls, manifest: Path, tokenizer: PreTrainedTokenizerBase, n: int, seed: int) -> Text:
        """What a toy family would have read next, packed as in its training; a UserError if the file is none of one."""
        about = read_json(manifest) or {}
        try:
            keys, first = TextConfig(**about["config"]["text"]), about["steps"][-1]
            source = TextSource(keys, tokenizer, seed)
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"corpus: {manifest} is missing, damaged, or of a toy family whose tokenizer is not the model's; name "
                "that of the model's own family, or other text"
            ) from None
        batches = [source.batch(first + number) for number in range(-(-n // keys.rows))]
        tokens, documents, learned = (
            torch.cat([getattr(batch, name) for batch in batches])[:n] for name in ("tokens", "documents", "learned")
        )
        begins = documents < 0
        begins[:, 0] = True
        begins[:, 1:] |= documents[:, 1:] != documents[:, :-1]
        return cls(tokens, begins, learned[:, 1:] / learned[:, 1:].float().mean())

    def rows(self, numbers: Int[Tensor, " row"]) -> Text:
        """Some of the sequences."""
        return Text(self.tokens[numbers], self.begins[numbers], self.weight[numbers])


class EngineModel(nn.Module):
    """The engine's weights as parameters, by their names (`layers.0.W_qkv`), and the loss of every next token."""

    def __init__(self, weights: ModelWeights) -> None:
        super().__init__()
        self.weights = weights
        self.names: dict[str, str] = {}  # A name with dots -> that of the parameter
        seen: set[int] = set()

        def add(name: str, tensor: Tensor) -> Tensor:
            """A tied output layer comes once, and what is zero throughout, as biases of most models, not at all."""
            if tensor.data_ptr() not in seen and bool(tensor.any()):
                self.names[name] = name.replace(".", "/")
                self.register_parameter(self.names[name], nn.Parameter(tensor.detach().float().clone()))
            seen.add(tensor.data_ptr())
            return tensor

        _mapped(weights, add)

    def losses(self, text: Text) -> Float[Tensor, "sequence position-1"]:
        """Nats of each token but the first, weighted; NaN, which ends a chain, where activations are not finite."""
        own = {name: getattr(self, parameter) for name, parameter in self.names.items()}
        weights: ModelWeights = _mapped(self.weights, lambda name, tensor: own.get(name, tensor))
        if "unembed" not in own:
            weights = dataclasses.replace(weights, unembed=own["embed"])
        tokens, starts = text.tokens, text.begins.flatten().nonzero()[:, 0]
        layout = PackedTokens.whole(torch.diff(starts, append=torch.tensor([tokens.numel()]))).made_for(weights)
        try:
            final = forward(weights, layout, embed(weights, layout, tokens.flatten()))
            logits = unembed(weights, final).view(*tokens.shape, -1)[:, :-1]
        except FloatingPointError:
            return next(iter(own.values())).sum() * torch.full((len(tokens), tokens.shape[1] - 1), torch.nan)
        return nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none") * text.weight

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


def _mapped(record: Any, take: Callable[[str, Tensor], Tensor], prefix: str = "") -> Any:
    """The same record with what `take` makes of each floating-point field, and of those in it, by name."""
    if isinstance(record, Tensor) and record.is_floating_point():
        return take(prefix, record)
    prefix += "." if prefix else ""
    if isinstance(record, tuple):
        return tuple(_mapped(part, take, f"{prefix}{number}") for number, part in enumerate(record))
    if not dataclasses.is_dataclass(record) or isinstance(record, type):
        return record
    names = [field.name for field in dataclasses.fields(record) if field.name not in NO_PARAMETERS]
    return dataclasses.replace(record, **{name: _mapped(getattr(record, name), take, prefix + name) for name in names})


def prepare(config: LearningConfig, tokenizer: PreTrainedTokenizerBase, shape: Shape) -> Text:
    """Draw the text; a UserError if devinterp is not installed, there is too little text, or no such head."""
    require_devinterp()
    require_fit(config, shape)
    if (manifest := Path(config.corpus)).name == MANIFEST:
        text = Text.of_family(manifest, tokenizer, config.n_sequences, config.seed)
    else:
        corpus = Corpus(config.corpus, config.corpus_split, config.corpus_field)
        drawn = draw_sequences(corpus, tokenizer, config.n_sequences, config.seq_len, config.seed)
        text = Text.joined(torch.tensor(drawn))
    require_embedded(text.tokens, shape.d_vocab, "corpus", tokenizer.batch_decode(text.tokens))
    return text


def measure(checkpoint: LoadedCheckpoint, config: LearningConfig, inputs: Text, task: None) -> dict[str, Result]:
    """One row for the whole model, and one for each head asked for."""
    model, shape = EngineModel(checkpoint.weights), checkpoint.weights
    every = [(layer, head) for layer in range(shape.n_layers) for head in range(shape.n_heads)]
    named = [place for name in config.heads if (place := head_named(name))]
    rows = []
    for at in [None, *(every if "all" in config.heads else named)]:
        masks = None if at is None else model.head_masks(*at)
        trace, initial = sample_losses(model, inputs, config.sampler, masks, config.seed)
        layer, head = at or (None, None)
        rows.append({"layer": layer, "head": head, **estimate(trace, initial, config.sampler.n_beta)})
    about = {"devinterp": importlib.metadata.version("devinterp"), "sample": config.sampler.model_dump()}
    table = pd.DataFrame(rows, columns=list(KINDS["learning_coefficients"].columns))
    return {"learning_coefficients": Result(table.astype({"layer": "Int64", "head": "Int64"}), json=about)}


def sample_losses(
    model: EngineModel, text: Text, keys: SamplerKeys, masks: dict[str, Tensor] | None, seed: int
) -> tuple[Float[Tensor, "chain draw"], float]:
    """The mean loss of every draw of every chain after burn-in, NaN once a chain failed; and that at the checkpoint.

    From the loss of each batch is taken by how much its sequences are harder at the checkpoint than the mean of all.
    Batches differ by more than draws do, so that the trace would show nothing but them.
    """
    from datasets import Dataset
    from devinterp.slt.sampling import sample  # type: ignore[import-not-found]

    with torch.no_grad():
        parts = torch.arange(len(text.tokens)).split(keys.batch_size)
        at_checkpoint = torch.cat([model.losses(text.rows(part)) for part in parts])
    initial = at_checkpoint.double().mean()
    # Numbers of sequences in place of their tokens, for what belongs to them.
    numbers = torch.arange(len(text.tokens))[:, None].expand(text.tokens.shape)
    dataset = Dataset.from_dict({"input_ids": numbers.tolist()}).with_format("torch")
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
            loss_fn=lambda sampled, ids: sampled.losses(text.rows(ids[:, 0])) - at_checkpoint[ids[:, 0]],
            init_seed=seed,
            num_init_loss_batches=1,
            match_sampling_input_ids_across_chains=False,  # The error over chains counts which text they read.
            device="cpu",
            output_path=Path(folder) / "samples.zarr",
        ).dataset
        trace = torch.tensor(found.sampling_loss_micro.mean(dim=["batch_sampling", "token_pos"], skipna=False).values)
    return trace[:, keys.num_burnin_steps :].double() + initial, float(initial)


def estimate(trace: Float[Tensor, "chain draw"], initial: float, n_beta: float) -> dict[str, Any]:
    """The LLC of losses of draws after burn-in, its error over chains, R-hat, and why not to trust it, if so."""
    by_chain = n_beta * (trace.mean(dim=1) - initial)
    # Gelman and Rubin: the spread between chains' means against that within chains. Halves of chains count as chains,
    # or all could drift together.
    n_half = trace.shape[1] // 2
    halves = torch.cat((trace[:, -2 * n_half : -n_half], trace[:, -n_half:]))
    within, between = halves.var(dim=1).mean(), halves.mean(dim=1).var()
    r_hat = float(torch.sqrt((n_half - 1) / n_half + between / within))
    llc, error, reason = float(by_chain.mean()), standard_error(by_chain), None
    if not math.isfinite(llc):
        failed = int((~trace.isfinite()).any(dim=1).sum())
        llc, error, r_hat = (math.nan,) * 3
        reason = f"{failed} of {len(trace)} chains diverged; lower sampler.lr"
    elif llc < 0:
        reason = "negative: the checkpoint is no minimum, or sampler.lr is too high"
    elif r_hat > HIGHEST_R_HAT:
        reason = f"chains have not converged (R-hat {r_hat:.2f}, above {HIGHEST_R_HAT}); raise sampler.num_burnin_steps"
    return {"llc": llc, "llc_se": error, "r_hat": r_hat, "initial_loss": initial, "reason": reason}
