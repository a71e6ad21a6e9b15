"""Path patching as it is usually done: forward passes of the Hugging Face model with hooks (Wang et al. 2022).

One prompt at a time, and one pass per stage of a path:
1. the corrupted prompt, to remember what the sender writes;
2. the clean prompt with the sender's output replaced and every other head and MLP frozen, to remember the receivers'
   input q, k or v (repeated for every further stage, with the receivers' input replaced instead of the sender);
3. the clean prompt with the last receivers' inputs replaced and everything else frozen, for the logits.

`recomputed_after` is the patching of the paper: MLPs are free in pass 2, and in pass 3 nothing is frozen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from circuits_over_time.edge_attribution_patching.patching.paths import Head, Receivers, Sender


@dataclass
class Record:
    """What one pass computed: z [token, head, d_head], q, k and v (before rotary) and MLP outputs of every layer."""

    z: list[Tensor] = field(default_factory=list)
    qkv: list[Tensor] = field(default_factory=list)  # [3, token, head, d_head]
    mlp: list[Tensor] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)  # [head, query, key]
    final: Tensor | None = None  # the residual stream before the final norm, at the last token
    logits: Tensor | None = None  # at the last token


_PLAIN: WeakKeyDictionary[PreTrainedModel, dict[tuple[tuple[int, ...], torch.dtype], Record]] = WeakKeyDictionary()


class Hooked:
    """A model with hooks at the heads' inputs and outputs and the MLPs' outputs."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.neox = model.config.model_type == "gpt_neox"
        self.blocks = model.gpt_neox.layers if self.neox else model.transformer.h
        self.final_norm = model.gpt_neox.final_layer_norm if self.neox else model.transformer.ln_f
        self.n_layers, self.n_heads = model.config.num_hidden_layers, model.config.num_attention_heads

    def split(self, fused: Tensor) -> Tensor:
        """The fused projection's output [1, token, ...] as [3, token, head, d_head]."""
        if self.neox:
            return fused[0].view(fused.shape[1], self.n_heads, 3, -1).permute(2, 0, 1, 3)
        return fused[0].view(fused.shape[1], 3, self.n_heads, -1).permute(1, 0, 2, 3)

    def join(self, qkv: Tensor) -> Tensor:
        order = (1, 2, 0, 3) if self.neox else (1, 0, 2, 3)
        return qkv.permute(order).reshape(1, qkv.shape[1], -1)

    @contextlib.contextmanager
    def hooks(self, record: Record, edit: Edit) -> Iterator[None]:

        def on_final(module, inputs):
            record.final = inputs[0][0, -1]

        handles = [self.final_norm.register_forward_pre_hook(on_final)]
        for layer, block in enumerate(self.blocks):

            def on_qkv(module, inputs, output, layer=layer):
                qkv = edit.qkv(layer, self.split(output).clone())
                record.qkv.append(qkv)
                return self.join(qkv)

            def on_z(module, inputs, layer=layer):
                z = edit.z(layer, inputs[0][0].view(inputs[0].shape[1], self.n_heads, -1).clone())
                record.z.append(z)
                return (z.reshape(1, len(z), -1),)

            def on_mlp(module, inputs, output, layer=layer):
                out = edit.mlp(layer, output[0].clone())
                record.mlp.append(out)
                return out[None]

            attention = block.attention if self.neox else block.attn
            projection = attention.query_key_value if self.neox else attention.c_attn
            output = attention.dense if self.neox else attention.c_proj
            handles += [projection.register_forward_hook(on_qkv), output.register_forward_pre_hook(on_z)]
            handles.append(block.mlp.register_forward_hook(on_mlp))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def run(self, tokens: Tensor, edit: Edit | None = None) -> Record:
        """What one pass computes. Passes that change nothing are made once for a model and a prompt."""
        # Inside `Float64` what asks for float32 gets float64.
        key = (tuple(tokens.tolist()), torch.zeros((), dtype=torch.float32).dtype)
        plain = _PLAIN.setdefault(self.model, {})
        if edit is None and key in plain:
            return plain[key]
        record = Record()
        with self.hooks(record, edit or Edit()), torch.no_grad():
            output = self.model(tokens[None], use_cache=False, output_attentions=True)
        record.attention = [pattern[0] for pattern in output.attentions]
        record.logits = output.logits[0, -1]
        if edit is None:
            plain[key] = record
        return record


class Edit:
    """Changes nothing."""

    def qkv(self, layer: int, qkv: Tensor) -> Tensor:
        return qkv

    def z(self, layer: int, z: Tensor) -> Tensor:
        return z

    def mlp(self, layer: int, out: Tensor) -> Tensor:
        return out


@dataclass
class Frozen(Edit):
    """Everything at its clean value but the sender's output (z of a head), or one input of the receivers.

    MLPs above `free_mlps_from` are left free.
    """

    clean: Record
    sender: Sender | None = None
    sent: Tensor | None = None
    receivers: dict[Head, tuple[int, Tensor]] = field(default_factory=dict)  # which of q, k, v and its value
    free_mlps_from: int | None = None

    def qkv(self, layer: int, qkv: Tensor) -> Tensor:
        # Receivers read clean values at their other two inputs. Those of no receiver do not matter: z is frozen.
        for (at, head), (letter, value) in self.receivers.items():
            if at == layer:
                qkv[:, :, head] = self.clean.qkv[layer][:, :, head]
                qkv[letter, :, head] = value
        return qkv

    def z(self, layer: int, z: Tensor) -> Tensor:
        for head in range(z.shape[1]):
            if (layer, head) == self.sender:
                z[:, head] = self.sent
            elif (layer, head) not in self.receivers:
                z[:, head] = self.clean.z[layer][:, head]
        return z

    def mlp(self, layer: int, out: Tensor) -> Tensor:
        if (layer, None) == self.sender:
            return self.sent
        free = self.free_mlps_from is not None and layer >= self.free_mlps_from
        return out if free else self.clean.mlp[layer]


@dataclass
class GivenInputs(Edit):
    """Some heads' q, k or v replaced at some tokens, everything else as it then is."""

    values: dict[Head, Tensor]
    letter: int
    tokens: slice

    def qkv(self, layer: int, qkv: Tensor) -> Tensor:
        for (at, head), value in self.values.items():
            if at == layer:
                qkv[self.letter, self.tokens, head] = value[self.tokens]
        return qkv


@dataclass
class ReplacedAtEnd(Edit):
    """Some heads' outputs at the last token replaced, everything after them as it then is."""

    values: dict[Head, Tensor]

    def z(self, layer: int, z: Tensor) -> Tensor:
        for (at, head), value in self.values.items():
            if at == layer:
                z[-1, head] = value
        return z


def output_of(record: Record, sender: Sender) -> Tensor:
    """What a head or an MLP passes on in one pass."""
    layer, head = sender
    return record.mlp[layer] if head is None else record.z[layer][:, head]


def path_patched_logits(
    model: PreTrainedModel,
    clean: Tensor,
    corrupted: Tensor,
    sender: Sender,
    stages: tuple[Receivers, ...] = (),
    *,
    through_mlps: bool = False,
) -> Tensor:
    """Logits at the end of one prompt under the path sender -> stages -> logits."""
    hooked = Hooked(model)
    clean_run = hooked.run(clean)
    value = output_of(hooked.run(corrupted), sender)
    edit = Frozen(clean_run, sender, value, free_mlps_from=sender[0] if through_mlps else None)
    for stage in stages:
        seen = hooked.run(clean, edit)
        letter = "qkv".index(stage.letter)
        above = [head for head in stage.heads if head[0] > sender[0]]
        edit = Frozen(clean_run, receivers={(at, head): (letter, seen.qkv[at][letter, :, head]) for at, head in above})
    return hooked.run(clean, edit).logits


def recomputed_after(
    model: PreTrainedModel,
    clean: Tensor,
    corrupted: Tensor,
    sender: Sender,
    receivers: Receivers,
    *,
    through_mlps: bool = True,
    at_end: bool = False,
) -> Record:
    """The clean prompt where receivers read the sender's corrupted output, and everything after them is recomputed.

    With `at_end` the receivers' inputs are replaced at the last token alone.
    """
    hooked = Hooked(model)
    value = output_of(hooked.run(corrupted), sender)
    free_from = sender[0] if through_mlps else None
    seen = hooked.run(clean, Frozen(hooked.run(clean), sender, value, free_mlps_from=free_from))
    letter = "qkv".index(receivers.letter)
    values = {head: seen.qkv[head[0]][letter, :, head[1]] for head in receivers.heads}
    return hooked.run(clean, GivenInputs(values, letter, slice(-1, None) if at_end else slice(None)))


def swapped_at_end(model: PreTrainedModel, clean: Tensor, other: Tensor, sender: Head) -> tuple[Tensor, Record]:
    """Logits and record of the clean prompt with one head's output at the last token taken from another prompt."""
    hooked = Hooked(model)
    value = hooked.run(other).z[sender[0]][-1, sender[1]]
    record = hooked.run(clean, ReplacedAtEnd({sender: value}))
    return record.logits, record
