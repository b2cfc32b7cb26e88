"""What a run makes of a split: its counts, its scores, and the files that hold them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ml_collections import ConfigDict

from erc_jax import metrics
from erc_jax.data.batching import Split
from erc_jax.data.corpora import Corpus
from erc_jax.data.dialogue import Dialogue, parse_json, save_dialogues, write_whole
from erc_jax.data.labels import UNLABELLED
from erc_jax.experiment import AnyExperiment, Experiment
from erc_jax.predictor import Predictor, label_dialogues
from erc_jax.systems import Params, Task

# Task to confusion counts int64 [M, C, C] of each of M dialogues.
Confusions = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class SplitResult:
    """What a run makes of a split.

    Attributes:
      confusions: counts of each dialogue.
      further: what the system says besides (``System.further_scores``).
      seen: bool [M], the dialogues that occur in the training split, too; None if unknown.
    """

    confusions: Confusions
    further: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seen: np.ndarray | None = None


def result_of(
    tasks: Sequence[Task], probabilities: Mapping[str, np.ndarray], examples: Split
) -> SplitResult:
    """The counts alone; arguments as of ``count``."""
    return SplitResult(count(tasks, probabilities, examples))


def count(
    tasks: Sequence[Task], probabilities: Mapping[str, np.ndarray], examples: Split
) -> Confusions:
    """Confusion counts of each dialogue; unlabelled utterances count nowhere.

    Args:
      tasks: what was classified.
      probabilities: task to float32 [N, C] of the split's utterances, in order.
      examples: the split, with the labels of its N utterances, of M dialogues.

    Returns:
      Task to int64 [M, C, C], rows true, columns predicted.
    """
    counts: Confusions = {}
    for task in tasks:
        predicted = probabilities[task.name].argmax(-1)
        target = examples.labels[task.name]
        n_classes = len(task.classes)
        counts[task.name] = np.zeros((examples.n_dialogues, n_classes, n_classes), np.int64)
        labelled = target >= 0
        where = (examples.dialogue_of[labelled], target[labelled], predicted[labelled])
        np.add.at(counts[task.name], where, 1)
    return counts


def split_scores(tasks: Sequence[Task], runs: Sequence[SplitResult]) -> dict[str, Any]:
    """The block of a split in metrics.json: the emotion's scores, other tasks' under their name.

    Where dialogues of the training split occur in this one, too, the emotion's scores on the others
    stand under ``without_seen``.

    Args:
      tasks: what was classified.
      runs: of one run, or of one run per seed; several give means, standard deviations and
        bootstrap intervals.
    """

    def scores_of(task: Task, dialogues: np.ndarray | slice = slice(None)) -> dict[str, Any]:
        counts = [run.confusions[task.name][dialogues] for run in runs]
        if len(counts) == 1:
            return metrics.block(counts[0].sum(axis=0), task.classes, task.neutral)
        return metrics.aggregate(np.stack(counts), task.classes, task.neutral)

    if not tasks:  # all that is scored, the system says itself
        return metrics.over_seeds([run.further for run in runs])
    block = scores_of(tasks[0])
    if runs[0].seen is not None and runs[0].seen.any():
        left = ~runs[0].seen
        block["without_seen"] = scores_of(tasks[0], left) | {"dialogues": int(left.sum())}
    block |= {task.name: scores_of(task) for task in tasks[1:]}
    further = metrics.over_seeds([run.further for run in runs])
    if "std" in block:
        block["std"] |= further.pop("std", {})
    return block | further


class Scorer(Protocol):
    """What is made of an experiment's parameters: emotions that are named, or replies."""

    tasks: Sequence[Task]  # whose confusions a result counts

    def complete(self, params: Params) -> Params:
        """Parameters after training, with what the system reads off the data."""

    def validate(self, params: Params, early: Path | None) -> tuple[float, dict[str, Any]]:
        """The selection score, the higher the better, and all scores of the selection split.

        Args:
          params: of the system, before ``complete``.
          early: a folder in which these predictions are kept, to be set beside the best's.

        Raises:
          FloatingPointError: predictions are not finite.
        """

    def score(self, params: Params, split: str, workdir: Path) -> SplitResult:
        """Predicts a split, writes predictions_<split>.jsonl, and counts.

        Args:
          params: after ``complete``.
          split: its name.
          workdir: of the run.
        """


def make_scorer(config: ConfigDict, experiment: AnyExperiment, predictor: Predictor) -> Scorer:
    """How the experiment's system is scored."""
    if isinstance(experiment, Experiment):
        return LabelScorer(config, experiment, predictor)
    from erc_jax.replies import ReplyScorer

    return ReplyScorer(config, experiment, predictor)


class LabelScorer:
    """Scores the emotions, and what else is classified, of a corpus' utterances."""

    def __init__(self, config: ConfigDict, experiment: Experiment, predictor: Predictor):
        self.tasks = experiment.system.tasks
        self._config = config
        self._experiment = experiment
        self._predictor = predictor

    def complete(self, params: Params) -> Params:
        experiment, split = self._experiment, self._config.train.select_on
        if not experiment.system.has_reference:
            return params
        selection = experiment.examples[split]
        # On a dialogue that is in the training split, too, nearest neighbours find it itself: it
        # says nothing about the choice.
        seen = seen_in_training(experiment.corpus, split)[selection.dialogue_of]
        unseen = {task: of.copy() for task, of in selection.labels.items()}
        for of_task in unseen.values():
            of_task[seen] = UNLABELLED
        return experiment.system.fit_reference(
            params,
            self._predictor.run,
            experiment.examples["train"],
            dataclasses.replace(selection, labels=unseen),  # type: ignore[type-var]
        )

    def validate(self, params: Params, early: Path | None) -> tuple[float, dict[str, Any]]:
        experiment, train = self._experiment, self._config.train
        examples = experiment.examples[train.select_on]
        probabilities = self._predictor(self.complete(params), examples)
        if not all(np.isfinite(values).all() for values in probabilities.values()):
            raise FloatingPointError("the predictions are not finite")
        if early:
            dialogues = experiment.corpus.splits[train.select_on]
            records = label_dialogues(experiment.system, dialogues, probabilities)
            save_dialogues(early / f"early_{train.select_on}.jsonl", records)
        scores = split_scores(self.tasks, [result_of(self.tasks, probabilities, examples)])
        return metrics.selection_score(scores, train.select_metric), scores

    def score(self, params: Params, split: str, workdir: Path) -> SplitResult:
        system, corpus = self._experiment.system, self._experiment.corpus
        examples = self._experiment.examples[split]
        probabilities = self._predictor(params, examples)
        records = label_dialogues(system, corpus.splits[split], probabilities)
        save_dialogues(workdir / f"predictions_{split}.jsonl", records)
        return SplitResult(
            count(system.tasks, probabilities, examples),
            system.further_scores(params, self._predictor.run, examples),
            seen_in_training(corpus, split),
        )


def seen_in_training(corpus: Corpus, split: str) -> np.ndarray:
    """bool [M], which dialogues of a split are, word for word, dialogues of the training split."""

    def texts(dialogue: Dialogue) -> tuple[str, ...]:
        return tuple(utterance.text for utterance in dialogue.utterances)

    if split == "train":
        return np.zeros(len(corpus.splits[split]), bool)
    known = {texts(dialogue) for dialogue in corpus.splits["train"]}
    return np.array([texts(dialogue) in known for dialogue in corpus.splits[split]], bool)


def metrics_file(
    workdir: Path,
    tasks: Sequence[Task],
    results: Mapping[str, Sequence[SplitResult]],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes metrics.json: a block per split, the ``run`` block, and each seed's own blocks.

    Blocks of other splits that the file already holds stay.

    Args:
      workdir: the experiment's folder.
      tasks: what was classified.
      results: split to the result of each seed's run.
      facts: the ``run`` block.
    """
    path = workdir / "metrics.json"
    content: dict[str, Any] = {}
    if path.is_file():
        content = parse_json(path.read_text(), str(path))
    content |= {split: split_scores(tasks, runs) for split, runs in results.items()}
    content["run"] = dict(facts)
    if len(facts["seeds"]) > 1:
        seeds = content.get("seeds") or [{"seed": seed} for seed in facts["seeds"]]
        content["seeds"] = [
            of_seed | {split: split_scores(tasks, [runs[i]]) for split, runs in results.items()}
            for i, of_seed in enumerate(seeds)
        ]
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return content
