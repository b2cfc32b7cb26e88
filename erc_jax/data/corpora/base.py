"""What the corpora share: a tfds builder of dialogues, and its way from files to records and back.

A corpus is a module with one subclass of DialogueBuilder: its names and licence as class constants,
and ``read``, which parses the original files of a split. Everything else happens here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.client
import io
import json
import shutil
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from erc_jax.data.dialogue import (
    VAD,
    Dialogue,
    Located,
    Utterance,
    check_length,
    iter_dialogues,
    read_bytes,
    write_whole,
)
from erc_jax.data.feature_files import FeatureTable
from erc_jax.data.labels import UNLABELLED
from erc_jax.errors import UserError

SPLITS = ("train", "validation", "test")
TIMEOUT = 30  # seconds without an answer from a server


# tfds compares configs by identity, and so do we.
@dataclasses.dataclass(eq=False)
class SourceConfig(tfds.core.BuilderConfig):
    """Which files are read, and how.

    Attributes:
      files: source files by the name that they have in the corpus' distribution.
      emotions: names of the classes.
      keep_unlabelled: keep utterances without one of these emotions as context.
    """

    files: Mapping[str, Traversable] = dataclasses.field(default_factory=dict)
    emotions: Sequence[str] = ()
    keep_unlabelled: bool = False


class DialogueBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Base of the corpora.

    Attributes:
      RELEASES: the corpus' own files, a list of names for each form in which it is published.
      URLS: file name to address, for what is downloaded when no source is given. SHA-256 sums of
        these files stand in checksums.tsv.
      MANUAL: what to do where the corpus cannot be downloaded.
      INCOMPLETE: what to do about a folder that lacks some of the files.
      EMOTIONS, NEUTRAL, POLARITY: see erc_jax.data.labels.LabelSpace.
      SYNTHETIC: the conversations were made up; their scores say nothing.
    """

    VERSION = tfds.core.Version("1.0.0")  # raise it when the same files come to give other records
    DESCRIPTION = ""
    HOMEPAGE = ""
    LICENSE = ""
    CITATION = ""
    LANGUAGE = "en"  # ISO 639-1; "" where it is not known

    RELEASES: Sequence[Sequence[str]] = ()
    URLS: Mapping[str, str] = {}
    MANUAL = "Get the files by other means and name their folder: --config.data.source=DIR"
    INCOMPLETE = ""
    EMOTIONS: Sequence[str] = ()
    NEUTRAL: str | None = None
    POLARITY: Mapping[str, str] | None = None
    SYNTHETIC = False
    OTHER_EMOTIONS = "For other emotions use data.name=own"  # what to do about an unknown one

    builder_config: SourceConfig

    # What a corpus may define for itself.

    def read(self, split: str) -> Iterator[Located]:
        """Yields the dialogues of a split from the original files, in their order.

        A corpus without such files has JSON lines only, which are read elsewhere.

        Raises:
          UserError: naming file and line of what is wrong.
        """
        del split
        return iter(())

    @classmethod
    def original_files(cls, folder: Traversable) -> dict[str, Traversable]:
        """The corpus' own files in a folder, by name, or an empty dict where they are not."""
        for names in cls.RELEASES:
            if all((folder / name).is_file() for name in names):
                return {name: folder / name for name in names}
        return {}

    @classmethod
    def looked_for(cls, folder: Traversable) -> list[str]:
        """What original_files looks for, and what of it is missing: one line for each release."""
        return [
            _found(names, [name for name in names if not (folder / name).is_file()])
            for names in cls.RELEASES
        ]

    @classmethod
    def feature_tables(cls, files: Mapping[str, Traversable]) -> dict[str, dict[str, FeatureTable]]:
        """Split to modality to features, of a corpus that comes with such."""
        del files
        return {}

    @classmethod
    def published_sha256(cls) -> dict[str, str]:
        """Known SHA-256 sums of source files, by name."""
        known = cls.url_infos or {}
        return {name: known[url].checksum for name, url in cls.URLS.items() if url in known}

    @classmethod
    def emotions_of(cls, files: Mapping[str, Traversable]) -> Sequence[str]:
        """Names of the classes: the corpus', where they do not depend on its files."""
        del files
        return cls.EMOTIONS

    @classmethod
    def fetch(cls, folder: Path) -> Traversable:
        """Downloads what is not in the folder yet, and returns where the files are.

        Plain urllib instead of the tfds download manager: that one tries for a minute before it
        says that there is no network.

        Raises:
          UserError: the corpus cannot be downloaded, or what came is not the published corpus.
        """
        if not cls.URLS:
            raise UserError(cls.MANUAL)
        for name, url in cls.URLS.items():
            if not (folder / name).exists():
                write_whole(folder / name, _download(url, cls.MANUAL))
        try:
            differing = cls.differing(cls.sums(cls.locate(folder)))
            if differing:
                raise UserError(f"{folder}: {differing[0]}")
        except UserError as error:
            shutil.rmtree(folder)  # so that the next call downloads anew
            raise UserError(f"{error}. The download was deleted. {cls.MANUAL}") from error
        return folder

    # What all have in common.

    @classmethod
    def locate(cls, folder: Traversable) -> dict[str, Traversable]:
        """Finds a folder's source files by name: one of JSON lines or CSV per split, or originals.

        Raises:
          UserError: neither is complete; the message lists what was looked for.
        """
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; data.source is a folder of files")
        plain = [path for split in SPLITS if (path := _plain_file(folder, split))]
        if len(plain) == len(SPLITS):
            return {path.name: path for path in plain}
        if files := cls.original_files(folder):
            return files
        names = [f"{split}.jsonl" for split in SPLITS]
        missing = [f"{split}.jsonl" for split in SPLITS if not _plain_file(folder, split)]
        looked_for = [*cls.looked_for(folder), f"{_found(names, missing)}; .csv will do, too"]
        raise UserError(
            f"{folder}: the files of {cls.name} are not complete. Looked for\n  "
            + "\n  or ".join(looked_for)
            + f"\n{cls.INCOMPLETE}".rstrip()
        )

    @staticmethod
    def sums(files: Mapping[str, Traversable]) -> dict[str, str]:
        """SHA-256 of each file, by name."""
        return {name: hashlib.sha256(read_bytes(path)).hexdigest() for name, path in files.items()}

    @classmethod
    def differing(cls, sums: Mapping[str, str]) -> list[str]:
        """Says of each file that is not the published one what its SHA-256 is and should be."""
        return [
            f"{name} is not the published file: SHA-256 {sums[name]}, expected {expected}"
            for name, expected in cls.published_sha256().items()
            if sums.get(name, expected) != expected
        ]

    def _info(self) -> tfds.core.DatasetInfo:
        emotions = self.builder_config.emotions
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            homepage=self.HOMEPAGE,
            license=self.LICENSE,
            citation=self.CITATION,
            disable_shuffling=True,  # dialogues stay in the order of the source
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "extra": tfds.features.Text(),  # JSON object, or empty
                    "utterances": tfds.features.Sequence(
                        {
                            "speaker": tfds.features.Text(),
                            "text": tfds.features.Text(),
                            "emotion": tfds.features.ClassLabel(names=list(emotions)),  # or -1
                            "sentiment": tfds.features.Text(),  # empty: not given
                            # NaN: none. As bytes, for plain numbers are cut to 32 bits.
                            "vad": tfds.features.Tensor(
                                shape=(3,), dtype=np.float64, encoding="bytes"
                            ),
                            "extra": tfds.features.Text(),
                        }
                    ),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # files were fetched before, for their hash is part of the config's name
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        plain = [f for name, f in self.builder_config.files.items() if _is_plain(name, split)]
        number = 0
        for places, dialogue in iter_dialogues(plain[0]) if plain else self.read(split):
            check_length(len(dialogue.utterances), places[0])
            for place, utterance in zip(places, dialogue.utterances, strict=True):
                self._check_emotion(utterance.emotion, place)
            yield number, _encode(dialogue)
            number += 1
        if number == 0:
            raise UserError(f"{self.name}: no dialogues in the {split} split; are files missing?")

    def _check_emotion(self, emotion: str | None, place: str) -> None:
        emotions = self.builder_config.emotions
        if emotion is not None and emotion not in emotions:
            raise UserError(
                f"{place}: unknown emotion {emotion!r}; expected one of {', '.join(emotions)}, "
                f"or none. {self.OTHER_EMOTIONS}"
            )


def _found(names: Sequence[str], missing: Sequence[str]) -> str:
    lacking = "all" if len(missing) == len(names) else ", ".join(missing)
    return f"{', '.join(names)} (missing: {lacking or 'none'})"


def _plain_file(folder: Traversable, split: str) -> Traversable | None:
    """A split in this package's own format."""
    candidates = (folder / f"{split}.jsonl", folder / f"{split}.csv")
    return next((path for path in candidates if path.is_file()), None)


def _is_plain(name: str, split: str) -> bool:
    return name in (f"{split}.jsonl", f"{split}.csv")


def _download(url: str, manual: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            return response.read()
    except (OSError, http.client.HTTPException) as error:  # no network is an OSError, too
        raise UserError(f"{url}: cannot be downloaded ({error}). {manual}") from error


def _encode(dialogue: Dialogue) -> dict[str, Any]:
    return {
        "id": dialogue.id,
        "extra": _to_text(dialogue.extra),
        "utterances": [
            {
                "speaker": utterance.speaker,
                "text": utterance.text,
                "emotion": UNLABELLED if utterance.emotion is None else utterance.emotion,
                "sentiment": utterance.sentiment or "",
                "vad": [(utterance.vad or {}).get(dimension, np.nan) for dimension in VAD],
                "extra": _to_text(utterance.extra),
            }
            for utterance in dialogue.utterances
        ],
    }


def _decode(example: Mapping[str, Any], emotions: Sequence[str]) -> Dialogue:
    columns = example["utterances"]
    return Dialogue(
        id=example["id"].decode(),
        extra=_from_text(example["extra"]),
        utterances=tuple(
            Utterance(
                speaker=speaker.decode(),
                text=text.decode(),
                emotion=None if emotion == UNLABELLED else emotions[emotion],
                sentiment=sentiment.decode() or None,
                vad={d: v for d, v in zip(VAD, vad.tolist(), strict=True) if v == v} or None,
                extra=_from_text(extra),
            )
            for speaker, text, emotion, sentiment, vad, extra in zip(
                *(columns[k] for k in ("speaker", "text", "emotion", "sentiment", "vad", "extra")),
                strict=True,
            )
        ),
    )


def _to_text(extra: Mapping[str, Any]) -> str:
    return json.dumps(dict(extra)) if extra else ""


def _from_text(extra: bytes) -> dict[str, Any]:
    return json.loads(extra) if extra else {}


def prepare(
    builder_class: type[DialogueBuilder],
    config_name: str,
    files: Mapping[str, Traversable],
    keep_unlabelled: bool,
    cache: Path,
) -> tuple[dict[str, list[Dialogue]], tuple[str, ...]]:
    """Writes the corpus as ArrayRecord files, once per config name, and reads it from there.

    Args:
      builder_class: the corpus.
      config_name: names the contents: other files or options, another name.
      files: the source files, as ``locate`` gave them.
      keep_unlabelled: see SourceConfig.
      cache: folder of prepared corpora.

    Returns:
      The dialogues of each split, and the emotions' names.

    Raises:
      UserError: a source file is not as it should be, or the cache cannot be written.
    """
    directory = cache / builder_class.name / config_name / str(builder_class.VERSION)
    with _quiet():
        if not directory.exists():
            builder = builder_class(
                config=SourceConfig(
                    name=config_name,
                    files=files,
                    emotions=builder_class.emotions_of(files),
                    keep_unlabelled=keep_unlabelled,
                ),
                data_dir=cache,
                file_format="array_record",  # the default, tfrecord, needs TensorFlow
            )
            try:
                builder.download_and_prepare()
            except OSError as error:
                # Another process may have prepared the same meanwhile; its records are as good.
                if not directory.exists():
                    raise UserError(
                        f"{directory}: cannot be written ({error.strerror}); free some space or "
                        "set the environment variable ERC_JAX_CACHE to another folder"
                    ) from error
        builder = tfds.builder_from_directory(directory)
        emotions = tuple(builder.info.features["utterances"]["emotion"].names)
        splits = {split: _read_back(builder, split, emotions) for split in SPLITS}
    return splits, emotions


def _read_back(
    builder: tfds.core.DatasetBuilder, split: str, emotions: Sequence[str]
) -> list[Dialogue]:
    source = builder.as_data_source(split)
    # All at once: one by one takes half as long again.
    examples = source.__getitems__(range(len(source)))
    return [_decode(example, emotions) for example in examples]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """tfds announces what it does by print, progress bars and warnings; none is for our user."""
    tfds.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
