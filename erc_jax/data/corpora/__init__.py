"""Corpora by name: the published ones, the sample that comes along, and one's own.

A new corpus is a module with a subclass of DialogueBuilder, and a line in CORPORA.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erc_jax.data.annotation import Annotation, annotated
from erc_jax.data.cache import cache_dir
from erc_jax.data.dialogue import Dialogue, Utterance
from erc_jax.data.feature_files import FeatureTable
from erc_jax.data.labels import LabelSpace
from erc_jax.errors import UserError

if TYPE_CHECKING:
    from erc_jax.data.corpora.base import DialogueBuilder

# Name of the corpus, and of its builder in tfds, to the module that defines the builder.
CORPORA = {
    "meld": "erc_jax.data.corpora.meld",
    "emorynlp": "erc_jax.data.corpora.emorynlp",
    "dailydialog": "erc_jax.data.corpora.dailydialog",
    "iemocap": "erc_jax.data.corpora.iemocap",
    "mosi": "erc_jax.data.corpora.mosi",
    "tec": "erc_jax.data.corpora.tec",
    "sst2": "erc_jax.data.corpora.sst2",
    "crowdflower": "erc_jax.data.corpora.crowdflower",
    "own": "erc_jax.data.corpora.own",
    "sample": "erc_jax.data.corpora.sample",
}


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A corpus in memory.

    Attributes:
      name: as in CORPORA.
      splits: dialogues of "train", "validation" and "test", in the order of the source.
      labels: the emotions and what is known of them.
      sha256: of the source files and of an annotation, hex; the same for the same files, wherever
        they lie.
      synthetic: the conversations were made up, so that scores say nothing about real ones.
      notes: what the user should be told of its files, once.
      features: split to modality to the features that come with the corpus, if any do.
      annotation: what is known of the annotation that ratings come from, if they do.
    """

    name: str
    splits: Mapping[str, Sequence[Dialogue]]
    labels: LabelSpace
    sha256: str
    synthetic: bool
    notes: Sequence[str]
    features: Mapping[str, Mapping[str, FeatureTable]] = dataclasses.field(default_factory=dict)
    annotation: Mapping[str, Any] | None = None

    def without_neutral(self) -> Corpus:
        """The same dialogues, whose neutral utterances are unlabelled context.

        Raises:
          UserError: the corpus has no neutral emotion.
        """
        neutral = self.labels.neutral
        if neutral is None:
            raise UserError(
                f"{self.name}: no neutral emotion to leave out; see config.data.neutral"
            )
        splits = {s: _as_context(dialogues, (neutral,)) for s, dialogues in self.splits.items()}
        emotions = tuple(emotion for emotion in self.labels.emotions if emotion != neutral)
        polarity = self.labels.polarity
        if polarity is not None:
            polarity = {emotion: polarity[emotion] for emotion in emotions}
        labels = LabelSpace(emotions, None, polarity)
        return dataclasses.replace(self, splits=splits, labels=labels)

    def holding_out(self, unseen: Sequence[str]) -> Corpus:
        """The same with some emotions in the test split only, so that nothing is learned of them.

        Raises:
          UserError: the corpus has no such emotion, or none is left.
        """
        for emotion in unseen:
            if emotion not in self.labels.emotions:
                raise UserError(
                    f"zero_shot.unseen is {emotion!r}, which is not one of the emotions of "
                    f"{self.name}: {', '.join(self.labels.emotions)}"
                )
        if len(set(self.labels.emotions) - set(unseen)) < 2:
            raise UserError("zero_shot.unseen leaves fewer than two emotions to learn from")
        splits = {
            split: dialogues if split == "test" else _as_context(dialogues, unseen)
            for split, dialogues in self.splits.items()
        }
        return dataclasses.replace(self, splits=splits)

    def rated(self, annotation: Annotation, where: str) -> Corpus:
        """The same with an annotation's ratings and descriptions in place of its own.

        Raises:
          UserError: the annotation is of another corpus, or rates an utterance that is not there.
        """
        made_of = annotation.facts.get("corpus", {})  # ratings by people may not say it
        for key, here in (("name", self.name), ("sha256", self.sha256)):
            if made_of.get(key, here) != here:
                raise UserError(
                    f"{where}: this annotation is of another corpus: {key} {made_of[key]} there, "
                    f"{here} here; annotate this one"
                )
        splits = {
            split: annotated(
                dialogues, annotation.ratings.get(split, {}), annotation.scale, f"{where}, {split}"
            )
            for split, dialogues in self.splits.items()
        }
        return dataclasses.replace(
            self,
            splits=splits,
            sha256=_sha256(f"{self.sha256} {annotation.sha256}"),
            annotation=annotation.facts,
        )

    def vad_scale(self) -> tuple[float, float] | None:
        """The scale of the ratings of valence, arousal and dominance; None where nothing is rated.

        Raises:
          UserError: there are ratings without a scale, with a wrong one, or with more than one.
        """
        scales: list[Any] = []
        for dialogues in self.splits.values():
            for dialogue in dialogues:
                scale = dialogue.extra.get("vad_scale")
                if scale not in scales and any(utterance.vad for utterance in dialogue.utterances):
                    scales.append(scale)
        match scales:
            case []:
                return None
            case [[int() | float() as low, int() | float() as high]] if (
                -math.inf < low < high < math.inf
            ):
                return float(low), float(high)
        found = " or ".join("missing" if s is None else json.dumps(s) for s in scales)
        raise UserError(
            f"{self.name}: the scale of valence, arousal and dominance is {found}; expected one "
            'for all dialogues, low before high, such as "vad_scale": [1, 5] beside "utterances"'
        )


def _as_context(dialogues: Sequence[Dialogue], emotions: Sequence[str]) -> list[Dialogue]:
    """The dialogues, whose utterances of some emotions carry no label and no rating."""

    def of(utterance: Utterance) -> Utterance:
        if utterance.emotion not in emotions:
            return utterance
        return dataclasses.replace(utterance, emotion=None, vad=None)

    return [
        dataclasses.replace(d, utterances=tuple(of(u) for u in d.utterances)) for d in dialogues
    ]


def load_corpus(
    name: str,
    source: str | Path | None = None,
    *,
    cache: Path | None = None,
    polarity: Mapping[str, str] | None = None,
    neutral: str | None = None,
    keep_unlabelled: bool = False,
) -> Corpus:
    """Reads a corpus; the first time it is prepared in the cache, afterwards it comes from there.

    Args:
      name: a name in CORPORA.
      source: folder of the corpus' original files, or of train.jsonl, validation.jsonl and
        test.jsonl (or .csv) with the corpus' emotions; None downloads it.
      cache: folder of the cache, by default cache_dir().
      polarity: emotion to "negative", "neutral" or "positive", instead of the corpus' own.
      neutral: the emotion that ``..._no_neutral`` metrics leave out, instead of the corpus' own.
      keep_unlabelled: keep utterances outside the corpus' classes as unlabelled context (IEMOCAP).

    Raises:
      UserError: the name is unknown, files are missing, or something in them is wrong; the message
        names file and line.
    """
    builder = _builder(name)
    from erc_jax.data.corpora.base import prepare

    cache = (cache or cache_dir()) / "corpora"
    folder = Path(source).expanduser() if source else builder.fetch(cache / "downloads" / name)
    files = builder.locate(folder)
    sums = builder.sums(files)
    sha256 = _sha256("".join(f"{file} {sums[file]}\n" for file in sorted(sums)))
    options = _sha256(f"{sha256} keep_unlabelled={keep_unlabelled}")
    splits, emotions = prepare(builder, f"source_{options[:16]}", files, keep_unlabelled, cache)
    labels = LabelSpace(emotions, neutral or builder.NEUTRAL, polarity or builder.POLARITY)
    notes = [f"{note}; scores may not be comparable" for note in builder.differing(sums)]
    features = builder.feature_tables(files)
    return Corpus(name, splits, labels, sha256, builder.SYNTHETIC, tuple(notes), features)


def corpus_card(name: str) -> dict[str, str]:
    """What a model card says of a corpus: name, description, language, homepage, licence, citation.

    What is not known is empty.

    Raises:
      UserError: there is no such corpus.
    """
    builder = _builder(name)
    return {
        "name": name,
        "description": builder.DESCRIPTION,
        "language": builder.LANGUAGE,
        "homepage": builder.HOMEPAGE,
        "license": builder.LICENSE,
        "citation": textwrap.dedent(f"    {builder.CITATION}").strip(),
    }


def _builder(name: str) -> type[DialogueBuilder]:
    if name not in CORPORA:
        near = difflib.get_close_matches(name, CORPORA, n=1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(
            f"data.name is {name!r}, which is no corpus; {meant}Known are {', '.join(CORPORA)}; "
            "for conversations of your own use 'own' with data.source"
        )
    importlib.import_module(CORPORA[name])  # registers the builder with tfds
    import tensorflow_datasets as tfds

    return tfds.builder_cls(name)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
