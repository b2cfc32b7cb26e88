"""Token sequences as arrays: a split for fine-tuning, and the batches that are cut from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from flax import struct

from erc_jax.data.batching import balanced_batches, spread
from erc_jax.data.dialogue import Dialogue
from erc_jax.data.labels import UNLABELLED
from erc_jax.data.packing import Array, round_up_finely
from erc_jax.encoders.packing import NOBODY, SHORTEST, TokenSequence, fill_block, pack_rows

# Tokens in a row. Attention's cost grows with it, and each width is another compilation: a split
# uses two, one that nearly all of its sequences fit into, and one for its longest.
WIDTHS = (48, 64, 96, 128, 192, 256, 384, 512)
NEARLY_ALL = 0.995
FEW, FEW_WIDTHS = 200, (64, 256, 512)


@struct.dataclass
class TokenBatch:
    """G blocks of R rows of W tokens, with places for N = R · (W // 2) utterances.

    Attributes:
      words: token numbers, int32 [G, R, W]; 0 where there is none.
      segments: int32 [G, R, W], equal in the tokens of one sequence; 0 is padding.
      positions: int32 [G, R, W], each token's place in its sequence.
      slots: int32 [G, R, W], which utterance of the row a token is part of, from 1; 0 is none.
      tokens: int32 [G, R, W], the token's place in the whole batch, whichever its block.
      real: bool [G, N], whether there is an utterance.
      ids: int32 [G, N], the utterance's place in the whole batch, whichever its block.
      labels: task to int32 [G, N], UNLABELLED (-1) where there is no label.
    """

    words: Array
    segments: Array
    positions: Array
    slots: Array
    tokens: Array
    real: Array
    ids: Array
    labels: Mapping[str, Array]


class TokenExamples:
    """A split as token sequences; a batch size counts these: utterances, or dialogues in context.

    Attributes:
      labels: task to int32 [N].
      dialogue_of: int64 [N], the dialogue of each utterance.
    """

    def __init__(
        self,
        sequences: Sequence[TokenSequence],
        dialogues: Sequence[Dialogue],
        labels: Mapping[str, np.ndarray],
    ):
        """Args:
        sequences: in which every one of the dialogues' N utterances owns tokens, once.
        dialogues: of the split.
        labels: task to int32 [N]; may be empty where nothing is to be scored.
        """
        self.labels = labels
        self.n_dialogues = len(dialogues)
        self.dialogue_of = np.repeat(
            np.arange(len(dialogues)), [len(d.utterances) for d in dialogues]
        )
        self.n_utterances = len(self.dialogue_of)
        self._sequences = sequences
        self._owned = [_in_order(sequence.owners) for sequence in sequences]
        self._lengths = np.array([len(sequence.ids) for sequence in sequences], int)
        # Of a conversation or two, few compilations matter more than little padding.
        self._few = len(sequences) < FEW
        self._widths = _widths(self._lengths, FEW_WIDTHS if self._few else WIDTHS)

    @property
    def n_items(self) -> int:
        """What ``batches`` counts: sequences."""
        return len(self._sequences)

    def batches(self, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Numbers of the sequences of batches of about as many tokens; see ``balanced_batches``."""
        return balanced_batches(self._lengths, batch_size, rng)

    def rows(self, sequences: np.ndarray) -> np.ndarray:
        """Numbers of the utterances that own tokens of some sequences, in that order; int64 [n]."""
        return np.concatenate([np.arange(0), *(self._owned[i] for i in sequences)])

    def batch(self, sequences: np.ndarray, n_blocks: int = 1) -> TokenBatch:
        """Packs sequences into a batch of numpy arrays.

        Args:
          sequences: int [B], their numbers.
          n_blocks: blocks (G) to spread them over, balanced by their number of tokens.
        """
        lengths = self._lengths[sequences]
        width = next(w for w in self._widths if w >= lengths.max(initial=0))
        blocks = spread(lengths, n_blocks)
        packed = [pack_rows({i: lengths[i] for i in block}, width) for block in blocks]
        height = self._height(max(len(rows) for rows in packed))
        places = width // SHORTEST

        arrays = {
            name: np.zeros((n_blocks, height, width), np.int32)
            for name in ("words", "segments", "positions", "slots", "tokens")
        }
        utterances = np.full((n_blocks, height * places), NOBODY)
        begins = np.cumsum(lengths) - lengths
        chosen = [self._sequences[i] for i in sequences]
        for g, rows in enumerate(packed):
            block = fill_block(chosen, rows, height, width)
            arrays["words"][g] = block.ids
            arrays["segments"][g] = block.segments
            arrays["positions"][g] = block.positions
            arrays["slots"][g] = block.slots
            for r, (members, owners) in enumerate(zip(rows, block.utterances, strict=True)):
                begin = np.repeat(begins[members], lengths[members])
                arrays["tokens"][g, r, : len(begin)] = begin + block.positions[r, : len(begin)]
                utterances[g, r * places : r * places + len(owners)] = owners
        place_of = np.full(self.n_utterances + 1, 0, np.int32)
        listed = self.rows(sequences)
        place_of[listed] = np.arange(len(listed))
        real = utterances != NOBODY
        return TokenBatch(
            **arrays,
            real=real,
            ids=np.where(real, place_of[utterances], 0).astype(np.int32),
            labels={
                task: np.where(real, labels[utterances], UNLABELLED).astype(np.int32)
                for task, labels in self.labels.items()
            },
        )

    def _height(self, rows: int) -> int:
        """The next R that batches have, at least as many."""
        return 1 << (rows - 1).bit_length() if self._few else round_up_finely(rows)


def _in_order(owners: np.ndarray) -> np.ndarray:
    """The utterances of a sequence, by first appearance."""
    found, first = np.unique(owners, return_index=True)
    found = found[np.argsort(first)]
    return found[found != NOBODY]


def _widths(lengths: np.ndarray, usual: Sequence[int]) -> list[int]:
    """Row widths for a split: for nearly all of its sequences, and for the longest."""
    if not len(lengths):
        return [usual[0]]
    longest = int(lengths.max())
    ladder = [*(w for w in usual if w < longest), _whole(longest, usual)]
    nearly_all = np.quantile(lengths, NEARLY_ALL, method="inverted_cdf")  # a length that there is
    return sorted({next(w for w in ladder if w >= nearly_all), ladder[-1]})


def _whole(longest: int, usual: Sequence[int]) -> int:
    """The least of the usual widths that holds the longest; above, the next multiple of 64."""
    return next((w for w in usual if w >= longest), -(-longest // 64) * 64)
