"""IEMOCAP: acted conversations of two, in five sessions of a pair of actors each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources.abc import Traversable

from erc_jax.data.corpora.base import DialogueBuilder
from erc_jax.data.dialogue import VAD, Dialogue, Located, Utterance, text_lines
from erc_jax.errors import UserError

SESSIONS = ("Session1", "Session2", "Session3", "Session4", "Session5")
TEST_SESSION = "Session5"
# The validation split of COSMIC and of the work that follows it.
VALIDATION = {
    "Ses01M_impro01",
    "Ses01M_script03_1",
    "Ses02F_impro02",
    "Ses02F_impro07",
    "Ses02M_script01_2",
    "Ses03F_impro01",
    "Ses03M_impro02",
    "Ses03M_impro08a",
    "Ses03M_script02_2",
    "Ses03M_script03_2",
    "Ses04F_impro07",
    "Ses04F_script02_1",
}
NAMES = {
    "hap": "happy",
    "sad": "sad",
    "neu": "neutral",
    "ang": "angry",
    "exc": "excited",
    "fru": "frustrated",
}
OTHERS = ("xxx", "sur", "fea", "dis", "oth")  # xxx: the annotators did not agree
VAD_SCALE = (1, 5)
# Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.
TRANSCRIPTION = re.compile(r"(?P<id>Ses\w+_(?P<speaker>[FM])\d{3}) \[[^]]*\]:(?P<text>.*)")
# [6.2901 - 8.2357] TAB Ses01F_impro01_F000 TAB neu TAB [2.5000, 2.5000, 2.5000]
EVALUATION = re.compile(
    r"\[[\d.]+ - [\d.]+\]\s+(?P<id>\w+)\s+(?P<emotion>\w+)\s+"
    r"\[(?P<valence>[\d.]+), (?P<activation>[\d.]+), (?P<dominance>[\d.]+)\]\s*"
)


class Iemocap(DialogueBuilder):
    """Busso et al. (2008): transcriptions and labels in text files of their own, per dialogue.

    Utterances outside the six classes are left out, or kept without a label. Activation is called
    arousal here, as in the rest of the package. Many published tables label some 50 utterances
    that the official files call "xxx", most of them happy: their counts differ by so much.
    """

    name = "iemocap"
    DESCRIPTION = (
        "IEMOCAP: acted conversations of two, with emotion and valence, arousal, dominance"
    )
    HOMEPAGE = "https://sail.usc.edu/iemocap"
    LICENSE = "IEMOCAP's release form; not to be passed on"
    CITATION = """@article{busso2008iemocap,
      title={IEMOCAP: Interactive Emotional Dyadic Motion Capture Database},
      author={Busso, Carlos and Bulut, Murtaza and Lee, Chi-Chun and Kazemzadeh, Abe and Mower,
        Emily and Kim, Samuel and Chang, Jeannette N. and Lee, Sungbok and Narayanan, Shrikanth S.},
      journal={Language Resources and Evaluation}, year={2008}}"""

    MANUAL = (
        "IEMOCAP is not public: ask for it with the release form at "
        "https://sail.usc.edu/iemocap/iemocap_release.htm, unpack IEMOCAP_full_release.tar.gz, and "
        "name the folder: --config.data.source=.../IEMOCAP_full_release"
    )
    EMOTIONS = tuple(NAMES.values())
    NEUTRAL = "neutral"
    POLARITY = {
        "happy": "positive",
        "sad": "negative",
        "neutral": "neutral",
        "angry": "negative",
        "excited": "positive",
        "frustrated": "negative",
    }

    @classmethod
    def original_files(cls, folder: Traversable) -> dict[str, Traversable]:
        files: dict[str, Traversable] = {}
        for session in SESSIONS:
            if not (found := _session_files(folder, session)):
                return {}
            files |= found
        return files

    @classmethod
    def looked_for(cls, folder: Traversable) -> list[str]:
        missing = [session for session in SESSIONS if not _session_files(folder, session)]
        return [
            "Session1 to Session5, each with dialog/transcriptions/*.txt and "
            f"dialog/EmoEvaluation/*.txt (missing: {', '.join(missing)})"
        ]

    def read(self, split: str) -> Iterator[Located]:
        files = self.builder_config.files
        for name, path in files.items():
            session, kind, file = name.split("/")
            dialogue = file.removesuffix(".txt")
            if kind != "transcriptions" or _split_of(session, dialogue) != split:
                continue
            evaluation = f"{session}/EmoEvaluation/{file}"
            if evaluation not in files:
                raise UserError(
                    f"{path}: there is no dialog/EmoEvaluation/{file} in {session}; "
                    "unpack the release anew"
                )
            located = self._utterances(path, files[evaluation])
            if located:  # none where no utterance has one of the classes
                places, utterances = zip(*located, strict=True)
                yield places, Dialogue(dialogue, utterances, {"vad_scale": list(VAD_SCALE)})

    def _utterances(
        self, transcription: Traversable, evaluation: Traversable
    ) -> list[tuple[str, Utterance]]:
        ratings = dict(_ratings(evaluation))
        located = []
        for where, line in text_lines(transcription):
            match = TRANSCRIPTION.match(line)
            if not match:  # turns that were not evaluated, such as ..._MXX0
                continue
            emotion, vad = ratings.pop(match["id"], (None, None))
            if emotion is not None or self.builder_config.keep_unlabelled:
                utterance = Utterance(match["speaker"], match["text"].strip(), emotion, vad=vad)
                located.append((where, utterance))
        if lost := [name for name, (emotion, _) in ratings.items() if emotion is not None]:
            raise UserError(
                f"{transcription}: {lost[0]} is labelled in {evaluation}, but has no line here; "
                "is the file cut off?"
            )
        return located


def _split_of(session: str, dialogue: str) -> str:
    if session == TEST_SESSION:
        return "test"
    return "validation" if dialogue in VALIDATION else "train"


def _session_files(folder: Traversable, session: str) -> dict[str, Traversable]:
    """A session's files by "Session1/transcriptions/Ses01F_impro01.txt", sorted; all or none."""
    files: dict[str, Traversable] = {}
    for kind in ("transcriptions", "EmoEvaluation"):
        place = folder / session / "dialog" / kind
        # The release also holds ._Ses01F_impro01.txt and the like, which are no text.
        texts = [
            path
            for path in (place.iterdir() if place.is_dir() else ())
            if path.name.startswith("Ses") and path.name.endswith(".txt")
        ]
        if not texts:
            return {}
        files |= {f"{session}/{kind}/{path.name}": path for path in texts}
    return dict(sorted(files.items()))


def _ratings(path: Traversable) -> Iterator[tuple[str, tuple[str | None, dict[str, float]]]]:
    """Yields utterance id, emotion (None outside the six classes) and mean ratings."""
    for where, line in text_lines(path):
        if not line.startswith("["):  # single annotators' votes
            continue
        match = EVALUATION.fullmatch(line)
        if not match:
            raise UserError(
                f"{where}: expected [start - end], utterance, emotion, [V, A, D]; found {line!r}"
            )
        if match["emotion"] not in NAMES and match["emotion"] not in OTHERS:
            raise UserError(
                f"{where}: unknown emotion {match['emotion']!r}; "
                f"expected one of {', '.join((*NAMES, *OTHERS))}"
            )
        ratings = (float(match[key]) for key in ("valence", "activation", "dominance"))
        yield match["id"], (NAMES.get(match["emotion"]), dict(zip(VAD, ratings, strict=True)))
