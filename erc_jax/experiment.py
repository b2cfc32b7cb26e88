"""An experiment's parts, made from its config: corpus, encoder, system, arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from ml_collections import ConfigDict

from erc_jax import metrics
from erc_jax.config import base_config, check_values, flatten
from erc_jax.data.annotation import load_annotation
from erc_jax.data.batching import Split, make_examples
from erc_jax.data.corpora import Corpus, load_corpus
from erc_jax.data.descriptions import known_descriptions
from erc_jax.data.dialogue import MODALITIES, Dialogue, Utterance
from erc_jax.data.feature_files import load_split
from erc_jax.data.features import stands_for, utterance_features
from erc_jax.data.labels import SENTIMENTS, LabelSpace
from erc_jax.data.tokens import TokenExamples
from erc_jax.encoders.hub import ENCODER
from erc_jax.encoders.multimodal import FileModality, MultimodalEncoder, Tables
from erc_jax.encoders.sentence import SentenceEncoder
from erc_jax.encoders.word_vectors import WordVectors
from erc_jax.errors import UserError
from erc_jax.progress import Counter, say
from erc_jax.system_names import FINE_TUNING, FMERL, RESPONSE, SENT_EMO_CONTEXT
from erc_jax.systems import Recognition, System, Task, make_system

if TYPE_CHECKING:
    from erc_jax.replies import ReplyExperiment

SPLITS = ("train", "validation", "test")
Encoder = SentenceEncoder | WordVectors | MultimodalEncoder  # what makes the features
CORPUS_FEATURES = "corpus"  # data.features of a modality that comes with the corpus


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Data and system of a run that names emotions, shared by its seeds."""

    corpus: Corpus
    encoder: Encoder
    description_encoder: SentenceEncoder | None  # what embeds descriptions of emotions, if they are
    system: Recognition
    examples: Mapping[str, Split]  # of the splits that were asked for


# Those of replies are made by erc_jax.replies.
AnyExperiment: TypeAlias = "Experiment | ReplyExperiment"


def prepare(
    config: ConfigDict, splits: Sequence[str] = SPLITS, encoder_sha256: str | None = None
) -> Any:
    """Reads the corpus, loads the encoder and computes the features, or takes them from the cache.

    Args:
      config: of the experiment.
      splits: which ones are needed as arrays.
      encoder_sha256: of the encoder that a trained run read, which this one must then be.

    Returns:
      An ``Experiment``, or a ``ReplyExperiment``, as the config's system asks for.

    Raises:
      UserError: something in config, corpus or encoder does not fit.
    """
    check_values(config)
    _check_fields_of_systems(config)
    if config.system == RESPONSE:
        from erc_jax.replies import prepare_replies

        return prepare_replies(config, splits, encoder_sha256)
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
    if len(corpus.labels.emotions) < 2:
        raise UserError(
            f"{corpus.name}: {len(corpus.labels.emotions)} different emotions in the training "
            'split; expected two or more, as "emotion" of its utterances'
        )
    if corpus.labels.neutral is None:
        say("Note: no neutral emotion is given: the ..._no_neutral metrics are left out")
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
    config: ConfigDict, *, place: str | None = None, sha256: str | None = None
) -> SentenceEncoder:
    """What embeds the descriptions of emotions.

    Args:
      config: of the experiment.
      place: where the encoder is, if not where the config says.
      sha256: which it must have, if given.
    """
    try:
        return SentenceEncoder.from_pretrained(
            place or config.fmerl.description_encoder, sha256=sha256
        )
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
        "sent_emo_context.": (SENT_EMO_CONTEXT, SENT_EMO_CONTEXT),
        "response.": (RESPONSE, RESPONSE),
        **dict.fromkeys(
            ("fmerl.", "zero_shot.", "data.features.", "data.annotation"), (FMERL, FMERL)
        ),
    }
    for prefix, (system, variant) in owners.items():
        for field in there:
            if not field.startswith(prefix) or config.system == system:
                continue
            if there[field] != unchanged[field]:
                raise UserError(
                    f"{field} is for runs of {system}; give --config CONFIG:{variant}, or leave "
                    "the field out"
                )
    if config.system in (FINE_TUNING, RESPONSE) and config.model.dtype != "float32":
        raise UserError(
            f"model.dtype is {config.model.dtype}; runs of {config.system} have a field of their "
            f"own for this: {config.system}.dtype"
        )
    if config.system == RESPONSE:
        for field in (
            "train.class_weights",
            *("data.leave_out_neutral", "data.neutral", "data.keep_unlabelled"),
        ):
            if there[field] != unchanged[field]:
                raise UserError(f"{field} is not for runs of response; leave the field out")
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
    if config.system == SENT_EMO_CONTEXT and network != "transformer":
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
    system: Recognition,
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


def blank_batch(system: System, encoder: Any) -> Any:
    """A batch with one utterance, for initialisation, of a system that asks for one."""
    if not isinstance(system, Recognition):
        return None
    blank = [Dialogue("blank", (Utterance("A", ""),))]
    if system.inputs == "tokens":
        assert isinstance(encoder, SentenceEncoder)  # word vectors have no tokens
        return TokenExamples(encoder.sequences(blank), blank, {}).batch(np.array([0]))
    features: Any = np.zeros((1, encoder.width), np.float32)
    if isinstance(encoder, MultimodalEncoder):
        features = encoder.blank()
    return make_examples(blank, features, {}, system.window).batch(np.array([0]))
