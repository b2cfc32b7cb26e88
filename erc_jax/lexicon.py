"""Valence, arousal and dominance of utterances by the norms of their words, without any model.

The norms are those of Warriner, Kuperman and Brysbaert (2013): 13,915 English words, rated by some
twenty people per dimension from 1 to 9. They are read from the published CSV file.

An utterance's rating is the mean over those of its words that have norms. A word is looked up as it
is spelled, in lower case, and without its inflection ("cried", "cry"). Irregular forms ("went") and
comparatives in -er, which names and trades end in, too, count as unknown.

Negation is heeded where it is near: a negator among the three words before a word, in the same
clause, reflects the word's valence about the middle of the scale, so that "not happy" (8.47) counts
1.53. In "No, I am happy" nothing is denied: the comma ends the clause. Arousal and dominance stay,
because a denial turns the evaluation around, not the speaker's state: who is "not happy" is not
thereby calm or weak, nor who is "not afraid" asleep.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from erc_jax.data.dialogue import VAD, csv_rows, read_bytes
from erc_jax.errors import UserError

SCALE = (1.0, 9.0)
COLUMNS = dict(zip(VAD, ("V.Mean.Sum", "A.Mean.Sum", "D.Mean.Sum"), strict=True))
WHERE_FROM = (
    "the norms are Ratings_Warriner_et_al.csv of Warriner, Kuperman and Brysbaert (2013), "
    "https://doi.org/10.3758/s13428-012-0314-x"
)

NEGATORS = frozenset(
    "not no never none nobody nothing nowhere neither nor without cannot hardly barely "
    "scarcely".split()
)  # and words in -n't
WINDOW = 3  # words after a negator that it may deny

# Tokenised corpora write "don ' t"; texts from Windows may hold U+0092 as an apostrophe.
APOSTROPHE = re.compile(r"\s?['’\x92]\s?(?=(?:t|s|m|d|re|ve|ll)\b)", re.IGNORECASE)
CLAUSE_END = re.compile(r"[.,;:!?…()—–\n]|--|\s-\s|\bbut\b", re.IGNORECASE)
WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")

# Endings, and what stood in their place.
ENDINGS = {
    "ies": "y",
    "ied": "y",
    "iest": "y",
    "ier": "y",
    "ily": "y",
    "ying": "ie",
    "s": "",
    "bly": "ble",
    "ly": "",
}
SHORTEST = 3  # letters of a word that is left without its ending
NOT_INFLECTED = frozenset(("being", "early"))  # of no bee and no ear


@dataclasses.dataclass(frozen=True)
class Rating:
    """What an utterance's words say.

    Attributes:
      vad: valence, arousal and dominance from 1 to 9, or None where no word is known.
      words: of the utterance.
      known: words that have norms.
    """

    vad: Mapping[str, float] | None
    words: int
    known: int


class Lexicon:
    """Word norms.

    Args:
      norms: of words, in the order of VAD, from 1 to 9.
      sha256: of the file that they are from, hex.
    """

    def __init__(self, norms: Mapping[str, tuple[float, ...]], sha256: str):
        self.sha256 = sha256
        # Some words differ by case alone ("AIDS", "aids"); others are sought in lower case.
        self._norms = {word.lower(): ratings for word, ratings in norms.items()} | dict(norms)
        self._found: dict[str, tuple[float, ...] | None] = {}

    def find(self, word: str) -> tuple[float, ...] | None:
        """A word's norms, or those of its uninflected form; None if it is unknown."""
        if word not in self._found:  # words come back
            before_clitic = word.split("'")[0]  # "he's", "mother's"
            spellings = (word, before_clitic, *_uninflected(before_clitic.lower()))
            forms = (form for spelling in spellings for form in (spelling, spelling.lower()))
            self._found[word] = next((self._norms[f] for f in forms if f in self._norms), None)
        return self._found[word]

    def rate(self, text: str) -> Rating:
        """The mean over an utterance's known words."""
        found = []
        n_words = 0
        for clause in CLAUSE_END.split(APOSTROPHE.sub("'", text)):
            words = WORD.findall(clause)
            n_words += len(words)
            negates = [_is_negator(word) for word in words]
            for i, word in enumerate(words):
                if negates[i] or (norms := self.find(word)) is None:
                    continue
                valence, *others = norms
                if any(negates[max(0, i - WINDOW) : i]):
                    valence = sum(SCALE) - valence
                found.append((valence, *others))
        if not found:
            return Rating(None, n_words, 0)
        means = (round(sum(column) / len(found), 4) for column in zip(*found, strict=True))
        return Rating(dict(zip(VAD, means, strict=True)), n_words, len(found))


def load_lexicon(path: Path) -> Lexicon:
    """Reads word norms: a CSV file with the columns Word, V.Mean.Sum, A.Mean.Sum and D.Mean.Sum.

    Raises:
      UserError: the file is missing or damaged, or a rating is not on the scale; the message names
        file and line.
    """
    if not path.is_file():
        raise UserError(f"--lexicon {path}: there is no such file; {WHERE_FROM}")
    norms: dict[str, tuple[float, ...]] = {}
    for where, row in csv_rows(path, ("Word", *COLUMNS.values())):
        word = row["Word"].strip()
        if not word:
            raise UserError(f'{where}: "Word" is empty')
        if word in norms:
            raise UserError(f"{where}: {word!r} is there twice; remove one")
        norms[word] = tuple(_rating(row[column], column, where) for column in COLUMNS.values())
    if not norms:
        raise UserError(f"{path}: there are no words in the file; {WHERE_FROM}")
    return Lexicon(norms, hashlib.sha256(read_bytes(path)).hexdigest())


def _rating(text: str, column: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not SCALE[0] <= value <= SCALE[1]:
        raise UserError(
            f"{where}: expected a number from {SCALE[0]:g} to {SCALE[1]:g} as {column}, found "
            f"{text[:80]!r}"
        )
    return value


def _is_negator(word: str) -> bool:
    word = word.lower()
    return word in NEGATORS or word.endswith("n't")


def _uninflected(word: str) -> Iterator[str]:
    """What a word in lower case may be a form of, the likeliest first."""
    if word not in NOT_INFLECTED:
        yield from (form for form in _without_ending(word) if len(form) >= SHORTEST)


def _without_ending(word: str) -> Iterator[str]:
    for suffix, instead in ENDINGS.items():
        if word.endswith(suffix):
            yield word.removesuffix(suffix) + instead
    if re.search(r"(?:[sxzo]|ch|sh)es$", word):
        yield word[:-2]
    for suffix in ("ed", "ing", "est"):
        if not word.endswith(suffix):
            continue
        stem = word.removesuffix(suffix)
        doubled = re.search(r"([^aeiou])\1$", stem)  # "stopped"
        if doubled and doubled[1] not in "fsl":  # with which words end: "missed"
            yield stem[:-1]
        if re.search(r"[aeiou][^aeiou]$", stem):  # "hoping": of hop it were "hopping"
            yield stem + "e"
        yield from (stem, stem + "e")
        if doubled:
            yield stem[:-1]  # "cancelled"
