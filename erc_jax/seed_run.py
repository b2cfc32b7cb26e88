"""One seed on its way through training: what it writes, and when it ends."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from erc_jax.checkpoint import Checkpointer
from erc_jax.data.batching import training_order
from erc_jax.processes import first_decides
from erc_jax.progress import RunLog, TrainingProgress, say
from erc_jax.sharding import SEED_AXIS
from erc_jax.steps import TrainState

if TYPE_CHECKING:
    from erc_jax.train import Trainer

# A checkpoint is written whenever the selection score improves, and this often besides.
SECONDS_BETWEEN_CHECKPOINTS = 120.0
# What is saved within an epoch has no score yet; no score is below this one.
NOT_SCORED = -1.0


@dataclasses.dataclass
class Selection:
    """How far the choice of a checkpoint has come; kept with every checkpoint."""

    epoch: int = 0  # epochs done
    best_epoch: int = 0
    best_step: int = 0
    best_score: float = NOT_SCORED
    seconds: float = 0.0  # that training took up to here, over all starts

    def update(self, step: int, score: float) -> bool:
        """Notes the score of one more epoch; returns whether it is the best so far."""
        self.epoch += 1
        if score <= self.best_score:
            return False
        self.best_epoch, self.best_step, self.best_score = self.epoch, step, score
        return True


class Place(NamedTuple):
    """A seed, the folder that this process writes its run to, and that of its checkpoints.

    They are one folder, but in processes that are not the first.
    """

    seed: int
    folder: Path
    shared: Path


class SeedRun:
    """One seed on its way: how far it is, and what it writes while it trains.

    Attributes:
      row: what holds its state, once it has been put into one.
      number: which of the row's seeds it is.
    """

    row: Row
    number: int

    def __init__(self, trainer: Trainer, place: Place, name: str):
        """Begins with the state of the latest checkpoint, or new, or taken over from another run.

        Args:
          trainer: what the seeds share.
          place: the seed and its folders.
          name: in front of its lines of progress.
        """
        self.trainer, self.place = trainer, place
        self.selection = Selection()
        state = trainer.new_state(trainer.fresh_params(jax.random.key(place.seed)))
        self._checkpoints = Checkpointer(place.shared)
        if restored := self._checkpoints.restore_latest(state):
            state, meta = restored
            trainer.check_same_data(meta, place.shared)
            self.selection = Selection(**meta["selection"])
            say(
                f"{name}Going on from step {int(state.step)}, after {self.selection.epoch} whole "
                "epochs"
            )
        elif trainer.config.init_from:
            state = trainer.new_state(trainer.take_over(state.params))
        self.step = int(state.step)
        if self.is_over:
            return
        self.first_state: TrainState | None = state  # until a row takes it
        self._order: list[np.ndarray] = []
        self._order_of: int | None = None  # the epoch that it is of
        self._log = RunLog(place.folder, resume_step=self.step)
        self.progress = TrainingProgress(
            trainer.steps, trainer.steps_per_epoch, self.step, name, trainer.peak
        )
        self._pending: list[dict[str, jax.Array]] = []
        self._saved_at, self._saved_step = time.monotonic(), self.step
        self._score = NOT_SCORED  # of the state

    @property
    def is_over(self) -> bool:
        """Whether all epochs are done, or too many of them were no better than the best."""
        selection, trainer = self.selection, self.trainer
        done = selection.epoch * trainer.steps_per_epoch >= trainer.steps
        without_gain = selection.epoch - selection.best_epoch
        return done or 0 < trainer.config.train.patience <= without_gain

    @property
    def _shows(self) -> bool:
        """Whether a line of progress is due after the last step."""
        return self.step % self.trainer.config.log_every == 0

    @property
    def _ends_epoch(self) -> bool:
        """Whether the last step was its epoch's, or the run's, last one."""
        end = (self.selection.epoch + 1) * self.trainer.steps_per_epoch
        return self.step >= min(end, self.trainer.steps)

    def next_items(self) -> np.ndarray:
        """What the next batch holds."""
        trainer, epoch = self.trainer, self.selection.epoch
        if self._order_of != epoch:
            batch_size, seed = trainer.config.train.batch_size, self.place.seed
            self._order = training_order(trainer.examples, batch_size, seed, epoch)
            self._order_of = epoch
        items = self._order[self.step - epoch * trainer.steps_per_epoch]
        self.progress.saw(len(trainer.examples.rows(items)))
        return items

    def stepped(self, flops: float) -> None:
        """Notes a step of its row; losses stay on the device until a line of progress is due.

        Args:
          flops: of the step's program, all seeds that it trains together; 0 if not known.

        Raises:
          UserError: losses are not finite, or nothing can be written.
        """
        self._score = NOT_SCORED
        self._pending.append(self.row.losses)
        self.step += 1
        self.progress.computed(flops)
        if self._shows or self._ends_epoch:
            self._report()

    def validate_and_save(self) -> bool:
        """Does what is due after a step; returns whether it has taken time that is no training's.

        Nothing is saved before losses and scores are known to be finite.

        Raises:
          UserError: predictions are not finite, or nothing can be written.
        """
        trainer, selection, train = self.trainer, self.selection, self.trainer.config.train
        if not self._ends_epoch:
            # Several processes ask each other only where they wait anyway.
            due = (self._shows or jax.process_count() == 1) and self._save_is_due()
            if due:
                self.save()
            return due
        early = self.place.folder if selection.epoch == 0 else None
        self._score, scores = trainer.validate(
            self.step, self.row.state_of(self.number).params, early
        )
        better = selection.update(self.step, self._score)
        self.progress.validated(
            f"{train.select_on} {train.select_metric}",
            trainer.shown(self._score),
            trainer.shown(selection.best_score),
            selection.best_epoch,
        )
        self._log.write(self.step, {"epoch": selection.epoch, train.select_on: scores})

        if better or self.is_over or self._save_is_due():
            self.save()
        if self.is_over:
            self.close()
        return True

    def save(self) -> None:
        """Saves the state, unless it is saved."""
        if self._saved_step == self.step:
            return
        self._report()
        meta = self.trainer.meta(self.selection)
        self._checkpoints.save(self.step, self.row.state_of(self.number), meta, self._score)
        self._saved_at, self._saved_step = time.monotonic(), self.step

    def close(self) -> None:
        """Returns when all is on disk."""
        self._checkpoints.wait()
        self._log.close()

    def _save_is_due(self) -> bool:
        return first_decides(time.monotonic() - self._saved_at > SECONDS_BETWEEN_CHECKPOINTS)

    def _report(self) -> None:
        """Fetches the losses since the last report, checks, logs and shows them.

        Raises:
          UserError: a loss is not finite; the message names its step.
        """
        if not self._pending:
            return
        losses = [self.row.of_one(parts, self.number) for parts in jax.device_get(self._pending)]
        first = self.step - len(losses) + 1
        self._pending.clear()
        for offset, parts in enumerate(losses):
            if not all(np.isfinite(value) for value in parts.values()):
                shown = ", ".join(f"{name} {float(value):g}" for name, value in parts.items())
                raise self.trainer.diverged(
                    f"the loss of step {first + offset} is not finite ({shown})"
                )
        # A step of one task has no loss of another.
        names = {name: None for parts in losses for name in parts}
        means = {
            name: float(np.mean([parts[name] for parts in losses if name in parts]))
            for name in names
        }
        self._log.write(self.step, {**means, **self.progress.line(self.step, means["loss"])})


class Row:
    """Seeds whose states lie side by side on the mesh's axis of seeds; often it is one seed.

    Attributes:
      runs: its seeds.
      slots: the same, and the first once more for each place that is left over.
      state: of all slots; see ``erc_jax.steps.JointStep``.
      losses: of the last step.
    """

    losses: dict[str, jax.Array]

    def __init__(self, trainer: Trainer, runs: Sequence[SeedRun]):
        self._trainer = trainer
        self.runs = list(runs)
        self.slots = self.runs + self.runs[:1] * (trainer.mesh.shape[SEED_AXIS] - len(runs))
        states = [run.first_state for run in self.slots]
        self.state = states[0] if len(states) == 1 else trainer.stacked(*states)
        for number, run in enumerate(self.runs):
            run.row, run.number, run.first_state = self, number, None

    def state_of(self, number: int) -> TrainState:
        """The state of one of its seeds, on all devices."""
        return self.state if len(self.slots) == 1 else self._trainer.picked(self.state, number)

    def of_one(self, losses: dict[str, Any], number: int) -> dict[str, Any]:
        """The losses of one of its seeds."""
        return losses if len(self.slots) == 1 else {k: v[number] for k, v in losses.items()}
