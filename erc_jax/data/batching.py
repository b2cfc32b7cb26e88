"""Dialogues as arrays: a split, and the batches that are cut from it.

A batch holds the utterances of its dialogues one after another, without padding between dialogues
(``erc_jax.data.packing`` says where each stands in the rows that scans and attention run over). Its
leading axis has one block per data-parallel device; every dialogue lies whole in one block.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self, TypeVar, runtime_checkable

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
    round_up_rows,
)
from erc_jax.data.shapes import Shape, few_shapes, lengths_of, longest_of, slots_and_rows


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


@runtime_checkable
class JointSplit(Split, Protocol):
    """A split whose batches of several seeds can be one.

    ``Examples`` and ``erc_jax.data.anchors.AnchorExamples`` are.
    """

    def joint_batch(self, of_seeds: Sequence[np.ndarray], n_blocks: int = 1) -> Any:
        """The batches of S seeds, of one shape; arrays are [S, G, ...] in place of [G, ...]."""

    def alike(self, batches: Sequence[np.ndarray], n_blocks: int = 1) -> Self:
        """The same split, whose usual batches have one shape, that of the largest of these."""


JointSplitT = TypeVar("JointSplitT", bound=JointSplit)


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


class _Block(NamedTuple):
    """What a block of a batch holds, by utterance, int64 [n]."""

    rows: np.ndarray  # the split's
    ids: np.ndarray  # the place in the whole batch
    of_dialogue: np.ndarray
    in_rows: np.ndarray  # the sequence that is laid out in a row: the dialogue, or its window
    speaker: np.ndarray  # the speaker's sequence


# How much larger than the median batch one may be to be a usual one: by its utterances, its longest
# dialogue and its longest speaker's sequence. Dense layers, which are nearly all of a step, cost in
# proportion to places; with twice the slots the same places lie in half as many rows, so that scans
# and attention alone cost more. On MELD that is 2% of a step, and a compilation is seventy steps.
USUAL = np.array([1.25, 2.0, 2.0])


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
      usual: the shape of all batches that fit into it; see ``alike``.
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
    usual: Shape | None = None

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
        blocks = [block for items in of_seeds for block in self._blocks(items, n_blocks)]
        shape = self._shape(blocks)
        rows = [block.rows for block in blocks]

        def placed(arrays: Iterable[np.ndarray], fill: float) -> np.ndarray:
            return stack_blocks(list(arrays), shape.places, fill)

        batch = Batch(
            features=jax.tree.map(lambda array: placed((array[r] for r in rows), 0), self.features),
            real=placed((np.ones(len(r), bool) for r in rows), False),
            ids=placed((block.ids for block in blocks), 0).astype(np.int32),
            previous_global=placed((_previous(self.back_global[r]) for r in rows), -1),
            previous_speaker=placed((_previous(self.back_speaker[r]) for r in rows), -1),
            speaker_number=placed((self.speaker_number[r] for r in rows), 0),
            dialogue=_layouts(
                [block.in_rows for block in blocks], shape.places, shape.dialogue, bool(self.window)
            ),
            speaker=_layouts([block.speaker for block in blocks], shape.places, shape.speaker),
            labels={
                task: placed((labels[r] for r in rows), UNLABELLED)
                for task, labels in self.labels.items()
            },
        )
        axes = (len(of_seeds), n_blocks)
        return jax.tree.map(lambda array: array.reshape(axes + array.shape[1:]), batch)

    def alike(self, batches: Sequence[np.ndarray], n_blocks: int = 1) -> Examples:
        """The same split, all of whose usual batches have one shape.

        Each shape costs a compilation, which takes as long as many steps. A batch that is larger
        than these, or much larger than most, as one with an enormous dialogue is, keeps a shape of
        its own.

        Args:
          batches: examples of what is to come: the dialogues of some batches.
          n_blocks: blocks (G) that they are spread over.
        """
        if self.few_shapes or not batches:
            return self
        of_batch = [self._blocks(items, n_blocks) for items in batches]
        sizes = np.array([_sizes(blocks) for blocks in of_batch])
        usual = (sizes <= np.median(sizes, axis=0) * USUAL).all(axis=1)
        blocks = [block for number in np.flatnonzero(usual) for block in of_batch[number]]
        if not blocks:
            return self
        fresh = dataclasses.replace(self, usual=None)
        return dataclasses.replace(self, usual=fresh._shape(blocks))

    def _blocks(self, dialogues: np.ndarray, n_blocks: int) -> list[_Block]:
        """The blocks of a batch of these dialogues."""
        lengths = np.diff(self.starts)[dialogues]
        place = np.cumsum(lengths) - lengths  # of each dialogue in the whole batch
        longest = int(np.diff(self.starts).max(initial=1))
        blocks = []
        for block in spread(lengths, n_blocks):
            rows = self.rows(dialogues[block])
            of_dialogue = in_rows = np.repeat(dialogues[block], lengths[block])
            if self.window:
                # A number for each (dialogue, window).
                at = rows - self.starts[of_dialogue]
                in_rows = of_dialogue * longest + at // self.window
            begins = [np.arange(place[d], place[d] + lengths[d]) for d in block]
            blocks.append(
                _Block(
                    rows=rows,
                    ids=np.concatenate([np.arange(0), *begins]),
                    of_dialogue=of_dialogue,
                    in_rows=in_rows,
                    speaker=self.speaker_sequence[rows],
                )
            )
        return blocks

    def _shape(self, blocks: Sequence[_Block]) -> Shape:
        """The usual shape, as far as the blocks fit into it, else one that they fit into."""
        in_rows = [block.in_rows for block in blocks]
        speakers = [block.speaker for block in blocks]
        usual = self.usual or Shape(0, (0, 0), (0, 0))
        if self.few_shapes:
            slots, rows = few_shapes([*(block.of_dialogue for block in blocks), *speakers])
            usual = Shape(slots * rows, (slots, rows), (slots, rows))
        most = max(1, *(len(block.rows) for block in blocks))
        places = usual.places if most <= usual.places else round_up(most)
        if self.window:
            windows = max(len(np.unique(of)) for of in in_rows)
            dialogue = (self.window, round_up_rows(windows, places, self.window))
            if self.usual and windows <= self.usual.dialogue[1]:
                dialogue = self.usual.dialogue
        else:
            dialogue = slots_and_rows(in_rows, places, usual.dialogue)
        return Shape(places, dialogue, slots_and_rows(speakers, places, usual.speaker))


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


SAMPLE = 100  # batches, from which the usual shape is taken


def alike_in_training(split: JointSplitT, batch_size: int, n_blocks: int) -> JointSplitT:
    """The split with one shape for nearly all batches, of any seed and epoch."""
    epochs = (training_order(split, batch_size, 0, epoch) for epoch in range(SAMPLE))
    sample = itertools.islice(itertools.chain.from_iterable(epochs), SAMPLE)
    return split.alike(list(sample), n_blocks)


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


def _sizes(blocks: Sequence[_Block]) -> tuple[int, int, int]:
    """The most utterances in a block, and the longest row and speaker's sequence that it needs."""
    return (
        max(len(block.rows) for block in blocks),
        longest_of(lengths_of([block.in_rows for block in blocks])),
        longest_of(lengths_of([block.speaker for block in blocks])),
    )


def _layouts(
    sequence_of: Sequence[np.ndarray], places: int, shape: tuple[int, int], alone: bool = False
) -> Layout:
    """Layouts of all blocks, stacked.

    Args:
      sequence_of: per block, the sequence of each of its utterances.
      places: N.
      shape: T and R.
      alone: each sequence has a row to itself.
    """
    layouts = [
        pack_sequences(of, n_padded=places, n_slots=shape[0], n_rows=shape[1], alone=alone)
        for of in sequence_of
    ]
    return jax.tree.map(lambda *arrays: np.stack(arrays), *layouts)
