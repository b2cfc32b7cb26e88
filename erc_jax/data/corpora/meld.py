"""MELD: multi-party conversations from the series Friends."""

from __future__ import annotations

from collections.abc import Iterator

from erc_jax.data.corpora.base import DialogueBuilder
from erc_jax.data.dialogue import Located, Utterance, csv_rows, group_rows
from erc_jax.data.labels import SENTIMENTS
from erc_jax.errors import UserError

ADDRESS = "https://raw.githubusercontent.com/declare-lab/MELD/master/data/MELD/"
FILES = {
    "train": "train_sent_emo.csv",
    "validation": "dev_sent_emo.csv",
    "test": "test_sent_emo.csv",
}
COLUMNS = ("Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID")


class Meld(DialogueBuilder):
    """Poria et al. (2019); one CSV file per split. Dialogue ids begin anew in every split."""

    name = "meld"
    DESCRIPTION = "MELD: conversations of several speakers from Friends, with emotion and sentiment"
    HOMEPAGE = "https://affective-meld.github.io"
    LICENSE = "GPL-3.0 (the repository's); the texts are a television series', for research"
    CITATION = """@inproceedings{poria2019meld,
      title={MELD: A Multimodal Multi-Party Dataset for Emotion Recognition in Conversations},
      author={Poria, Soujanya and Hazarika, Devamanyu and Majumder, Navonil and Naik, Gautam and
        Cambria, Erik and Mihalcea, Rada},
      booktitle={ACL}, year={2019}}"""

    RELEASES = (tuple(FILES.values()),)
    URLS = {file: ADDRESS + file for file in FILES.values()}
    EMOTIONS = ("neutral", "joy", "surprise", "anger", "sadness", "disgust", "fear")
    NEUTRAL = "neutral"
    POLARITY = {
        "neutral": "neutral",
        "joy": "positive",
        "surprise": "neutral",
        "anger": "negative",
        "sadness": "negative",
        "disgust": "negative",
        "fear": "negative",
    }

    def read(self, split: str) -> Iterator[Located]:
        return group_rows(self._rows(split))

    def _rows(self, split: str) -> Iterator[tuple[str, str, Utterance]]:
        for where, row in csv_rows(self.builder_config.files[FILES[split]], COLUMNS):
            if row["Sentiment"] not in SENTIMENTS:
                raise UserError(
                    f"{where}: unknown sentiment {row['Sentiment']!r}; "
                    f"expected one of {', '.join(SENTIMENTS)}"
                )
            utterance = Utterance(
                speaker=row["Speaker"],
                text=row["Utterance"],
                emotion=row["Emotion"],
                sentiment=row["Sentiment"],
            )
            yield where, row["Dialogue_ID"], utterance
