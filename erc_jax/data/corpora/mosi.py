"""CMU-MOSI: monologues on video, with features of text, voice and face."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterator, Mapping
from importlib.resources.abc import Traversable

import numpy as np

from erc_jax.data.corpora.base import DialogueBuilder
from erc_jax.data.dialogue import Dialogue, Located, Utterance, text_lines
from erc_jax.data.feature_files import FeatureTable
from erc_jax.errors import UserError

ADDRESS = (
    "https://raw.githubusercontent.com/declare-lab/multimodal-deep-learning/HEAD/bc-LSTM/data/"
)
PARTS = ("train", "test")  # of the files; the last videos of train are the validation split
VALIDATION_VIDEOS = 10
TRANSCRIPTS = "transcripts.csv"
# Modality to its files' name, the folder in which they are published, and the number of channels.
FEATURES = {
    "text": ("text_{}.csv", "", 100),
    "audio": ("audio_{}0.csv", "audio/", 73),
    "visual": ("video_{}0.csv", "video/", 100),
}
EMOTIONS = {"0": "negative", "1": "positive"}
LARGEST = np.finfo(np.float32).max
PUBLISHED = {  # SHA-256
    TRANSCRIPTS: "e7689e6d70720addd2a6b316419d245a68839c32b014ff426c406063ee777466",
    "text_train.csv": "73770b6302ad0f7a51f4eddcae6788efde4d0b6802e09f78249d5b538d1c1d67",
    "text_test.csv": "f3b735070bf07ceff7a6ef6c8f4c32757e988de484e35bd6d38b2aecef851a59",
    "audio_train0.csv": "5435398a54664e7b00304587dc59ae84a438852be033c2a2fba779588624a2a1",
    "audio_test0.csv": "ddd17eeefd3d951d51d4e2ef8a0d132652d8161e1886f71eb7262b7a14bffff6",
    "video_train0.csv": "b6efc0413132d627efd06f67f1706830e775e90af9a75696f535c48dbc73f12f",
    "video_test0.csv": "cab836253d81100f59d533fa2ff65cd53c486be3ec9fd82203c5e25a7a77265f",
}


class Mosi(DialogueBuilder):
    """Zadeh et al. (2016), as Poria et al. (2017) cut and published it; a video is a dialogue.

    The files, none of which has a header, are transcripts.csv (VIDEO_n, text, a number, label) and
    for the parts train and test those of FEATURES: text begins with the row number in
    transcripts.csv, from 0; audio and visual end with the label and have text's order. The
    validation split is the last videos of train by name, in the order of their code points.

    The text and visual features are outputs of networks that were trained on the labels of the
    whole train part, so that train and validation look far easier than test: a logistic regression
    on an utterance's text features scores 98% on validation, 76% on test; on visual ones 94% and
    52%. Audio features are measurements, with channels from 0.001 to 50 in standard deviation.
    """

    name = "mosi"
    DESCRIPTION = "CMU-MOSI: monologues on video, sentiment, with features of three modalities"
    HOMEPAGE = "https://github.com/declare-lab/multimodal-deep-learning"
    LICENSE = "CMU-MOSI's, for research; the repository's is MIT"
    CITATION = """@article{zadeh2016mosi,
      title={MOSI: Multimodal Corpus of Sentiment Intensity and Subjectivity Analysis in Online
        Opinion Videos},
      author={Zadeh, Amir and Zellers, Rowan and Pincus, Eli and Morency, Louis-Philippe},
      journal={arXiv preprint arXiv:1606.06259}, year={2016}}
    @inproceedings{poria2017context,
      title={Context-Dependent Sentiment Analysis in User-Generated Videos},
      author={Poria, Soujanya and Cambria, Erik and Hazarika, Devamanyu and Majumder, Navonil and
        Zadeh, Amir and Morency, Louis-Philippe},
      booktitle={ACL}, year={2017}}"""

    RELEASES = (tuple(PUBLISHED),)
    URLS = {
        TRANSCRIPTS: ADDRESS + TRANSCRIPTS,
        **{
            file.format(part): ADDRESS + folder + file.format(part)
            for file, folder, _ in FEATURES.values()
            for part in PARTS
        },
    }
    EMOTIONS = tuple(EMOTIONS.values())
    POLARITY = {"negative": "negative", "positive": "positive"}

    @classmethod
    def published_sha256(cls) -> dict[str, str]:
        return PUBLISHED

    def read(self, split: str) -> Iterator[Located]:
        for name, rows in _videos(self.builder_config.files)[split].items():
            yield [row.place for row in rows], Dialogue(name, tuple(row.utterance for row in rows))

    @classmethod
    def feature_tables(cls, files: Mapping[str, Traversable]) -> dict[str, dict[str, FeatureTable]]:
        """The features of each split by modality: text [M, 100], audio [M, 73], visual [M, 100].

        Raises:
          UserError: naming file and line of what is wrong.
        """
        if TRANSCRIPTS not in files:  # a corpus in this package's own format has no features
            return {}
        return {
            split: {modality: _table(videos, modality) for modality in FEATURES}
            for split, videos in _videos(files).items()
        }


@dataclasses.dataclass(frozen=True)
class _Row:
    """An utterance of a video.

    Attributes:
      place: "file:line" in transcripts.csv.
      video: its name.
      number: n of VIDEO_n; a video's utterances are in its order.
      utterance: what was said.
      features: float32 [D] by modality; none in what a transcript alone gives.
    """

    place: str
    video: str
    number: int
    utterance: Utterance
    features: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def _videos(files: Mapping[str, Traversable]) -> dict[str, dict[str, list[_Row]]]:
    """Split to video to utterances, all in order."""
    transcripts = _transcripts(files[TRANSCRIPTS])
    videos: dict[str, list[_Row]] = {}
    part_of: dict[str, str] = {}  # by video
    taken: dict[str, str] = {}  # place in a text file, by place in transcripts.csv
    for part in PARTS:
        for where, row in _part(files, part, transcripts):
            if row.place in taken:
                raise UserError(f"{where}: the row {row.place} was taken by {taken[row.place]}")
            taken[row.place] = where
            if part_of.setdefault(row.video, part) != part:
                raise UserError(
                    f"{where}: video {row.video} has utterances in {part_of[row.video]}, too; "
                    "expected whole videos in train and test"
                )
            videos.setdefault(row.video, []).append(row)
    if missing := [row.place for row in transcripts if row.place not in taken]:
        raise UserError(
            f"{missing[0]}: no row of {' or '.join(FEATURES['text'][0].format(p) for p in PARTS)} "
            f"is this utterance's ({len(missing)} lack one); are those files cut off?"
        )
    for rows in videos.values():
        rows.sort(key=lambda row: row.number)
    names = {part: sorted(v for v in videos if part_of[v] == part) for part in PARTS}
    splits = {
        "train": names["train"][:-VALIDATION_VIDEOS],
        "validation": names["train"][-VALIDATION_VIDEOS:],
        "test": names["test"],
    }
    return {split: {name: videos[name] for name in chosen} for split, chosen in splits.items()}


def _transcripts(path: Traversable) -> list[_Row]:
    rows: list[_Row] = []
    seen: dict[tuple[str, int], str] = {}
    for where, (name, text, _, label) in _csv(path, 4):
        video, _, number = name.rpartition("_")
        if not (video and number.isdecimal()):
            raise UserError(f"{where}: the utterance's name is {name!r}; expected VIDEO_n")
        if label not in EMOTIONS:
            raise UserError(f"{where}: unknown label {label!r}; expected {' or '.join(EMOTIONS)}")
        row = _Row(where, video, int(number), Utterance(video, text, EMOTIONS[label]))
        if (first := seen.setdefault((video, row.number), where)) != where:
            raise UserError(f"{where}: utterance {name} is in {first} already; remove one")
        rows.append(row)
    return rows


def _part(
    files: Mapping[str, Traversable], part: str, transcripts: list[_Row]
) -> Iterator[tuple[str, _Row]]:
    """Yields "file:line" of the text features, and the utterance with all its features."""
    paths = {modality: files[file.format(part)] for modality, (file, _, _) in FEATURES.items()}
    # One column more is the text's row number, the others' label.
    tables = {
        modality: list(_csv(paths[modality], FEATURES[modality][2] + 1)) for modality in paths
    }
    for modality, table in tables.items():
        if len(table) != len(tables["text"]):
            raise UserError(
                f"{paths[modality]} has {len(table)} rows, {paths['text']} has "
                f"{len(tables['text'])}; expected one per utterance in both. Is one cut off?"
            )
    for (where, (index, *text)), *labelled in zip(*tables.values(), strict=True):
        if not (index.isdecimal() and int(index) < len(transcripts)):
            raise UserError(
                f"{where}: the first column is {index!r}; expected a row of {TRANSCRIPTS}, counted "
                f"from 0, which has {len(transcripts)}. Is that file cut off?"
            )
        row = transcripts[int(index)]
        features = {"text": _numbers(text, where)}
        for modality, (place, (*numbers, label)) in zip(list(tables)[1:], labelled, strict=True):
            if EMOTIONS.get(label) != row.utterance.emotion:
                raise UserError(
                    f"{place}: label {label!r}, but {row.place} says {row.utterance.emotion}; "
                    f"are the rows not in the order of {paths['text'].name}?"
                )
            features[modality] = _numbers(numbers, place)
        yield where, dataclasses.replace(row, features=features)


def _csv(path: Traversable, width: int) -> Iterator[tuple[str, list[str]]]:
    """Yields ("file:line", fields) of a file without a header whose texts have no line ends."""
    for where, line in text_lines(path):
        try:
            fields = next(csv.reader([line], strict=True))
        except csv.Error as error:
            raise UserError(f"{where}: {error}; is the file cut off?") from error
        if len(fields) != width:
            raise UserError(
                f"{where}: {len(fields)} fields, expected {width}; is the file cut off?"
            )
        yield where, fields


def _numbers(fields: list[str], where: str) -> np.ndarray:
    """Features float32 [D]."""
    try:
        numbers = np.array(fields, np.float64)
    except ValueError as error:
        raise UserError(f"{where}: {error}; expected a number") from error
    bad = ~(np.abs(numbers) <= LARGEST)  # NaN, too
    if bad.any():
        raise UserError(f"{where}: a feature is {fields[bad.argmax()]}; expected a finite number")
    return numbers.astype(np.float32)


def _table(videos: Mapping[str, list[_Row]], modality: str) -> FeatureTable:
    """The features of a split's utterances in one modality."""
    rows = [(position, row) for rows in videos.values() for position, row in enumerate(rows, 1)]
    return FeatureTable(
        features=np.array([row.features[modality] for _, row in rows], np.float32),
        dialogues=np.array([row.video for _, row in rows], str),
        positions=np.array([position for position, _ in rows], np.int32),
        extractor=f"{modality} features published with bc-LSTM",
        version="",
    )
