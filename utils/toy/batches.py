"""Training batches of the toy family: whole documents packed into rows, where each sees only itself.

The batch of a training step depends on the seed and the step alone, so a training that resumes reads what it would have
read anyway.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from . import text as toy_text
from .keys import TextConfig
from .positions import position_question
from .tokenizer import END_OF_TEXT


@dataclass(frozen=True)
class Document:
    """Token ids. The first `unlearned` of them are read but not predicted; nothing precedes the very first."""

    tokens: Sequence[int]
    unlearned: int = 1


@dataclass(frozen=True)
class Batch:
    tokens: Int[Tensor, "row width"]  # padded on the right with token 0
    positions: Int[Tensor, "row width"]  # the place of each token in its document, from 0
    documents: Int[Tensor, "row width"]  # the number of each token's document, -1 on padding
    learned: Bool[Tensor, "row width"]  # whether the loss includes the token; never for the first of a document

    def visible(self) -> Bool[Tensor, "row 1 query key"]:
        """Attention is causal and stays within a document. Padding sees itself."""
        same = self.documents[:, :, None] == self.documents[:, None, :]
        return (same & torch.ones_like(same[0]).tril())[:, None]


class TextSource:
    """Draws the documents and packs the batches of a training run."""

    def __init__(self, config: TextConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
        self.config, self.tokenizer, self.seed = config, tokenizer, seed
        self.separator = tokenizer.get_vocab()[END_OF_TEXT]
        self.vocabulary = [token for token in range(len(tokenizer)) if token != self.separator]
        pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        # The words in sentences: pieces with a leading space, so neither bytes nor bare names.
        self.words = [token for token, piece in enumerate(pieces) if piece.startswith("Ġ")]

        def text(question: Callable[..., toy_text.Question], **how: bool) -> Callable[[random.Random], Document]:
            return lambda rng: self._encode(question(rng, held_out=False, **how).document(rng))

        self.draws: dict[str, Callable[[random.Random], Document]] = {
            "ioi": self._ioi,
            "greater_than": lambda rng: text(toy_text.greater_than_question, short=rng.random() < config.short)(rng),
            "gendered_pronoun": self._gendered_pronoun,
            "sva": text(toy_text.sva_question),
            "succession": text(toy_text.succession_question),
            "positions": text(position_question),
            "induction": self._repeated_block,
        }

    def batch(self, step: int) -> Batch:
        """The batch that takes the model from `step` to `step` + 1."""
        rng = random.Random(f"toy text {self.seed} {step}")
        kinds = [kind for kind in self.draws if getattr(self.config, kind) > 0]
        if step < self.config.ioi_from:
            kinds.remove("ioi")
        drawn = self._draw(rng, kinds)
        shape = (self.config.rows, self.config.width)
        tokens, positions = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        documents, learned = np.full(shape, -1, dtype=np.int64), np.zeros(shape, dtype=bool)
        # First fit, the longest documents first; what fits nowhere is left out.
        filled = [0] * self.config.rows
        for number, document in enumerate(sorted(drawn, key=lambda document: -len(document.tokens))):
            size = len(document.tokens)
            row = next((row for row, used in enumerate(filled) if used + size <= self.config.width), None)
            if row is None:
                continue
            span = slice(filled[row], filled[row] + size)
            tokens[row, span], positions[row, span] = document.tokens, np.arange(size)
            documents[row, span], learned[row, span] = number, np.arange(size) >= document.unlearned
            filled[row] += size
        return Batch(*map(torch.from_numpy, (tokens, positions, documents, learned)))

    def _draw(self, rng: random.Random, kinds: Sequence[str]) -> list[Document]:
        """Documents with about as many tokens as a batch holds. The kind furthest behind its share comes next."""
        # The last documents may not fit. The random start keeps them from always being of the same kind.
        spent = {kind: rng.random() * self.config.width for kind in kinds}
        documents: list[Document] = []
        total = 0
        while total < self.config.rows * self.config.width:
            kind = min(kinds, key=lambda kind: spent[kind] / getattr(self.config, kind))
            document = self.draws[kind](rng)
            if rng.random() < self.config.end_of_text:
                unlearned = 1 if document.unlearned == 1 else document.unlearned + 1
                document = Document([self.separator, *document.tokens], unlearned)
            documents.append(document)
            spent[kind] += len(document.tokens)
            total += len(document.tokens)
        return documents

    def _encode(self, text: str) -> Document:
        return Document(self.tokenizer.backend_tokenizer.encode(text).ids)

    def _ioi(self, rng: random.Random) -> Document:
        short = rng.random() < self.config.short
        third = rng.random() < self.config.third_person
        draw = toy_text.third_person_question if third else toy_text.ioi_question
        return self._encode(draw(rng, held_out=False, short=short).document(rng))

    def _gendered_pronoun(self, rng: random.Random) -> Document:
        if rng.random() < 0.5:
            return self._encode(toy_text.gender_sentence(rng))
        return self._encode(toy_text.gendered_pronoun_question(rng, held_out=False).document(rng))

    def _repeated_block(self, rng: random.Random) -> Document:
        room = self.config.width - 1  # Leave one place for the end-of-text token.
        period = rng.randint(self.config.shortest_block, min(self.config.longest_block, room // 2))
        # Half of the blocks take words of sentences only: over the whole vocabulary each token comes too seldom.
        block = rng.choices(self.vocabulary if rng.random() < 0.5 else self.words, k=period)
        # Nobody can know the first token of the second copy: nothing tells where the first copy ends.
        return Document(block * min(self.config.copies, room // period), unlearned=period + 1)
