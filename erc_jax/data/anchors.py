"""Batches of drawn utterances (anchors), each with its whole dialogue as context.

SentEmoContext draws its training batches with inverse label frequency, so that rare emotions are
met more often than they occur. An anchor brings its dialogue, which tells what it means; loss and
triplets are of the anchors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from flax import struct

from erc_jax.data.batching import Batch, Examples, balanced_batches, stack_blocks
from erc_jax.data.labels import UNLABELLED
from erc_jax.data.packing import Array, round_up


@struct.dataclass
class AnchorBatch:
    """G blocks of N packed utterances, A places for anchors among them.

    Attributes:
      utterances: the anchors' dialogues, whole.
      anchors: int32 [G, A], the anchors' rows in their block; 0 in an empty place.
      labels: task to int32 [G, A], UNLABELLED in an empty place.
    """

    utterances: Batch
    anchors: Array
    labels: Mapping[str, Array]

    @property
    def real(self) -> Array:
        """bool [G, N], whether an utterance is there."""
        return self.utterances.real

    @property
    def ids(self) -> Array:
        """int32 [G, N], the utterance's place in the whole batch."""
        return self.utterances.ids


@dataclasses.dataclass(frozen=True)
class AnchorExamples:
    """A split whose items are labelled utterances, drawn with replacement.

    An epoch is as many anchors as there are labelled utterances.

    Attributes:
      examples: the split, by dialogues.
      task: whose labels decide how often an utterance is drawn.
      balance: 1 draws every class as often, 0 as often as it occurs; between them, an utterance's
        chance goes with its class' count to the power of -balance.
      usual: the least places for anchors in a block; see ``alike``.
    """

    examples: Examples
    task: str
    balance: float
    usual: int = 0

    @property
    def labels(self) -> Mapping[str, np.ndarray]:
        return self.examples.labels

    @property
    def n_items(self) -> int:
        return int((self.labels[self.task] >= 0).sum())

    @property
    def n_dialogues(self) -> int:
        return self.examples.n_dialogues

    @property
    def n_utterances(self) -> int:
        return self.examples.n_utterances

    @property
    def dialogue_of(self) -> np.ndarray:
        return self.examples.dialogue_of

    def batches(self, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Utterance numbers of an epoch's batches, drawn anew; one may be in a batch twice."""
        labels = self.labels[self.task]
        candidates = np.flatnonzero(labels >= 0)
        chance = np.bincount(labels[candidates]).astype(float)[labels[candidates]] ** -self.balance
        drawn = rng.choice(candidates, size=len(candidates), p=chance / chance.sum())
        lengths = np.diff(self.examples.starts)[self.dialogue_of[drawn]]
        return [drawn[places] for places in balanced_batches(lengths, batch_size, rng)]

    def rows(self, items: np.ndarray) -> np.ndarray:
        """Numbers of the utterances of the anchors' dialogues."""
        return self.examples.rows(self._dialogues(items))

    def batch(self, items: np.ndarray, n_blocks: int = 1) -> AnchorBatch:
        """Packs the anchors' dialogues; who was drawn twice, or in one dialogue, is there once.

        Args:
          items: int [n], numbers of the utterances.
          n_blocks: blocks (G) to spread the dialogues over.
        """
        return jax.tree.map(lambda array: array[0], self.joint_batch([items], n_blocks))

    def joint_batch(self, of_seeds: Sequence[np.ndarray], n_blocks: int = 1) -> AnchorBatch:
        """The batches of S seeds, of one shape; arrays are [S, G, ...] in place of [G, ...].

        Args:
          of_seeds: the anchors of each seed's batch.
          n_blocks: blocks (G) to spread each batch over.
        """
        dialogues = [self._dialogues(items) for items in of_seeds]
        utterances = self.examples.joint_batch(dialogues, n_blocks)
        numbers, anchors = [], []  # of each block: its utterances in the split; which are anchors
        for items, ids, real in zip(of_seeds, utterances.ids, utterances.real, strict=True):
            number = self.rows(items)[ids]  # [G, N]
            numbers += list(number)
            anchors += [np.flatnonzero(block) for block in real & np.isin(number, items)]
        # Of one block the shape shall not depend on what was drawn twice.
        most = max(map(len, of_seeds)) if n_blocks == 1 else max(map(len, anchors))
        n_padded = max(round_up(most), self.usual)

        def stacked(blocks: Sequence[np.ndarray], fill: int) -> np.ndarray:
            array = stack_blocks(blocks, n_padded, fill).astype(np.int32)
            return array.reshape(len(of_seeds), n_blocks, n_padded)

        return AnchorBatch(
            utterances=dataclasses.replace(utterances, labels={}),
            anchors=stacked(anchors, 0),
            labels={
                task: stacked(
                    [labels[of[places]] for of, places in zip(numbers, anchors, strict=True)],
                    UNLABELLED,
                )
                for task, labels in self.labels.items()
            },
        )

    def alike(self, batches: Sequence[np.ndarray], n_blocks: int = 1) -> AnchorExamples:
        """The same split; batches no larger than most of these have one shape, see ``Examples``."""
        dialogues = [self._dialogues(items) for items in batches]
        # No features are needed, nor copied, to count places.
        bare = dataclasses.replace(self, examples=dataclasses.replace(self.examples, features=()))
        most = max(bare.batch(items, n_blocks).anchors.shape[1] for items in batches)
        examples = self.examples.alike(dialogues, n_blocks)
        return dataclasses.replace(self, examples=examples, usual=most)

    def _dialogues(self, items: np.ndarray) -> np.ndarray:
        return np.unique(self.dialogue_of[items])
