"""Scoring finished runs again: on a split, on conversations of one's own, on new emotions."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from erc_jax.config import load_config
from erc_jax.data.dialogue import Dialogue, iter_dialogues, parse_json, write_whole
from erc_jax.data.labels import UNLABELLED, LabelSpace
from erc_jax.encoders.multimodal import Tables
from erc_jax.errors import UserError
from erc_jax.experiment import Experiment, prepare, to_arrays
from erc_jax.facts import run_facts, selection_facts
from erc_jax.few_shot import episodes
from erc_jax.model_card import has_ended, write_model_card
from erc_jax.predictor import Predictor
from erc_jax.progress import say
from erc_jax.scoring import make_scorer, metrics_file, result_of, split_scores
from erc_jax.sharding import make_mesh
from erc_jax.systems import Recognition
from erc_jax.workdir import Run, best_meta, load_labelling_run, load_run, publish_best, seed_folders


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
    runs = [
        (seed, folder, load_run(folder, experiment.encoder, experiment.description_encoder))
        for seed, folder in seed_folders(config, workdir)
    ]
    trained = runs[0][2]
    if isinstance(experiment, Experiment):
        _check_same_labels(config, experiment, trained, workdir)
    elif experiment.corpus.heads != trained.labels:
        raise UserError(
            f"{experiment.corpus.name}: the heads' classes are {experiment.corpus.heads} here and "
            f"{trained.labels} in {workdir}; see config.data.source"
        )
    if split == "train" and trained.system.learns_space:
        say("Note: on the training split, nearest neighbours find the utterances themselves")
    # What describes the emotions may have changed since; the run's system has what it learned from.
    experiment = dataclasses.replace(experiment, system=trained.system)
    predictor = Predictor(experiment.system, make_mesh(), config.train.batch_size)
    scorer = make_scorer(config, experiment, predictor)
    results = [scorer.score(run.params, split, folder) for _, folder, run in runs]
    chosen = [selection_facts(seed, run.selection, config) for seed, _, run in runs]
    facts = run_facts(config, experiment, chosen)
    path = workdir / "metrics.json"
    if has_ended(workdir):
        # Only training knows how long it took, and on what.
        before = parse_json(path.read_text(), str(path))["run"]
        facts |= {key: before[key] for key in ("checkpoints", "seconds", "devices")}
    content = metrics_file(workdir, scorer.tasks, {split: results}, facts)
    publish_best(config, workdir, [split])
    if has_ended(workdir):
        write_model_card(workdir)
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
