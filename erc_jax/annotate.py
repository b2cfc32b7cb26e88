"""Annotating a corpus with valence, arousal and dominance (FMERL, sections 3.3 and 3.4).

    python -m erc_jax.main --mode annotate --config meld:fmerl --output annotations/meld \
        --annotator lexicon --lexicon Ratings_Warriner_et_al.csv

writes a folder that erc_jax.data.annotation reads. The annotator "lexicon" rates with word norms
(erc_jax.lexicon) from 1 to 9 and describes emotions as the package does. The annotator "llm" asks
any server of OpenAI's chat completions with the paper's prompts, from 0 to 5. The key, if the
server wants one, comes from the environment variable OPENAI_API_KEY and is written nowhere. Answers
are kept in the folder's answers.jsonl as they come, so that the same command goes on where it was
interrupted, and asks nothing twice.

An answer that cannot be read is never guessed at: it stands in malformed.jsonl with the reason, and
what it was about has no rating. Utterances are rated in all three dimensions or not at all.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

from erc_jax.answers import AnswerFile, Question, ask_all
from erc_jax.chat import ChatClient
from erc_jax.data.annotation import DESCRIPTIONS, MANIFEST, Place, places_of, save_annotation
from erc_jax.data.corpora import load_corpus
from erc_jax.data.descriptions import PACKAGED, load_object, read_descriptions
from erc_jax.data.dialogue import VAD, Dialogue, write_whole
from erc_jax.errors import UserError
from erc_jax.facts import package_version
from erc_jax.lexicon import SCALE as LEXICON_SCALE
from erc_jax.lexicon import Lexicon, load_lexicon
from erc_jax.progress import duration, say

LLM_SCALE = (0.0, 5.0)
MAX_TOKENS = 256  # of an answer: some models explain before they come to the number

# The paper's equation 1, and equation 4.
SCORE_PROMPT = (
    "In the field of emotion recognition, score this utterance in the dimension of {dimension} "
    "from 0 to 5. The utterance is : {utterance}. Hence, the score is:"
)
DESCRIPTION_PROMPT = (
    "Use a brief phrase to describe the level of an emotion of {emotion} in the dimension of "
    "arousal, valence and dominance."
)

# The scale as answers repeat it: "from 0 to 5", "0-5"; "4 out of 5", "4/5".
OF_THE_SCALE = re.compile(r"\b0\s*(?:to|-|–|—)\s*5\b(?!\.\d)|(?:/|\bout of)\s*5(?:\.0)?\b(?!\.\d)")
# No part of a word ("GPT4", "3rd"), of a longer number ("1.2.3") or of a percentage.
NUMBER = re.compile(r"(?<![\w.])[-−]?\d+(?:\.\d+)?(?![\w%]|\.\d)")

T = TypeVar("T")


@dataclasses.dataclass
class _Found:
    """What an annotator has to say."""

    ratings: dict[str, dict[Place, Mapping[str, float]]]  # by split
    descriptions: dict[str, dict[str, str]]  # by emotion
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)  # for annotation.json
    malformed: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def read_score(answer: str) -> float:
    """The one number in an answer, from 0 to 5.

    Raises:
      ValueError: there is none, or another one, or several different ones; the text says which.
    """
    found = {float(n.replace("−", "-")) for n in NUMBER.findall(OF_THE_SCALE.sub(" ", answer))}
    if not found:
        raise ValueError("no number")
    if len(found) > 1:
        raise ValueError("several numbers")
    (score,) = found
    if not LLM_SCALE[0] <= score <= LLM_SCALE[1]:
        raise ValueError("not from 0 to 5")
    return score


def read_description(answer: str) -> str:
    """An answer on one line that speaks of all three dimensions.

    Raises:
      ValueError: it leaves one out; the text says which.
    """
    phrase = " ".join(answer.split())
    for dimension in VAD:
        if dimension not in phrase.casefold():
            raise ValueError(f"no {dimension}")
    return phrase


def annotate(
    config: ConfigDict,
    output: Path,
    *,
    annotator: str,
    lexicon: Path | None = None,
    endpoint: str | None = None,
    model: str | None = None,
    max_tokens: int = MAX_TOKENS,
    requests_per_minute: float = 60.0,
    concurrency: int = 4,
    timeout: float = 60.0,
    back_off: float = 1.0,
    dry_run: bool = False,
) -> None:
    """Rates all utterances of a corpus, describes its emotions, and writes both.

    Args:
      config: whose ``data`` names the corpus; the rest is not read.
      output: folder of the annotation; one that was interrupted is gone on with.
      annotator: "lexicon" or "llm".
      lexicon: file of word norms, for the annotator of this name.
      endpoint: see ChatClient; this and what follows is for the annotator "llm".
      model: the server's name of the model.
      max_tokens: of an answer; 0 leaves it to the server, as models that think first need it.
      requests_per_minute: see ChatClient.
      concurrency: requests under way at a time.
      timeout: see ChatClient.
      back_off: see ChatClient.
      dry_run: say what would be asked, ask nothing and write nothing.

    Raises:
      UserError: arguments, corpus or folder do not fit, the endpoint fails, or nothing could be
        rated.
    """
    if annotator == "lexicon":
        if lexicon is None:
            raise UserError("--annotator lexicon needs --lexicon: a CSV file of word norms")
        if dry_run:
            raise UserError("--dry_run is for --annotator llm; a lexicon asks nobody")
        norms = load_lexicon(lexicon)
        made_by = {
            "annotator": annotator,
            "version": package_version("erc-jax"),
            "lexicon": {"file": lexicon.name, "sha256": norms.sha256},
            "scale": list(LEXICON_SCALE),
        }
        corpus = _read(config, output, made_by)
        found = _from_lexicon(norms, corpus)
    elif annotator == "llm":
        if not endpoint or not model:
            raise UserError(
                "--annotator llm needs --endpoint and --model, for instance "
                "--endpoint http://localhost:8000/v1 --model NAME"
            )
        client = ChatClient(
            endpoint,
            requests_per_minute=requests_per_minute,
            timeout=timeout,
            back_off=back_off,
        )
        made_by = {
            "annotator": annotator,
            "model": model,
            "endpoint": client.address,
            "scale": list(LLM_SCALE),
        }
        corpus = _read(config, output, made_by)
        questions = _Questions.of(corpus, model, max_tokens)
        file = AnswerFile(output / "answers.jsonl")
        try:
            if dry_run:
                _say_what_is_asked(questions, file, requests_per_minute)
                return
            ask_all(client, questions.all(), file, concurrency)
        finally:
            client.close()
        found = _from_answers(questions, file, model)
        _save_malformed(found, output / "malformed.jsonl")
    else:
        raise UserError(f"--annotator is {annotator!r}; expected lexicon or llm")
    coverage = {
        split: {"utterances": len(texts), "rated": len(found.ratings[split])}
        for split, texts in corpus.splits.items()
    }
    _say_coverage(coverage)
    if missing := [e for e in corpus.emotions if e not in found.descriptions]:
        say(f"Note: without a description: {', '.join(missing)}; see --descriptions")
    facts = {**made_by, "corpus": corpus.facts, **found.facts, "coverage": coverage}
    save_annotation(output, found.ratings, found.descriptions, facts)
    say(f"annotation in {output}")


@dataclasses.dataclass(frozen=True)
class _Corpus:
    splits: Mapping[str, Mapping[Place, str]]  # texts
    emotions: Sequence[str]
    facts: Mapping[str, Any]


def _read(config: ConfigDict, output: Path, made_by: Mapping[str, Any]) -> _Corpus:
    """The corpus, if the folder has no other annotation than one of it that is made like this."""
    data = config.data
    corpus = load_corpus(
        data.name, data.source, neutral=data.neutral, keep_unlabelled=data.keep_unlabelled
    )
    facts = {
        "name": corpus.name,
        "sha256": corpus.sha256,
        "keep_unlabelled": data.keep_unlabelled,  # utterances' places depend on it
    }
    if not (output / MANIFEST).is_file():
        # Conversations have the same names, and so do ratings that people are still working on.
        mine = output / "answers.jsonl"
        for name in (*(f"{split}.jsonl" for split in corpus.splits), DESCRIPTIONS):
            if (output / name).exists() and not mine.is_file():
                raise UserError(
                    f"{output / name} is there already and is no annotation's; choose another "
                    "--output"
                )
    else:
        there, here = load_object(output / MANIFEST), {**made_by, "corpus": facts}
        for key in ("annotator", "model", "lexicon", "corpus"):
            if there.get(key) != here.get(key):
                raise UserError(
                    f"--output {output} holds another annotation: {key} is "
                    f"{json.dumps(there.get(key))} there and {json.dumps(here.get(key))} here; "
                    "choose another folder"
                )
    splits = {split: _texts(dialogues) for split, dialogues in corpus.splits.items()}
    emotions = corpus.labels.emotions
    say(f"{corpus.name}: {sum(map(len, splits.values())):,} utterances, {len(emotions)} emotions")
    return _Corpus(splits, emotions, facts)


def _texts(dialogues: Sequence[Dialogue]) -> dict[Place, str]:
    return {
        place: utterance.text
        for dialogue, places in zip(dialogues, places_of(dialogues), strict=True)
        for place, utterance in zip(places, dialogue.utterances, strict=True)
    }


def _from_lexicon(norms: Lexicon, corpus: _Corpus) -> _Found:
    known = read_descriptions(PACKAGED)
    found = _Found({}, {emotion: known[emotion] for emotion in corpus.emotions if emotion in known})
    words = known_words = 0
    for split, texts in corpus.splits.items():
        rated = {place: norms.rate(text) for place, text in texts.items()}
        found.ratings[split] = {place: rating.vad for place, rating in rated.items() if rating.vad}
        words += sum(rating.words for rating in rated.values())
        known_words += sum(rating.known for rating in rated.values())
    found.facts = {"words": words, "known_words": known_words}
    say(f"{known_words:,} of {words:,} words are known ({known_words / max(words, 1):.1%})")
    return found


@dataclasses.dataclass(frozen=True)
class _Questions:
    """What is asked of a chat model: about utterances that have text, and about emotions."""

    scores: Mapping[str, Mapping[Place, Mapping[str, Question]]]  # by split, place, dimension
    descriptions: Mapping[str, Question]  # by emotion

    @classmethod
    def of(cls, corpus: _Corpus, model: str, max_tokens: int) -> _Questions:
        def score(split: str, place: Place, text: str, dimension: str) -> Question:
            # A line break within an utterance would look like the end of it.
            prompt = SCORE_PROMPT.format(dimension=dimension, utterance=" ".join(text.split()))
            about = {"split": split, "dialogue": place[0], "utterance": place[1]}
            return Question.of(prompt, model, max_tokens, {**about, "dimension": dimension})

        def description(emotion: str) -> Question:
            prompt = DESCRIPTION_PROMPT.format(emotion=emotion)
            return Question.of(prompt, model, max_tokens, {"emotion": emotion})

        scores = {
            split: {
                place: {dimension: score(split, place, text, dimension) for dimension in VAD}
                for place, text in texts.items()
                if text.strip()
            }
            for split, texts in corpus.splits.items()
        }
        return cls(scores, {emotion: description(emotion) for emotion in corpus.emotions})

    def all(self) -> list[Question]:
        """Those about emotions come first."""
        scores = (
            question
            for of_split in self.scores.values()
            for of_utterance in of_split.values()
            for question in of_utterance.values()
        )
        return [*self.descriptions.values(), *scores]


def _say_what_is_asked(questions: _Questions, file: AnswerFile, requests_per_minute: float) -> None:
    everything = questions.all()
    keys = {question.key for question in everything}
    missing = len(keys - file.answers.keys())
    say(
        f"{len(everything):,} questions, {len(keys):,} of them different; "
        f"{len(keys) - missing:,} answers are in {file.path}.\n"
        f"{missing:,} requests, at {requests_per_minute:g} a minute at least "
        f"{duration(60 * missing / requests_per_minute)}. The first prompts:"
    )
    first_score = len(questions.descriptions)
    for question in (everything[0], *everything[first_score : first_score + len(VAD)]):
        say(f"\n{question.request['messages'][0]['content']}")


def _from_answers(questions: _Questions, file: AnswerFile, model: str) -> _Found:
    found = _Found({}, {})
    malformed: dict[str, dict[str, Any]] = {}  # by the question's key, as equal ones are one
    answered_by: set[str] = set()

    def read(question: Question, reader: Callable[[str], T]) -> T | None:
        answer = file.answers[question.key]
        if answer.model:
            answered_by.add(answer.model)
        try:
            return reader(answer.text)
        except ValueError as error:
            record = {**question.about, "problem": str(error), "answer": answer.text}
            malformed.setdefault(question.key, record)
            return None

    origin = f"{model}, asked with FMERL's prompt"
    for emotion, question in questions.descriptions.items():
        if phrase := read(question, read_description):
            found.descriptions[emotion] = {"description": phrase, "origin": origin}
    for split, of_split in questions.scores.items():
        ratings = found.ratings[split] = {}
        for place, of_utterance in of_split.items():
            scores = {dimension: read(q, read_score) for dimension, q in of_utterance.items()}
            whole = {d: score for d, score in scores.items() if score is not None}
            if len(whole) == len(VAD):
                ratings[place] = whole
    found.malformed = list(malformed.values())
    found.facts = {
        "answered_by": sorted(answered_by),  # the server's own names: an alias may change its model
        "prompts": {"score": SCORE_PROMPT, "description": DESCRIPTION_PROMPT},
        "temperature": 0,
        "answers": len({question.key for question in questions.all()}),
        "malformed": len(malformed),
    }
    return found


def _save_malformed(found: _Found, path: Path) -> None:
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in found.malformed)
    write_whole(path, "".join(lines))
    if found.malformed:
        first = found.malformed[0]
        say(
            f"Note: {len(found.malformed):,} answers cannot be read and are left out, the first "
            f"({first['problem']}): {json.dumps(first['answer'][:80])}; all are in {path}"
        )


def _say_coverage(coverage: Mapping[str, Mapping[str, int]]) -> None:
    """Raises UserError where nothing is rated."""
    for split, counts in coverage.items():
        share = counts["rated"] / max(counts["utterances"], 1)
        say(
            f"{split}: {counts['rated']:,} of {counts['utterances']:,} utterances are rated "
            f"({share:.1%})"
        )
    if not any(counts["rated"] for counts in coverage.values()):
        raise UserError(
            "no utterance could be rated; is the corpus in the lexicon's language, or does the "
            "model answer with numbers?"
        )
