"""Slow, obvious versions of what the engine computes, on Hugging Face models: residual streams expanded per head.

`ExpandedModel` runs a model with one residual input per head and letter. `attribute` differentiates by those inputs
with autograd, `patched_logits` recomputes every node from its own mixture of clean and corrupted contributions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb

from edge_attribution_patching.graph import Graph


class ExpandedModel:
    """Calls the model's own modules, with every head input and MLP input given separately (one prompt at a time)."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        config = model.config
        self.neox = config.model_type == "gpt_neox"
        self.n_layers, self.n_heads = config.num_hidden_layers, config.num_attention_heads
        self.d_head = config.hidden_size // self.n_heads
        self.parallel = self.neox and config.use_parallel_residual
        self.graph = Graph(self.n_layers, self.n_heads, self.parallel)
        self.blocks = model.gpt_neox.layers if self.neox else model.transformer.h

    def embed(self, tokens: Tensor) -> Tensor:
        if self.neox:
            return self.model.gpt_neox.embed_in(tokens)
        return self.model.transformer.wte(tokens) + self.model.transformer.wpe(torch.arange(len(tokens)))

    def _project(self, layer: int, head: int, letter: str, x: Tensor) -> Tensor:
        block, index = self.blocks[layer], "qkv".index(letter)
        if self.neox:
            fused = block.attention.query_key_value(block.input_layernorm(x))
            return fused.view(len(x), self.n_heads, 3, self.d_head)[:, head, index]
        fused = block.attn.c_attn(block.ln_1(x))
        return fused.view(len(x), 3, self.n_heads, self.d_head)[:, index, head]

    def head(self, layer: int, head: int, q_in: Tensor, k_in: Tensor, v_in: Tensor) -> Tensor:
        """What the head writes, without the output bias, [position, d_model]."""
        q = self._project(layer, head, "q", q_in)
        k = self._project(layer, head, "k", k_in)
        v = self._project(layer, head, "v", v_in)
        if self.neox:
            positions = torch.arange(len(q_in))[None]
            cos, sin = self.model.gpt_neox.rotary_emb(q_in, positions)
            q, k = (x[0, 0] for x in apply_rotary_pos_emb(q[None, None], k[None, None], cos, sin))
        scores = q @ k.T / self.d_head**0.5
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), float("-inf"))
        z = scores.softmax(-1) @ v
        part = slice(head * self.d_head, (head + 1) * self.d_head)
        if self.neox:
            return z @ self.blocks[layer].attention.dense.weight[:, part].T
        return z @ self.blocks[layer].attn.c_proj.weight[part]

    def attention_bias(self, layer: int) -> Tensor:
        block = self.blocks[layer]
        return block.attention.dense.bias if self.neox else block.attn.c_proj.bias

    def mlp(self, layer: int, x: Tensor) -> Tensor:
        block = self.blocks[layer]
        norm = block.post_attention_layernorm if self.neox else block.ln_2
        return block.mlp(norm(x))

    def logits(self, x: Tensor) -> Tensor:
        final = self.model.gpt_neox.final_layer_norm if self.neox else self.model.transformer.ln_f
        return self.model.lm_head(final(x))

    def run(self, embedded: Tensor, read: Callable[[int, list[Tensor], Tensor], Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Run node by node; `read(backward index, node outputs so far, biases so far)` gives each node its input."""
        outputs, biases = [embedded], torch.zeros_like(embedded)
        for layer in range(self.n_layers):
            heads = []
            for head in range(self.n_heads):
                inputs = [read(self.graph.head_input(layer, head, letter), outputs, biases) for letter in "qkv"]
                heads.append(self.head(layer, head, *inputs))
            if self.parallel:
                mlp = self.mlp(layer, read(self.graph.mlp_input(layer), outputs, biases))
                outputs = [*outputs, *heads, mlp]
                biases = biases + self.attention_bias(layer)
            else:
                outputs = [*outputs, *heads]
                biases = biases + self.attention_bias(layer)
                outputs.append(self.mlp(layer, read(self.graph.mlp_input(layer), outputs, biases)))
        return self.logits(read(self.graph.logits, outputs, biases)[-1]), outputs


def attribute(
    model: PreTrainedModel,
    clean: Tensor,
    corrupted: Tensor,
    lengths: Tensor,
    metric: Callable[[Tensor, Tensor], Tensor],
    alphas: list[float],
    step_weights: list[float],
) -> Tensor:
    """EAP-IG by autograd through explicitly expanded inputs."""
    expanded = ExpandedModel(model)
    graph = expanded.graph
    scores = torch.zeros(graph.n_forward, graph.n_backward, dtype=torch.float64)
    for prompt in range(len(lengths)):
        n = int(lengths[prompt])
        ends = [expanded.embed(tokens[prompt, :n]) for tokens in (clean, corrupted)]

        def plain(index: int, outputs: list[Tensor], biases: Tensor) -> Tensor:
            return torch.stack(outputs).sum(0) + biases

        difference = torch.stack(expanded.run(ends[0], plain)[1]) - torch.stack(expanded.run(ends[1], plain)[1])
        for alpha, weight in zip(alphas, step_weights, strict=True):
            inputs: dict[int, Tensor] = {}

            def remember(index: int, outputs: list[Tensor], biases: Tensor, inputs=inputs) -> Tensor:
                total = torch.stack(outputs).sum(0) + biases
                inputs[index] = total if total.requires_grad else total.requires_grad_(True)
                inputs[index] = inputs[index].clone()
                return inputs[index]

            start = (ends[1] + alpha * (ends[0] - ends[1])).detach().requires_grad_(True)
            logits, _ = expanded.run(start, remember)
            value = metric(logits[None], torch.tensor([prompt]))[0]
            indices = sorted(inputs)
            grads = torch.autograd.grad(value, [inputs[index] for index in indices])
            for index, grad in zip(indices, grads, strict=True):
                scores[:, index] += weight * torch.einsum("utd,td->u", difference, grad).double()
    return (scores / len(lengths)) * graph.edge_mask


def patched_logits(model: PreTrainedModel, clean: Tensor, corrupted: Tensor, mask: Tensor) -> Tensor:
    """Logits at the end of one prompt: every node reads clean contributions along edges in `mask`, else corrupted."""
    expanded = ExpandedModel(model)

    def plain(index: int, outputs: list[Tensor], biases: Tensor) -> Tensor:
        return torch.stack(outputs).sum(0) + biases

    _, base = expanded.run(expanded.embed(corrupted), plain)

    def read(index: int, outputs: list[Tensor], biases: Tensor) -> Tensor:
        chosen = [out if mask[u, index] else base[u] for u, out in enumerate(outputs)]
        return torch.stack(chosen).sum(0) + biases

    return expanded.run(expanded.embed(clean), read)[0]


def logit_diff_metric(vocab: int, n: int, seed: int = 0) -> Callable[[Tensor, Tensor], Tensor]:
    """A per-prompt difference of two random tokens' logits plus a bit of a probability, so that nothing cancels."""
    generator = torch.Generator().manual_seed(seed)
    right, wrong = torch.randint(0, vocab, (2, n), generator=generator)

    def metric(logits: Tensor, index: Tensor) -> Tensor:
        rows = torch.arange(len(index))
        difference = logits[rows, right[index]] - logits[rows, wrong[index]]
        return difference + 3 * F.softmax(logits, -1)[rows, right[index]]

    return metric
