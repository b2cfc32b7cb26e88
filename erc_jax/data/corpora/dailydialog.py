"""DailyDialog: conversations of two, written for learners of English."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from importlib.resources.abc import Traversable

from erc_jax.data.corpora.base import SPLITS, DialogueBuilder
from erc_jax.data.dialogue import (
    Dialogue,
    Located,
    Utterance,
    decode,
    read_bytes,
    utterance_places,
)
from erc_jax.errors import UserError

ARCHIVE = "ijcnlp_dailydialog.zip"
END = "__eou__"  # follows every utterance
PUBLISHED = {  # SHA-256; train is the corrected release of November 2017
    "train/dialogues_train.txt": "2128f3b82140b7d72d8d5bb989e5982a0394e4e40655995270d84c7eeee373b1",
    "train/dialogues_emotion_train.txt": (
        "5c94e57c6e6c6641f4b1386513085f9d9b934229e732a556424ca7dfae4b6c77"
    ),
    "validation/dialogues_validation.txt": (
        "2ad64701fe3a4449e7a6ee7cdc6c2a71c80f77b8a34f708ac0532395f499081c"
    ),
    "validation/dialogues_emotion_validation.txt": (
        "3d4094299a995e998bbc3492ce1755c9abc1e7f56500c840e83b12dd16580596"
    ),
    "test/dialogues_test.txt": "3c323651cdfb09f7b529f850eddf96a638fc6cc9b43330b77956ab248484a1a8",
    "test/dialogues_emotion_test.txt": (
        "482b7235f91a1441055a09241b2d2709bb1702f4a08d7316c27fa807cba7d3c9"
    ),
}


class DailyDialog(DialogueBuilder):
    """Li et al. (2017): a line of text per dialogue, and a line of emotion numbers in another file.

    Reads the unpacked folders train, validation and test, or the archives train.zip,
    validation.zip and test.zip, or the archive of these archives. The archives' sums are not
    known, so a download is checked by the texts in it.
    """

    name = "dailydialog"
    DESCRIPTION = "DailyDialog: written conversations of two speakers, with emotion"
    HOMEPAGE = "http://yanran.li/dailydialog"
    LICENSE = "CC BY-NC-SA 4.0"
    CITATION = """@inproceedings{li2017dailydialog,
      title={DailyDialog: A Manually Labelled Multi-turn Dialogue Dataset},
      author={Li, Yanran and Su, Hui and Shen, Xiaoyu and Li, Wenjie and Cao, Ziqiang and Niu,
        Shuzi},
      booktitle={IJCNLP}, year={2017}}"""

    URLS = {ARCHIVE: f"http://yanran.li/files/{ARCHIVE}"}
    MANUAL = (
        "Get train.zip, validation.zip and test.zip by other means (copies are at "
        "https://huggingface.co/datasets/roskoN/dailydialog) and name their folder: "
        "--config.data.source=DIR"
    )
    EMOTIONS = ("no emotion", "anger", "disgust", "fear", "happiness", "sadness", "surprise")
    NEUTRAL = "no emotion"
    POLARITY = {
        "no emotion": "neutral",
        "anger": "negative",
        "disgust": "negative",
        "fear": "negative",
        "happiness": "positive",
        "sadness": "negative",
        "surprise": "neutral",
    }

    @classmethod
    def published_sha256(cls) -> dict[str, str]:
        return PUBLISHED

    @classmethod
    def original_files(cls, folder: Traversable) -> dict[str, Traversable]:
        found = {name: path for split in SPLITS for name, path in _split_files(folder, split)}
        return found if len(found) == 2 * len(SPLITS) else {}

    @classmethod
    def looked_for(cls, folder: Traversable) -> list[str]:
        missing = [split for split in SPLITS if len([*_split_files(folder, split)]) < 2]
        return [
            f"folders {', '.join(SPLITS)} with dialogues_SPLIT.txt and dialogues_emotion_SPLIT.txt,"
            f" or the same as SPLIT.zip, or all in {ARCHIVE} (missing: {', '.join(missing)})"
        ]

    def read(self, split: str) -> Iterator[Located]:
        texts, emotions = (self.builder_config.files[f(split)] for f in (_texts, _emotions))
        text_lines, emotion_lines = _lines(texts), _lines(emotions)
        if len(text_lines) != len(emotion_lines):
            raise UserError(
                f"{texts} has {len(text_lines)} lines, {emotions} has {len(emotion_lines)}; "
                "expected one line per dialogue in both. Is one of them cut off?"
            )
        for number, (text, labels) in enumerate(zip(text_lines, emotion_lines, strict=True), 1):
            where = f"{texts}:{number}"
            *utterances, rest = text.split(END)
            if rest.strip() or not utterances:
                raise UserError(
                    f"{where}: the line does not end with {END}, found {rest.strip()[-40:]!r}; "
                    "is the file cut off?"
                )
            classes = labels.split()
            if len(utterances) != len(classes):
                raise UserError(
                    f"{where}: {len(utterances)} utterances, {len(classes)} emotion labels "
                    f"({emotions}:{number}). Make them the same number, or take the corrected "
                    "release: the first one, of April 2017, has an utterance end too many in line "
                    "7852 of train"
                )
            yield (
                utterance_places(where, len(utterances)),
                Dialogue(
                    str(number),
                    tuple(
                        Utterance(
                            speaker="AB"[turn % 2],  # the speakers alternate
                            text=utterance.strip(),
                            emotion=self._emotion(label, f"{emotions}:{number}"),
                        )
                        for turn, (utterance, label) in enumerate(
                            zip(utterances, classes, strict=True)
                        )
                    ),
                ),
            )

    def _emotion(self, label: str, where: str) -> str:
        names = dict(zip("0123456", self.EMOTIONS, strict=True))
        if label not in names:
            raise UserError(f"{where}: unknown emotion {label!r}; expected a number, 0 to 6")
        return names[label]


def _texts(split: str) -> str:
    return f"{split}/dialogues_{split}.txt"


def _emotions(split: str) -> str:
    return f"{split}/dialogues_emotion_{split}.txt"


def _lines(path: Traversable) -> list[str]:
    raw = read_bytes(path).removesuffix(b"\n").split(b"\n")
    return [decode(line, f"{path}:{number}") for number, line in enumerate(raw, 1)]


def _split_files(folder: Traversable, split: str) -> Iterator[tuple[str, Traversable]]:
    """Yields name and place of a split's two files, as far as they are there."""
    names = _texts(split), _emotions(split)
    outer = folder / ARCHIVE
    if all((folder / name).is_file() for name in names):
        yield from ((name, folder / name) for name in names)
    elif (folder / f"{split}.zip").is_file():
        path = folder / f"{split}.zip"
        yield from _members(_open(read_bytes(path), str(path)), names)
    elif outer.is_file():
        for _, path in _members(_open(read_bytes(outer), str(outer)), [f"{split}.zip"]):
            yield from _members(_open(read_bytes(path), str(path)), names)


def _open(content: bytes, where: str) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
    except zipfile.BadZipFile as error:
        start = content.lstrip()[:15]
        raise UserError(f"{where}: not a zip archive, it begins with {start!r}") from error
    archive.filename = where  # names the members in messages
    return archive


def _members(archive: zipfile.ZipFile, names: Sequence[str]) -> Iterator[tuple[str, Traversable]]:
    """Finds members by their last name, whatever folder they are in."""
    for name in names:
        for member in archive.namelist():
            if member.rpartition("/")[2] == name.rpartition("/")[2]:
                yield name, zipfile.Path(archive, member)
