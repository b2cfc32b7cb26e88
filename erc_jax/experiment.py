"""An experiment's parts, made from its config: corpus, encoder, system, arrays; and its workdir.

A workdir holds config.json, metrics.json, and per run metrics.jsonl, TensorBoard events,
checkpoints/ and predictions_<split>.jsonl. With several seeds each seed's run lies in
seeds/<seed>/, a workdir of its own; the workdir itself then holds what is said of all seeds, and
the predictions of the best.
"""

from __future__ import annotations

import dataclasses
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from erc_jax import metrics
from erc_jax.checkpoint import Checkpointer
from erc_jax.config import check_values, load_config
from erc_jax.data.batching import Batch, Examples, make_batch, make_examples
from erc_jax.data.corpora import Corpus, load_corpus
from erc_jax.data.dialogue import Dialogue, Utterance, parse_json, write_whole
from erc_jax.data.features import utterance_features
from erc_jax.data.labels import SENTIMENTS, LabelSpace
from erc_jax.encoders.sentence import SentenceEncoder
from erc_jax.errors import UserError
from erc_jax.progress import Counter, say
from erc_jax.sharding import make_mesh, replicated
from erc_jax.systems import Params, System, Task, make_system

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Data and system, shared by an experiment's seeds."""

    corpus: Corpus
    encoder: SentenceEncoder
    system: System
    examples: Mapping[str, Examples]  # of the splits that were asked for


def prepare(
    config: ConfigDict, splits: Sequence[str] = SPLITS, encoder_sha256: str | None = None
) -> Experiment:
    """Reads the corpus, loads the encoder and computes the features, or takes them from the cache.

    Args:
      config: of the experiment.
      splits: which ones are needed as arrays.
      encoder_sha256: of the encoder that a trained run read, which this one must then be.

    Raises:
      UserError: something in config, corpus or encoder does not fit.
    """
    check_values(config)
    corpus = load_corpus(
        config.data.name,
        config.data.source,
        polarity=_polarity(config),
        neutral=config.data.neutral,
        keep_unlabelled=config.data.keep_unlabelled,
    )
    sizes = ", ".join(
        f"{split} {len(dialogues):,} ({sum(len(d.utterances) for d in dialogues):,})"
        for split, dialogues in corpus.splits.items()
    )
    say(f"{corpus.name}: dialogues (utterances) {sizes}")
    system = make_system(config, corpus.labels)
    for note in [*corpus.notes, *system.notes]:
        say(f"Note: {note}")
    _check_select_metric(config, system.tasks[0])
    encoder = SentenceEncoder.from_pretrained(config.encoder, sha256=encoder_sha256)
    examples = {
        split: encode(corpus.splits[split], encoder, system, Counter(f"{split} features"))
        for split in splits
    }
    return Experiment(corpus, encoder, system, examples)


def encode(
    dialogues: Sequence[Dialogue],
    encoder: SentenceEncoder,
    system: System,
    progress: Counter | None = None,
) -> Examples:
    """Features and labels of some dialogues."""
    features = utterance_features(dialogues, encoder, progress=progress)
    return make_examples(dialogues, features, system.targets(dialogues))


def _check_select_metric(config: ConfigDict, task: Task) -> None:
    n_classes = len(task.classes)
    block = metrics.block(np.zeros((n_classes, n_classes)), task.classes, task.neutral)
    known = [name for name, value in block.items() if isinstance(value, float)]
    if config.train.select_metric not in known:
        raise UserError(
            f"train.select_metric is {config.train.select_metric!r}; expected one of "
            f"{', '.join(known)}"
        )


def _polarity(config: ConfigDict) -> dict[str, str] | None:
    """Emotion to sentiment, from the config's tuples; None leaves it to the corpus."""
    named = [(e, sentiment) for sentiment in SENTIMENTS for e in config.data.polarity[sentiment]]
    polarity = dict(named)
    if len(polarity) < len(named):
        raise UserError(f"data.polarity names an emotion twice: {', '.join(e for e, _ in named)}")
    return polarity or None


def blank_batch(width: int) -> Batch:
    """A batch with one utterance, of the right structure for initialisation."""
    dialogue = Dialogue("blank", (Utterance("A", ""),))
    examples = make_examples([dialogue], np.zeros((1, width), np.float32), {})
    return make_batch(examples, np.array([0]))


def seed_folders(config: ConfigDict, workdir: Path) -> list[tuple[int, Path]]:
    """Each seed with the folder of its run."""
    if config.seeds == 1:
        return [(config.seed, workdir)]
    seeds = range(config.seed, config.seed + config.seeds)
    return [(seed, workdir / "seeds" / str(seed)) for seed in seeds]


def best_run(config: ConfigDict, workdir: Path) -> Path:
    """The folder of the run that predicts: of several seeds, the best on the selection split."""
    folders = seed_folders(config, workdir)
    if len(folders) == 1:
        return workdir
    path = workdir / "metrics.json"
    if not path.is_file():
        raise UserError(f"{path} is missing; the run of {config.seeds} seeds is not finished")
    runs = parse_json(path.read_text(), str(path))["seeds"]
    split, metric = config.train.select_on, config.train.select_metric
    scores = [run[split][metric] for run in runs]
    return folders[int(np.argmax(scores))][1]


def publish_best(config: ConfigDict, workdir: Path, splits: Iterable[str]) -> None:
    """Puts the predictions of the run that predicts beside the means over several seeds."""
    best = best_run(config, workdir)
    if best != workdir:
        for split in splits:
            name = f"predictions_{split}.jsonl"
            write_whole(workdir / name, (best / name).read_bytes())


@dataclasses.dataclass(frozen=True)
class Run:
    """What a trained run left: all that prediction needs but the encoder, which it names."""

    system: System
    params: Params
    encoder: Mapping[str, Any]  # name, sha256, width
    selection: Mapping[str, Any]  # which checkpoint this is: epoch, step, score


def load_run(workdir: Path) -> Run:
    """The best checkpoint of a workdir and the system that it belongs to.

    Raises:
      UserError: the folder is not a workdir, or nothing in it can be read.
    """
    config = load_config(workdir)
    checkpoints = Checkpointer(best_run(config, workdir))
    meta = checkpoints.best_meta()
    system = make_system(config, labels_from_json(meta["labels"]))
    blank = blank_batch(meta["encoder"]["width"])
    on_every_device = replicated(make_mesh())
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on_every_device),
        jax.eval_shape(system.init, jax.random.key(0), blank),
    )
    restored, _ = checkpoints.restore_best({"params": target}, partial=True)
    return Run(system, restored["params"], meta["encoder"], meta["selection"])


def labels_to_json(labels: LabelSpace) -> dict[str, Any]:
    return {
        "emotions": list(labels.emotions),
        "neutral": labels.neutral,
        "polarity": dict(labels.polarity) if labels.polarity else None,
    }


def labels_from_json(record: Mapping[str, Any]) -> LabelSpace:
    return LabelSpace(tuple(record["emotions"]), record["neutral"], record["polarity"])


def run_facts(
    config: ConfigDict, experiment: Experiment, chosen: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The ``run`` block of metrics.json: what the scores are scores of.

    Args:
      chosen: per seed, the checkpoint that was chosen: seed, epoch, step, score.
    """
    corpus = experiment.corpus
    return {
        "system": config.system,
        "corpus": {
            "name": corpus.name,
            "sha256": corpus.sha256,
            "synthetic": corpus.synthetic,
            "splits": {
                split: {
                    "dialogues": len(dialogues),
                    "utterances": sum(len(d.utterances) for d in dialogues),
                }
                for split, dialogues in corpus.splits.items()
            },
            "first_shift": config.data.first_shift,
        },
        "encoder": {
            "name": experiment.encoder.name,
            "sha256": experiment.encoder.sha256,
            "width": experiment.encoder.width,
        },
        "seeds": [run["seed"] for run in chosen],
        "selected_on": f"{config.train.select_on} {config.train.select_metric}",
        "checkpoints": list(chosen),
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in ("erc-jax", "jax", "jaxlib", "flax", "optax")},
        "commit": _commit(),
        "devices": [f"{jax.device_count()} x {jax.devices()[0].device_kind}", platform.machine()],
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The checkout's commit, with "+" if something is changed; None for an installed package."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
        return done.stdout.strip()

    try:
        if not git("ls-files", Path(__file__).name):
            return None
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None
