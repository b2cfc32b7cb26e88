"""A trained model that replies, from its workdir alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import jax
import numpy as np

from erc_jax.config import load_config
from erc_jax.data.dialogue import Dialogue, Utterance
from erc_jax.data.labels import UNLABELLED
from erc_jax.data.pairs import GENERATION, TextExamples
from erc_jax.decoding import Decoding
from erc_jax.encoders.seq2seq import Seq2Seq
from erc_jax.errors import UserError
from erc_jax.predictor import Predictor
from erc_jax.sharding import make_mesh
from erc_jax.system_names import RESPONSE
from erc_jax.systems import Params
from erc_jax.systems.response import Response
from erc_jax.workdir import load_run


class Responder:
    """Replies to utterances, and reads their emotions.

    >>> responder = Responder.from_pretrained("runs/reply")
    >>> responder.respond("I lost my keys again.")
    {'reply': "I'm sorry to hear that.", 'beams': [{'text': "I'm sorry to hear that.", 'score': ...

    A reply depends on the utterance alone, not on what was said before it.
    """

    def __init__(self, system: Response, params: Params, model: Seq2Seq, max_tokens: int):
        self.system = system
        self.model = model
        self._params = params
        self._max_tokens = max_tokens
        self._predictor = Predictor(system, make_mesh())
        # One function for all calls, so that it is compiled once.
        self._reply = lambda keyed, batch: system.reply(keyed[0], batch, keyed[1])

    @classmethod
    def from_pretrained(
        cls, workdir: str | Path, *, decoding: Mapping[str, Any] | None = None
    ) -> Responder:
        """Loads the best checkpoint of a run of system "response".

        Args:
          workdir: of the run.
          decoding: fields of ``erc_jax.decoding.Decoding`` that differ from the run's, such as
            {"sample": True, "top_p": 0.9} or {"beams": 1}.

        Raises:
          UserError: the folder is not a workdir, nothing in it can be read, its run does not
            reply, or there is no such field.
        """
        workdir = Path(workdir)
        config = load_config(workdir)
        if config.system != RESPONSE:
            raise UserError(
                f"{workdir}: this run names emotions (system {config.system}) and does not reply; "
                "train one that does with --config dailydialog:response, or use --mode predict"
            )
        run = load_run(workdir)
        if decoding:
            run.system.decoding = changed(run.system.decoding, decoding)
        return cls(run.system, run.params, run.encoder, config.response.max_tokens)

    @overload
    def respond(  # type: ignore[overload-overlap]  # a text is a sequence of texts, too
        self, given: str | Dialogue | Mapping[str, Any], seed: int = 0
    ) -> dict[str, Any]: ...

    @overload
    def respond(
        self, given: Sequence[str | Dialogue | Mapping[str, Any]], seed: int = 0
    ) -> list[dict[str, Any]]: ...

    def respond(self, given, seed=0):
        """Replies to an utterance, or to the last one of a conversation.

        Args:
          given: a text, or a conversation as a Dialogue or as a mapping as in a JSON line; or a
            sequence of these.
          seed: of what is drawn at random, where replies are sampled.

        Returns:
          ``reply``; ``beams``, the hypotheses with ``text`` and ``score`` (log-likelihood over
          length to the length penalty), the best first; ``heads``, classification task to
          ``label`` and ``probabilities`` (label name to probability) of the utterance. A
          conversation comes back with these beside its utterances. A list for a sequence.

        Raises:
          UserError: it is neither a text nor a conversation, or the utterance is empty.
        """
        if isinstance(given, str | Dialogue | Mapping):
            return self.respond([given], seed)[0]
        if not isinstance(given, Sequence):
            raise UserError(f"{given!r} is neither a text nor a conversation, nor a list of these")
        parsed = [_conversation(one) for one in given]
        if not parsed:
            return []
        last = [_last_turn(dialogue) for dialogue in parsed]
        answers: list[dict[str, Any]] = [{} for _ in parsed]
        if self.system.replies:
            for answer, beams in zip(answers, self._beams(last, seed), strict=True):
                answer |= {"reply": beams[0]["text"], "beams": beams}
        heads = self._heads(last)
        for answer, of_heads in zip(answers, heads, strict=True):
            answer["heads"] = of_heads
        return [
            answer if isinstance(one, str) else {**dialogue.to_json(), **answer}
            for one, dialogue, answer in zip(given, parsed, answers, strict=True)
        ]

    def _examples(self, task: str, last: Sequence[Dialogue]) -> TextExamples:
        unlabelled = np.full(len(last), UNLABELLED, np.int32)
        return TextExamples.of_labelled(
            task, last, unlabelled, self.model.tokenize, self._max_tokens
        )

    def _beams(self, last: Sequence[Dialogue], seed: int) -> list[list[dict[str, Any]]]:
        keyed = (self._params, jax.random.key(seed))
        found = self._predictor.run(self._reply, keyed, self._examples(GENERATION, last))
        beams = found["scores"].shape[-1]
        tokens = found["tokens"].reshape(len(last), beams, -1)
        return [
            [
                {"text": self.model.decode(ids), "score": float(score)}
                for ids, score in zip(of_one, scores, strict=True)
                if np.isfinite(score)
            ]
            for of_one, scores in zip(tokens, found["scores"], strict=True)
        ]

    def _heads(self, last: Sequence[Dialogue]) -> list[dict[str, Any]]:
        heads: list[dict[str, Any]] = [{} for _ in last]
        for task, classes in self.system.classes.items():
            examples = self._examples(task, last)
            found = self._predictor.run(self.system.classify, self._params, examples)[task]
            for head, probabilities in zip(heads, found, strict=True):
                head[task] = {
                    "label": classes[int(probabilities.argmax())],
                    "probabilities": {
                        name: round(float(p), 4)
                        for name, p in zip(classes, probabilities, strict=True)
                    },
                }
        return heads


def read_decoding(fields: Sequence[str]) -> dict[str, Any]:
    """Fields of Decoding from texts such as "top_p=0.9" or "sample=true".

    Raises:
      UserError: it has no value, or one that is no number and neither true nor false.
    """
    values: dict[str, Any] = {}
    for field in fields:
        name, equals, text = field.partition("=")
        try:
            values[name] = json.loads(text)
        except json.JSONDecodeError:
            equals = ""
        if not equals or not isinstance(values[name], int | float):
            raise UserError(
                f"--decoding={field}: expected a field and its value, such as beams=1 or "
                "sample=true"
            )
    return values


def changed(decoding: Decoding, fields: Mapping[str, Any]) -> Decoding:
    """Decoding with some fields given anew.

    Raises:
      UserError: there is no such field, or its value is no such thing.
    """
    known = {field.name: field for field in dataclasses.fields(Decoding)}
    for name, value in fields.items():
        if name not in known or name == "forced_first":
            raise UserError(
                f"decoding has no field {name!r}; it has "
                f"{', '.join(field for field in known if field != 'forced_first')}"
            )
        now = getattr(decoding, name)
        kinds = (float, int) if isinstance(now, float) else type(now)
        # To Python, True is a number, too.
        if isinstance(value, bool) != isinstance(now, bool) or not isinstance(value, kinds):
            raise UserError(f"decoding's {name} is {value!r}; expected such as {now!r}")
    return dataclasses.replace(decoding, **fields)


def _conversation(given: str | Dialogue | Mapping[str, Any]) -> Dialogue:
    if isinstance(given, str):
        return Dialogue("utterance", (Utterance("A", given),))
    return given if isinstance(given, Dialogue) else Dialogue.from_json(given)


def _last_turn(dialogue: Dialogue) -> Dialogue:
    """The utterance that is replied to.

    Raises:
      UserError: there is none, or it is empty.
    """
    if not dialogue.utterances or not dialogue.utterances[-1].text.strip():
        raise UserError(
            f"dialogue {dialogue.id}, utterance {len(dialogue.utterances)}: the text is empty; "
            "expected words to reply to"
        )
    return Dialogue(dialogue.id, dialogue.utterances[-1:])
