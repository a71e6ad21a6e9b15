"""Programs whose circuits are known: RASP compiled to transformers by tracr (Lindner et al. 2023, arXiv 2301.05062).

    python -m venv /tmp/tracr && /tmp/tracr/bin/pip install tracr-pypi==1.0.0
    /tmp/tracr/bin/python benchmarks/compile_truth.py tests/data/tracr.npz

Writes for every program its weights, the names of the residual stream's dimensions, its tokens and its outputs; and for
each of some random sequences what it answers at the end. The answers are checked against the function in Python beside
the program. The circuit is read from the weights by `tests/support/tracr_models.py`.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from tracr.compiler import compiling, lib
from tracr.rasp import rasp

LENGTH, N_SEQUENCES = 7, 60
LETTERS = ("a", "b", "c", "d")


def programs() -> dict[str, tuple[Any, Callable[[list[Any]], Any], tuple[Any, ...]]]:
    """Name -> the program, what it answers at the end of a sequence, and the tokens."""
    tokens, indices = rasp.tokens, rasp.indices
    first = rasp.Aggregate(rasp.Select(indices, indices, lambda key, query: key == 0).named("at_0"), tokens)
    first = first.named("first")
    previous = lib.shift_by(1, tokens).named("previous")
    after = rasp.Aggregate(rasp.Select(previous, tokens, rasp.Comparison.EQ).named("same"), tokens).named("induction")
    is_a = rasp.numerical(rasp.Map(lambda token: token == "a", tokens).named("is_a"))
    count = lib.make_hist().named("hist")

    def followed(sequence: list[Any]) -> Any:
        places = [at for at, token in enumerate(sequence[:-1]) if token == sequence[-1]]
        return sequence[places[0] + 1] if len(places) == 1 else None

    return {
        "first": (first, lambda s: s[0], LETTERS),
        "two_back": (lib.shift_by(1, previous).named("two_back"), lambda s: s[-3], LETTERS),
        "hist": (count, lambda s: s.count(s[-1]), LETTERS),
        "induction": (after, followed, LETTERS),
        "share_of_a": (lib.make_frac_prevs(is_a).named("share"), lambda s: s.count("a") / len(s), LETTERS),
        "equals_first": (
            rasp.SequenceMap(lambda x, y: x == y, tokens, first).named("equals_first"),
            lambda s: s[-1] == s[0],
            LETTERS,
        ),
        "sum_of_two": (
            rasp.SequenceMap(lambda x, y: (ord(x) + ord(y)) % 4, tokens, previous).named("sum"),
            lambda s: (ord(s[-1]) + ord(s[-2])) % 4,
            LETTERS,
        ),
        "first_and_count": (
            rasp.SequenceMap(lambda n, token: n > 1 and token in "ab", count, first).named("first_and_count"),
            lambda s: s.count(s[-1]) > 1 and s[0] in "ab",
            LETTERS,
        ),
    }


def compiled(program: Any, answer: Callable[[list[Any]], Any], tokens: tuple[Any, ...]) -> dict[str, np.ndarray]:
    """The arrays of one program."""
    model = compiling.compile_rasp_to_model(
        program, vocab=set(tokens), max_seq_len=LENGTH, causal=True, compiler_bos="BOS", mlp_exactness=100
    )
    config, params = model.model_config, {name: dict(part) for name, part in model.params.items()}
    layers = [f"transformer/layer_{layer}" for layer in range(config.num_layers)]

    def stacked(name: str, part: str = "w") -> np.ndarray:
        return np.stack([np.asarray(params[f"{layer}/{name}"][part]) for layer in layers])

    drawn, sequences, answers = random.Random(0), [], []
    while len(sequences) < N_SEQUENCES:
        sequence = [drawn.choice(tokens) for _ in range(drawn.randint(4, LENGTH))]
        if answer(sequence) is None or sequence in sequences:
            continue
        found = model.apply(["BOS", *sequence]).decoded[-1]
        assert np.isclose(found, answer(sequence), atol=1e-3) if isinstance(found, float) else found == answer(sequence)
        sequences.append(sequence)
        answers.append(found)
    encoder, output = model.input_encoder, model.output_encoder
    about = {
        "n_heads": config.num_heads,
        "labels": model.residual_labels,
        "outputs": [str(value) for value in getattr(output, "encoding_map", {"number": 0})],
        "answers": [value if isinstance(value, float) else output.encoding_map[value] for value in answers],
        "sequences": [encoder.encode(["BOS", *sequence]) for sequence in sequences],
    }
    n_outputs = len(about["outputs"])
    return {
        "about": np.array(json.dumps(about)),
        "embed": np.asarray(params["token_embed"]["embeddings"]),
        "position_embed": np.asarray(params["pos_embed"]["embeddings"]),
        "unembed": unembedding(model, n_outputs),
        **{name: stacked(f"attn/{name}") for name in ("query", "key", "value", "linear")},
        **{f"mlp_{n}{part}": stacked(f"mlp/linear_{n}", part) for n in (1, 2) for part in "wb"},
    }


def unembedding(model: Any, n_outputs: int) -> np.ndarray:
    """[output, d_model]: what every dimension of the residual stream adds to every output."""
    import haiku as hk
    import jax.numpy as jnp

    width = len(model.residual_labels)
    run = hk.without_apply_rng(hk.transform(lambda x: model.get_compiled_model().unembed(x, use_unembed_argmax=False)))
    out = np.asarray(run.apply(run.init(None, jnp.eye(width)), jnp.eye(width)))
    return out.reshape(width, n_outputs).T


def main() -> None:
    arrays = {}
    for name, (program, answer, tokens) in programs().items():
        of_program = compiled(program, answer, tokens)
        arrays |= {f"{name}/{part}": array for part, array in of_program.items()}
        print(name, {part: array.shape for part, array in of_program.items()})
    np.savez_compressed(sys.argv[1], **arrays)


if __name__ == "__main__":
    main()
