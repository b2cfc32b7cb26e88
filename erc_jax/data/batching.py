"""Dialogues as arrays: a split, and the batches that are cut from it.

A batch holds the utterances of its dialogues one after another, without padding between dialogues
(``erc_jax.data.packing`` says where each stands in the rows that scans and attention run over). Its
leading axis has one block per data-parallel device; every dialogue lies whole in one block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from flax import struct

from erc_jax.data.dialogue import Dialogue
from erc_jax.data.labels import UNLABELLED, previous_utterances
from erc_jax.data.packing import (
    Array,
    Layout,
    pack_sequences,
    round_up,
    round_up_slots,
    rows_needed,
)


class Split(Protocol):
    """A split as arrays, from which a system's batches are cut.

    ``Examples`` is one of features, ``erc_jax.data.tokens.TokenExamples`` one of tokens.
    """

    @property
    def labels(self) -> Mapping[str, np.ndarray]:
        """Task to int32 [N]."""

    @property
    def n_items(self) -> int:
        """What a batch size counts, such as dialogues."""

    @property
    def n_dialogues(self) -> int: ...

    @property
    def n_utterances(self) -> int: ...

    @property
    def dialogue_of(self) -> np.ndarray:
        """int64 [N], the dialogue of each utterance."""

    def batches(self, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Arrays of item numbers; every item is in one of them."""

    def rows(self, items: np.ndarray) -> np.ndarray:
        """Numbers of the utterances in some items; a batch's ``ids`` point into them."""

    def batch(self, items: np.ndarray, n_blocks: int = 1) -> Any:
        """A pytree of arrays with a leading axis of blocks, among them those of ``Packed``."""


class Packed(Protocol):
    """What loop and prediction read of every batch: G blocks with places for N utterances."""

    real: Array  # bool [G, N], whether an utterance is there
    ids: Array  # int32 [G, N], the utterance's place in the whole batch, whichever its block
    labels: Mapping[str, Array]  # task to int32 [G, N], -1 where there is no label


@struct.dataclass
class Batch:
    """G blocks of N packed utterances; rows that hold no utterance have ``real`` False.

    Attributes:
      features: float32 [G, N, D], zero where not real; of several modalities ``Modalities`` with
        such arrays.
      real: bool [G, N].
      ids: int32 [G, N], the utterance's place in the whole batch, whichever its block.
      previous_global: int32 [G, N], row of the previous utterance of the dialogue, -1 on firsts.
      previous_speaker: int32 [G, N], row of the same speaker's previous utterance, -1 on firsts.
      speaker_number: int32 [G, N], which of its dialogue's speakers is speaking, by first
        appearance, from 0.
      dialogue: rows of whole dialogues, arrays with a leading axis G.
      speaker: rows of each speaker's own utterances, arrays with a leading axis G.
      labels: task to int32 [G, N], UNLABELLED (-1) where there is no label; ratings are float32
        [G, N, 3], -1 where there is none.
    """

    features: Any
    real: Array
    ids: Array
    previous_global: Array
    previous_speaker: Array
    speaker_number: Array
    dialogue: Layout
    speaker: Layout
    labels: Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class Examples:
    """A split as arrays over its N utterances, in the order of its B dialogues.

    Attributes:
      features: float32 [N, D]; of several modalities ``Modalities`` with such arrays.
      starts: int64 [B + 1], where each dialogue begins; the last is N.
      back_global: int32 [N], how many utterances ago the previous one was; 0 on firsts.
      back_speaker: int32 [N], the same for the same speaker's previous utterance.
      speaker_sequence: int64 [N], a number for each (dialogue, speaker).
      speaker_number: int32 [N], which of the dialogue's speakers it is, by first appearance.
      labels: task to int32 [N].
      window: if given, a batch's ``dialogue`` layout has a row for each run of up to so many
        utterances of a dialogue, and so many slots, in place of rows of whole dialogues.
      few_shapes: batches come in the few shapes of ``few_shapes``, for prediction: each shape is
        compiled for, and what is asked for next is not known.
    """

    features: Any
    starts: np.ndarray
    back_global: np.ndarray
    back_speaker: np.ndarray
    speaker_sequence: np.ndarray
    speaker_number: np.ndarray
    labels: Mapping[str, np.ndarray]
    window: int | None = None
    few_shapes: bool = False

    @property
    def n_dialogues(self) -> int:
        return len(self.starts) - 1

    @property
    def n_items(self) -> int:
        """What ``batches`` counts: dialogues."""
        return self.n_dialogues

    @property
    def n_utterances(self) -> int:
        return int(self.starts[-1])

    @property
    def dialogue_of(self) -> np.ndarray:
        """int64 [N], the dialogue of each utterance."""
        return np.repeat(np.arange(self.n_dialogues), np.diff(self.starts))

    def batches(self, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Dialogue numbers of batches of about as many utterances; see ``balanced_batches``."""
        return balanced_batches(np.diff(self.starts), batch_size, rng)

    def rows(self, dialogues: np.ndarray) -> np.ndarray:
        """Numbers of the utterances of some dialogues, in that order; int64 [n]."""
        starts = self.starts
        return np.concatenate(
            [np.arange(0), *(np.arange(starts[d], starts[d + 1]) for d in dialogues)]
        )

    def batch(self, dialogues: np.ndarray, n_blocks: int = 1) -> Batch:
        """Packs dialogues into a batch of numpy arrays.

        Args:
          dialogues: int [B], numbers of the dialogues.
          n_blocks: blocks (G) to spread them over, balanced by their number of utterances.
        """
        return jax.tree.map(lambda array: array[0], self.joint_batch([dialogues], n_blocks))

    def joint_batch(self, of_seeds: Sequence[np.ndarray], n_blocks: int = 1) -> Batch:
        """The batches of S seeds, of one shape.

        Args:
          of_seeds: the dialogues of each seed's batch.
          n_blocks: blocks (G) to spread each batch over.

        Returns:
          Arrays [S, G, ...] in place of [G, ...].
        """
        rows, ids, in_block = [], [], []
        for dialogues in of_seeds:
            lengths = np.diff(self.starts)[dialogues]
            place = np.cumsum(lengths) - lengths  # of each dialogue in the whole batch
            for block in spread(lengths, n_blocks):
                rows.append(self.rows(dialogues[block]))
                ids.append(
                    np.concatenate(
                        [np.arange(0), *(np.arange(place[d], place[d] + lengths[d]) for d in block)]
                    )
                )
                in_block.append(np.repeat(dialogues[block], lengths[block]))
        speakers = [self.speaker_sequence[r] for r in rows]
        slots: int | None = None
        n_rows: int | None = None
        n_padded = round_up(max(map(len, rows)))
        if self.few_shapes:
            slots, n_rows = few_shapes([*in_block, *speakers])
            n_padded = slots * n_rows
        speaker = _layouts(speakers, n_padded, slots, n_rows)
        if self.window:
            slots, n_rows = self.window, None
            # A number for each (dialogue, window).
            places = [r - self.starts[of] for r, of in zip(rows, in_block, strict=True)]
            longest = int(np.diff(self.starts).max(initial=1))
            in_block = [
                of * longest + place // self.window
                for of, place in zip(in_block, places, strict=True)
            ]
        batch = Batch(
            features=jax.tree.map(
                lambda array: stack_blocks([array[r] for r in rows], n_padded, 0), self.features
            ),
            real=stack_blocks([np.ones(len(r), bool) for r in rows], n_padded, False),
            ids=stack_blocks(ids, n_padded, 0).astype(np.int32),
            previous_global=stack_blocks(
                [_previous(self.back_global[r]) for r in rows], n_padded, -1
            ),
            previous_speaker=stack_blocks(
                [_previous(self.back_speaker[r]) for r in rows], n_padded, -1
            ),
            speaker_number=stack_blocks([self.speaker_number[r] for r in rows], n_padded, 0),
            dialogue=_layouts(in_block, n_padded, slots, n_rows, alone=self.window is not None),
            speaker=speaker,
            labels={
                task: stack_blocks([labels[r] for r in rows], n_padded, UNLABELLED)
                for task, labels in self.labels.items()
            },
        )
        shape = (len(of_seeds), n_blocks)
        return jax.tree.map(lambda array: array.reshape(shape + array.shape[1:]), batch)


def make_examples(
    dialogues: Sequence[Dialogue],
    features: Any,
    labels: Mapping[str, np.ndarray],
    window: int | None = None,
) -> Examples:
    """Arrays of a split.

    Args:
      dialogues: B dialogues with N utterances in all.
      features: float32 [N, D], or ``Modalities`` with such arrays.
      labels: task to int32 [N]; may be empty where nothing is to be scored.
      window: see ``Examples``.
    """
    back_global: list[np.ndarray] = []
    back_speaker: list[np.ndarray] = []
    sequences: list[np.ndarray] = []
    numbers: list[np.ndarray] = []
    offset = 0
    for dialogue in dialogues:
        speakers = [utterance.speaker for utterance in dialogue.utterances]
        here = np.arange(len(speakers), dtype=np.int32)
        for previous, back in zip(
            previous_utterances(speakers), (back_global, back_speaker), strict=True
        ):
            back.append(np.where(previous < 0, 0, here - previous))
        # By appearance, so that names do not matter.
        number = {speaker: i for i, speaker in enumerate(dict.fromkeys(speakers))}
        numbers.append(np.array([number[speaker] for speaker in speakers], np.int32))
        sequences.append(offset + numbers[-1].astype(np.int64))
        offset += len(speakers)  # more than the speakers there can be
    starts = np.cumsum([0] + [len(d.utterances) for d in dialogues])
    for array in jax.tree.leaves(features):
        if len(array) != starts[-1]:
            raise ValueError(f"{len(array)} feature rows for {starts[-1]} utterances")
    return Examples(
        features=features,
        starts=starts,
        back_global=np.concatenate(back_global).astype(np.int32),
        back_speaker=np.concatenate(back_speaker).astype(np.int32),
        speaker_sequence=np.concatenate(sequences),
        speaker_number=np.concatenate(numbers),
        labels=labels,
        window=window,
    )


def training_order(split: Split, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The epoch's batches, a function of (seed, epoch) alone; see ``balanced_batches``."""
    return split.batches(batch_size, np.random.default_rng((seed, epoch)))


def balanced_batches(
    lengths: np.ndarray, batch_size: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Cuts items (dialogues, or token sequences) into batches of about the same total length.

    A batch draws one item from each class of similar length. So few shapes are met, each of which
    costs a compilation, and little is padded. There are as few batches as ``batch_size`` items in
    each allow, of equal size.

    Args:
      lengths: int [n], of each item.
      batch_size: the most items in a batch.
      rng: draws the batches.

    Returns:
      Arrays of item numbers; every item is in one of them.
    """
    n_batches = -(-len(lengths) // batch_size)
    shuffled = rng.permutation(len(lengths))
    by_length = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    classes = [
        rng.permutation(by_length[i : i + n_batches]) for i in range(0, len(by_length), n_batches)
    ]
    # The last class may be short: it goes to some batches only.
    return [np.array([c[i] for c in classes if i < len(c)]) for i in range(n_batches)]


def spread(lengths: np.ndarray, n_blocks: int) -> list[np.ndarray]:
    """Places of items, by block: the longest first, each to the emptiest; order kept inside."""
    if n_blocks == 1:
        return [np.arange(len(lengths))]
    block_of = np.zeros(len(lengths), int)
    load = np.zeros(n_blocks, int)
    for item in np.argsort(-lengths, kind="stable"):
        block_of[item] = load.argmin()
        load[block_of[item]] += lengths[item]
    return [np.flatnonzero(block_of == block) for block in range(n_blocks)]


def _previous(back: np.ndarray) -> np.ndarray:
    """Row of the previous utterance within a block, where a dialogue's rows are consecutive."""
    return np.where(back > 0, np.arange(len(back)) - back, -1).astype(np.int32)


def stack_blocks(blocks: Sequence[np.ndarray], n_padded: int, fill: float) -> np.ndarray:
    """Blocks of up to ``n_padded`` rows as one array [G, n_padded, ...], filled up."""
    out = np.full((len(blocks), n_padded, *blocks[0].shape[1:]), fill, blocks[0].dtype)
    for row, block in zip(out, blocks, strict=True):
        row[: len(block)] = block
    return out


LEAST_SLOTS = 16  # of few_shapes
# Powers of two go up to here. Longer dialogues are rare, and attention over padding costs too much.
MOST_SLOTS = 512


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
    lengths = [np.unique(of, return_counts=True)[1] for of in sequence_of]
    longest = max(int(of.max(initial=1)) for of in lengths)
    slots = max(LEAST_SLOTS, _power_of_two(longest))
    if longest > MOST_SLOTS:
        slots = round_up_slots(longest)
    return slots, _power_of_two(max(rows_needed(of, slots) for of in lengths))


def _power_of_two(least: int) -> int:
    return 1 << max(least - 1, 0).bit_length()


def _layouts(
    sequence_of: Sequence[np.ndarray],
    n_padded: int,
    slots: int | None = None,
    rows: int | None = None,
    *,
    alone: bool = False,
) -> Layout:
    """Layouts of all blocks with one common shape, stacked.

    Args:
      sequence_of: per block, the sequence of each of its utterances.
      n_padded: N.
      slots: T, by default what the longest sequence needs.
      rows: R, by default what the block with the most sequences needs.
      alone: each sequence has a row to itself.
    """
    for _ in range(3):  # each block for itself; then in the longest's slots; then in the most rows
        layouts = [
            pack_sequences(sequence, n_padded=n_padded, n_slots=slots, n_rows=rows, alone=alone)
            for sequence in sequence_of
        ]
        shapes = {layout.index.shape for layout in layouts}
        if len(shapes) == 1:
            break
        if slots is None:
            slots = max(shape[0] for shape in shapes)
        else:
            rows = max(shape[1] for shape in shapes)
    return jax.tree.map(lambda *arrays: np.stack(arrays), *layouts)
