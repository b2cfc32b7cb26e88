"""An experiment's parts, made from its config: corpus, encoder, system, arrays; and its workdir.

A workdir holds config.json, metrics.json, and per run metrics.jsonl, TensorBoard events,
checkpoints/, predictions_<split>.jsonl, early_validation.jsonl (what the first epoch predicted)
and, where a system predicts with what it has read off the data, reference.safetensors. With several
seeds each seed's run lies in seeds/<seed>/, a workdir of its own; the workdir itself then holds
what is said of all seeds, and the predictions of the best.
"""

from __future__ import annotations

import dataclasses
import hashlib
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from erc_jax import metrics
from erc_jax.checkpoint import Checkpointer
from erc_jax.config import base_config, check_values, flatten, load_config
from erc_jax.data.annotation import load_annotation
from erc_jax.data.batching import Split, make_examples
from erc_jax.data.corpora import Corpus, load_corpus
from erc_jax.data.descriptions import known_descriptions
from erc_jax.data.dialogue import Dialogue, Utterance, parse_json, write_whole
from erc_jax.data.feature_files import load_split
from erc_jax.data.features import save_features, stands_for, utterance_features
from erc_jax.data.labels import SENTIMENTS, LabelSpace
from erc_jax.data.modalities import MODALITIES
from erc_jax.data.tokens import TokenExamples
from erc_jax.encoders.multimodal import FileModality, MultimodalEncoder, Tables
from erc_jax.encoders.sentence import CROSS_FITTED, SentenceEncoder
from erc_jax.encoders.word_vectors import WordVectors
from erc_jax.errors import UserError
from erc_jax.progress import Counter, say
from erc_jax.sharding import make_mesh, replicated
from erc_jax.systems import REFERENCE, Params, System, Task, make_system

SPLITS = ("train", "validation", "test")
FINE_TUNING = "fine_tuning"  # the system whose runs leave an encoder, in this folder
ENCODER = "encoder"
FMERL = "fmerl"  # the system that reads modalities, and descriptions of emotions
REFERENCE_FILE = "reference.safetensors"


Encoder = SentenceEncoder | WordVectors | MultimodalEncoder  # what makes the features
CORPUS_FEATURES = "corpus"  # data.features of a modality that comes with the corpus


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Data and system, shared by an experiment's seeds."""

    corpus: Corpus
    encoder: Encoder
    description_encoder: SentenceEncoder | None  # what embeds descriptions of emotions, if they are
    system: System
    examples: Mapping[str, Split]  # of the splits that were asked for


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
    _check_fields_of_systems(config)
    corpus = _corpus(config)
    sizes = ", ".join(
        f"{split} {len(dialogues):,} ({sum(len(d.utterances) for d in dialogues):,})"
        for split, dialogues in corpus.splits.items()
    )
    say(f"{corpus.name}: dialogues (utterances) {sizes}")
    # Some systems are made around an encoder; others' is loaded when all else is known to fit.
    encoder: Encoder | None = None
    describer: SentenceEncoder | None = None
    if config.system == FINE_TUNING:
        encoder = load_encoder(config, sha256=encoder_sha256)
    elif config.system == FMERL:
        describer = load_description_encoder(config)
        _say_what_may_leak(config)
    labels_seen = corpus.labels.counted(corpus.splits["train"])
    system = make_system(config, labels_seen, describer or encoder)
    for note in [*corpus.notes, *system.notes]:
        say(f"Note: {note}")
    for task, labels in system.targets(corpus.splits["train"]).items():
        if (labels < 0).all() and task == "vad":
            raise UserError(
                f"{corpus.name}: no utterance of the training split is rated, but others are; give "
                '--config.fmerl.vad.dimensions="()", or annotate the training split'
            )
        if (labels < 0).all():
            raise UserError(
                f"{corpus.name}: no utterance of the training split has a label of {task}; leave "
                "the task out (config.tasks), or see config.data.sentiment for where it is read"
            )
    _check_select_metric(config, system.tasks[0])
    if system.inputs == "modalities":
        encoder = _multimodal_encoder(config, corpus, encoder_sha256)
    encoder = encoder or load_encoder(config, sha256=encoder_sha256)
    examples = {
        split: to_arrays(
            corpus.splits[split],
            encoder,
            system,
            system.targets(corpus.splits[split]),
            tables=_tables(config, corpus, split),
            progress=Counter(f"{split} features"),
            where=split,
        )
        for split in splits
    }
    reader = encoder.text if isinstance(encoder, MultimodalEncoder) else encoder
    if reader and "train" in splits and not stands_for(reader, corpus.splits["train"]):
        say(
            f"Note: {reader.name} keeps cross-fitted features, but of other training dialogues "
            "(another corpus, version or order), so these are encoded as all others are"
        )
    return Experiment(corpus, encoder, describer, system, examples)


def _corpus(config: ConfigDict) -> Corpus:
    """The corpus, as the config wants it."""
    data = config.data
    corpus = load_corpus(
        data.name,
        data.source,
        polarity=_polarity(config),
        neutral=data.neutral,
        keep_unlabelled=data.keep_unlabelled,
    )
    descriptions = known_descriptions()
    if data.annotation:
        annotation = load_annotation(Path(config.data.annotation).expanduser())
        kept = annotation.facts.get("corpus", {}).get("keep_unlabelled", data.keep_unlabelled)
        if kept != data.keep_unlabelled:
            raise UserError(
                f"{data.annotation} was made with data.keep_unlabelled={str(kept).lower()}, by "
                "which utterances' places differ; give the same here, or annotate again"
            )
        corpus = corpus.rated(annotation, data.annotation)
        descriptions |= annotation.descriptions
    if data.leave_out_neutral:
        corpus = corpus.without_neutral()
    if config.system != FMERL:
        return corpus
    if config.zero_shot.unseen:
        corpus = corpus.holding_out(config.zero_shot.unseen.split(","))
    labels = described(corpus.labels.emotions, descriptions, corpus.labels)
    labels = dataclasses.replace(labels, vad_scale=corpus.vad_scale())
    return dataclasses.replace(corpus, labels=labels, notes=[*corpus.notes, *_off_scale(corpus)])


def _off_scale(corpus: Corpus) -> list[str]:
    """What is to be said of ratings that are not on their scale."""
    if (scale := corpus.vad_scale()) is None:
        return []
    off = [
        f"dialogue {dialogue.id}, utterance {position}: {dimension} {rating:g}"
        for dialogues in corpus.splits.values()
        for dialogue in dialogues
        for position, utterance in enumerate(dialogue.utterances, start=1)
        for dimension, rating in (utterance.vad or {}).items()
        if not scale[0] <= rating <= scale[1]
    ]
    if not off:
        return []
    return [
        f"{len(off)} ratings are not between {scale[0]:g} and {scale[1]:g} and are left out "
        f"({off[0]})"
    ]


def described(
    emotions: Sequence[str], descriptions: Mapping[str, str], labels: LabelSpace
) -> LabelSpace:
    """Labels with descriptions, as far as there are any; says of which emotion there is none.

    Args:
      emotions: names.
      descriptions: of any emotions.
      labels: what else is known, if these are its emotions.
    """
    if bare := [emotion for emotion in emotions if emotion not in descriptions]:
        say(
            f"Note: no description of {', '.join(bare)}: compared by the bare name. In training, "
            "descriptions.json of config.data.annotation gives one, in prediction --descriptions"
        )
    known = {emotion: descriptions[emotion] for emotion in emotions if emotion in descriptions}
    if tuple(emotions) == labels.emotions:
        return dataclasses.replace(labels, descriptions=known)
    return LabelSpace(tuple(emotions), descriptions=known, vad_scale=labels.vad_scale)


def load_description_encoder(
    config: ConfigDict, named: Mapping[str, Any] | None = None
) -> SentenceEncoder:
    """What embeds the descriptions of emotions.

    Args:
      config: of the experiment.
      named: what a run's checkpoint says of it; the encoder must then be that one.
    """
    place, sha256 = config.fmerl.description_encoder, None
    if named is not None:
        place, sha256 = _place_now(named), named["sha256"]
    try:
        return SentenceEncoder.from_pretrained(place, sha256=sha256)
    except UserError as error:
        raise UserError(f"fmerl.description_encoder: {error}") from error


def _say_what_may_leak(config: ConfigDict) -> None:
    """Says which inputs may know of emotions that are held out of training."""
    unseen = config.zero_shot.unseen
    if not unseen:
        return
    for place in (config.encoder, config.fmerl.description_encoder):
        if (Path(place) / ENCODER).is_dir():
            say(f"Note: {place} was fine-tuned on emotions; {unseen} may have been among them")
    for modality in config.fmerl.modalities:
        if place := config.data.features[modality]:
            say(
                f"Note: {modality} features come from {place}; were they learned with labels of "
                f"{unseen}?"
            )


def _tables(config: ConfigDict, corpus: Corpus, split: str) -> dict[str, Any]:
    """Features from files of a split's utterances, by modality."""
    tables = {}
    for modality in config.fmerl.modalities if config.system == FMERL else ():
        place = config.data.features[modality]
        if place == CORPUS_FEATURES:
            if modality not in corpus.features.get(split, {}):
                raise UserError(
                    f"data.features.{modality} is {place!r}, but {corpus.name} brings no such "
                    "features; name a folder of feature files, see erc_jax.data.feature_files"
                )
            tables[modality] = corpus.features[split][modality]
        elif place:
            tables[modality] = load_split(Path(place).expanduser(), split)
        elif modality != "text":
            raise UserError(
                f"fmerl.modalities names {modality}, but data.features.{modality} does not say "
                "where its features are: a folder with a feature file for each split, see "
                "erc_jax.data.feature_files"
            )
    return tables


def _multimodal_encoder(
    config: ConfigDict, corpus: Corpus, sha256: str | None
) -> MultimodalEncoder:
    """What the config's modalities are read with."""
    tables = _tables(config, corpus, "train")
    text = None
    if "text" in config.fmerl.modalities and "text" not in tables:
        text = SentenceEncoder.from_pretrained(config.encoder)
    files = {modality: FileModality.of(table) for modality, table in tables.items()}
    encoder = MultimodalEncoder(text, files, tables)
    if sha256 is not None and encoder.sha256 != sha256:
        raise UserError(
            f"the features are not those that the run was trained on: SHA-256 {encoder.sha256} "
            f"here, {sha256} there; see config.encoder and config.data.features"
        )
    return encoder


def _check_fields_of_systems(config: ConfigDict) -> None:
    """Refuses fields that the system does not read."""
    there, unchanged = dict(flatten(config)), dict(flatten(base_config()))
    owners = {
        "fine_tuning.": (FINE_TUNING, "encoder"),
        "sent_emo_context.": ("sent_emo_context", "sent_emo_context"),
        **dict.fromkeys(
            ("fmerl.", "zero_shot.", "data.features.", "data.annotation"), (FMERL, FMERL)
        ),
    }
    for prefix, (system, variant) in owners.items():
        for field in there:
            changed = there[field] != unchanged[field]
            if changed and field.startswith(prefix) and config.system != system:
                raise UserError(
                    f"{field} is for runs of {system}; give --config CONFIG:{variant}, or leave "
                    "the field out"
                )
    if config.zero_shot.unseen and config.init_from:
        raise UserError(
            f"zero_shot.unseen with init_from: {config.init_from} may have seen "
            f"{config.zero_shot.unseen}; leave one of them out"
        )
    for modality in MODALITIES if config.system == FMERL else ():
        place = config.data.features[modality]
        if place not in ("", CORPUS_FEATURES) and modality not in config.fmerl.modalities:
            raise UserError(
                f"data.features.{modality} is {place}, but fmerl.modalities does not name "
                f"{modality}; it is {', '.join(config.fmerl.modalities)}"
            )
    how = config.fine_tuning
    if how.folds and config.init_from:
        raise UserError(
            "fine_tuning.folds with init_from: the other run may have seen all of the dialogues "
            "that each fold keeps out; leave one of them out"
        )


def load_encoder(
    config: ConfigDict, *, place: str | None = None, sha256: str | None = None
) -> Encoder:
    """The encoder that the config names; one that is to be fine-tuned reads as the config says.

    Args:
      config: of the experiment.
      place: where the encoder is, if not where the config says.
      sha256: which it must have, if given.
    """
    place = place or config.encoder
    network = config.sent_emo_context.network
    if config.system == "sent_emo_context" and network != "transformer":
        try:
            return WordVectors.from_file(place, sha256=sha256)
        except UserError as error:
            raise UserError(
                f"{error}\nsent_emo_context.network={network} reads word vectors; sentence "
                "encoders are for network=transformer"
            ) from error
    if Path(place).suffix in (".txt", ".vec", ".npy"):
        raise UserError(
            f"{place}: word vectors are for --config.sent_emo_context.network=mlp or lstm; "
            "expected a sentence encoder's name or folder"
        )
    encoder = SentenceEncoder.from_pretrained(place, sha256=sha256)
    if config.system != FINE_TUNING:
        return encoder
    how = config.fine_tuning
    return encoder.adapted(
        pooling=how.pooling,
        normalize=False,
        context=how.context,
        max_length=how.max_tokens or None,
    )


def to_arrays(
    dialogues: Sequence[Dialogue],
    encoder: Encoder,
    system: System,
    labels: Mapping[str, np.ndarray],
    *,
    tables: Tables | None = None,
    cached: bool = True,
    progress: Counter | None = None,
    where: str = "",
) -> Split:
    """What a system reads of some dialogues: features, or tokens.

    Args:
      dialogues: with N utterances in all.
      encoder: makes them.
      system: says which.
      labels: task to int32 [N]; may be empty where nothing is to be scored.
      tables: features of the modalities that come from files.
      cached: whether features are looked up in the cache, and kept there.
      progress: shown while features are made.
      where: what the dialogues are, for what is said about their modalities.
    """
    if tables and not isinstance(encoder, MultimodalEncoder):
        raise UserError("this run reads no feature files; runs of fmerl do")
    if system.inputs == "tokens":
        assert isinstance(encoder, SentenceEncoder)  # word vectors have no tokens
        return TokenExamples(encoder.sequences(dialogues), dialogues, labels)
    for dialogue in dialogues:
        if system.longest and len(dialogue.utterances) > system.longest:
            raise UserError(
                f"dialogue {dialogue.id} has {len(dialogue.utterances)} utterances; this system "
                f"reads up to {system.longest} at a time; split it"
            )
    features: Any
    if isinstance(encoder, MultimodalEncoder):
        features = encoder.encode(
            dialogues, tables or {}, cached=cached, progress=progress, where=where
        )
    elif cached:
        features = utterance_features(dialogues, encoder, progress=progress)
    else:
        features = encoder.encode_dialogues(dialogues, progress=progress)
    return make_examples(dialogues, features, labels, system.window)


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


def blank_batch(system: System, encoder: Encoder) -> Any:
    """A batch with one utterance, of the right structure for initialisation."""
    blank = [Dialogue("blank", (Utterance("A", ""),))]
    if system.inputs == "tokens":
        assert isinstance(encoder, SentenceEncoder)  # word vectors have no tokens
        return TokenExamples(encoder.sequences(blank), blank, {}).batch(np.array([0]))
    features: Any = np.zeros((1, encoder.width), np.float32)
    if isinstance(encoder, MultimodalEncoder):
        features = encoder.blank()
    return make_examples(blank, features, {}, system.window).batch(np.array([0]))


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


def save_encoder(
    experiment: Experiment, params: Params, workdir: Path, cross_fitted: np.ndarray | None
) -> None:
    """Saves the encoder that a run has fine-tuned, if its system does that.

    Args:
      experiment: of the run.
      params: of the system.
      workdir: of the run.
      cross_fitted: float32 [N, D], features of the training utterances, if there are such.
    """
    tuned = experiment.system.trained_encoder(params)
    if tuned is not None:
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
    """Puts the encoder of the run that predicts, if runs leave one, beside the means."""
    best = best_run(config, workdir)
    source, target = best / ENCODER, workdir / ENCODER
    if best == workdir or not source.is_dir():
        return
    # config.json goes first and comes last: without it the folder is no model.
    (target / "config.json").unlink(missing_ok=True)
    files = sorted(path for path in source.rglob("*") if path.is_file())
    for file in sorted(files, key=lambda path: path == source / "config.json"):
        write_whole(target / file.relative_to(source), file.read_bytes())


@dataclasses.dataclass(frozen=True)
class Run:
    """What a trained run left: all that prediction needs."""

    system: System
    params: Params
    encoder: Encoder
    labels: LabelSpace
    selection: Mapping[str, Any]  # which checkpoint this is: epoch, step, score


def best_meta(workdir: Path) -> dict[str, Any]:
    """What lies beside the weights of a workdir's best checkpoint; see ``train.Trainer.meta``.

    Raises:
      UserError: the folder is not a workdir, or nothing in it can be read.
    """
    return Checkpointer(best_run(load_config(workdir), workdir)).best_meta()


def load_run(
    workdir: Path,
    encoder: Encoder | str | None = None,
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
    if encoder is None and config.system == FINE_TUNING:
        encoder = SentenceEncoder.from_pretrained(str(folder))
    elif not isinstance(encoder, Encoder):
        encoder = _encoder_of(config, meta["encoder"], encoder)
    inner: Encoder = encoder
    if config.system == FMERL:
        named = meta["encoder"]["descriptions"]
        if description_encoder and description_encoder.sha256 != named["sha256"]:
            raise UserError(
                f"{workdir} was trained with descriptions embedded by {named['name']}, SHA-256 "
                f"{named['sha256']}; {description_encoder.name} is {description_encoder.sha256}"
            )
        inner = description_encoder or load_description_encoder(config, named)
    labels = labels_from_json(meta["labels"])
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


def labels_from_json(record: Mapping[str, Any]) -> LabelSpace:
    scale = record.get("vad_scale")
    return LabelSpace(
        tuple(record["emotions"]),
        record["neutral"],
        record["polarity"],
        descriptions=record.get("descriptions"),
        vad_scale=tuple(scale) if scale else None,
    )


def encoder_to_json(experiment: Experiment) -> dict[str, Any]:
    """What a checkpoint says of the encoder, so that prediction finds the same one."""
    encoder = experiment.encoder
    record = {
        "name": encoder.name,
        "folder": str(encoder.folder),
        "sha256": encoder.sha256,
        "width": encoder.width,
    }
    if isinstance(encoder, MultimodalEncoder):
        record["modalities"] = encoder.to_json()
    if experiment.description_encoder is not None:
        describer = experiment.description_encoder
        record["descriptions"] = {
            "name": describer.name,
            "folder": str(describer.folder),
            "sha256": describer.sha256,
        }
    return record


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
        "corpus": {**corpus_facts(corpus), "first_shift": config.data.first_shift},
        "encoder": {
            "name": experiment.encoder.name,
            "sha256": experiment.encoder.sha256,
            "width": experiment.encoder.width,
        },
        **_modality_facts(experiment),
        "seeds": [run["seed"] for run in chosen],
        "selected_on": f"{config.train.select_on} {config.train.select_metric}",
        "checkpoints": list(chosen),
        "seconds": round(sum(run.get("seconds", 0.0) for run in chosen), 1),  # of training
        "versions": {"python": platform.python_version()}
        | {name: package_version(name) for name in ("erc-jax", "jax", "jaxlib", "flax", "optax")},
        "commit": commit_of_code(),
        "devices": [f"{jax.device_count()} x {jax.devices()[0].device_kind}", platform.machine()],
    }


def _modality_facts(experiment: Experiment) -> dict[str, Any]:
    """Where each modality comes from and how many utterances lack it; what embeds descriptions."""
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
