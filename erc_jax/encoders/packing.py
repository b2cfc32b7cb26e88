"""Packing sentences into rows of tokens, so that next to nothing is computed for padding.

Several sentences share a row; ``segments`` says which token belongs to which, attention stays
inside a segment, and positions start again with each. Blocks of rows come in a few fixed shapes,
because every new shape is a compilation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

# Every sentence has at least [CLS] and [SEP], so a row of W tokens holds W // 2 sentences at most.
SHORTEST = 2


@dataclasses.dataclass(frozen=True)
class Block:
    """Rows of packed sentences: R rows of W tokens.

    Attributes:
      ids: token numbers, int32 [R, W]; 0 where there is no sentence.
      segments: int32 [R, W]; 1 for the first sentence of a row, 2 for the second; 0 is padding.
      positions: int32 [R, W], each token's place in its own sentence.
      rows: for each row the numbers of its sentences, in the order of the segments.
    """

    ids: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    rows: Sequence[Sequence[int]]


def pack_rows(lengths: Mapping[int, int], width: int) -> list[list[int]]:
    """Places sentences into as few rows as a best-fit search by falling length finds.

    Args:
      lengths: tokens in each sentence, by the sentence's number; none above width.
      width: tokens in a row.

    Returns:
      For each row the numbers of its sentences.
    """
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(width + 1)]  # rows, by their free tokens
    for sentence in sorted(lengths, key=lambda i: -lengths[i]):
        need = max(lengths[sentence], SHORTEST)
        room = next((free for free in range(need, width + 1) if with_room[free]), None)
        if room is None:
            room = width
            with_room[width].append(len(rows))
            rows.append([])
        row = with_room[room].pop()
        rows[row].append(sentence)
        with_room[room - need].append(row)
    return rows


def make_blocks(
    tokens: Sequence[Sequence[int]], rows: Sequence[Sequence[int]], height: int, width: int
) -> Iterator[Block]:
    """Fills blocks of [height, width] tokens with the rows; the last one is padded.

    Args:
      tokens: token numbers of every sentence.
      rows: what ``pack_rows`` gave.
      height: rows in a block.
      width: tokens in a row.
    """
    for start in range(0, len(rows), height):
        chosen = rows[start : start + height]
        ids, segments, positions = (np.zeros((height, width), np.int32) for _ in range(3))
        for r, sentences in enumerate(chosen):
            begin = 0
            for segment, sentence in enumerate(sentences, start=1):
                end = begin + len(tokens[sentence])
                ids[r, begin:end] = tokens[sentence]
                segments[r, begin:end] = segment
                positions[r, begin:end] = np.arange(end - begin)
                begin = end
        yield Block(ids, segments, positions, chosen)
