"""The queue in front of a model: requests that wait together are answered by one call."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import queue
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from erc_jax.data.dialogue import Dialogue
from erc_jax.errors import UserError

Records = list[dict[str, Any]]
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Job:
    dialogues: Sequence[Dialogue]
    answer: Future[Records] = dataclasses.field(default_factory=Future)

    @property
    def utterances(self) -> int:
        return sum(len(dialogue.utterances) for dialogue in self.dialogues)


class Batcher:
    """One thread that runs a model over what has been asked since its last call.

    Nothing waits for company: a request that comes alone is answered alone, and those that come
    meanwhile go together into the next call.

    Attributes:
      ready: whether the warm-up is done. Requests are answered before, too, between its calls.
    """

    def __init__(
        self,
        run: Callable[[list[Dialogue]], Records],
        utterances: int,
        warm_up: Iterable[list[Dialogue]] = (),
    ):
        """Args:
        run: the model, from dialogues to a record of each; called by one thread only.
        utterances: a call takes in no further request once it has as many.
        warm_up: calls that are made while nobody asks, so that the model is compiled for them.
        """
        self.ready = False
        self._run = run
        self._utterances = utterances
        self._warm_up = iter(warm_up)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()  # None ends the thread
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Ends the thread after what was asked before, or leaves it behind."""
        self._jobs.put(None)
        self._thread.join(seconds)

    @property
    def works(self) -> bool:
        """Whether requests are answered: not before ``start``, after ``stop`` or a crash."""
        return self._thread.is_alive()

    def submit(self, dialogues: Sequence[Dialogue]) -> Future[Records]:
        """A record of each dialogue, once it is there; may be cancelled before its turn."""
        job = _Job(dialogues)
        self._jobs.put(job)
        return job.answer

    def _work(self) -> None:
        going_on = True
        while going_on:
            try:
                job = self._jobs.get(block=self.ready)
            except queue.Empty:
                self._warm_up_once()
                continue
            jobs: list[_Job] = []
            while job is not None:
                if job.answer.set_running_or_notify_cancel():
                    jobs.append(job)
                if sum(job.utterances for job in jobs) >= self._utterances:
                    break
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
            going_on = job is not None
            self._answer(jobs)

    def _warm_up_once(self) -> None:
        call = next(self._warm_up, None)
        if call is None:
            self.ready = True
            return
        try:
            self._run(call)
        except Exception as error:  # whoever asks for such a conversation is told
            log_fault(error)

    def _answer(self, jobs: Sequence[_Job]) -> None:
        if not jobs:
            return
        try:
            records = iter(self._run([dialogue for job in jobs for dialogue in job.dialogues]))
            answers = [list(itertools.islice(records, len(job.dialogues))) for job in jobs]
        except Exception as error:
            if len(jobs) == 1:
                if not isinstance(error, UserError):
                    log_fault(error)
                jobs[0].answer.set_exception(error)
                return
            # One request must not spoil the others': each alone.
            for job in jobs:
                self._answer([job])
            return
        for job, answer in zip(jobs, answers, strict=True):
            job.answer.set_result(answer)


def log_fault(error: Exception) -> None:
    """Logs where an error happened, but not its message, which may hold what somebody wrote."""
    frames = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames))
    log.error("%s at %s", type(error).__name__, where)
