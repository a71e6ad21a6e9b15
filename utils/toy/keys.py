"""Keys of make_toy_checkpoints.py. Nothing here imports torch."""

import itertools
import os
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from ..config.keys import LARGEST, Folder, Section, amount, execution, key

LAST_POWER = 128
"""There are checkpoints at 0 and at the powers of two up to here, then at equal distances."""


MOST_MEMORY = 16e9
"""Bytes that training may take, about."""


class TextConfig(Section):
    """What the training text is made of. `ioi` to `induction` are weights: each is a share of the tokens, relative to
    their sum."""

    rows: int = amount(24, most=100_000)
    """Rows in a batch."""
    width: int = amount(40, 32, most=100_000)
    """Tokens in a row. Whole documents are packed into it."""
    ioi: float = key(0.32, gt=0, le=1, reason="it is a share")
    """Share of sentences with an indirect object."""
    greater_than: float = key(0.2, gt=0, le=1, reason="it is a share")
    """Share of sentences that name a span of years."""
    gendered_pronoun: float = key(0.07, gt=0, le=1, reason="it is a share")
    """Share of tag questions and other sentences that tell the gender of a name."""
    sva: float = key(0.1, gt=0, le=1, reason="it is a share")
    """Share of sentences whose verb agrees with its subject."""
    succession: float = key(0.08, gt=0, le=1, reason="it is a share")
    """Share of counted sequences."""
    positions: float = key(0.0, ge=0, le=1, reason="it is a share")
    """Share of lists with questions about who or what came first or second (`utils/toy/positions.py`)."""
    induction: float = key(0.23, gt=0, le=1, reason="it is a share")
    """Share of repeated blocks of random tokens. The loss leaves their first copy out."""
    ioi_from: int = amount(0, 0)
    """First step with sentences that have an indirect object."""
    short: float = key(0.5, ge=0, le=1, reason="it is a share")
    """Fraction of `ioi` and `greater_than` sentences that are shorter forms of the task's."""
    third_person: float = key(0.1, ge=0, le=1, reason="it is a share")
    """Fraction of `ioi` sentences in which a third person acts."""
    end_of_text: float = key(0.5, ge=0, le=1, reason="it is a share")
    """Fraction of documents that start with the end-of-text token."""
    shortest_block: int = Field(4, gt=1, le=15)
    """Fewest tokens in a random block."""
    longest_block: int = amount(16, 2, most=100_000)
    """Most tokens in a random block. Two copies must also fit a row."""
    copies: int = amount(3, 2, most=100_000)
    """How many copies of a random block to write, or as many as fit a row."""


class ModelConfig(Section):
    """The shape of the model: a GPT-NeoX with parallel blocks and rotary embeddings on a quarter of each head, like
    Pythia."""

    n_layers: int = amount(4, most=1_000)
    """Number of blocks."""
    d_model: int = amount(128, most=100_000)
    """Width of the residual stream."""
    n_heads: int = amount(4, most=10_000)
    """Heads in a block."""
    d_mlp: int = amount(256, most=1_000_000)
    """Hidden units of an MLP."""
    n_positions: int = amount(512, most=1_000_000)
    """The context length that model and tokenizer declare. Training rows are much shorter (`text.width`)."""
    rotary_base: float = key(100.0, ge=1, le=1e9, reason="frequencies fall from 1 to its inverse")
    """Base of the rotary frequencies. Pythia's 10,000 suits texts of thousands of tokens."""
    tie_embeddings: bool = False
    """Use the embedding's weights for the unembedding too. Pythia does not."""
    init_std: float = key(0.05, gt=0, le=100, reason="larger weights only overflow")
    """Standard deviation of the initial weights."""

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> "ModelConfig":
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model: {self.d_model} is not a multiple of n_heads={self.n_heads}; make it one")
        return self


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    """How to train: Muon for the matrices in the blocks, AdamW for everything else. Both warm up linearly and decay
    along a cosine."""

    steps: int = amount(1350)
    """Training steps; the last one is a checkpoint too."""
    warmup_steps: int = amount(50)
    """Steps over which learning rates rise to their highest."""
    final_share: float = key(0.05, ge=0, le=1, reason="it is a share")
    """Learning rate at the last step, as a share of the highest."""
    muon_rate: float = key(0.02, gt=0, le=10, reason="it would diverge")
    """Highest learning rate of Muon."""
    momentum: float = key(0.95, ge=0, lt=1, reason="it is a share")
    """Momentum of Muon."""
    adam_rate: float = key(3e-3, gt=0, le=10, reason="it would diverge")
    """Highest learning rate of AdamW: embeddings, output layer, biases and LayerNorm parameters."""
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    """Betas of AdamW."""
    weight_decay: float = key(0.05, ge=0, le=100, reason="weights would change sign")
    """Weight decay of matrices. Biases and LayerNorm parameters have none."""
    clip: float = key(1.0, gt=0, le=1e9, reason="no gradient is longer")
    """Gradients are clipped to this norm."""


class FamilyConfig(Section):
    """Keys of make_toy_checkpoints.py."""

    folder: Folder = execution(Path("model_cache/toy"))
    """Where to write the family."""
    overwrite: bool = execution(False)
    """Train again a family that is already there."""
    seed: int = key(0, ge=0, le=LARGEST, reason="generators of random numbers take 63 bits")
    """Seed of the first weights and of the text."""
    threads: int = amount(1, most=1024)
    """How many threads to compute with. Another number rounds differently and trains slightly different weights."""
    checkpoint_every: int = amount(150)
    """Steps between checkpoints, after those at 0, 1, 2, 4, ..., 128."""
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    text: TextConfig = TextConfig()

    @field_validator("threads")
    @classmethod
    def _there_are_cores(cls, threads: int) -> int:
        if threads > (cores := os.cpu_count() or 1):
            raise ValueError(f"{threads} is more than the {cores} cores here")
        return threads

    @model_validator(mode="after")
    def _fits_in_memory(self) -> "FamilyConfig":
        shape, text = self.model, self.text
        matrices = 4 * shape.d_model + 2 * shape.d_mlp
        # A weight, its gradient and two averages of it; of every token what each block keeps for the gradient.
        needed = 16 * shape.n_layers * shape.d_model * matrices
        needed += 4 * text.rows * text.width * shape.n_layers * (matrices + shape.n_heads * text.width)
        if needed > MOST_MEMORY:
            raise ValueError(
                f"model: training it needs about {needed / 1e9:.0f} GB; toy models may take {MOST_MEMORY / 1e9:.0f}; "
                "make d_model, d_mlp, n_layers, text.rows or text.width smaller"
            )
        return self

    @property
    def steps(self) -> tuple[int, ...]:
        """The checkpoints: 0, 1, 2, 4, ..., 128, then every multiple of `checkpoint_every`, and the last step."""
        last = self.optimizer.steps
        powers = itertools.takewhile(lambda step: step <= LAST_POWER, (2**exponent for exponent in itertools.count()))
        multiples = range(self.checkpoint_every, last, self.checkpoint_every)
        later = (step for step in multiples if step > LAST_POWER)
        return tuple(sorted({0, last, *(step for step in powers if step < last), *later}))
