"""The packed layout: every utterance of a batch in one array, its sequences side by side in rows.

The real utterances of a batch lie in one [N, D] array, with no padding but that N is rounded up,
and everything that looks at one utterance at a time works on it. What looks along a sequence (the
recurrent layers, attention) works on R rows of T time slots instead. A sequence is a dialogue, or
one speaker's utterances in a dialogue; several sequences follow one another in a row::

    utterances of the sequences a, b, c      rows of T = 4 slots
    a a b a b c a                            a a a a
                                             b b c .

`Layout` says which utterance sits in which slot. So a step of a scan over the slots works on
R utterances, whatever the number of sequences, and next to none of them are padding.

Shapes: N packed utterances, T time slots, R rows.
"""

from __future__ import annotations

import flax.struct
import jax
import numpy as np

Array = jax.Array | np.ndarray


@flax.struct.dataclass
class Layout:
    """Where the N packed utterances sit in R rows of T time slots.

    A sequence fills consecutive slots of one row, in order.

    Attributes:
      index: `<int32>[T, R]` the packed utterance in a slot; 0 in an empty slot.
      inverse: `<int32>[N]` the slot, t * R + r, of a packed utterance; 0 for a padded one.
      segment: `<int32>[T, R]` the number of the sequence in a slot, unique in the whole layout;
        -1 in an empty slot.
      mask: `<bool>[N]` whether the packed utterance is real.
    """

    index: Array
    inverse: Array
    segment: Array
    mask: Array


def pack_sequences(
    sequence_of: np.ndarray,
    *,
    n_padded: int,
    n_slots: int | None = None,
    n_rows: int | None = None,
    alone: bool = False,
) -> Layout:
    """Places sequences into rows: the longest first, each into the first row with room for it.

    A pure function of its arguments: the same batch gets the same layout.

    Args:
      sequence_of: `<int>[n]` the sequence that each real utterance belongs to; any numbers that
        tell sequences apart. Utterances of one sequence come in order, sequences may interleave.
      n_padded: N, at least n.
      n_slots: T; by default the longest sequence's length, rounded up.
      n_rows: R; by default rounded up from what the sequences need at T slots.
      alone: each sequence gets a row to itself, in order of appearance.

    Raises:
      ValueError: the sequences do not fit into N, T and R.
    """
    n = len(sequence_of)
    # Sequences are numbered by first appearance, so that their names do not matter.
    _, first, sequence, lengths = np.unique(
        sequence_of, return_index=True, return_inverse=True, return_counts=True
    )
    number = np.empty(len(first), np.int32)
    number[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    of_utterance = number[sequence]
    lengths = lengths[np.argsort(first)]

    longest = int(lengths.max(initial=1))
    if n_slots is None:
        n_slots = round_up_slots(longest)
    if n > n_padded or longest > n_slots:
        raise ValueError(
            f"{n} utterances in sequences of up to {longest} do not fit into "
            f"N = {n_padded}, T = {n_slots}"
        )
    if alone:
        needed = len(lengths)
        row_of, start_of = np.arange(needed), np.zeros(needed, np.int64)
    else:
        row_of, start_of, needed = _first_fit(lengths, n_slots)
    if n_rows is None:
        n_rows = round_up_rows(needed, n_padded, n_slots)
    if needed > n_rows:
        raise ValueError(f"the sequences need {needed} rows of {n_slots} slots, R = {n_rows}")

    # The place of an utterance in its sequence: its rank after a stable sort by sequence.
    order = np.argsort(of_utterance, kind="stable")
    position = np.empty(n, np.int64)
    position[order] = np.arange(n) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    slot = (start_of[of_utterance] + position) * n_rows + row_of[of_utterance]

    index = np.zeros(n_slots * n_rows, np.int32)
    segment = np.full(n_slots * n_rows, -1, np.int32)
    inverse = np.zeros(n_padded, np.int32)
    index[slot] = np.arange(n)
    segment[slot] = of_utterance
    inverse[:n] = slot
    shape = (n_slots, n_rows)
    return Layout(index.reshape(shape), inverse, segment.reshape(shape), np.arange(n_padded) < n)


def _first_fit(lengths: np.ndarray, n_slots: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Row and first slot of each sequence, and the number of rows in use."""
    row_of = np.zeros(len(lengths), np.int64)
    start_of = np.zeros(len(lengths), np.int64)
    free: list[int] = []  # slots of each row in use
    row, before = 0, None
    for sequence in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[sequence])
        if length != before:  # what had no room for the last one has none for another as long
            row, before = 0, length
        while row < len(free) and free[row] < length:
            row += 1
        if row == len(free):
            free.append(n_slots)
        row_of[sequence], start_of[sequence] = row, n_slots - free[row]
        free[row] -= length
    return row_of, start_of, len(free)


def rows_needed(lengths: np.ndarray, n_slots: int) -> int:
    """How many rows of so many slots ``pack_sequences`` places sequences of these lengths into."""
    return _first_fit(lengths, n_slots)[2]


def round_up(n: int) -> int:
    """The next N of the ladder 8, 16, 24, ... 256, 272, 288, ...: sixteen steps an octave above.

    Each distinct shape costs a compilation; above 64, at most one utterance in nine is padding.
    """
    return _round_up(n, steps=16, least=8)


def round_up_slots(longest: int) -> int:
    """The next T of the ladder 8, 12, 16, 24, 32, 48, ...: two steps an octave, at least 8."""
    return max(8, _round_up(longest, steps=2))


def round_up_rows(needed: int, n_padded: int, n_slots: int) -> int:
    """The next R: the rows that N full slots fill, where that is enough, as it mostly is."""
    usual = -(-n_padded // n_slots)
    return usual if needed <= usual else round_up_finely(needed)


def round_up_finely(rows: int) -> int:
    """The next of 1, 2, ... 8, 10, 12, 14, 16, 20, ...: four steps an octave."""
    return _round_up(rows, steps=4)


def _round_up(n: int, steps: int, least: int = 1) -> int:
    """The next multiple of the power of two that cuts n's octave into so many steps."""
    step = max(least, (1 << max(0, n.bit_length() - 1)) // steps)
    return max(step, -(-n // step) * step)
