"""Packing token sequences into rows, so that next to nothing is computed for padding.

Several sequences share a row; ``segments`` says which token belongs to which, attention stays
inside a segment, and positions start again with each. Blocks of rows come in a few fixed shapes,
because every new shape is a compilation.

A sequence is a sentence, or several utterances of a dialogue that are read together; ``slots`` says
which tokens make up which utterance's vector.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

# Every utterance has at least two tokens ([CLS] and [SEP] of the empty one), so a row of W tokens
# holds W // 2 utterances at most.
SHORTEST = 2
NOBODY = -1  # owner of a token that no utterance's vector is made of


@dataclasses.dataclass(frozen=True)
class TokenSequence:
    """What the encoder reads at once: L tokens.

    Attributes:
      ids: token numbers, int32 [L].
      owners: int32 [L], the number of the utterance that a token is part of, or NOBODY; an
        utterance's tokens stand together, and in one sequence only.
    """

    ids: np.ndarray
    owners: np.ndarray


@dataclasses.dataclass(frozen=True)
class Block:
    """Rows of packed sequences: R rows of W tokens.

    Attributes:
      ids: token numbers, int32 [R, W]; 0 where there is no sequence.
      segments: int32 [R, W]; 1 for the first sequence of a row, 2 for the second; 0 is padding.
      positions: int32 [R, W], each token's place in its own sequence.
      slots: int32 [R, W]; 1 for the row's first utterance, 2 for the second; 0 for tokens of none.
      utterances: for each row the numbers of its utterances, in the order of the slots.
    """

    ids: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    utterances: Sequence[np.ndarray]


def pack_rows(lengths: Mapping[int, int], width: int) -> list[list[int]]:
    """Places sequences into as few rows as a best-fit search by falling length finds.

    Args:
      lengths: tokens in each sequence, by the sequence's number; none above width.
      width: tokens in a row.

    Returns:
      For each row the numbers of its sequences.
    """
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(width + 1)]  # rows, by their free tokens
    for sequence in sorted(lengths, key=lambda i: -lengths[i]):
        need = max(lengths[sequence], SHORTEST)
        room = next((free for free in range(need, width + 1) if with_room[free]), None)
        if room is None:
            room = width
            with_room[width].append(len(rows))
            rows.append([])
        row = with_room[room].pop()
        rows[row].append(sequence)
        with_room[room - need].append(row)
    return rows


def fill_block(
    sequences: Sequence[TokenSequence], rows: Sequence[Sequence[int]], height: int, width: int
) -> Block:
    """A block of [height, width] tokens that holds the rows; the rest is padding.

    Args:
      sequences: all there are.
      rows: numbers of the sequences in each row, as ``pack_rows`` gave them; at most height.
      height: R.
      width: W.
    """
    ids, segments, positions, slots = (np.zeros((height, width), np.int32) for _ in range(4))
    utterances = []
    for r, members in enumerate(rows):
        chosen = [sequences[i] for i in members]
        lengths = [len(sequence.ids) for sequence in chosen]
        used = sum(lengths)
        ids[r, :used] = np.concatenate([sequence.ids for sequence in chosen])
        segments[r, :used] = np.repeat(np.arange(1, len(members) + 1), lengths)
        positions[r, :used] = np.concatenate([np.arange(length) for length in lengths])
        owners = np.concatenate([sequence.owners for sequence in chosen])
        begins = (owners != NOBODY) & (owners != np.append(NOBODY, owners[:-1]))
        slots[r, :used] = np.where(owners == NOBODY, 0, np.cumsum(begins))
        utterances.append(owners[begins])
    return Block(ids, segments, positions, slots, utterances)


def make_blocks(
    sequences: Sequence[TokenSequence], rows: Sequence[Sequence[int]], height: int, width: int
) -> Iterator[Block]:
    """Fills blocks of [height, width] tokens with the rows; see ``fill_block``."""
    for start in range(0, len(rows), height):
        yield fill_block(sequences, rows[start : start + height], height, width)
