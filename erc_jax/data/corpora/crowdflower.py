"""CrowdFlower's emotions in text: tweets, each with the emotion that readers saw in it."""

from __future__ import annotations

import html
from collections.abc import Iterator

from erc_jax.data.corpora.base import DialogueBuilder
from erc_jax.data.corpora.texts import deal, labelled
from erc_jax.data.dialogue import Located, csv_rows

FILE = "text_emotion.csv"
EMPTY = "empty"  # a label of the file, of tweets without any emotion
SHARE = 0.5


class CrowdFlower(DialogueBuilder):
    """CrowdFlower's "Data for Everyone"; a CSV file of tweet_id, sentiment, author, content.

    As Ide and Kawahara (2021) use it: without the label "empty", half of what is left, split at
    8:1:1, see ``erc_jax.data.corpora.texts.deal``. HTML entities are decoded (``&amp;`` is &).
    """

    name = "crowdflower"
    DESCRIPTION = "CrowdFlower's emotions in text: tweets with one of twelve emotions"
    HOMEPAGE = "https://data.world/crowdflower/sentiment-analysis-in-text"
    LICENSE = "commonly listed as public domain; tweets remain subject to Twitter's terms"

    RELEASES = ((FILE,),)
    URLS = {
        FILE: "https://raw.githubusercontent.com/abishekarun/Text-Emotion-Classification/"
        f"HEAD/{FILE}"
    }
    MANUAL = f"Get {FILE} from {HOMEPAGE} and name its folder: --config.data.source=DIR"
    EMOTIONS = (
        "anger",
        "boredom",
        "enthusiasm",
        "fun",
        "happiness",
        "hate",
        "love",
        "neutral",
        "relief",
        "sadness",
        "surprise",
        "worry",
    )
    NEUTRAL = "neutral"
    POLARITY = {
        "anger": "negative",
        "boredom": "negative",
        "enthusiasm": "positive",
        "fun": "positive",
        "happiness": "positive",
        "hate": "negative",
        "love": "positive",
        "neutral": "neutral",
        "relief": "positive",
        "sadness": "negative",
        "surprise": "neutral",
        "worry": "negative",
    }

    @classmethod
    def published_sha256(cls) -> dict[str, str]:
        return {FILE: "23916cbfa77bd009cc4a88687517149c57d5dce8c3a4b1ee57f42c97f06d70ca"}

    def read(self, split: str) -> Iterator[Located]:
        tweets = list(self._tweets())
        for number in deal(len(tweets), SHARE)[split]:
            yield tweets[number]

    def _tweets(self) -> Iterator[Located]:
        columns = ("tweet_id", "sentiment", "content")
        for where, row in csv_rows(self.builder_config.files[FILE], columns):
            emotion = row["sentiment"]
            if emotion == EMPTY:
                continue
            self._check_emotion(emotion, where)
            yield labelled(where, row["tweet_id"], html.unescape(row["content"]), emotion)
