"""A split's predictions, their scores, and the files that hold them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from erc_jax import metrics
from erc_jax.config import load_config
from erc_jax.data.batching import Split
from erc_jax.data.corpora import Corpus
from erc_jax.data.dialogue import (
    Dialogue,
    iter_dialogues,
    parse_json,
    save_dialogues,
    write_whole,
)
from erc_jax.data.labels import UNLABELLED, LabelSpace
from erc_jax.encoders.multimodal import Tables
from erc_jax.errors import UserError
from erc_jax.experiment import RESPONSE, AnyExperiment, Experiment, prepare, to_arrays
from erc_jax.facts import run_facts, selection_facts
from erc_jax.few_shot import episodes
from erc_jax.progress import say
from erc_jax.sharding import make_mesh, over_blocks, put_batch, replicated
from erc_jax.steps import lowered
from erc_jax.systems import Params, Recognition, System, Task
from erc_jax.workdir import Run, best_meta, load_labelling_run, load_run, publish_best, seed_folders

# Task to confusion counts int64 [M, C, C] of each of M dialogues.
Confusions = dict[str, np.ndarray]


class Predictor:
    """Runs a system over whole splits; compiles once per batch shape."""

    def __init__(self, system: System, mesh: Mesh, batch_size: int = 32):
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
        jitted = self._jitted.setdefault(
            function,
            # Whole on every device, so that every process has the outputs of all.
            jax.jit(
                lambda params, batch: (
                    batch.real,
                    batch.ids,
                    function(*lowered(params, batch, self._system.dtype)),
                ),
                out_shardings=replicated(self._mesh),
            ),
        )
        pending = []
        for items in examples.batches(self._batch_size, np.random.default_rng(0)):
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
    """The counts alone."""
    return SplitResult(count(tasks, probabilities, examples))


def count(
    tasks: Sequence[Task], probabilities: Mapping[str, np.ndarray], examples: Split
) -> Confusions:
    """Confusion counts of each dialogue; unlabelled utterances count nowhere."""
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
        return score_run(self._predictor, params, self._experiment, split, workdir)


def score_run(
    predictor: Predictor, params: Params, experiment: Experiment, split: str, workdir: Path
) -> SplitResult:
    """Predicts a split, writes predictions_<split>.jsonl, and counts."""
    system, examples = experiment.system, experiment.examples[split]
    probabilities = predictor(params, examples)
    records = label_dialogues(system, experiment.corpus.splits[split], probabilities)
    save_dialogues(workdir / f"predictions_{split}.jsonl", records)
    return SplitResult(
        count(system.tasks, probabilities, examples),
        system.further_scores(params, predictor.run, examples),
        seen_in_training(experiment.corpus, split),
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


def evaluate_split(workdir: Path, split: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Scores a finished run on a split again; metrics.json and predictions are written anew.

    Args:
      workdir: the run's folder; several seeds are all scored.
      split: "train", "validation" or "test".
      overrides: config fields that differ from the run's, such as data.source, which may have
        moved.

    Returns:
      What metrics.json holds of this split, with its ``run`` block.

    Raises:
      UserError: the folder is not a workdir, or the encoder or the corpus' labels are not the
        run's.
    """
    config = load_config(workdir)
    config.update_from_flattened_dict(overrides)
    meta = best_meta(workdir)
    experiment = prepare(config, [split], encoder_sha256=meta["encoder"]["sha256"])
    if experiment.corpus.sha256 != meta["corpus"]["sha256"]:
        say(
            f"Note: this is not the {experiment.corpus.name} that {workdir} was trained on: "
            f"SHA-256 {experiment.corpus.sha256[:8]} here, {meta['corpus']['sha256'][:8]} there"
        )
    labels_are_scored = config.system != RESPONSE
    describer = experiment.description_encoder if labels_are_scored else None
    runs = [
        (seed, folder, load_run(folder, experiment.encoder, describer))
        for seed, folder in seed_folders(config, workdir)
    ]
    trained = runs[0][2]
    if labels_are_scored:
        _check_same_labels(config, experiment, trained, workdir)
        if split == "train" and trained.system.learns_space:
            say("Note: on the training split, nearest neighbours find the utterances themselves")
    # What describes the emotions may have changed since; the run's system has what it learned from.
    experiment = dataclasses.replace(experiment, system=trained.system)
    predictor = Predictor(experiment.system, make_mesh(), config.train.batch_size)
    scorer = make_scorer(config, experiment, predictor)
    results = [scorer.score(run.params, split, folder) for _, folder, run in runs]
    chosen = [selection_facts(seed, run.selection, config) for seed, _, run in runs]
    facts = run_facts(config, experiment, chosen)
    content = metrics_file(workdir, scorer.tasks, {split: results}, facts)
    publish_best(config, workdir, [split])
    return {split: content[split], "run": facts}


def _check_same_labels(
    config: ConfigDict, experiment: Experiment, trained: Run, workdir: Path
) -> None:
    """Refuses to score labels that are not those that the run was trained with."""
    if experiment.system.tasks != trained.system.tasks:
        raise UserError(
            f"{config.data.name}: the labels are not those that {workdir} was trained with: "
            f"{_classes(experiment.system)} there, {_classes(trained.system)} in the run. Score "
            "conversations with the run's labels: --mode evaluate --input FILE"
        )
    here, there = experiment.corpus.labels.vad_scale, trained.labels.vad_scale
    if there is not None and here != there:
        raise UserError(
            f"{config.data.name}: the scale of valence, arousal and dominance is {here} here and "
            f"{there} in {workdir}; see config.data.annotation"
        )


def _classes(system: Recognition) -> str:
    return "; ".join(f"{task.name} {', '.join(task.classes)}" for task in system.tasks)


def evaluate_file(
    workdir: Path,
    path: Path,
    output: Path | None,
    *,
    encoder: str | None = None,
    features: Tables | None = None,
) -> dict[str, Any]:
    """Scores a run on labelled conversations of one's own.

    Args:
      workdir: the run's folder; of several seeds, the one that predicts.
      path: JSON lines or CSV whose labels are those of the run.
      output: file for the scores, if wanted.
      encoder: where the run's encoder is now, if it is not where it was.
      features: modality to the utterances' features, of runs that read such.

    Returns:
      {the file's name: the block of scores}.

    Raises:
      UserError: the file holds no labels, or others than the run knows.
    """
    located = list(iter_dialogues(path))
    dialogues = [dialogue for _, dialogue in located]
    if not any(u.emotion for dialogue in dialogues for u in dialogue.utterances):
        raise UserError(f'{path}: no utterance has an "emotion"; use --mode predict')
    run = load_labelling_run(workdir, encoder)
    emotions = run.system.tasks[0].classes
    for places, dialogue in located:
        for place, utterance in zip(places, dialogue.utterances, strict=True):
            if utterance.emotion not in (None, *emotions):
                raise UserError(
                    f"{place}: unknown label {utterance.emotion!r}; the run knows "
                    f"{', '.join(emotions)}"
                )
    targets = run.system.targets(dialogues)
    examples = to_arrays(dialogues, run.encoder, run.system, targets, tables=features)
    probabilities = Predictor(run.system, make_mesh())(run.params, examples)
    result = result_of(run.system.tasks, probabilities, examples)
    content = {path.name: split_scores(run.system.tasks, [result])}
    if output:
        write_whole(output, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return content


def few_shot(
    workdir: Path,
    dialogues: Sequence[Dialogue],
    labels: LabelSpace,
    name: str,
    *,
    ways: int,
    shots: int,
    encoder: str | None = None,
) -> dict[str, Any]:
    """How well a run tells emotions that it was not trained on, from a few examples of each.

    Writes few_shot_<name>_<ways>_way_<shots>_shot.json into the workdir.

    Args:
      workdir: of the run; of several seeds, the one that predicts.
      dialogues: labelled.
      labels: their emotions; the neutral one, if there is one, is left out.
      name: of the corpus and split, or of the file.
      ways: emotions of an episode.
      shots: examples of each.
      encoder: where the run's encoder is now, if it is not where it was.

    Returns:
      As ``erc_jax.few_shot.episodes``.

    Raises:
      UserError: the run has no space of distances, or the labels are too few.
    """
    run = load_labelling_run(workdir, encoder)
    run.system.require_space()
    examples = to_arrays(dialogues, run.encoder, run.system, {})
    vectors = Predictor(run.system, make_mesh()).run(run.system.embed, run.params, examples)
    targets = np.concatenate([labels.emotion_ids(dialogue) for dialogue in dialogues])
    if labels.neutral is not None:
        targets[targets == labels.emotions.index(labels.neutral)] = UNLABELLED
    result = episodes(
        vectors["vectors"],
        targets,
        ways=ways,
        shots=shots,
        groups=examples.dialogue_of,
        names=labels.emotions,
    )
    facts = {"scored": name, "checkpoint": dict(run.selection), **result}
    file = workdir / f"few_shot_{name}_{ways}_way_{shots}_shot.json"
    write_whole(file, json.dumps(facts, indent=2) + "\n")
    return result


def label_dialogues(
    system: Recognition, dialogues: Sequence[Dialogue], probabilities: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """The dialogues' records with what the system predicts per utterance.

    A label that the input carried and the system predicts stands under ``gold``, unless it is
    itself a prediction, which comes with probabilities.

    Args:
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
