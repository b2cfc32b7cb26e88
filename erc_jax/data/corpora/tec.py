"""TEC, the Twitter Emotion Corpus: tweets, each with the emotion that its writer tagged it with."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

from erc_jax.data.corpora.base import DialogueBuilder
from erc_jax.data.corpora.texts import deal, labelled
from erc_jax.data.dialogue import Located, text_lines
from erc_jax.errors import UserError

FILE = "Jan9-2012-tweets-clean.txt"
EMOTIONS = ("anger", "disgust", "fear", "joy", "sadness", "surprise")
LINE = re.compile(r"\d+:\t(.*)\t:: (.*)", re.DOTALL)  # tweets hold "::", tabs, and U+0085
LABEL = re.compile(rf"#(?:{'|'.join(EMOTIONS)})\b", re.IGNORECASE)


class Tec(DialogueBuilder):
    """Mohammad (2012): lines ``id:<tab>tweet<tab>:: emotion``.

    The label is a hashtag of the tweet, which the published file no longer holds; yet 150 of the
    21,051 tweets have another hashtag of one of the six emotions, mostly the label once more, and
    it is taken out here. HTML entities are decoded (``&amp;`` is &); all else stays.

    The file is one piece: it is split at 8:1:1, see ``erc_jax.data.corpora.texts.deal``. Tweets'
    ids repeat, so that a dialogue's is the number of its line.
    """

    name = "tec"
    DESCRIPTION = "Twitter Emotion Corpus: tweets with one of six emotions"
    HOMEPAGE = "http://saifmohammad.com/WebPages/SentimentEmotionLabeledData.html"
    LICENSE = "free for research"
    CITATION = """@inproceedings{mohammad2012emotional,
      title={#Emotional Tweets},
      author={Mohammad, Saif},
      booktitle={*SEM}, year={2012}}"""

    RELEASES = ((FILE,),)
    URLS = {
        FILE: "https://raw.githubusercontent.com/vidhiJain/Deep-learning-for-sentiment-analysis/"
        f"HEAD/data/{FILE}"
    }
    MANUAL = f"Get {FILE} from {HOMEPAGE} and name its folder: --config.data.source=DIR"
    EMOTIONS = EMOTIONS
    POLARITY = {
        "anger": "negative",
        "disgust": "negative",
        "fear": "negative",
        "joy": "positive",
        "sadness": "negative",
        "surprise": "neutral",
    }

    @classmethod
    def published_sha256(cls) -> dict[str, str]:
        return {FILE: "dca42ec5b4c46ea76762df2935ca9ad1c62539febda8ea0a77e3d0cf746af14e"}

    def read(self, split: str) -> Iterator[Located]:
        tweets = list(self._tweets())
        for number in deal(len(tweets))[split]:
            yield tweets[number]

    def _tweets(self) -> Iterator[Located]:
        for where, line in text_lines(self.builder_config.files[FILE]):
            parts = LINE.fullmatch(line)
            if parts is None:
                raise UserError(
                    f"{where}: expected 'id:<tab>tweet<tab>:: emotion', found {line[-60:]!r}; "
                    "is the file cut off?"
                )
            tweet, emotion = parts.groups()
            self._check_emotion(emotion, where)
            text = LABEL.sub("", html.unescape(tweet))
            yield labelled(where, where.rpartition(":")[2], text, emotion)
