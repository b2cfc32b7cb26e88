"""What a run tells while it goes: lines on the terminal, metrics.jsonl, TensorBoard events."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from erc_jax.data.dialogue import write_whole
from erc_jax.errors import UserError


def say(message: str) -> None:
    """A line for the user."""
    print(message, flush=True)


class Counter:
    """Shows how far something long has come: "features 512/9989, 12 s left"."""

    def __init__(self, what: str, every: float = 2.0):
        self._what = what
        self._every = every
        self._start = self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last >= self._every or (done == total and self._last > self._start):
            self._last = now
            left = (now - self._start) / max(done, 1) * (total - done)
            say(f"{self._what} {done:,}/{total:,}, {duration(left)} left")


def duration(seconds: float) -> str:
    """For people: "8 s", "2 min 5 s", "3 h 20 min"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


class RunLog:
    """metrics.jsonl and TensorBoard events of a run.

    A resumed run forgets the records after the step that it goes on from, so that the file is that
    of a run that was never interrupted.
    """

    def __init__(self, workdir: Path, resume_step: int):
        # Not the library's SummaryWriter: its queue blocks for good once the disk is full.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._path = workdir / "metrics.jsonl"
        kept = [
            line for line in _whole_lines(self._path) if json.loads(line)["step"] <= resume_step
        ]
        write_whole(self._path, "".join(f"{line}\n" for line in kept))
        with self._explained():
            self._events = EventsWriter(str(workdir / "events"))
            if resume_step:  # everything later than the checkpoint is purged from the events too
                restart = SessionLog(status=SessionLog.START)
                self._events.write_event(Event(step=resume_step + 1, session_log=restart))

    def write(self, step: int, record: Mapping[str, Any]) -> None:
        """Appends one record; nested numbers become TensorBoard tags such as validation/mcc.

        Raises:
          UserError: the files cannot be written.
        """
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in _scalars(record)]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        with self._explained():
            with self._path.open("a") as file:
                file.write(json.dumps({"step": step, **record}) + "\n")
            self._events.write_event(event)
            self._events.flush()

    def close(self) -> None:
        with self._explained():
            self._events.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._path.parent}: the log of the run cannot be written ({error.strerror}); "
                "free some space and run the same command again"
            ) from error


def _whole_lines(path: Path) -> Iterator[str]:
    """Lines of a file that a killed run may have left with half a line at its end."""
    if not path.is_file():
        return
    for line in path.read_text().split("\n")[:-1]:
        try:
            json.loads(line)
        except json.JSONDecodeError:
            return
        yield line


def _scalars(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", float(value)


class TrainingProgress:
    """The line of a training run: loss, validation score, utterances per second, time left."""

    def __init__(
        self, steps: int, steps_per_epoch: int, start_step: int, name: str = "", peak: float = 0.0
    ):
        """Args:
        steps: of the run, in all.
        steps_per_epoch: of each epoch.
        start_step: where a resumed run goes on.
        name: what the line begins with, where several runs have one.
        peak: operations a second that the devices could do; 0 if not known.
        """
        self._steps = steps
        self._name = name
        self._steps_per_epoch = steps_per_epoch
        self._start_step = start_step
        self._started = self._last = time.monotonic()
        self._utterances, self._flops, self._peak = 0, 0.0, peak
        self._validation = ""

    def saw(self, utterances: int) -> None:
        self._utterances += utterances

    def computed(self, flops: float) -> None:
        """Notes the operations of a step."""
        self._flops += flops

    def validated(self, metric: str, score: float, best: float, best_epoch: int) -> None:
        """Notes the validation score."""
        self._validation = f"  {metric} {score:.4f} (best {best:.4f}, epoch {best_epoch})"

    def restart(self) -> None:
        """Begins to measure the rate anew: what has just taken its time was no training."""
        self._last, self._utterances, self._flops = time.monotonic(), 0, 0.0

    def line(self, step: int, loss: float) -> dict[str, float]:
        """Prints the line; returns its "utterances_per_second" since the last one, and "mfu".

        MFU is model FLOPs utilization, see ``erc_jax.utilization``; where the devices' peak is not
        known there is none.
        """
        now = time.monotonic()
        seconds = max(now - self._last, 1e-9)
        speed = {"utterances_per_second": round(self._utterances / seconds, 1)}
        shown = f"{speed['utterances_per_second']:,.0f} utterances/s  "
        if self._peak:
            speed["mfu"] = round(self._flops / seconds / self._peak, 4)
            shown += f"MFU {speed['mfu']:.1%}  "
        self.restart()
        total, per_epoch = self._steps, self._steps_per_epoch
        left = (now - self._started) / max(step - self._start_step, 1) * (total - step)
        say(
            f"{self._name}epoch {-(-step // per_epoch)}/{-(-total // per_epoch)}  "
            f"step {step:,}/{total:,}  loss {loss:.4f}"
            f"{self._validation}  {shown}at most {duration(left)} left"
        )
        return speed
