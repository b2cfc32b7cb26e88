"""Emotion-aware replies: an experiment's parts, and how replies are scored.

The corpora are pairs of an utterance and the response to it, for task R, and labelled texts for
each classification task. ``config.data.source`` is a folder with a folder of each corpus
(dailydialog/, tec/, …).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from erc_jax import metrics
from erc_jax.data.corpora import Corpus, load_corpus
from erc_jax.data.dialogue import save_dialogues
from erc_jax.data.pairs import GENERATION, TextExamples, response_pairs
from erc_jax.encoders.new_tokenizer import train_tokenizer
from erc_jax.encoders.seq2seq import Seq2Seq
from erc_jax.errors import UserError
from erc_jax.predictor import Predictor
from erc_jax.progress import say
from erc_jax.scoring import SplitResult, seen_in_training
from erc_jax.systems import Params, Task
from erc_jax.systems.response import Response
from erc_jax.text_metrics import text_scores

# Classification tasks and the corpora of their labels; "" is the corpus whose turns are replied to.
HEADS = {"E": "", "E6": "tec", "E2": "sst2", "E12": "crowdflower"}


@dataclasses.dataclass(frozen=True)
class TaskCorpora:
    """The corpora of a run's tasks.

    Attributes:
      of: task to its corpus.
    """

    of: Mapping[str, Corpus]

    @property
    def name(self) -> str:
        return "+".join(dict.fromkeys(corpus.name for corpus in self.of.values()))

    @property
    def sha256(self) -> str:
        sums = "".join(f"{task} {corpus.sha256}\n" for task, corpus in self.of.items())
        return hashlib.sha256(sums.encode()).hexdigest()

    @property
    def heads(self) -> dict[str, tuple[str, ...]]:
        """Classification task to its classes."""
        return {
            task: tuple(corpus.labels.emotions)
            for task, corpus in self.of.items()
            if task != GENERATION
        }

    def facts(self) -> dict[str, Any]:
        """What metrics.json says of them: per task corpus, SHA-256 and items of each split."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "synthetic": any(corpus.synthetic for corpus in self.of.values()),
            "tasks": {
                task: {
                    "corpus": corpus.name,
                    "sha256": corpus.sha256,
                    "splits": {
                        split: len(response_pairs(dialogues))
                        if task == GENERATION
                        else sum(u.emotion is not None for d in dialogues for u in d.utterances)
                        for split, dialogues in corpus.splits.items()
                    },
                }
                for task, corpus in self.of.items()
            },
        }


@dataclasses.dataclass(frozen=True)
class ReplyExperiment:
    """Data and system of a run that replies, shared by its seeds."""

    corpus: TaskCorpora
    encoder: Seq2Seq  # what training starts from
    system: Response
    examples: Mapping[str, TextExamples]  # of the splits that were asked for
    description_encoder = None  # replies are not told apart by descriptions of emotions


def prepare_replies(
    config: ConfigDict, splits: Sequence[str], encoder_sha256: str | None
) -> ReplyExperiment:
    """As ``erc_jax.experiment.prepare``, of system "response"."""
    if config.init_from:
        raise UserError(
            "init_from is for runs that name emotions; --config.encoder=WORKDIR starts from the "
            "model of a run that replies"
        )
    corpora = _load_corpora(config)
    for task, counts in corpora.facts()["tasks"].items():
        found = ", ".join(f"{split} {count:,}" for split, count in counts["splits"].items())
        say(f"{task}: {counts['corpus']}, {found}")
        if not counts["splits"]["train"]:
            what = "pairs of turns" if task == GENERATION else "labels"
            raise UserError(f"{counts['corpus']}: no {what} in the training split, for task {task}")
    for note in dict.fromkeys(note for corpus in corpora.of.values() for note in corpus.notes):
        say(f"Note: {note}")
    encoder = _load_encoder(config, corpora)
    if encoder_sha256 not in (None, encoder.sha256):
        raise UserError(
            f"{encoder.name}: this is not what the run started from: SHA-256 {encoder.sha256} "
            f"here, {encoder_sha256} there"
        )
    system = Response(config, corpora.heads, encoder)
    _check_select_metric(config, corpora)
    examples = {split: _examples(config, corpora, split, encoder) for split in splits}
    return ReplyExperiment(corpora, encoder, system, examples)


def tasks_of(config: ConfigDict) -> list[str]:
    """The tasks that ``config.response.tasks`` names.

    Raises:
      UserError: one is not known, or named twice.
    """
    tasks = config.response.tasks.split("+")
    for task in tasks:
        if task not in (GENERATION, *HEADS):
            raise UserError(
                f"response.tasks is {config.response.tasks!r}; {task!r} is no task: known are "
                f"{', '.join((GENERATION, *HEADS))}, joined by +"
            )
    if len(set(tasks)) < len(tasks):
        raise UserError(f"response.tasks is {config.response.tasks!r}, which names one twice")
    return tasks


def _load_corpora(config: ConfigDict) -> TaskCorpora:
    corpora = {}
    for task in tasks_of(config):
        name = HEADS.get(task) or config.data.name
        corpus = load_corpus(name, _source_of(config, name))
        if task != GENERATION and len(corpus.labels.emotions) < 2:
            raise UserError(f"task {task}: {name} has no labels to learn; leave the task out")
        corpora[task] = corpus
    return TaskCorpora(corpora)


def _source_of(config: ConfigDict, corpus: str) -> Path | None:
    """The folder of a corpus' files, if the config says where they are."""
    if not config.data.source:
        return None
    source = Path(config.data.source).expanduser()
    if (source / corpus).is_dir():
        return source / corpus
    if corpus == config.data.name:
        return source
    raise UserError(
        f"data.source is {source}, which has no folder {corpus}; for these tasks it is a folder "
        f"with {', '.join(sorted({config.data.name, *filter(None, HEADS.values())}))}, as far as "
        "response.tasks needs them"
    )


def _load_encoder(config: ConfigDict, corpora: TaskCorpora) -> Seq2Seq:
    """The published model that the config names, or a new one."""
    if config.encoder:
        encoder = Seq2Seq.from_pretrained(config.encoder)
    else:
        how = config.response.scratch
        # Made from the turns alone, so that runs with other heads have the same words.
        corpus = corpora.of.get(GENERATION) or next(iter(corpora.of.values()))
        texts = [u.text for dialogue in corpus.splits["train"] for u in dialogue.utterances]
        encoder = Seq2Seq.from_scratch(
            train_tokenizer(texts, how.vocabulary),
            width=how.width,
            layers=how.layers,
            heads=how.heads,
            ffn=how.ffn,
            max_tokens=config.response.max_tokens,
        )
    if config.response.max_tokens >= encoder.longest:
        raise UserError(
            f"response.max_tokens is {config.response.max_tokens}, but {encoder.name} has "
            f"{encoder.longest} positions"
        )
    return encoder


def _check_select_metric(config: ConfigDict, corpora: TaskCorpora) -> None:
    known = [f"heads.{task}.{name}" for task in corpora.heads for name in ("accuracy", "macro_f1")]
    if GENERATION in corpora.of:
        known.insert(0, "perplexity")
    if config.train.select_metric not in known:
        raise UserError(
            f"train.select_metric is {config.train.select_metric!r}; expected one of "
            f"{', '.join(known)}"
        )


def _examples(
    config: ConfigDict, corpora: TaskCorpora, split: str, encoder: Seq2Seq
) -> TextExamples:
    """A split of all tasks, as token sequences."""
    limit = config.response.max_tokens
    parts = []
    for task, corpus in corpora.of.items():
        dialogues = corpus.splits[split]
        if task == GENERATION:
            parts.append(TextExamples.of_pairs(dialogues, encoder.tokenize, limit))
        else:
            labels = np.concatenate([corpus.labels.emotion_ids(d) for d in dialogues])
            tokenize = encoder.tokenize
            parts.append(TextExamples.of_labelled(task, dialogues, labels, tokenize, limit))
    return TextExamples.joined(parts)


class ReplyScorer:
    """Scores replies and classification heads."""

    tasks: Sequence[Task] = ()  # all scores are this scorer's own

    def __init__(self, config: ConfigDict, experiment: ReplyExperiment, predictor: Predictor):
        self._config = config
        self._experiment = experiment
        self._predictor = predictor

    def complete(self, params: Params) -> Params:
        return params

    def validate(self, params: Params, early: Path | None) -> tuple[float, dict[str, Any]]:
        del early  # there is no picture of early replies
        train = self._config.train
        scores = self._without_replies(params, train.select_on, self._nll(params, train.select_on))
        score = metrics.selection_score(scores, train.select_metric)
        if not math.isfinite(score):
            raise FloatingPointError("the predictions are not finite")
        return score, scores

    def score(self, params: Params, split: str, workdir: Path) -> SplitResult:
        nll = self._nll(params, split)
        scores = self._without_replies(params, split, nll)
        experiment = self._experiment
        if GENERATION in experiment.corpus.of:
            records = self._replies(params, split)
            save_dialogues(workdir / f"predictions_{split}.jsonl", records)
            pairs = [(record["reply"], record["reference"]) for record in records]
            scores |= _text_scores(pairs)
            seen = self._seen(split)
            if seen.any():
                kept = [pair for pair, is_seen in zip(pairs, seen, strict=True) if not is_seen]
                if kept:
                    scores["without_seen"] = {
                        "pairs": len(kept),
                        "perplexity": _perplexity(nll[~seen]),
                        **_text_scores(kept),
                    }
        return SplitResult({}, scores)

    def _without_replies(self, params: Params, split: str, nll: np.ndarray) -> dict[str, Any]:
        """Perplexity and heads' scores: what a pass over the split gives."""
        experiment = self._experiment
        scores: dict[str, Any] = {}
        if GENERATION in experiment.corpus.of:
            scores["perplexity"] = _perplexity(nll)
        heads = {task: self._head(params, split, task) for task in experiment.corpus.heads}
        return scores | ({"heads": heads} if heads else {})

    def _head(self, params: Params, split: str, task: str) -> dict[str, Any]:
        """Scores of a classification head, with those on texts that training has not seen."""
        experiment = self._experiment
        classes = experiment.corpus.heads[task]
        examples = experiment.examples[split].of_task(task)
        found = self._predictor.run(experiment.system.classify, params, examples)[task].argmax(-1)
        seen = seen_in_training(experiment.corpus.of[task], split)[examples.dialogue_of]

        def block(kept: np.ndarray) -> dict[str, Any]:
            truth = examples.labels[task][kept]
            counts = metrics.confusion(truth, found[kept], len(classes))
            return metrics.block(counts, classes, None)

        scores = block(np.full(len(seen), True))
        if seen.any() and not seen.all():
            scores["without_seen"] = block(~seen) | {"texts": int((~seen).sum())}
        return scores

    def _nll(self, params: Params, split: str) -> np.ndarray:
        """Negative log-likelihood and tokens of each response, float32 [pairs, 2]."""
        experiment = self._experiment
        if GENERATION not in experiment.corpus.of:
            return np.zeros((0, 2), np.float32)
        pairs = experiment.examples[split].of_task(GENERATION)
        return self._predictor.run(experiment.system.likelihood, params, pairs)["nll"]

    def _replies(self, params: Params, split: str) -> list[dict[str, Any]]:
        """A record per pair: the utterance, the reply and the response that was given."""
        experiment = self._experiment
        pairs = experiment.examples[split].of_task(GENERATION)
        say(f"Replies to {pairs.n_items:,} utterances of {split} …")
        found = self._predictor.run(experiment.system.reply, params, pairs.unanswered())
        tokens = found["tokens"]
        best = tokens.reshape(len(tokens), experiment.system.decoding.beams, -1)[:, 0]
        dialogues = experiment.corpus.of[GENERATION].splits[split]
        turns = [
            (f"{dialogue.id}:{turn}", utterance, response)
            for dialogue in dialogues
            for turn, (utterance, response) in enumerate(pairwise(dialogue.utterances), start=1)
        ]
        return [
            {
                "id": name,
                "utterances": [{"speaker": utterance.speaker, "text": utterance.text}],
                "reply": experiment.encoder.decode(ids),
                "reference": response.text,
            }
            for (name, utterance, response), ids in zip(turns, best, strict=True)
        ]

    def _seen(self, split: str) -> np.ndarray:
        """bool per pair, whether its dialogue is, word for word, one of the training split."""
        corpus = self._experiment.corpus.of[GENERATION]
        pairs = self._experiment.examples[split].of_task(GENERATION)
        return seen_in_training(corpus, split)[pairs.dialogue_of]


def _perplexity(nll: np.ndarray) -> float:
    """Exponential of the mean negative log-likelihood of a token."""
    total, tokens = nll.sum(axis=0, dtype=np.float64)
    return float(np.exp(min(total / tokens, 700.0)))  # beyond that, float64 has no number


def _text_scores(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Scores of pairs of a reply and its reference."""
    return text_scores([reply for reply, _ in pairs], [reference for _, reference in pairs])
