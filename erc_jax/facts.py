"""What the scores in metrics.json are scores of: corpus, encoder, seeds, versions, commit."""

from __future__ import annotations

import math
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from erc_jax.data.corpora import Corpus
from erc_jax.encoders.multimodal import MultimodalEncoder
from erc_jax.encoders.sentence import SentenceEncoder
from erc_jax.experiment import AnyExperiment, Experiment, blank_batch
from erc_jax.metrics import shown_score


def run_facts(
    config: ConfigDict, experiment: AnyExperiment, chosen: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The ``run`` block of metrics.json: what the scores are scores of.

    Args:
      chosen: per seed, the checkpoint that was chosen: seed, epoch, step, score.
    """
    return {
        "system": config.system,
        "corpus": _corpus_facts_of(config, experiment),
        "encoder": {
            "name": experiment.encoder.name,
            "sha256": experiment.encoder.sha256,
            "width": experiment.encoder.width,
        },
        **_modality_facts(experiment),
        "parameters": parameter_counts(experiment),
        "seeds": [run["seed"] for run in chosen],
        "selected_on": f"{config.train.select_on} {config.train.select_metric}",
        "checkpoints": list(chosen),
        "seconds": round(sum(run.get("seconds", 0.0) for run in chosen), 1),  # of training
        "versions": {"python": platform.python_version()}
        | {name: package_version(name) for name in ("erc-jax", "jax", "jaxlib", "flax", "optax")},
        "commit": commit_of_code(),
        "devices": [f"{jax.device_count()} x {jax.devices()[0].device_kind}", platform.machine()],
    }


def selection_facts(seed: int, selection: Mapping[str, Any], config: ConfigDict) -> dict[str, Any]:
    """Which checkpoint of a seed was chosen, for ``run_facts``."""
    score = shown_score(selection["best_score"], config.train.select_metric)
    return {"seed": seed, **selection, "best_score": score}


def parameter_counts(experiment: AnyExperiment) -> dict[str, int]:
    """How many parameters the system trains, and how many its text encoder has that stays frozen.

    The encoder of descriptions does not count: it reads no utterance.
    """
    system, encoder = experiment.system, experiment.encoder
    blank = blank_batch(system, encoder)

    def init(key: jax.Array) -> Any:
        params = system.init(key, blank)
        return params, system.trained_encoder(params)

    params, trained_encoder = jax.eval_shape(init, jax.random.key(0))
    reader: Any = encoder.text if isinstance(encoder, MultimodalEncoder) else encoder
    is_frozen = isinstance(reader, SentenceEncoder) and trained_encoder is None
    return {"trained": _count(params), "frozen": _count(reader.params) if is_frozen else 0}


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _modality_facts(experiment: AnyExperiment) -> dict[str, Any]:
    """Where each modality comes from and how many utterances lack it; what embeds descriptions."""
    if not isinstance(experiment, Experiment):
        return {}
    encoder, describer = experiment.encoder, experiment.description_encoder
    if not isinstance(encoder, MultimodalEncoder) or describer is None:
        return {}
    facts: dict[str, dict[str, Any]] = {
        name: {"extractor": file.extractor, "version": file.version, "width": file.width}
        for name, file in encoder.files.items()
    }
    if encoder.text:
        facts["text"] = {"extractor": encoder.text.name, "sha256": encoder.text.sha256}
    for name, of in facts.items():
        of["missing"] = {
            split: int((~examples.features.present[name]).sum())  # type: ignore[attr-defined]
            for split, examples in experiment.examples.items()
        }
    return {
        "modalities": facts,
        "description_encoder": {"name": describer.name, "sha256": describer.sha256},
    }


def _corpus_facts_of(config: ConfigDict, experiment: AnyExperiment) -> dict[str, Any]:
    if isinstance(experiment, Experiment):
        return {**corpus_facts(experiment.corpus), "first_shift": config.data.first_shift}
    return experiment.corpus.facts()


def corpus_facts(corpus: Corpus) -> dict[str, Any]:
    """What metrics.json says of a corpus: name, SHA-256, and dialogues and labels of each split."""
    return {
        "name": corpus.name,
        "sha256": corpus.sha256,
        "synthetic": corpus.synthetic,
        **({"annotation": dict(corpus.annotation)} if corpus.annotation else {}),
        "neutral": corpus.labels.neutral,
        "splits": {
            split: {
                "dialogues": len(dialogues),
                "utterances": sum(len(d.utterances) for d in dialogues),
                "emotions": dict(
                    zip(
                        corpus.labels.emotions,
                        corpus.labels.counted(dialogues).counts or (),
                        strict=True,
                    )
                ),
            }
            for split, dialogues in corpus.splits.items()
        },
    }


def package_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit_of_code() -> str | None:
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
