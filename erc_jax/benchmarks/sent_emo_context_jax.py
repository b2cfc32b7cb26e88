"""Our side of the SentEmoContext benchmark: the package's own system, training step and loop."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from ml_collections import ConfigDict

from erc_jax.benchmarks import harness
from erc_jax.benchmarks.sent_emo_context import (
    CASES,
    UTTERANCES_BY_EMOTION,
    VALIDATION_DIALOGUES,
    batches,
    recipe,
    sample,
)
from erc_jax.data.anchors import AnchorExamples
from erc_jax.data.batching import Examples, alike_in_training
from erc_jax.data.labels import LabelSpace
from erc_jax.predictor import Predictor
from erc_jax.sharding import make_mesh
from erc_jax.steps import TrainState, first_state, make_optimizers, make_train_step
from erc_jax.systems.sent_emo_context import SentEmoContext


class Training:
    """What ``Trainer`` has once the classifier is pre-trained: its step, and where it stands.

    Attributes:
      system: of the recipe.
      state: before the next step.
    """

    def __init__(self, config: ConfigDict, examples: AnchorExamples):
        self.system = SentEmoContext(config, LabelSpace(tuple(UTTERANCES_BY_EMOTION), "no emotion"))
        objectives = self.system.objectives()
        steps_per_epoch = -(-examples.n_items // config.train.batch_size)
        optimizers = make_optimizers(config, objectives, steps_per_epoch)
        first_dialogue = examples.examples.batch(np.array([0]))
        params = self.system.init(jax.random.key(0), first_dialogue)
        self.state: TrainState = first_state(params, optimizers)
        self._step = make_train_step(objectives, optimizers, config.model.dtype)
        epoch = config.sent_emo_context.pretraining_epochs
        self._active = tuple(n for n, o in enumerate(objectives) if o.epochs[0] == epoch)

    def step(self, batch) -> dict[str, jax.Array]:
        """One step on an ``AnchorBatch``; returns the losses before it."""
        self.state, losses = self._step(self.state, batch, np.uint32(0), self._active)
        return losses


def cases(width: int, n_batches: int, dtype: str) -> harness.Cases:
    config = recipe()
    config.model.dtype = dtype
    examples = alike_in_training(sample(config, width), config.train.batch_size, n_blocks=1)
    training = Training(config, examples)
    system = training.system
    drawn = batches(config, examples, n_batches)
    arrays = [jax.device_put(examples.batch(anchors)) for anchors in drawn]
    predictor = Predictor(system, make_mesh(jax.devices()[:1]), config.train.batch_size)
    train_split = examples.examples
    validation_split = beginning(train_split, VALIDATION_DIALOGUES, system)

    def train(step: int) -> None:
        losses = training.step(arrays[step % n_batches])
        jax.block_until_ready((training.state, losses))

    def loop(step: int) -> None:
        for anchors in drawn:
            training.step(jax.device_put(examples.batch(anchors)))
        jax.block_until_ready(training.state)

    def validation(step: int) -> None:
        params = system.fit_reference(
            training.state.params, predictor.run, train_split, validation_split
        )
        predictor(params, validation_split)

    return {
        **harness.jax_product(dtype),
        # One step of ours, whichever peer it is paired with.
        **dict.fromkeys(CASES, train),
        "loop": loop,
        "validation": validation,
    }


def beginning(examples: Examples, n_dialogues: int, system: SentEmoContext) -> Examples:
    """The first dialogues of a split, with labels for each of the system's tasks."""
    n = examples.starts[n_dialogues]
    return dataclasses.replace(
        examples,
        features=examples.features[:n],
        starts=examples.starts[: n_dialogues + 1],
        back_global=examples.back_global[:n],
        back_speaker=examples.back_speaker[:n],
        speaker_sequence=examples.speaker_sequence[:n],
        speaker_number=examples.speaker_number[:n],
        labels={task.name: examples.labels["emotion"][:n] for task in system.tasks},
    )
