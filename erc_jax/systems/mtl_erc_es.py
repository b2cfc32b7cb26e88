"""Mtl-ERC-ES: emotion, sentiment and emotion shift learned together.

Wang and Mine, "Multi-Task Learning for Emotion Recognition in Conversation with Emotion Shift"
(PACLIC 2023). BiLSTMs over the dialogue and over each speaker's own utterances give the context of
emotion (second layer) and sentiment (first layer); attention units over the differences between
neighbouring utterances, queried by the first layer, give the shifts.

Where the paper is silent: a first utterance has no difference (zero) and, by default, no shift
label; the shift units have no positions; dropout is on LSTM inputs, attention weights, feed-forward
networks and head inputs. Sentence embeddings of length 1 are too small for LSTMs to learn from at
these learning rates, so ``model.normalize_input`` brings features to variance 1. The model reads
the whole dialogue, later turns too: a label can change when the conversation goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from erc_jax.data.batching import Batch
from erc_jax.data.dialogue import Dialogue
from erc_jax.data.labels import (
    SENTIMENTS,
    SHIFTS,
    LabelSpace,
    class_ids,
    previous_utterances,
    shift_ids,
)
from erc_jax.errors import UserError
from erc_jax.layers.attention import ShiftUnit
from erc_jax.layers.dropout import Dropout, PairDropout
from erc_jax.layers.recurrent import PackedBiLSTM
from erc_jax.losses import cross_entropy
from erc_jax.sharding import map_blocks
from erc_jax.systems import HEAD, Params, Recognition, Task

LEVELS = ("global", "speaker")


class Model(nn.Module):
    """The network, on one block of a batch (figure 2).

    Attributes:
      classes: task to number of classes; a task that is not named has no parameters.
      dropout: rate of every dropout.
      normalize_input: bring each utterance's features to mean 0 and variance 1.
    """

    classes: Mapping[str, int]
    dropout: float
    normalize_input: bool = False

    @nn.compact
    def __call__(self, block: Batch, key: jax.Array | None = None) -> dict[str, jax.Array]:
        """Logits of every task.

        Args:
          block: a Batch without its leading axis; features float [N, D], D even.
          key: PRNG key of the dropout; None is evaluation.

        Returns:
          Task to float [N, C].
        """
        u, ids = jnp.asarray(block.features), block.ids
        if self.normalize_input:
            u = jax.nn.standardize(u)
        width = u.shape[-1]
        layouts = {"global": block.dialogue, "speaker": block.speaker}
        previous = {"global": block.previous_global, "speaker": block.previous_speaker}
        shift_levels = [level for level in LEVELS if f"shift_{level}" in self.classes]
        channels = width * (3 + 2 * len(shift_levels) + 2 * len(self.classes))
        key, *level_keys = [None] * 3 if key is None else jax.random.split(key, 3)
        drop = Dropout(key, ids, self.dropout, channels)

        def lstm(x, level, layer):
            return PackedBiLSTM(width // 2, name=f"lstm_{level}_{layer}")(x, layouts[level])

        # Equations 3 and 4: c^g1, c^s1 and, from them, c^g2, c^s2.
        first_input = drop(u)
        first = {level: lstm(first_input, level, 1) for level in LEVELS}
        second = {level: lstm(drop(first[level]), level, 2) for level in LEVELS}

        inputs = {
            "emotion": [second[level] for level in LEVELS],  # equation 5
            "sentiment": [first[level] for level in LEVELS],  # equation 6
        }
        for level, level_key in zip(shift_levels, level_keys, strict=False):
            layout = layouts[level]
            # Equations 7 and 8; a first utterance has no difference.
            has_previous = (previous[level] >= 0)[:, None]
            t = jnp.where(has_previous, u - u[previous[level]], 0.0)
            # Equations 9 to 14.
            drop_weights = PairDropout(level_key, ids[layout.index].T, self.dropout, heads=2)
            x1 = ShiftUnit(name=f"shift_{level}_1")(t, t, layout, drop, drop_weights)
            x2 = ShiftUnit(name=f"shift_{level}_2")(first[level], x1, layout, drop, drop_weights)
            inputs[f"shift_{level}"] = [x1, x2]

        return {
            task: nn.Dense(n_classes, name=HEAD + task)(
                drop(jnp.concatenate(inputs[task], axis=-1))
            )
            for task, n_classes in self.classes.items()
        }


class MtlErcEs(Recognition):
    """The system: labels, loss and predictions around the network."""

    def __init__(self, config: ConfigDict, labels: LabelSpace, encoder: Any = None):
        self._labels = labels
        self._data = config.data
        self._weights = config.weights
        self._class_weights = {"emotion": labels.class_weights(config.train.class_weights)}
        tasks = [Task("emotion", labels.emotions, labels.neutral)]
        left_out = []
        has_polarity = labels.polarity is not None
        if config.tasks.sentiment:
            if has_polarity or config.data.sentiment == "column":
                tasks.append(Task("sentiment", SENTIMENTS))
            else:
                left_out.append("sentiment")
        if config.tasks.shift:
            if has_polarity:
                tasks += [Task(f"shift_{level}", SHIFTS) for level in LEVELS]
            else:
                left_out.append("shift")
        self.tasks: Sequence[Task] = tuple(tasks)
        self.notes: Sequence[str] = ()
        if left_out:
            self.notes = (
                f"No polarity of the emotions is known, so {' and '.join(left_out)} "
                f"{'are' if len(left_out) > 1 else 'is'} left out; config.data.polarity gives one.",
            )
        self._model = Model(
            {task.name: len(task.classes) for task in tasks},
            config.model.dropout,
            config.model.normalize_input,
        )

    def targets(self, dialogues: Sequence[Dialogue]) -> dict[str, np.ndarray]:
        per_dialogue = [self._targets_of(dialogue) for dialogue in dialogues]
        return {
            task.name: np.concatenate([targets[task.name] for targets in per_dialogue])
            for task in self.tasks
        }

    def _targets_of(self, dialogue: Dialogue) -> dict[str, np.ndarray]:
        tasks = {task.name for task in self.tasks}
        targets = {"emotion": self._labels.emotion_ids(dialogue)}
        if "sentiment" in tasks:
            if self._data.sentiment == "column":
                column = [utterance.sentiment for utterance in dialogue.utterances]
                targets["sentiment"] = class_ids(column, SENTIMENTS, dialogue.id)
            else:
                targets["sentiment"] = self._labels.polarity_ids(dialogue)
        if "shift_global" in tasks:
            polarity = self._labels.polarity_ids(dialogue)
            speakers = [utterance.speaker for utterance in dialogue.utterances]
            for level, previous in zip(LEVELS, previous_utterances(speakers), strict=True):
                targets[f"shift_{level}"] = shift_ids(polarity, previous, self._data.first_shift)
        return targets

    def init(self, key: jax.Array, batch: Batch) -> Params:
        """Parameters.

        Raises:
          UserError: the features' width is odd; each direction of the LSTMs has half of it.
        """
        width = batch.features.shape[-1]
        if width % 2:
            raise UserError(f"the encoder's features are {width} wide; Mtl-ERC-ES needs an even d")
        block = jax.tree.map(lambda x: x[0], batch)
        return jax.jit(self._model.init)(key, block)["params"]

    def _logits(self, params: Params, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        def of_block(block: Batch) -> Any:
            return self._model.apply({"params": params}, block, key)

        return map_blocks(of_block, batch)

    def loss(
        self, params: Params, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Weighted sum of the tasks' cross-entropies (equations 17 and 18)."""
        logits = self._logits(params, batch, key)
        losses = {
            t: cross_entropy(logits[t], batch.labels[t], self._class_weights.get(t)) for t in logits
        }
        total = sum((self._weights[t] * losses[t] for t in losses), start=jnp.zeros(()))
        return total, losses

    def predict(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """Class probabilities (equation 15)."""
        logits = self._logits(params, batch, None)
        return {task: jax.nn.softmax(x.astype(jnp.float32)) for task, x in logits.items()}

    def describe(
        self, dialogue: Dialogue, probabilities: Mapping[str, np.ndarray]
    ) -> list[dict[str, Any]]:
        """Emotion, probabilities and, where learned, sentiment and shift (null on firsts)."""
        speakers = [utterance.speaker for utterance in dialogue.utterances]
        previous = dict(zip(LEVELS, previous_utterances(speakers), strict=True))
        best = {task: np.argmax(p, axis=-1) for task, p in probabilities.items()}
        described = self._labels.describe(probabilities["emotion"])
        for i, record in enumerate(described):
            if "sentiment" in best:
                record["sentiment"] = SENTIMENTS[best["sentiment"][i]]
            if "shift_global" in best:
                record["shift"] = {
                    level: SHIFTS[best[f"shift_{level}"][i]] if previous[level][i] >= 0 else None
                    for level in LEVELS
                }
        return described
