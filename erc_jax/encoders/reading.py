"""From texts to the token sequences that an encoder reads: an utterance alone, or in its dialogue.

In context, a dialogue is one sequence::

    [CLS] Ann: We won! [SEP] Bob: Really? [SEP] ...

so that all of its utterances are encoded in one pass, each from its own tokens. A dialogue that is
longer than the limit is read in windows that overlap: every utterance is encoded in one of them,
and the others show it what was said before and after.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from erc_jax.data.dialogue import Dialogue
from erc_jax.encoders.packing import NOBODY, TokenSequence


class Reader:
    """A published tokenizer with our limits.

    Attributes:
      max_length: tokens of a sequence, special ones included; the rest of a text is cut off.
      tokenizer: without padding and truncation.
      lower_case: whether texts are lower-cased before the tokenizer sees them.
      begin, end: int32 [1], the special token that a sequence begins with, and the one that each
        utterance ends with: [CLS] and [SEP], or what a model has in their place.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int, lower_case: bool):
        self.max_length = max_length
        self.tokenizer = tokenizer
        self.lower_case = lower_case
        empty = tokenizer.encode("").ids
        self.begin, self.end = np.array(empty[:1], np.int32), np.array(empty[-1:], np.int32)

    def alone(self, texts: Sequence[str]) -> list[TokenSequence]:
        """A sequence for each text; its number is its owner."""
        room = self.max_length - 2
        return [
            _sequence(np.concatenate([self.begin, ids[:room], self.end]), number)
            for number, ids in enumerate(self._tokenize(texts))
        ]

    def in_context(self, dialogues: Sequence[Dialogue]) -> list[TokenSequence]:
        """Sequences of dialogues; the owners are their utterances, numbered one after another."""
        texts = [f"{u.speaker}: {u.text}" for d in dialogues for u in d.utterances]
        room = self.max_length - 2
        pieces = [np.concatenate([ids[:room], self.end]) for ids in self._tokenize(texts)]
        sequences = []
        start = 0
        for dialogue in dialogues:
            end = start + len(dialogue.utterances)
            lengths = np.array([len(piece) for piece in pieces[start:end]])
            for window in _windows(lengths, self.max_length - 1):
                chosen = [start + i for i in range(window.first, window.last)]
                owners = [i if i - start in window.own else NOBODY for i in chosen]
                sequences.append(
                    TokenSequence(
                        np.concatenate([self.begin, *(pieces[i] for i in chosen)]),
                        np.repeat([NOBODY, *owners], [1, *(len(pieces[i]) for i in chosen)]).astype(
                            np.int32
                        ),
                    )
                )
            start = end
        return sequences

    def _tokenize(self, texts: Sequence[str]) -> list[np.ndarray]:
        # JSON can hold half of a surrogate pair, which no tokenizer takes.
        texts = [text.encode("utf-8", "replace").decode() for text in texts]
        if self.lower_case:
            texts = [text.lower() for text in texts]
        encoded = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encoded]


def _sequence(ids: np.ndarray, owner: int) -> TokenSequence:
    return TokenSequence(ids, np.full(len(ids), owner, np.int32))


@dataclasses.dataclass
class _Window:
    """Utterances first … last - 1 are read, those of ``own`` are encoded."""

    first: int
    last: int
    own: range


def _windows(lengths: np.ndarray, limit: int) -> list[_Window]:
    """Cuts a dialogue into windows of at most ``limit`` tokens.

    A window encodes utterances of up to half of the limit; what came before and after them fills
    the rest, from both sides in turn.
    """
    if lengths.sum() <= limit:
        return [_Window(0, len(lengths), range(len(lengths)))]
    windows = []
    start = 0
    while start < len(lengths):
        end, used = start + 1, int(lengths[start])
        while end < len(lengths) and used + lengths[end] <= limit // 2:
            used += int(lengths[end])
            end += 1
        window = _Window(start, end, range(start, end))
        grows = True
        while grows:
            grows = False
            if window.first > 0 and used + lengths[window.first - 1] <= limit:
                window.first -= 1
                used += int(lengths[window.first])
                grows = True
            if window.last < len(lengths) and used + lengths[window.last] <= limit:
                used += int(lengths[window.last])
                window.last += 1
                grows = True
        windows.append(window)
        start = end
    return windows
