"""The published EAP-IG as shipped, in a process of its own, for `bench_peer.py`, which says how to get it.

    PYTHON benchmarks/eap_ig_process.py CLONE FOLDER

FOLDER/setting.pt holds the model's weights and sizes, and the prompts. Each line of standard input asks for one piece
of work, `attribution` or `curve`. The answer is its seconds of CPU, in a line; what came out is in FOLDER/NAME.pt. Runs
with transformer_lens 2.x, the last that has the `HookedTransformer` that EAP-IG is written for, and knows nothing of
this project.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_neox_weights
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM


def load(shape: dict[str, int], weights: dict[str, torch.Tensor]) -> GPTNeoXForCausalLM:
    """The model of the benchmark, whose output layer older versions of transformers call `embed_out`."""
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**shape, rotary_pct=0.25))
    names = model.state_dict()
    if "embed_out.weight" in names:
        weights["embed_out.weight"] = weights.pop("lm_head.weight")
    else:
        model.embed_out = model.lm_head
    model.load_state_dict({name: weights[name] for name in names if name in weights})
    return model.eval()


def hooked(model: GPTNeoXForCausalLM, pad: int) -> HookedTransformer:
    """The same model as EAP-IG takes it: its gradients are on, as they are by default."""
    config = model.config
    hidden, heads = config.hidden_size, config.num_attention_heads
    cfg = HookedTransformerConfig(
        n_layers=config.num_hidden_layers, n_heads=heads, d_model=hidden, d_head=hidden // heads,
        d_mlp=config.intermediate_size, d_vocab=config.vocab_size, n_ctx=config.max_position_embeddings,
        eps=config.layer_norm_eps, act_fn="gelu", normalization_type="LN", parallel_attn_mlp=True,
        positional_embedding_type="rotary", rotary_dim=hidden // heads // 4, device="cpu",
        use_attn_result=True, use_split_qkv_input=True, use_hook_mlp_in=True,
    )  # fmt: skip
    made = HookedTransformer(cfg)
    keep = {"fold_ln": False, "center_writing_weights": False, "center_unembed": False, "fold_value_biases": False}
    made.load_and_process_state_dict(convert_neox_weights(model, cfg), **keep)
    made.tokenizer = SimpleNamespace(pad_token_id=pad, bos_token_id=pad, padding_side="right")
    made.to_tokens = lambda tokens, **_: tokens  # Prompts are tokens already.
    return made


def main() -> None:
    clone, folder = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    if not torch.cuda.is_available():  # It asks for CUDA by name.
        zeros = torch.zeros
        torch.zeros = lambda *size, device=None, **named: zeros(
            *size, device=None if device == "cuda" else device, **named
        )
    sys.path.insert(0, str(clone / "src"))
    from eap.attribute import attribute
    from eap.evaluate import evaluate_graph
    from eap.graph import Graph

    setting: dict[str, Any] = torch.load(folder / "setting.pt")
    model = hooked(load(setting["shape"], setting["weights"]), setting["pad"])
    prompts = [(setting["clean"], setting["corrupted"], torch.arange(len(setting["clean"])))]

    def metric(logits: torch.Tensor, _: object, lengths: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        at_answer = logits[index, lengths - 1]
        return at_answer[index, index + 100] - at_answer[index, index + 200]

    def loss(*given: Any) -> torch.Tensor:
        return -metric(*given).sum()  # Of all prompts: their number divides the scores once more.

    graph = Graph.from_model(model)

    def attribution() -> torch.Tensor:
        attribute(model, graph, prompts, loss, "EAP-IG-inputs", ig_steps=setting["steps"], quiet=True)
        return graph.scores

    def curve() -> torch.Tensor:
        values = []
        for n_edges in setting["sizes"]:
            graph.apply_greedy(n_edges)
            values.append(evaluate_graph(model, graph, prompts, metric, quiet=True))
        return torch.stack(values)

    work = {"attribution": attribution, "curve": curve}
    print(flush=True)
    for line in sys.stdin:
        start = time.process_time()
        result = work[line.strip()]()
        taken = time.process_time() - start
        torch.save(result, folder / f"{line.strip()}.pt")
        print(taken, flush=True)


if __name__ == "__main__":
    main()
