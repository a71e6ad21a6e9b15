"""Keys of make_toy_checkpoints.py. Nothing here imports torch."""

import itertools
from pathlib import Path

from pydantic import Field

from ..config.keys import Section, execution

LAST_POWER = 128
"""There are checkpoints at 0 and at the powers of two up to here, then at equal distances."""


class TextConfig(Section):
    """What the training text is made of. `ioi` to `induction` are weights: each is a share of the tokens, relative to
    their sum."""

    rows: int = Field(24, gt=0)
    """Rows in a batch."""
    width: int = Field(40, ge=32)
    """Tokens in a row. Whole documents are packed into it."""
    ioi: float = Field(0.32, gt=0)
    """Share of sentences with an indirect object."""
    greater_than: float = Field(0.2, gt=0)
    """Share of sentences that name a span of years."""
    gendered_pronoun: float = Field(0.07, gt=0)
    """Share of tag questions and other sentences that tell the gender of a name."""
    sva: float = Field(0.1, gt=0)
    """Share of sentences whose verb agrees with its subject."""
    succession: float = Field(0.08, gt=0)
    """Share of counted sequences."""
    positions: float = Field(0.0, ge=0)
    """Share of lists with questions about who or what came first or second (`utils/toy/positions.py`)."""
    induction: float = Field(0.23, gt=0)
    """Share of repeated blocks of random tokens. The loss leaves their first copy out."""
    ioi_from: int = Field(0, ge=0)
    """First step with sentences that have an indirect object."""
    short: float = Field(0.5, ge=0, le=1)
    """Fraction of `ioi` and `greater_than` sentences that are shorter forms of the task's."""
    third_person: float = Field(0.1, ge=0, le=1)
    """Fraction of `ioi` sentences in which a third person acts."""
    end_of_text: float = Field(0.5, ge=0, le=1)
    """Fraction of documents that start with the end-of-text token."""
    shortest_block: int = Field(4, gt=1, le=15)
    """Fewest tokens in a random block."""
    longest_block: int = Field(16, gt=1)
    """Most tokens in a random block. Two copies must also fit a row."""
    copies: int = Field(3, gt=1)
    """How many copies of a random block to write, or as many as fit a row."""


class ModelConfig(Section):
    """The shape of the model: a GPT-NeoX with parallel blocks and rotary embeddings on a quarter of each head, like
    Pythia."""

    n_layers: int = Field(4, gt=0)
    """Number of blocks."""
    d_model: int = Field(128, gt=0)
    """Width of the residual stream."""
    n_heads: int = Field(4, gt=0)
    """Heads in a block."""
    d_mlp: int = Field(256, gt=0)
    """Hidden units of an MLP."""
    n_positions: int = Field(512, gt=0)
    """The context length that model and tokenizer declare. Training rows are much shorter (`text.width`)."""
    rotary_base: float = Field(100.0, gt=0)
    """Base of the rotary frequencies. Pythia's 10,000 suits texts of thousands of tokens."""
    tie_embeddings: bool = False
    """Use the embedding's weights for the unembedding too. Pythia does not."""
    init_std: float = Field(0.05, gt=0)
    """Standard deviation of the initial weights."""


class OptimizerConfig(Section):
    """How to train: Muon for the matrices in the blocks, AdamW for everything else. Both warm up linearly and decay
    along a cosine."""

    steps: int = Field(1350, gt=0)
    """Training steps; the last one is a checkpoint too."""
    warmup_steps: int = Field(50, gt=0)
    """Steps over which learning rates rise to their highest."""
    final_share: float = Field(0.05, ge=0, le=1)
    """Learning rate at the last step, as a share of the highest."""
    muon_rate: float = Field(0.02, gt=0)
    """Highest learning rate of Muon."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Momentum of Muon."""
    adam_rate: float = Field(3e-3, gt=0)
    """Highest learning rate of AdamW: embeddings, output layer, biases and LayerNorm parameters."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Betas of AdamW."""
    weight_decay: float = Field(0.05, ge=0)
    """Weight decay of matrices. Biases and LayerNorm parameters have none."""
    clip: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""


class FamilyConfig(Section):
    """Keys of make_toy_checkpoints.py."""

    folder: Path = execution(Path("model_cache/toy"))
    """Where to write the family."""
    overwrite: bool = execution(False)
    """Train again a family that is already there."""
    seed: int = Field(0, ge=0)
    """Seed of the first weights and of the text."""
    threads: int = Field(1, gt=0)
    """How many threads to compute with. Another number rounds differently and trains slightly different weights."""
    checkpoint_every: int = Field(150, gt=0)
    """Steps between checkpoints, after those at 0, 1, 2, 4, ..., 128."""
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    text: TextConfig = TextConfig()

    @property
    def steps(self) -> tuple[int, ...]:
        """The checkpoints: 0, 1, 2, 4, ..., 128, then every multiple of `checkpoint_every`, and the last step."""
        last = self.optimizer.steps
        powers = itertools.takewhile(lambda step: step <= LAST_POWER, (2**exponent for exponent in itertools.count()))
        multiples = range(self.checkpoint_every, last, self.checkpoint_every)
        later = (step for step in multiples if step > LAST_POWER)
        return tuple(sorted({0, last, *(step for step in powers if step < last), *later}))
