"""EmoryNLP: multi-party conversations from the series Friends, in either of its releases."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from typing import Any

from erc_jax.data.corpora.base import DialogueBuilder
from erc_jax.data.dialogue import (
    Dialogue,
    Located,
    Utterance,
    check_length,
    csv_rows,
    decode,
    group_rows,
    read_bytes,
)
from erc_jax.errors import UserError

ADDRESS = "https://raw.githubusercontent.com/declare-lab/MELD/master/data/emorynlp/"
CSV_FILES = {
    "train": "emorynlp_train_final.csv",
    "validation": "emorynlp_dev_final.csv",
    "test": "emorynlp_test_final.csv",
}
JSON_FILES = {
    "train": "emotion-detection-trn.json",
    "validation": "emotion-detection-dev.json",
    "test": "emotion-detection-tst.json",
}
COLUMNS = ("Utterance", "Speaker", "Emotion", "Scene_ID", "Season", "Episode")


class EmoryNlp(DialogueBuilder):
    """Zahiri and Choi (2018). The CSV files hold the utterances that work on ERC uses; the JSON
    release holds more. A dialogue is a scene. The first speaker named counts as the speaker.
    """

    name = "emorynlp"
    DESCRIPTION = "EmoryNLP: conversations of several speakers from Friends, with emotion"
    HOMEPAGE = "https://github.com/emorynlp/emotion-detection"
    LICENSE = "Apache-2.0"
    CITATION = """@inproceedings{zahiri2018emotion,
      title={Emotion Detection on TV Show Transcripts with Sequence-based Convolutional Neural
        Networks},
      author={Zahiri, Sayyed M. and Choi, Jinho D.},
      booktitle={AAAI Workshop on Affective Content Analysis}, year={2018}}"""

    RELEASES = (tuple(CSV_FILES.values()), tuple(JSON_FILES.values()))
    URLS = {file: ADDRESS + file for file in CSV_FILES.values()}
    EMOTIONS = ("neutral", "joyful", "scared", "mad", "peaceful", "powerful", "sad")
    NEUTRAL = "neutral"
    POLARITY = {
        "neutral": "neutral",
        "joyful": "positive",
        "scared": "negative",
        "mad": "negative",
        "peaceful": "positive",
        "powerful": "positive",
        "sad": "negative",
    }

    def read(self, split: str) -> Iterator[Located]:
        files = self.builder_config.files
        if CSV_FILES[split] in files:
            return group_rows(_rows(files[CSV_FILES[split]]))
        return _scenes(files[JSON_FILES[split]])


def _rows(path: Traversable) -> Iterator[tuple[str, str, Utterance]]:
    for where, row in csv_rows(path, COLUMNS):
        numbers = [row[key] for key in ("Season", "Episode", "Scene_ID")]
        if not all(number.isdecimal() for number in numbers):
            raise UserError(f"{where}: Season, Episode, Scene_ID are {numbers}; expected numbers")
        season, episode, scene = map(int, numbers)
        try:
            speakers = ast.literal_eval(row["Speaker"])  # a printed Python list of strings
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            speakers = None
        utterance = _utterance(speakers, row["Utterance"], row["Emotion"], where)
        # The JSON release's name of the scene.
        yield where, f"s{season:02}_e{episode:02}_c{scene:02}", utterance


def _scenes(path: Traversable) -> Iterator[Located]:
    text = decode(read_bytes(path), str(path))
    try:
        episodes = json.loads(text)["episodes"]
        scenes = [scene for episode in episodes for scene in episode["scenes"]]
        for scene in scenes:
            where = f"{path}: scene {scene['scene_id']}"
            check_length(len(scene["utterances"]), where)
            places = [f"{path}: {u['utterance_id']}" for u in scene["utterances"]]
            utterances = tuple(
                _utterance(u["speakers"], u["transcript"], u["emotion"], place)
                for place, u in zip(places, scene["utterances"], strict=True)
            )
            yield places, Dialogue(scene["scene_id"], utterances)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg}); is it cut off?") from error
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not the JSON release of EmoryNLP ({error!r}); expected episodes > scenes > "
            "utterances with utterance_id, speakers, transcript and emotion"
        ) from error


def _utterance(speakers: Any, text: Any, emotion: Any, where: str) -> Utterance:
    if not (isinstance(speakers, list) and speakers and isinstance(speakers[0], str)):
        raise UserError(f"{where}: speakers are {speakers!r}; expected a list such as ['Ross']")
    if not (isinstance(text, str) and isinstance(emotion, str)):
        raise UserError(f"{where}: expected text and emotion, found {text!r} and {emotion!r}")
    return Utterance(speaker=speakers[0], text=text, emotion=emotion.lower())
