"""Runs a system over whole splits, and writes down what it predicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from erc_jax.data.batching import JointSplit, Split
from erc_jax.data.dialogue import Dialogue
from erc_jax.sharding import over_blocks, put_batch, replicated
from erc_jax.steps import lowered
from erc_jax.systems import Params, Recognition, System


class Predictor:
    """Runs a system over whole splits; compiles once per batch shape."""

    def __init__(self, system: System, mesh: Mesh, batch_size: int = 32):
        """A predictor.

        Args:
          system: whose functions are run.
          mesh: the devices, over which batches are split.
          batch_size: as of ``config.train.batch_size``.
        """
        self._system = system
        self._jitted: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._mesh = mesh
        self._batch_size = batch_size

    def __call__(self, params: Params, examples: Split) -> dict[str, np.ndarray]:
        """Task to class probabilities float32 [N, C] of a split's utterances, in order."""
        recognition: Recognition = self._system  # type: ignore[assignment]  # others do not predict
        return self.run(recognition.predict, params, examples)

    def run(
        self,
        function: Callable[[Params, Any], Mapping[str, jax.Array]],
        params: Params,
        examples: Split,
    ) -> dict[str, np.ndarray]:
        """What a function of parameters and batches gives for a split's utterances, in order.

        Args:
          function: from parameters and a batch to arrays [G, N, ...] by name.
          params: of the system.
          examples: the split, with N utterances.

        Returns:
          Name to array [N, ...].
        """
        everywhere = replicated(self._mesh)

        def outputs_of(params, batch):
            params = jax.lax.with_sharding_constraint(params, everywhere)  # they may be split
            outputs = function(*lowered(params, batch, self._system.dtype))
            return batch.real, batch.ids, outputs

        # Whole on every device, so that every process has the outputs of all.
        jitted = self._jitted.setdefault(function, jax.jit(outputs_of, out_shardings=everywhere))
        batches = examples.batches(self._batch_size, np.random.default_rng(0))
        if isinstance(examples, JointSplit):
            examples = examples.alike(batches, self._mesh.size)
        pending = []
        for items in batches:
            batch = examples.batch(items, self._mesh.size)
            unlabelled = dataclasses.replace(batch, labels={})
            pending.append((items, jitted(params, put_batch(unlabelled, over_blocks(self._mesh)))))
        outputs: dict[str, np.ndarray] = {}
        for items, (real, ids, batch_outputs) in pending:
            real, ids, batch_outputs = jax.device_get((real, ids, batch_outputs))
            rows = examples.rows(items)[ids[real]]
            for task, values in batch_outputs.items():
                whole = outputs.setdefault(
                    task, np.zeros((examples.n_utterances, values.shape[-1]), values.dtype)
                )
                whole[rows] = values[real]
        return outputs


def label_dialogues(
    system: Recognition, dialogues: Sequence[Dialogue], probabilities: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """The dialogues' records with what the system predicts per utterance.

    A label that the input carried and the system predicts stands under ``gold``, unless it is
    itself a prediction, which comes with probabilities.

    Args:
      system: that predicted.
      dialogues: with N utterances in all.
      probabilities: task to float32 [N, C] over the utterances of all dialogues.
    """
    records = []
    start = 0
    for dialogue in dialogues:
        end = start + len(dialogue.utterances)
        described = system.describe(
            dialogue, {task: p[start:end] for task, p in probabilities.items()}
        )
        record = dialogue.to_json()
        utterances = []
        for given, predicted in zip(record["utterances"], described, strict=True):
            utterance = {**given, **predicted}
            gold = {key: given[key] for key in predicted if key in given}
            if gold and "probabilities" not in given:
                utterance["gold"] = gold
            utterances.append(utterance)
        about = system.about()
        if moved := {
            key: record[key] for key in about if record.get(key, about[key]) != about[key]
        }:
            about = {**about, "gold": moved}
        records.append({**record, **about, "utterances": utterances})
        start = end
    return records
