"""The shapes that batches of packed utterances have: each shape costs a compilation.

Shapes: N places for utterances; T time slots and R rows of a layout (``erc_jax.data.packing``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from erc_jax.data.packing import round_up_rows, round_up_slots, rows_needed

LEAST_SLOTS = 16  # of few_shapes
# Powers of two go up to here. Longer dialogues are rare, and attention over padding costs too much.
MOST_SLOTS = 512


class Shape(NamedTuple):
    """Of a batch's blocks: N places for utterances, and T slots and R rows of both layouts."""

    places: int
    dialogue: tuple[int, int]
    speaker: tuple[int, int]


def lengths_of(sequence_of: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Of the sequences of each block."""
    return [np.unique(of, return_counts=True)[1] for of in sequence_of]


def longest_of(lengths: Sequence[np.ndarray]) -> int:
    """Of ``lengths_of``, over all blocks; at least 1."""
    return max(int(of.max(initial=1)) for of in lengths)


def slots_and_rows(
    sequence_of: Sequence[np.ndarray], places: int, usual: tuple[int, int]
) -> tuple[int, int]:
    """T and R that each block's sequences fit into: the usual ones if they do."""
    lengths = lengths_of(sequence_of)
    longest = longest_of(lengths)

    def needed(slots: int) -> int:
        return max(rows_needed(of, slots) for of in lengths)

    if longest <= usual[0] and needed(usual[0]) <= usual[1]:
        return usual
    slots = round_up_slots(longest)
    return slots, round_up_rows(needed(slots), places, slots)


def shapes_up_to(utterances: int) -> list[tuple[int, int]]:
    """The few shapes, slots T and rows R, with at most so many places; the smallest first."""
    shapes = []
    slots = LEAST_SLOTS
    while slots <= utterances:
        rows = 1
        while slots * rows <= utterances:
            shapes.append((slots, rows))
            rows *= 2
        slots *= 2
    return sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape[1]))


def few_shapes(sequence_of: Sequence[np.ndarray]) -> tuple[int, int]:
    """Slots T and rows R that sequences are packed in, both powers of two; then N is T · R.

    A conversation alone has one row, of 16, 32, 64 ... slots; above 512 those of other batches.

    Args:
      sequence_of: numbers of the sequences, by utterance, of everything that is packed alike.
    """
    lengths = lengths_of(sequence_of)
    longest = longest_of(lengths)
    slots = max(LEAST_SLOTS, _power_of_two(longest))
    if longest > MOST_SLOTS:
        slots = round_up_slots(longest)
    return slots, _power_of_two(max(rows_needed(of, slots) for of in lengths))


def _power_of_two(least: int) -> int:
    return 1 << max(least - 1, 0).bit_length()
