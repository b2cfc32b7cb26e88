"""Many questions to a chat model: asked in several threads, each answer kept as it comes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from erc_jax.chat import Answer, ChatClient, Stopped
from erc_jax.data.dialogue import read_bytes
from erc_jax.errors import UserError
from erc_jax.progress import duration, say


@dataclasses.dataclass(frozen=True)
class Question:
    """What is sent, and what the answer is about.

    Attributes:
      request: of a chat completion.
      about: kept beside the answer, for people.
      key: SHA-256 of the request, hex. Questions with the same key are asked once.
    """

    request: Mapping[str, Any]
    about: Mapping[str, Any]
    key: str

    @classmethod
    def of(cls, prompt: str, model: str, max_tokens: int, about: Mapping[str, Any]) -> Question:
        """A prompt without anything before it, answered the same way every time if that can be.

        ``max_tokens`` 0 leaves the limit of an answer to the server.
        """
        request = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            **({"max_tokens": max_tokens} if max_tokens else {}),
        }
        key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        return cls(request, about, key)


class AnswerFile:
    """answers.jsonl: a line per answer, written when it comes, so that a kill loses none.

    A line is what the question is about, then "sha256" (of the request), "answer" and "model". One
    that cannot be read, such as the half line that a kill may leave, is asked again.
    """

    def __init__(self, path: Path):
        self.path = path
        self.answers: dict[str, Answer] = {}  # by the request's SHA-256
        self._lock = threading.Lock()
        content = read_bytes(path) if path.exists() else b""
        # A half line gets its end first, so that the next one is whole.
        self._separator = b"" if content.endswith(b"\n") or not content else b"\n"
        for number, line in enumerate(content.split(b"\n"), start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                if not isinstance(record["answer"], str):
                    raise TypeError
                self.answers[record["sha256"]] = Answer(record["answer"], record["model"])
            except (ValueError, LookupError, TypeError):
                say(f"Note: {path}:{number} is not a whole answer; it is asked again")

    def add(self, question: Question, answer: Answer) -> None:
        """Appends an answer.

        Raises:
          UserError: the file cannot be written.
        """
        record = {**question.about, "sha256": question.key}
        record |= {"answer": answer.text, "model": answer.model}
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("ab") as file:
                    file.write(self._separator + line)
            except OSError as error:
                self._separator = b"\n"  # half of the line may have been written
                raise UserError(f"{self.path}: cannot be written ({error.strerror}).") from error
            self._separator = b""
            self.answers[question.key] = answer


def ask_all(
    client: ChatClient, questions: Sequence[Question], file: AnswerFile, concurrency: int
) -> None:
    """Asks what the file does not hold yet; it then holds the answers to all questions.

    Args:
      client: of the endpoint.
      questions: any number of them may be the same.
      file: where answers are kept.
      concurrency: requests under way at a time.

    Raises:
      UserError: the endpoint fails; the message says how many answers are kept.
    """
    distinct: dict[str, Question] = {}
    for question in questions:
        distinct.setdefault(question.key, question)
    missing = [question for key, question in distinct.items() if key not in file.answers]
    if len(missing) < len(distinct):
        say(f"{len(distinct) - len(missing):,} of {len(distinct):,} answers are in {file.path}")

    def ask(question: Question) -> None:
        try:
            file.add(question, client.ask(question.request))
        except BaseException:
            client.stop()  # before this thread takes the next question
            raise

    started = shown = time.monotonic()
    done = 0
    with ThreadPoolExecutor(concurrency) as pool:
        futures = [pool.submit(ask, question) for question in missing]
        try:
            for future in as_completed(futures):
                try:
                    future.result()
                except Stopped:
                    continue  # what stopped it is among the futures, too
                done += 1
                now = time.monotonic()
                if now - shown >= 5 or done == len(missing):
                    shown = now
                    rate = done / max(now - started, 1e-9)
                    left = duration((len(missing) - done) / rate)
                    say(f"answers {done:,}/{len(missing):,}, {60 * rate:,.0f}/min, {left} left")
        except BaseException as error:  # Ctrl-C, too
            client.stop()
            pool.shutdown(cancel_futures=True)  # waits for what is under way, which is kept
            if not isinstance(error, UserError):
                raise
            kept = sum(key in file.answers for key in distinct)
            raise UserError(
                f"{error} {kept:,} of {len(distinct):,} answers are kept in {file.path}; the same "
                "command goes on with the others."
            ) from error
