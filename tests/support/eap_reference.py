"""Slow, obvious versions of what the engine computes, on Hugging Face models: residual streams expanded per head.

`ExpandedModel` runs a model with one residual input per head and letter, through the model's own modules. `attribute`
differentiates by those inputs with autograd, `patched_logits` recomputes every node from its own mixture of clean and
corrupted contributions.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from circuits_over_time.edge_attribution_patching.graph import Graph

BASE, SOURCE, COMPUTED = "base", "source", "computed"
Read = Callable[[int, list[Tensor], Tensor], Tensor]
Settle = Callable[[str, int, list[Tensor]], list[Tensor]]


class Block:
    """One block of a Hugging Face model, taken apart; one prompt at a time, no batch dimension."""

    def __init__(self, model: PreTrainedModel, layer: int) -> None:
        self.model, self.config, self.kind = model, model.config, model.config.model_type
        body = model.base_model
        self.block = (body.h if self.kind in ("gpt2", "gptj") else body.layers)[layer]
        names = {"gpt2": "attn", "gptj": "attn", "gpt_neox": "attention"}
        self.attention = getattr(self.block, names.get(self.kind, "self_attn"))
        self.n_heads = self.config.num_attention_heads
        self.n_kv_heads = getattr(self.config, "num_key_value_heads", None) or self.n_heads
        self.group = self.n_heads // self.n_kv_heads
        self.d_head = getattr(self.config, "head_dim", None) or self.config.hidden_size // self.n_heads
        self.scale = getattr(self.attention, "scaling", None) or self.d_head**-0.5
        self.layer = layer

    def _first(self, *names: str) -> Any:
        return next((getattr(self.block, name) for name in names if hasattr(self.block, name)), lambda x: x)

    def project(self, letter: str, x: Tensor) -> Tensor:
        """What a residual stream is projected to, [token, head, d_head]."""
        before = {"gpt2": "ln_1", "gptj": "ln_1", "apertus": "attention_layernorm"}
        if self.kind not in ("olmo2", "olmo3"):
            x = getattr(self.block, before.get(self.kind, "input_layernorm"))(x)
        if self.kind == "gpt2":
            return self.attention.c_attn(x).view(len(x), 3, self.n_heads, -1)[:, "qkv".index(letter)]
        if self.kind == "gpt_neox":
            return self.attention.query_key_value(x).view(len(x), self.n_heads, 3, -1)[:, :, "qkv".index(letter)]
        out = getattr(self.attention, f"{letter}_proj")(x).view(len(x), -1, self.d_head)
        clip = getattr(self.config, "clip_qkv", None)
        return out if clip is None else out.clamp(-clip, clip)

    def norm(self, letter: str, x: Tensor) -> Tensor:
        """The norm of queries or keys, [token, head, d_head]."""
        module = getattr(self.attention, f"{letter}_norm", None)
        if module is None or letter == "v":
            return x
        if self.kind in ("olmo2", "olmo3"):
            return module(x.flatten(1)).view_as(x)
        return module(x)

    @property
    def covers_all_heads(self) -> bool:
        return self.kind in ("olmo2", "olmo3")

    def rotate(self, x: Tensor) -> Tensor:
        """Rotary of [token, head, d_head]."""
        positions = torch.arange(len(x))[None]
        apply = getattr(sys.modules[type(self.attention).__module__], "apply_rotary_pos_emb", None)
        if self.kind == "gpt2" or not getattr(self.attention, "use_rope", True):
            return x
        if self.kind == "gptj":
            sin, cos = self.attention.embed_positions[: len(x)].chunk(2, dim=-1)
            dim = self.attention.rotary_dim
            turned = apply(x[None, ..., :dim], sin[None], cos[None])[0]
            return torch.cat((turned, x[..., dim:]), dim=-1)
        rotary = self.model.base_model.rotary_emb
        by_type = () if self.kind not in ("gemma3_text", "olmo3") else (self.config.layer_types[self.layer],)
        cos, sin = rotary(x, positions, *by_type)
        heads_first = x.transpose(0, 1)[None]
        return apply(heads_first, heads_first, cos, sin)[0][0].transpose(0, 1)

    def attend(self, head: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """z of one head from its q, k and v, each [token, d_head]."""
        scores = q @ k.T * self.scale
        cap = getattr(self.config, "attn_logit_softcapping", None)
        if cap is not None:
            scores = cap * torch.tanh(scores / cap)
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), float("-inf"))
        return scores.softmax(-1) @ v

    def written(self, head: int, z: Tensor) -> Tensor:
        """z of one head through its part of the output projection, without bias."""
        part = slice(head * self.d_head, (head + 1) * self.d_head)
        if self.kind == "gpt2":
            return z @ self.attention.c_proj.weight[part]
        names = {"gptj": "out_proj", "gpt_neox": "dense"}
        return z @ getattr(self.attention, names.get(self.kind, "o_proj")).weight[:, part].T

    @property
    def bias(self) -> Tensor | float:
        names = {"gpt2": "c_proj", "gptj": "out_proj", "gpt_neox": "dense"}
        bias = getattr(self.attention, names.get(self.kind, "o_proj")).bias
        return 0.0 if bias is None else bias

    def share_of_norm(self, heads: list[Tensor]) -> list[Tensor]:
        """What heads write behind a norm of their sum: they add up to what it gives."""
        if self.kind not in ("olmo2", "olmo3", "gemma2", "gemma3_text"):
            return heads
        total = torch.stack(heads).sum(0)
        norm = self.block.post_attention_layernorm
        eps = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
        gain = 1 + norm.weight if self.kind.startswith("gemma") else norm.weight
        return [gain * head / (total.square().mean(-1, keepdim=True) + eps).sqrt() for head in heads]

    def mlp(self, x: Tensor) -> Tensor:
        """What the MLP writes."""
        if self.kind in ("olmo2", "olmo3"):
            return self.block.post_feedforward_layernorm(self.block.mlp(x))
        if self.kind.startswith("gemma"):
            return self.block.post_feedforward_layernorm(self.block.mlp(self.block.pre_feedforward_layernorm(x)))
        norms = {"gpt2": "ln_2", "gptj": "ln_1", "apertus": "feedforward_layernorm"}
        return self.block.mlp(getattr(self.block, norms.get(self.kind, "post_attention_layernorm"))(x))


class ExpandedModel:
    """Calls the model's own modules, with every head input and MLP input given separately (one prompt at a time)."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        config = model.config
        self.n_layers, self.n_heads = config.num_hidden_layers, config.num_attention_heads
        parallel = config.model_type == "gptj"
        if config.model_type == "gpt_neox":
            parallel = config.use_parallel_residual
        self.parallel = parallel
        self.graph = Graph(self.n_layers, self.n_heads, self.parallel)
        self.blocks = [Block(model, layer) for layer in range(self.n_layers)]

    def embed(self, tokens: Tensor) -> Tensor:
        body = self.model.base_model
        embedded = self.model.get_input_embeddings()(tokens)
        if self.model.config.model_type == "gpt2":
            return embedded + body.wpe(torch.arange(len(tokens)))
        return embedded

    def logits(self, x: Tensor) -> Tensor:
        body = self.model.base_model
        final = next(getattr(body, name) for name in ("final_layer_norm", "ln_f", "norm") if hasattr(body, name))
        logits = self.model.lm_head(final(x))
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def heads(self, layer: int, inputs: dict[str, list[Tensor]], settle: Settle | None = None) -> list[Tensor]:
        """What the heads of a layer write, each from its own inputs to q, k and v, [token, d_model] each.

        `settle(what, layer, values)` may replace what one of several heads was given by the others: its attended q, k
        or v, and what it writes behind a norm of the sum.
        """
        block = self.blocks[layer]
        attended: dict[str, list[Tensor]] = {}
        for letter in "qkv":
            n = block.n_heads if letter == "q" else block.n_kv_heads
            row = [head * n // block.n_heads for head in range(block.n_heads)]
            own = [block.project(letter, x)[:, at] for x, at in zip(inputs[letter], row, strict=True)]
            values: list[Tensor] = [own[0]] * block.n_heads
            for member in range(block.n_heads // n):
                # One head of every group: what a norm of all heads together covers.
                members = [at * (block.n_heads // n) + member for at in range(n)]
                x = block.norm(letter, torch.stack([own[head] for head in members], dim=1))
                x = x if letter == "v" else block.rotate(x)
                for place, head in enumerate(members):
                    values[head] = x[:, place]
            attended[letter] = values if settle is None else settle(letter, layer, values)
        z = [block.attend(head, *(attended[letter][head] for letter in "qkv")) for head in range(block.n_heads)]
        written = block.share_of_norm([block.written(head, x) for head, x in enumerate(z)])
        return written if settle is None else settle("written", layer, written)

    def run(self, embedded: Tensor, read: Read, settle: Settle | None = None) -> tuple[Tensor, list[Tensor]]:
        """Run node by node; `read(backward index, node outputs so far, biases so far)` gives each node its input."""
        outputs, biases = [embedded], torch.zeros_like(embedded)
        for layer, block in enumerate(self.blocks):
            inputs = {
                letter: [
                    read(self.graph.head_input(layer, head, letter), outputs, biases) for head in range(self.n_heads)
                ]
                for letter in "qkv"
            }
            heads = self.heads(layer, inputs, settle)
            if self.parallel:
                mlp = block.mlp(read(self.graph.mlp_input(layer), outputs, biases))
                outputs = [*outputs, *heads, mlp]
                biases = biases + block.bias
            else:
                outputs = [*outputs, *heads]
                biases = biases + block.bias
                outputs.append(block.mlp(read(self.graph.mlp_input(layer), outputs, biases)))
        return self.logits(read(self.graph.logits, outputs, biases)[-1]), outputs


class _Frozen(torch.nn.Module):
    """A norm or an activation in whose place gradients see a multiplication: RelP's rules."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.module, torch.nn.LayerNorm):
            centred = x - x.mean(-1, keepdim=True)
            scale = (centred.square().mean(-1, keepdim=True) + self.module.eps).sqrt().detach()
            return centred / scale * self.module.weight + self.module.bias
        return x * (self.module(x) / x).detach()


class RelevanceModel(ExpandedModel):
    """The same model with RelP's rules in its backward pass (Jafari et al. 2025): GPT-2, GPT-NeoX and Llama."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(deepcopy(model))
        for parent in list(self.model.modules()):
            for name, child in list(parent.named_children()):
                if "Norm" in type(child).__name__ or name in ("act", "act_fn"):
                    setattr(parent, name, _Frozen(child))
        self.blocks = [_RelevanceBlock(self.model, layer) for layer in range(self.n_layers)]


class _RelevanceBlock(Block):
    def attend(self, head: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        pattern = super().attend(head, q, k, torch.eye(len(v), dtype=v.dtype))
        return pattern.detach() @ v

    def mlp(self, x: Tensor) -> Tensor:
        if self.kind != "llama":
            return super().mlp(x)
        mlp, x = self.block.mlp, self.block.post_attention_layernorm(x)
        gate, up = mlp.act_fn(mlp.gate_proj(x)), mlp.up_proj(x)
        return mlp.down_proj((gate * up.detach() + gate.detach() * up) / 2)


def plain(index: int, outputs: list[Tensor], biases: Tensor) -> Tensor:
    """Reads the residual stream as it is."""
    return torch.stack(outputs).sum(0) + biases


def attribute(
    model: PreTrainedModel,
    clean: Tensor,
    corrupted: Tensor,
    lengths: Tensor,
    metric: Callable[[Tensor, Tensor], Tensor],
    alphas: list[float],
    step_weights: list[float],
    *,
    grouped: bool = False,
    conductance: bool = False,
    expand: type[ExpandedModel] = ExpandedModel,
    role_of: Tensor | None = None,
    ablated: Tensor | None = None,
) -> Tensor:
    """EAP-IG by autograd through explicitly expanded inputs.

    `ablated` is what nodes write by position, in place of the corrupted run; conductance begins with it.

    With `conductance`, each step's gradient is multiplied with the change of the outputs from its point to the next,
    the last with that to the clean run. With `grouped`, heads that share a key-value head read one input to k and one
    to v, that of the group's first head. With the role of every token the scores are [role, n_forward, n_backward].
    """
    expanded = expand(model)
    graph = expanded.graph
    role_of = torch.zeros_like(clean) if role_of is None else role_of
    scores = torch.zeros(int(role_of.max()) + 1, graph.n_forward, graph.n_backward, dtype=torch.float64)
    first_of_group = list(range(graph.n_backward))
    group = expanded.blocks[0].group
    for layer in range(graph.n_layers if grouped else 0):
        for letter in ("k", "v"):
            for head in range(graph.n_heads):
                first = graph.head_input(layer, head // group * group, letter)
                first_of_group[graph.head_input(layer, head, letter)] = first
    for prompt in range(len(lengths)):
        n = int(lengths[prompt])
        ends = [expanded.embed(tokens[prompt, :n]) for tokens in (clean, corrupted)]
        if ablated is not None:
            ends[1] = ablated[0, :n]
        start_of_path = torch.stack(expanded.run(ends[1], plain)[1]) if ablated is None else ablated[:, :n]
        difference = torch.stack(expanded.run(ends[0], plain)[1]) - start_of_path
        for alpha, weight, after in zip(alphas, step_weights, [*alphas[1:], 1.0], strict=True):
            inputs: dict[int, Tensor] = {}
            if conductance:
                points = (ends[1] + at * (ends[0] - ends[1]) for at in (after, alpha))
                later, now = (torch.stack(expanded.run(point, plain)[1]) for point in points)
                difference = later - (start_of_path if alpha == 0 else now)

            def remember(index: int, outputs: list[Tensor], biases: Tensor, inputs=inputs) -> Tensor:
                index = first_of_group[index]
                if index in inputs:
                    return inputs[index]
                total = torch.stack(outputs).sum(0) + biases
                inputs[index] = total if total.requires_grad else total.requires_grad_(True)
                inputs[index] = inputs[index].clone()
                return inputs[index]

            start = (ends[1] + alpha * (ends[0] - ends[1])).detach().requires_grad_(True)
            logits, _ = expanded.run(start, remember)
            value = metric(logits[None], torch.tensor([prompt]))[0]
            indices = sorted(inputs)
            grads = torch.autograd.grad(value, [inputs[index] for index in indices], materialize_grads=True)
            for index, grad in zip(indices, grads, strict=True):
                of_tokens = weight * torch.einsum("utd,td->tu", difference, grad).double()
                scores[:, :, index].index_add_(0, role_of[prompt, :n], of_tokens)
    return (scores / len(lengths) * graph.edge_mask).squeeze(0)


def attribute_activations(
    model: PreTrainedModel,
    clean: Tensor,
    corrupted: Tensor,
    lengths: Tensor,
    metric: Callable[[Tensor, Tensor], Tensor],
    steps: int,
) -> Tensor:
    """EAP-IG over activations: every node layer in turn moved by hand, as constants, and autograd on parameters."""
    expanded = ExpandedModel(deepcopy(model).requires_grad_(True))
    graph, n_layers = expanded.graph, expanded.n_layers
    members = [[0]]
    for layer in range(n_layers):
        members += [[graph.head(layer, head) for head in range(graph.n_heads)], [graph.mlp(layer)]]
    scores = torch.zeros(graph.n_forward, graph.n_backward, dtype=torch.float64)
    for prompt in range(len(lengths)):
        tokens = [side[prompt, : int(lengths[prompt])] for side in (clean, corrupted)]
        ends = [[out.detach() for out in expanded.run(expanded.embed(side), plain)[1]] for side in tokens]
        difference = torch.stack(ends[0]) - torch.stack(ends[1])
        # A position that is embedded is added to the moved token, and is a parameter.
        positions = 0.0
        if expanded.model.config.model_type == "gpt2":
            position = expanded.model.base_model.wpe(torch.arange(len(tokens[0])))
            positions = position - position.detach()
        for moved, k in itertools.product(members, range(1, steps + 1)):
            held = {u: ends[1][u] + k / steps * (ends[0][u] - ends[1][u]) for u in moved}
            inputs: dict[int, Tensor] = {}

            def read(index: int, outputs: list[Tensor], biases: Tensor, inputs=inputs, held=held) -> Tensor:
                outputs = [held.get(u, out) for u, out in enumerate(outputs)]
                inputs[index] = torch.stack(outputs).sum(0) + biases + positions  # noqa: B023  (it runs at once)
                return inputs[index]

            logits, _ = expanded.run(expanded.embed(tokens[0]), read)
            value = metric(logits[None], torch.tensor([prompt]))[0]
            asked = [index for index in inputs if inputs[index].requires_grad]
            grads = torch.autograd.grad(value, [inputs[index] for index in asked], materialize_grads=True)
            for index, grad in zip(asked, grads, strict=True):
                scores[:, index] += torch.einsum("utd,td->u", difference, grad).double() / (steps * len(members))
    return (scores / len(lengths)) * graph.edge_mask


@dataclass
class Settled:
    """Remembers what heads were given in a run."""

    values: dict[tuple[str, int], list[Tensor]] = field(default_factory=dict)

    def __call__(self, what: str, layer: int, values: list[Tensor]) -> list[Tensor]:
        self.values[what, layer] = values
        return values


def states(graph: Graph, mask: Tensor) -> tuple[list[str], list[str]]:
    """Of every node and every input, whether it is as in one of the runs: by what it reads, and what that is."""
    nodes, inputs = [SOURCE], [""] * graph.n_backward

    def state(index: int) -> str:
        edges = [(bool(mask[u, index]), nodes[u]) for u in range(int(graph.n_before[index]))]
        if all(in_mask and node == SOURCE for in_mask, node in edges):
            return SOURCE
        return COMPUTED if any(in_mask and node != BASE for in_mask, node in edges) else BASE

    for layer in range(graph.n_layers):
        of_heads = []
        for head in range(graph.n_heads):
            mine = [graph.head_input(layer, head, letter) for letter in ("q", "k", "v")]
            for index in mine:
                inputs[index] = state(index)
            of_inputs = {inputs[index] for index in mine}
            of_heads.append(of_inputs.pop() if len(of_inputs) == 1 else COMPUTED)
        if graph.parallel:
            inputs[graph.mlp_input(layer)] = state(graph.mlp_input(layer))
            nodes += [*of_heads, inputs[graph.mlp_input(layer)]]
        else:
            nodes += of_heads
            inputs[graph.mlp_input(layer)] = state(graph.mlp_input(layer))
            nodes.append(inputs[graph.mlp_input(layer)])
    return nodes, inputs


def logits_by_role(model: PreTrainedModel, clean: Tensor, corrupted: Tensor, mask: Tensor, role_of: Tensor) -> Tensor:
    """Logits at the end of one prompt under a mask [role, n_forward, n_backward]: what is read at each token is its."""
    expanded = ExpandedModel(model)
    _, base = expanded.run(expanded.embed(corrupted), plain)

    def read(index: int, outputs: list[Tensor], biases: Tensor) -> Tensor:
        chosen = [out.where(mask[role_of, u, index][:, None], base[u]) for u, out in enumerate(outputs)]
        return torch.stack(chosen).sum(0) + biases

    return expanded.run(expanded.embed(clean), read)[0]


def mean_outputs(model: PreTrainedModel, prompts: Tensor, lengths: Tensor, *, positional: bool) -> Tensor:
    """The mean of what every node writes, [n_forward, position, d_model], prompt by prompt, without any padding."""
    expanded, width = ExpandedModel(model), int(lengths.max())
    by_position: list[list[Tensor]] = [[] for _ in range(width)]
    for tokens, n in zip(prompts, lengths.tolist(), strict=True):
        written = torch.stack(expanded.run(expanded.embed(tokens[:n]), plain)[1])
        for position in range(n):
            by_position[position].append(written[:, position])
    if not positional:
        by_position = [list(itertools.chain(*by_position))] * width
    return torch.stack([torch.stack(of).mean(0) for of in by_position], dim=1)


def ablated_logits(model: PreTrainedModel, clean: Tensor, ablated: Tensor, mask: Tensor) -> Tensor:
    """Logits at the end of one prompt: every node reads `ablated` along edges outside a mask that is pruned."""
    expanded = ExpandedModel(model)

    def read(index: int, outputs: list[Tensor], biases: Tensor) -> Tensor:
        chosen = [out if mask[u, index] else ablated[u, : len(clean)] for u, out in enumerate(outputs)]
        return torch.stack(chosen).sum(0) + biases

    return expanded.run(expanded.embed(clean), read)[0]


def patched_logits(model: PreTrainedModel, clean: Tensor, corrupted: Tensor, mask: Tensor) -> Tensor:
    """Logits at the end of one prompt: every node reads clean contributions along edges in `mask`, else corrupted.

    Where norms tie heads of a layer together, a head that reads one of the two runs alone is as it is in that run, and
    the others are normalised with all heads as they are.
    """
    expanded = ExpandedModel(model)
    graph = expanded.graph
    of_base, of_source = Settled(), Settled()
    _, base = expanded.run(expanded.embed(corrupted), plain, of_base)
    expanded.run(expanded.embed(clean), plain, of_source)
    nodes, inputs = states(graph, mask)

    def read(index: int, outputs: list[Tensor], biases: Tensor) -> Tensor:
        chosen = [out if mask[u, index] else base[u] for u, out in enumerate(outputs)]
        return torch.stack(chosen).sum(0) + biases

    def settle(what: str, layer: int, values: list[Tensor]) -> list[Tensor]:
        settled = []
        for head, value in enumerate(values):
            state = nodes[graph.head(layer, head)] if what == "written" else inputs[graph.head_input(layer, head, what)]
            fixed = {BASE: of_base, SOURCE: of_source}.get(state)
            settled.append(value if fixed is None else fixed.values[what, layer][head])
        return settled

    return expanded.run(expanded.embed(clean), read, settle)[0]


def logit_diff_metric(vocab: int, n: int, seed: int = 0) -> Callable[[Tensor, Tensor], Tensor]:
    """A per-prompt difference of two random tokens' logits plus a bit of a probability, so that nothing cancels."""
    generator = torch.Generator().manual_seed(seed)
    right, wrong = torch.randint(0, vocab, (2, n), generator=generator)

    def metric(logits: Tensor, index: Tensor) -> Tensor:
        rows = torch.arange(len(index))
        difference = logits[rows, right[index]] - logits[rows, wrong[index]]
        return difference + 3 * F.softmax(logits, -1)[rows, right[index]]

    return metric
