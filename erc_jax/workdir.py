"""A run's folder: what training leaves there, and how prediction finds it again.

A workdir holds config.json, metrics.json, and per run metrics.jsonl, TensorBoard events,
checkpoints/, predictions_<split>.jsonl, early_validation.jsonl (what the first epoch predicted)
and, where a system predicts with what it has read off the data, reference.safetensors. With several
seeds each seed's run lies in seeds/<seed>/, a workdir of its own; the workdir itself then holds
what is said of all seeds, and the predictions of the best.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from erc_jax import finished
from erc_jax.checkpoint import Checkpointer
from erc_jax.config import load_config
from erc_jax.data.dialogue import remove, write_whole
from erc_jax.data.features import save_features
from erc_jax.data.labels import LabelSpace
from erc_jax.encoders.hub import ENCODER, MODEL
from erc_jax.encoders.multimodal import FileModality, MultimodalEncoder
from erc_jax.encoders.sentence import CROSS_FITTED, SentenceEncoder
from erc_jax.errors import UserError
from erc_jax.experiment import (
    FINE_TUNING,
    FMERL,
    RESPONSE,
    AnyExperiment,
    Encoder,
    Experiment,
    blank_batch,
    load_description_encoder,
    load_encoder,
)
from erc_jax.sharding import make_mesh, replicated
from erc_jax.systems import REFERENCE, Params, make_system

REFERENCE_FILE = "reference.safetensors"


def seed_folders(config: ConfigDict, workdir: Path) -> list[tuple[int, Path]]:
    """Each seed with the folder of its run."""
    seeds = range(config.seed, config.seed + config.seeds)
    return list(finished.seed_folders(workdir, seeds).items())


def best_run(config: ConfigDict, workdir: Path) -> Path:
    """The folder of the run that predicts: of several seeds, the best on the selection split."""
    if config.seeds == 1:
        return workdir
    run = finished.read_run(workdir)
    return run.folders[run.predicting]


def publish_best(config: ConfigDict, workdir: Path, splits: Iterable[str]) -> None:
    """Puts the predictions of the run that predicts beside the means over several seeds."""
    best = best_run(config, workdir)
    if best != workdir:
        for split in splits:
            name = f"predictions_{split}.jsonl"
            if (best / name).is_file():  # runs of classification heads alone leave none
                write_whole(workdir / name, (best / name).read_bytes())


def save_encoder(
    experiment: AnyExperiment, params: Params, workdir: Path, cross_fitted: np.ndarray | None
) -> None:
    """Saves the encoder, or the model that replies, that a run has trained, if it has.

    Args:
      experiment: of the run.
      params: of the system.
      workdir: of the run.
      cross_fitted: float32 [N, D], features of the training utterances, if there are such.
    """
    tuned = experiment.system.trained_encoder(params)
    if not isinstance(experiment, Experiment):
        experiment.encoder.save_pretrained(workdir / MODEL, tuned)
    elif tuned is not None:
        assert isinstance(experiment.encoder, SentenceEncoder)
        if cross_fitted is not None:
            file = workdir / ENCODER / CROSS_FITTED
            save_features(file, cross_fitted, experiment.corpus.splits["train"])
        experiment.encoder.save_pretrained(workdir / ENCODER, tuned)


def save_reference(params: Params, workdir: Path) -> None:
    """Saves what the system has read off the data, if it does that.

    Args:
      params: with or without it.
      workdir: of the run.
    """
    if REFERENCE in params:
        flat = traverse_util.flatten_dict(params[REFERENCE], sep=".")
        arrays = {name: np.asarray(array) for name, array in flat.items()}
        learned = {name: of for name, of in params.items() if name != REFERENCE}
        write_whole(workdir / REFERENCE_FILE, save(arrays, {"params": _sha256_of(learned)}))


def _load_reference(workdir: Path, params: Params) -> Params:
    """What ``save_reference`` wrote.

    Raises:
      UserError: the file is missing, damaged, or of other parameters.
    """
    file = workdir / REFERENCE_FILE
    if not file.is_file():
        raise UserError(
            f"{file} is missing; is the run finished? The same command as before goes on with it"
        )
    try:
        with safe_open(file, framework="numpy") as opened:
            written = (opened.metadata() or {}).get("params")
            flat = {name: jnp.asarray(opened.get_tensor(name)) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{file}: damaged ({error}); the same command as before makes it anew"
        ) from error
    if written != _sha256_of(params):
        raise UserError(
            f"{file} belongs to other weights than those of the best checkpoint that can be read; "
            "let the run finish: the same command as before goes on with it"
        )
    return traverse_util.unflatten_dict(flat, sep=".")


def _sha256_of(params: Params) -> str:
    """Of names and values."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def publish_encoder(config: ConfigDict, workdir: Path) -> None:
    """Puts the encoder or model of the run that predicts, if runs leave one, beside the means."""
    best = best_run(config, workdir)
    name = MODEL if config.system == RESPONSE else ENCODER
    source, target = best / name, workdir / name
    if best == workdir or not source.is_dir():
        return
    # config.json goes first and comes last: without it the folder is no model.
    remove(target / "config.json")
    files = sorted(path for path in source.rglob("*") if path.is_file())
    for file in sorted(files, key=lambda path: path == source / "config.json"):
        write_whole(target / file.relative_to(source), file.read_bytes())


@dataclasses.dataclass(frozen=True)
class Run:
    """What a trained run left: all that prediction needs."""

    system: Any  # a Recognition, or Response
    params: Params
    encoder: Any  # an Encoder, or the Seq2Seq that replies
    labels: Any  # a LabelSpace; of runs that reply, task to its classes
    selection: Mapping[str, Any]  # which checkpoint this is: epoch, step, score


def best_meta(workdir: Path) -> dict[str, Any]:
    """What lies beside the weights of a workdir's best checkpoint; see ``train.Trainer.meta``.

    Raises:
      UserError: the folder is not a workdir, or nothing in it can be read.
    """
    return Checkpointer(best_run(load_config(workdir), workdir)).best_meta()


def load_labelling_run(workdir: Path, encoder: str | None = None) -> Run:
    """As ``load_run``, of a run that names emotions.

    Raises:
      UserError: as there, or the run is one that replies.
    """
    if load_config(workdir).system == RESPONSE:
        raise UserError(
            f"{workdir}: this run replies to utterances, and labels no conversations; use "
            "--mode respond"
        )
    return load_run(workdir, encoder)


def load_run(
    workdir: Path,
    encoder: Any = None,
    description_encoder: SentenceEncoder | None = None,
) -> Run:
    """The best checkpoint of a workdir and the system that it belongs to.

    Args:
      workdir: of the run.
      encoder: the run's, if it is loaded already, or where it is now, if that has changed.
      description_encoder: the run's, if it is loaded already.

    Raises:
      UserError: the folder is not a workdir, nothing in it can be read, or the encoder that it
        names is not the one that it was trained with.
    """
    config = load_config(workdir)
    folder = best_run(config, workdir)
    checkpoints = Checkpointer(folder)
    meta = checkpoints.best_meta()
    if config.system == RESPONSE:
        from erc_jax.encoders.seq2seq import Seq2Seq

        if not isinstance(encoder, Seq2Seq):
            encoder = Seq2Seq.from_pretrained(str(folder))
    elif encoder is None and config.system == FINE_TUNING:
        encoder = SentenceEncoder.from_pretrained(str(folder))
    elif not isinstance(encoder, Encoder):
        encoder = _encoder_of(config, meta["encoder"], encoder)
    inner: Any = encoder
    if config.system == FMERL:
        named = meta["encoder"]["descriptions"]
        if description_encoder and description_encoder.sha256 != named["sha256"]:
            raise UserError(
                f"{workdir} was trained with descriptions embedded by {named['name']}, SHA-256 "
                f"{named['sha256']}; {description_encoder.name} is {description_encoder.sha256}"
            )
        inner = description_encoder or load_description_encoder(
            config, place=_place_now(named), sha256=named["sha256"]
        )
    labels = labels_of(meta["labels"])
    system = make_system(config, labels, inner)
    blank = blank_batch(system, encoder)
    on_every_device = replicated(make_mesh())
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on_every_device),
        jax.eval_shape(system.init, jax.random.key(0), blank),
    )
    restored, _ = checkpoints.restore_best({"params": target}, partial=True)
    params = restored["params"]
    if system.has_reference:
        params = {**params, REFERENCE: _load_reference(folder, params)}
    return Run(system, params, encoder, labels, meta["selection"])


def _encoder_of(config: ConfigDict, named: Mapping[str, Any], place: str | None) -> Encoder:
    """The encoder that a run was trained with.

    Args:
      config: of the run.
      named: what the run's checkpoint says of it.
      place: where it is now, if not where it was.
    """
    if modalities := named.get("modalities"):
        text: Any = None
        if place is not None and not modalities["text"]:
            raise UserError("--encoder: this run's features come from files; it has no encoder")
        if of_text := modalities["text"]:
            text = _encoder_of(config, {**named, **of_text, "modalities": None}, place)
        files = {name: FileModality.from_json(of) for name, of in modalities["files"].items()}
        return MultimodalEncoder(text, files, sha256=named["sha256"])
    try:
        return load_encoder(config, place=place or _place_now(named), sha256=named["sha256"])
    except UserError as error:
        raise UserError(f"{error}\nIf the encoder is elsewhere now: --encoder=PLACE") from error


def _place_now(named: Mapping[str, Any]) -> str:
    """Where an encoder is that was perhaps named relative to where the run was started."""
    name, folder = Path(named["name"]), Path(named.get("folder", ""))
    if not name.exists():
        if (folder / name.name).is_file():
            return str(folder / name.name)
        if (folder / "config.json").is_file():
            return str(folder)
    return named["name"]


def labels_to_json(labels: LabelSpace) -> dict[str, Any]:
    return {
        "emotions": list(labels.emotions),
        "neutral": labels.neutral,
        "polarity": dict(labels.polarity) if labels.polarity else None,
        "descriptions": dict(labels.descriptions) if labels.descriptions else None,
        "vad_scale": list(labels.vad_scale) if labels.vad_scale else None,
    }


def labels_of(record: Mapping[str, Any]) -> Any:
    """The labels that a checkpoint's record names: a LabelSpace, or task to its classes."""
    if "heads" in record:
        return {task: tuple(classes) for task, classes in record["heads"].items()}
    return labels_from_json(record)


def labels_from_json(record: Mapping[str, Any]) -> LabelSpace:
    scale = record.get("vad_scale")
    return LabelSpace(
        tuple(record["emotions"]),
        record["neutral"],
        record["polarity"],
        descriptions=record.get("descriptions"),
        vad_scale=tuple(scale) if scale else None,
    )


def experiment_to_json(experiment: AnyExperiment) -> dict[str, Any]:
    """What a checkpoint says of labels and encoder, so that prediction finds the same ones."""
    encoder = experiment.encoder
    record: dict[str, Any] = {
        "name": encoder.name,
        "folder": str(encoder.folder),
        "sha256": encoder.sha256,
        "width": encoder.width,
    }
    if not isinstance(experiment, Experiment):
        return {"labels": {"heads": experiment.corpus.heads}, "encoder": record}
    if isinstance(encoder, MultimodalEncoder):
        record["modalities"] = encoder.to_json()
    if experiment.description_encoder is not None:
        describer = experiment.description_encoder
        record["descriptions"] = {
            "name": describer.name,
            "folder": str(describer.folder),
            "sha256": describer.sha256,
        }
    return {"labels": labels_to_json(experiment.corpus.labels), "encoder": record}
