r"""Zero-shot prompting of a chat model: SentEmoContext's baseline (its section 4, Figure 2).

    python -m erc_jax.prompting --config configs/dailydialog.py --workdir runs/llm \
        --endpoint http://localhost:8000/v1 --model NAME

asks any server of OpenAI's chat completions for the emotion of each test dialogue's last utterance.
The key, if the server wants one, comes from the environment variable OPENAI_API_KEY and is written
nowhere. Answers are kept in the workdir's answers.jsonl as they come, so that the same command goes
on where it was interrupted, and asks nothing twice.

The first emotion that an answer names counts. An answer that names none is not guessed at: it
counts as a miss of the utterance's emotion. Recall suffers, and with it F1, accuracy and MCC; no
emotion's precision does, because none was predicted.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from erc_jax import chat_flags, metrics
from erc_jax import main as command_line
from erc_jax.answers import AnswerFile, Question, ask_all
from erc_jax.chat import Answer, ChatClient
from erc_jax.config import base_config, check_same_run, save_config
from erc_jax.data.corpora import Corpus, load_corpus
from erc_jax.data.dialogue import Dialogue, parse_json, save_dialogues, write_whole
from erc_jax.data.labels import LabelSpace
from erc_jax.errors import UserError
from erc_jax.facts import commit_of_code, corpus_facts, package_version
from erc_jax.progress import say
from erc_jax.show import show_scores

NO_EMOTION = "no emotion"  # what prompts call the neutral emotion
# Figure 2 (a) lists emotions in this order, and models are not indifferent to it.
FIGURE_ORDER = ("happiness", "sadness", "anger", "surprise", "fear", "disgust")
MAX_TOKENS = 64  # of an answer: the label, even within a sentence that repeats the utterance
UNPARSABLE = -1  # in place of a predicted class
FREE_FIELDS = ("data.source", "prompting.endpoint")  # may have moved when a run goes on


class EmotionNames:
    """What a corpus' emotions are called in prompts, and how they are found in answers.

    Attributes:
      listed: names in the order of the prompt, "no emotion" for the neutral one at the end.
    """

    def __init__(self, labels: LabelSpace):
        def place(emotion: str) -> tuple[bool, int]:
            known = emotion in FIGURE_ORDER
            place_in_figure = FIGURE_ORDER.index(emotion) if known else len(FIGURE_ORDER)
            return emotion == labels.neutral, place_in_figure

        ordered = sorted(labels.emotions, key=place)
        self.listed = tuple(NO_EMOTION if e == labels.neutral else e for e in ordered)
        named = list(zip(self.listed, ordered, strict=True))
        if labels.neutral is not None:
            named.append((labels.neutral, labels.neutral))
        emotion_of: dict[str, str] = {}
        for name, emotion in named:
            other = emotion_of.setdefault(" ".join(name.casefold().split()), emotion)
            if other != emotion:
                raise UserError(
                    f"emotions {other!r} and {emotion!r} cannot be told apart in an answer, where "
                    f"case does not count and {NO_EMOTION!r} is the neutral emotion; rename one, "
                    "or say with --config.data.neutral which one is neutral"
                )
        # Where one name begins with another, the longer one is meant.
        names = sorted(emotion_of, key=len, reverse=True)
        self._emotions = [emotion_of[name] for name in names]
        either = "|".join(f"({_spaced(name)})" for name in names)
        # Whole words; unlike \b, this takes the underscores of _emphasis_ for no letters.
        self._pattern = re.compile(rf"(?<![^\W_])(?:{either})(?![^\W_])", re.IGNORECASE)

    def first_in(self, answer: str) -> str | None:
        """The emotion that an answer names first; inflections ("happy") are not guessed at."""
        found = self._pattern.search(answer)
        return self._emotions[found.lastindex - 1] if found and found.lastindex else None


def _spaced(name: str) -> str:
    return r"\s+".join(re.escape(word) for word in name.split())


def make_prompt(dialogue: Dialogue, position: int, names: Sequence[str]) -> str:
    """The prompt of Figure 2 (a): the whole dialogue, then the utterance in question.

    Args:
      dialogue: all of it is context, also what follows the utterance.
      position: of the utterance, from 0.
      names: of the emotions, in order.
    """
    # A line break within an utterance would look like a turn.
    texts = [" ".join(utterance.text.split()) for utterance in dialogue.utterances]
    turns = "\n".join(f"- {text}" for text in texts)
    return (
        f"Here is a dialog :\n\n{turns}\n\n"
        "Regarding its conversational context, give me the appropriate emotion to describe this "
        f'utterance : "{texts[position]}" , using only one of the following labels: '
        f"{', '.join(names)}. Predicted label :"
    )


def score(targets: np.ndarray, predictions: np.ndarray, labels: LabelSpace) -> dict[str, Any]:
    """The scores of ``metrics.block``, where a prediction may be missing.

    They equal scikit-learn's with the missing prediction as a further class that is not among
    ``labels``: it is a miss of the true class, and no class' false positive. The micro F1 is then
    above the accuracy, whose denominator counts every utterance.

    Args:
      targets: classes int [N], in [0, C).
      predictions: classes int [N], UNPARSABLE where there is none.
      labels: the C emotions.

    Returns:
      The block; its "confusion" [C, C] holds what was predicted, and what was not stands as
      "unparsable" beside each class' "support". "unparsable" and "items" count all.
    """
    n_classes = len(labels.emotions)
    columns = np.where(predictions == UNPARSABLE, n_classes, predictions)
    counts = metrics.confusion(targets, columns, n_classes + 1)
    block = metrics.block(counts, [*labels.emotions, ""], labels.neutral)
    del block["per_class"][""]
    hits, support, predicted = np.diagonal(counts), counts.sum(1), counts.sum(0)
    averaged = {"": labels.emotions}
    if labels.neutral is not None:
        averaged["_no_neutral"] = tuple(e for e in labels.emotions if e != labels.neutral)
    for suffix, emotions in averaged.items():  # over the emotions, not over what was missing
        f1 = [block["per_class"][emotion]["f1"] for emotion in emotions]
        block[f"macro_f1{suffix}"] = sum(f1) / max(len(f1), 1)
        classes = [labels.emotions.index(emotion) for emotion in emotions]
        total = int((support + predicted)[classes].sum())
        block[f"micro_f1{suffix}"] = 2 * int(hits[classes].sum()) / max(total, 1)
    for i, emotion in enumerate(labels.emotions):
        block["per_class"][emotion]["unparsable"] = int(counts[i, -1])
    block["confusion"] = counts[:-1, :-1].tolist()
    return block | {"unparsable": int(predicted[-1]), "items": int(support.sum())}


@dataclasses.dataclass(frozen=True)
class Item:
    """An utterance whose emotion is asked for.

    Attributes:
      dialogue: its place in the split.
      position: of the utterance in the dialogue, from 0.
      question: what is asked.
    """

    dialogue: int
    position: int
    question: Question


def make_items(
    dialogues: Sequence[Dialogue],
    names: EmotionNames,
    model: str,
    utterances: str,
    max_tokens: int = MAX_TOKENS,
) -> list[Item]:
    """What is asked about some dialogues: of "last" or "all" utterances those with an emotion.

    ``max_tokens`` 0 leaves the limit of an answer to the server.
    """
    items = []
    for row, dialogue in enumerate(dialogues):
        everything = range(len(dialogue.utterances))
        for position in everything[-1:] if utterances == "last" else everything:
            if dialogue.utterances[position].emotion is None:
                continue
            prompt = make_prompt(dialogue, position, names.listed)
            about = {"dialogue": dialogue.id, "utterance": position + 1}
            items.append(Item(row, position, Question.of(prompt, model, max_tokens, about)))
    return items


def evaluate_chat_model(
    config: ConfigDict,
    workdir: Path,
    *,
    endpoint: str,
    model: str,
    split: str = "test",
    utterances: str = "last",
    max_tokens: int = MAX_TOKENS,
    requests_per_minute: float = 60.0,
    concurrency: int = 4,
    timeout: float = 60.0,
    back_off: float = 1.0,
) -> dict[str, Any]:
    """Asks a chat model for the emotions of a split, or for those that it was not asked for yet.

    Args:
      config: whose ``data`` names the corpus; the rest is not read.
      workdir: of this model's answers, for any number of splits: config.json, answers.jsonl,
        metrics.json and predictions_<split>.jsonl.
      endpoint: see ChatClient.
      model: the server's name of the model.
      split: "train", "validation" or "test".
      utterances: "last" of each dialogue, as in the paper, or "all".
      max_tokens: of an answer; 0 leaves it to the server, as models that think first need it.
      requests_per_minute: see ChatClient.
      concurrency: requests under way at a time.
      timeout: see ChatClient.
      back_off: see ChatClient.

    Returns:
      What metrics.json holds: blocks of ``score`` by split, and "run".

    Raises:
      UserError: config, corpus or workdir do not fit, or the endpoint fails.
    """
    client = ChatClient(
        endpoint,
        requests_per_minute=requests_per_minute,
        timeout=timeout,
        back_off=back_off,
    )
    settings = {
        "model": model,
        "endpoint": client.address,
        "utterances": utterances,
        "max_tokens": max_tokens,
    }
    stored = {"system": "prompting", "data": config.data.to_dict(), "prompting": settings}
    check_same_run(ConfigDict(base_config().to_dict() | stored), workdir, free=FREE_FIELDS)
    corpus = load_corpus(
        config.data.name,
        config.data.source,
        neutral=config.data.neutral,
        keep_unlabelled=config.data.keep_unlabelled,
    )
    dialogues = corpus.splits[split]
    names = EmotionNames(corpus.labels)
    items = make_items(dialogues, names, model, utterances, max_tokens)
    if not items:
        raise UserError(f"{corpus.name}: no {utterances} utterance of {split} has an emotion")
    say(f"{corpus.name}: {len(items):,} utterances of {len(dialogues):,} dialogues of {split}")
    for note in corpus.notes:
        say(f"Note: {note}")

    save_config(ConfigDict(stored), workdir)
    file = AnswerFile(workdir / "answers.jsonl")
    try:
        ask_all(client, [item.question for item in items], file, concurrency)
    finally:
        client.close()
    answers = [file.answers[item.question.key] for item in items]
    found = [names.first_in(answer.text) for answer in answers]
    block = _score_items(items, found, dialogues, corpus.labels)
    records = _predictions(items, found, answers, dialogues)
    save_dialogues(workdir / f"predictions_{split}.jsonl", records)
    facts = _facts(corpus, settings, sorted({a.model for a in answers if a.model}))
    return _write_metrics(workdir / "metrics.json", {split: block}, facts)


def _score_items(
    items: Sequence[Item],
    found: Sequence[str | None],
    dialogues: Sequence[Dialogue],
    labels: LabelSpace,
) -> dict[str, Any]:
    classes = [labels.emotion_ids(dialogue) for dialogue in dialogues]
    targets = np.array([classes[item.dialogue][item.position] for item in items])
    predictions = [UNPARSABLE if e is None else labels.emotions.index(e) for e in found]
    return score(targets, np.array(predictions), labels)


def _predictions(
    items: Sequence[Item],
    found: Sequence[str | None],
    answers: Sequence[Answer],
    dialogues: Sequence[Dialogue],
) -> list[dict[str, Any]]:
    """The dialogues' records; what was asked has "emotion" (or null) and "answer", all "gold"."""
    records = [dialogue.to_json() for dialogue in dialogues]
    for record in records:
        for utterance in record["utterances"]:
            if "emotion" in utterance:
                utterance["gold"] = {"emotion": utterance.pop("emotion")}
    for item, emotion, answer in zip(items, found, answers, strict=True):
        utterance = records[item.dialogue]["utterances"][item.position]
        utterance |= {"emotion": emotion, "answer": answer.text}
    return records


def _facts(corpus: Corpus, settings: Mapping[str, Any], models: Sequence[str]) -> dict[str, Any]:
    """The ``run`` block of metrics.json: what the scores are scores of."""
    return {
        "system": "prompting",
        **settings,
        "answered_by": list(models),  # the server's own names: an alias may change its model
        "prompt": "SentEmoContext, Figure 2 (a)",
        "temperature": 0,
        "unparsable": "answers that name no emotion are misses: they lower recall, no precision",
        "corpus": corpus_facts(corpus),
        "versions": {"erc-jax": package_version("erc-jax")},
        "commit": commit_of_code(),
    }


def _write_metrics(
    path: Path, blocks: Mapping[str, Any], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes metrics.json; blocks of other splits that it already holds stay."""
    content: dict[str, Any] = {}
    if path.is_file():
        content = parse_json(path.read_text(), str(path))
    content = {**content, **blocks, "run": dict(facts)}
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return content


FLAGS = flags.FLAGS
KEY_FLAGS = ("config", "workdir", "split")  # those of the main command
for _name in KEY_FLAGS:
    flags.declare_key_flag(_name)
flags.adopt_module_key_flags(chat_flags)
flags.DEFINE_enum("utterances", "last", ["last", "all"], "Of each dialogue; the paper's is last.")


def main(argv: Sequence[str]) -> None:
    """Runs the command line; a user's mistake becomes one message and exit code 1."""
    command_line.quiet_logs()
    try:
        _check_flags(argv)
        content = evaluate_chat_model(
            FLAGS.config,
            Path(FLAGS.workdir),
            endpoint=FLAGS.endpoint,
            model=FLAGS.model,
            split=FLAGS.split,
            utterances=FLAGS.utterances,
            max_tokens=MAX_TOKENS if FLAGS.max_tokens is None else FLAGS.max_tokens,
            requests_per_minute=FLAGS.requests_per_minute,
            concurrency=FLAGS.concurrency,
            timeout=FLAGS.timeout,
        )
    except UserError as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. The answers so far are kept; the same command asks for the rest.")
    block = content[FLAGS.split]
    show_scores({FLAGS.split: block, "run": content["run"]})
    print(
        f"{block['unparsable']:,} of {block['items']:,} answers name no emotion; they are misses."
    )


def _check_flags(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected arguments: {' '.join(argv[1:])}; flags begin with --")
    for name in ("config", "workdir", "endpoint", "model"):
        if not FLAGS[name].value:
            raise UserError(
                f"--{name} is missing; for instance python -m erc_jax.prompting --config "
                "configs/dailydialog.py --workdir runs/llm --endpoint http://localhost:8000/v1 "
                "--model NAME"
            )
    for flag in FLAGS.get_flags_for_module(command_line.__name__):
        if flag.present and flag.name.split(".")[0] not in KEY_FLAGS:
            raise UserError(f"--{flag.name} is for python -m erc_jax.main; leave it out")


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse_flags)
