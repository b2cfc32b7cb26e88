"""The training loop, for every system: train, choose on validation, test once."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from erc_jax.checkpoint import Checkpointer
from erc_jax.config import check_same_run, config_of_seed, load_config, save_config
from erc_jax.cross_fitting import out_of_fold_features
from erc_jax.data.batching import Split, training_order
from erc_jax.errors import Stopped, UserError
from erc_jax.evaluate import Predictor, SplitResult, make_scorer, metrics_file
from erc_jax.experiment import Experiment, blank_batch, prepare
from erc_jax.facts import run_facts, selection_facts
from erc_jax.metrics import shown_score
from erc_jax.processes import StopRequest, first_decides, own_folder
from erc_jax.progress import RunLog, TrainingProgress, say
from erc_jax.sharding import make_mesh, put_batch, replicated, state_shardings
from erc_jax.steps import (
    TrainState,
    bounded,
    epochs_of,
    first_state,
    make_joint_step,
    make_optimizers,
)
from erc_jax.systems import Params
from erc_jax.transfer import take_over
from erc_jax.workdir import (
    experiment_to_json,
    publish_best,
    publish_encoder,
    save_encoder,
    save_reference,
    seed_folders,
)

SCORED_SPLITS = ("validation", "test")
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


def train(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Runs an experiment, or goes on with it, and scores it.

    Args:
      config: as ``erc_jax.config.base_config`` describes it.
      workdir: folder for everything that the run leaves.

    Returns:
      What metrics.json holds.

    Raises:
      UserError: config, data, encoder or workdir do not fit, the loss is no longer finite, or
        nothing can be written.
      Stopped: SIGTERM came; the same call goes on.
    """
    check_same_run(config, workdir)
    if config.init_from:
        load_config(Path(config.init_from))  # a wrong path is better met before the features
    experiment = prepare(config)
    trainer = Trainer(config, experiment)
    with own_folder(workdir) as own:
        return _train(trainer, workdir, own)


def _train(trainer: Trainer, shared: Path, workdir: Path) -> dict[str, Any]:
    """Trains and scores all seeds.

    Args:
      trainer: of the experiment.
      shared: the folder whose checkpoints all processes write and read.
      workdir: the folder of all else; that of the first process is the same.
    """
    config, experiment, scorer = trainer.config, trainer.experiment, trainer.scorer
    save_config(config, workdir)
    results: dict[str, list[SplitResult]] = {split: [] for split in SCORED_SPLITS}
    chosen: list[dict[str, Any]] = []
    places = [
        Place(seed, folder, shared / folder.relative_to(workdir))
        for seed, folder in seed_folders(config, workdir)
    ]
    selections: list[Selection] = []
    together = trainer.seeds_together()
    for number, place in enumerate(places):
        seed, folder, _ = place
        if number == len(selections):  # its group is the next one
            group = places[number : number + together]
            if config.seeds > 1:
                named = ", ".join(str(member.seed) for member in group)
                say(f"\nSeed {named}: {number + len(group)} of {config.seeds}")
                for member in group:
                    save_config(config_of_seed(config, member.seed), member.folder)
            selections += trainer.fit_all(group)
        selection = selections[number]
        params = trainer.best(place, selection)
        cross_fitted = None
        if config.fine_tuning.folds:
            cross_fitted = out_of_fold_features(
                experiment, partial(Trainer, config), config.fine_tuning.folds, seed, folder
            )
        save_encoder(experiment, params, folder, cross_fitted)
        save_reference(params, folder)
        chosen.append(selection_facts(seed, dataclasses.asdict(selection), config))
        for split in SCORED_SPLITS:
            results[split].append(scorer.score(params, split, folder))
        if config.seeds > 1:
            of_seed = {split: runs[-1:] for split, runs in results.items()}
            facts = run_facts(config, experiment, chosen[-1:])
            metrics_file(folder, scorer.tasks, of_seed, facts)
    facts = run_facts(config, experiment, chosen)
    content = metrics_file(workdir, scorer.tasks, results, facts)
    publish_best(config, workdir, SCORED_SPLITS)
    publish_encoder(config, workdir)
    return content


class Place(NamedTuple):
    """A seed, the folder that this process writes its run to, and that of its checkpoints.

    They are one folder, but in processes that are not the first.
    """

    seed: int
    folder: Path
    shared: Path


def joint_batch(examples: Split, items: Sequence[np.ndarray], n_blocks: int) -> Any:
    """Batches of several seeds as one: arrays with the seeds' axis in front of the blocks'."""
    if len(items) == 1:
        return jax.tree.map(lambda array: array[None], examples.batch(items[0], n_blocks))
    return examples.joint_batch(items, n_blocks)  # type: ignore[attr-defined]


class Trainer:
    """What the seeds of an experiment share: mesh, optimizer and compiled steps."""

    def __init__(self, config: ConfigDict, experiment: Experiment):
        self.config = config
        self.experiment = experiment
        self.mesh = make_mesh()
        self.on_cpu = self.mesh.devices.flat[0].platform == "cpu"
        self._whole = replicated(self.mesh)
        self.examples = experiment.system.training_examples(experiment.examples["train"])
        self.steps_per_epoch = len(training_order(self.examples, config.train.batch_size, 0, 0))
        self.steps = bounded(config.train.epochs * self.steps_per_epoch, config)
        self.objectives = experiment.system.objectives()
        self.optimizers = make_optimizers(config, self.objectives, self.steps_per_epoch)
        self.shardings = state_shardings(
            jax.eval_shape(
                lambda key: first_state(self.fresh_params(key), self.optimizers), jax.random.key(0)
            ),
            self.mesh,
            config.mesh.rules,
        )
        self.joint_step = make_joint_step(
            self.objectives,
            self.optimizers,
            self.shardings,
            dtype=config.model.dtype,
            # A CPU's cores are busy with one seed; one after another is what they like.
            vectorized=not self.on_cpu,
        )
        self.predictor = Predictor(experiment.system, self.mesh, config.train.batch_size)
        self.scorer = make_scorer(config, experiment, self.predictor)

    def seeds_together(self) -> int:
        """How many seeds are trained in one program."""
        if not hasattr(self.examples, "joint_batch"):
            return 1  # batches of different seeds have different shapes
        return self.config.seeds_together or (1 if self.on_cpu else self.config.seeds)

    def fit(self, seed: int, workdir: Path) -> tuple[Params, Selection]:
        """Trains one seed, from its latest checkpoint if there is one.

        Returns:
          The parameters that scored best on the selection split, with the system's reference, and
          which ones these are.
        """
        place = Place(seed, workdir, workdir)
        (selection,) = self.fit_all([place])
        return self.best(place, selection), selection

    def fit_all(self, places: Sequence[Place]) -> list[Selection]:
        """Trains seeds in one program, each from its latest checkpoint if it has one.

        Returns:
          Which checkpoint of each seed was chosen.

        Raises:
          Stopped: SIGTERM came; the states are saved.
        """
        names = [f"seed {place.seed}  " if len(places) > 1 else "" for place in places]
        runs = [SeedRun(self, place, name) for place, name in zip(places, names, strict=True)]
        rounds = 0
        with StopRequest() as stop, Trace(self.config.profile, places[0].folder) as trace:
            while left := [run for run in runs if not run.is_over]:
                # 1. A step of all seeds that are not done. After a restart they may not be equally
                # far; those that are to learn something else now wait.
                began = time.monotonic()
                active = self.active(left[0].selection.epoch)
                stepping = [run for run in left if self.active(run.selection.epoch) == active]
                items = [run.next_items() for run in stepping]
                results = self.joint_step(
                    [run.take_state() for run in stepping],
                    put_batch(joint_batch(self.examples, items, self.mesh.size), self.mesh, axis=1),
                    np.array([run.place.seed for run in stepping], np.uint32),
                    active,
                )

                # 2. What is due after it: progress, validation, a checkpoint.
                for run, (state, losses) in zip(stepping, results, strict=True):
                    run.stepped(state, losses)
                for run in stepping:
                    run.selection.seconds += (time.monotonic() - began) / len(stepping)
                rounds += 1
                trace.at(rounds, results)
                if stop.at(rounds) and (left := [run for run in left if not run.is_over]):
                    for run in left:
                        run.save()
                    for run in left:
                        run.close()
                    raise Stopped(
                        f"Stopped after step {left[0].step:,} of {self.steps:,}, as SIGTERM asked. "
                        "The state is saved; the same command goes on from there."
                    )
        return [run.selection for run in runs]

    def best(self, place: Place, selection: Selection) -> Params:
        """The parameters of a trained seed that scored best, with the system's reference."""
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._whole),
            jax.eval_shape(self.fresh_params, jax.random.key(0)),
        )
        best, _ = Checkpointer(place.shared).restore_best({"params": target}, partial=True)
        say(
            f"Chosen: epoch {selection.best_epoch}, {self.config.train.select_on} "
            f"{self.config.train.select_metric} {self.shown(selection.best_score):.4f}"
        )
        return self.scorer.complete(best["params"])

    def active(self, epoch: int) -> tuple[int, ...]:
        """Which objectives an epoch has."""
        return tuple(
            number
            for number, objective in enumerate(self.objectives)
            if epoch in range(*epochs_of(objective, self.config))
        )

    def fresh_params(self, key: jax.Array) -> Params:
        system = self.experiment.system
        return system.init(key, blank_batch(system, self.experiment.encoder))

    def take_over(self, params: Params) -> Params:
        experiment, source = self.experiment, Path(self.config.init_from)
        return take_over(params, experiment.system, experiment.encoder, source)

    def new_state(self, params: Params) -> TrainState:
        """The state before the first step, on the devices as ``config.mesh`` says."""
        return jax.device_put(first_state(params, self.optimizers), self.shardings)

    def check_same_data(self, meta: Mapping[str, Any], workdir: Path) -> None:
        """Refuses to go on with a run whose corpus or encoder was another one.

        Raises:
          UserError: the SHA-256 in the checkpoint differs.
        """
        for what, now in (("corpus", self.experiment.corpus), ("encoder", self.experiment.encoder)):
            if meta[what]["sha256"] != now.sha256:
                raise UserError(
                    f"{workdir} holds a run on another {what}: SHA-256 {meta[what]['sha256']} "
                    f"there, {now.sha256} here. Choose another --workdir, or bring the files back."
                )
        mine = experiment_to_json(self.experiment)
        here = {"labels": mine["labels"], **mine["encoder"]}
        there = {"labels": meta["labels"], **meta["encoder"]}
        for what, of in (
            ("labels", "emotions, their descriptions or their scale"),
            ("heads", "the tasks and their classes"),
            ("descriptions", "the encoder of descriptions"),
        ):
            mine, its = (_of_descriptions(record.get(what)) for record in (here, there))
            if mine != its:
                raise UserError(
                    f"{workdir} holds a run with other values of {of}: {its} there, {mine} here. "
                    "Choose another --workdir."
                )

    def validate(
        self, step: int, params: Params, early: Path | None
    ) -> tuple[float, dict[str, Any]]:
        """The selection score, the higher the better, and all scores of the selection split.

        Args:
          step: the last one.
          params: after it.
          early: a folder in which the predictions are kept, if they are.

        Raises:
          UserError: the last update has left parameters that give no finite prediction.
        """
        try:
            return self.scorer.validate(params, early)
        except FloatingPointError as error:
            raise self.diverged(f"after step {step} {error}") from error

    def shown(self, score: float) -> float:
        """A selection score as it is shown to people."""
        return shown_score(score, self.config.train.select_metric)

    def diverged(self, what: str) -> UserError:
        return UserError(
            f"{what}. Try a lower train.learning_rate (now {self.config.train.learning_rate:g}) "
            "or, where triplets are learned, sent_emo_context.triplet.learning_rate, or "
            "train.clip_norm=1.0, in another --workdir. Checkpoints of earlier epochs are "
            "untouched."
        )

    def meta(self, selection: Selection) -> dict[str, Any]:
        """What lies beside the weights: all that prediction needs to know of this run."""
        experiment = self.experiment
        return {
            "selection": dataclasses.asdict(selection),
            "corpus": {"name": experiment.corpus.name, "sha256": experiment.corpus.sha256},
            **experiment_to_json(experiment),
        }


class Trace:
    """Writes what the devices do in some early steps, for ``tensorboard --logdir WORKDIR``."""

    STEPS = (10, 20)  # after the first compilations

    def __init__(self, wanted: bool, folder: Path):
        self._wanted, self._folder, self._running = wanted, folder, False

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *raised: Any) -> None:
        if self._running:
            jax.profiler.stop_trace()

    def at(self, step: int, results: Any) -> None:
        """Begins or ends the trace after this step, whose results are waited for."""
        if self._wanted and step in self.STEPS:
            jax.block_until_ready(results)
            if self._running:
                jax.profiler.stop_trace()
                say(f"What the devices did is in {self._folder / 'profile'}")
            else:
                jax.profiler.start_trace(str(self._folder / "profile"))
            self._running = not self._running


class SeedRun:
    """One seed on its way: its state, and what it writes while it trains."""

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
        self._state: TrainState | None = state
        self._order: list[np.ndarray] = []
        self._order_of: int | None = None  # the epoch that it is of
        self._log = RunLog(place.folder, resume_step=self.step)
        self._progress = TrainingProgress(trainer.steps, trainer.steps_per_epoch, self.step, name)
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

    def next_items(self) -> np.ndarray:
        """What the next batch holds."""
        trainer, epoch = self.trainer, self.selection.epoch
        if self._order_of != epoch:
            batch_size, seed = trainer.config.train.batch_size, self.place.seed
            self._order = training_order(trainer.examples, batch_size, seed, epoch)
            self._order_of = epoch
        items = self._order[self.step - epoch * trainer.steps_per_epoch]
        self._progress.saw(len(trainer.examples.rows(items)))
        return items

    def take_state(self) -> TrainState:
        """The state, for a step to which it is donated."""
        state, self._state = self._state, None
        assert state is not None
        return state

    def stepped(self, state: TrainState, losses: dict[str, jax.Array]) -> None:
        """Takes the new state, and does what is due after this step.

        Raises:
          UserError: losses or predictions are not finite, or nothing can be written.
        """
        # 1. Losses stay on the device until a line of progress is due.
        self._state, self._score = state, NOT_SCORED
        self._pending.append(losses)
        self.step += 1
        trainer, selection, train = self.trainer, self.selection, self.trainer.config.train
        shown = self.step % trainer.config.log_every == 0
        if shown:
            self._report()
        if self.step < min((selection.epoch + 1) * trainer.steps_per_epoch, trainer.steps):
            # Several processes ask each other only where they wait anyway.
            if (shown or jax.process_count() == 1) and self._save_is_due():
                self.save()
            return

        # 2. The epoch's end: validation. Nothing is saved before losses and scores are known to be
        # finite.
        self._report()
        early = self.place.folder if selection.epoch == 0 else None
        self._score, scores = trainer.validate(self.step, state.params, early)
        better = selection.update(self.step, self._score)
        self._progress.validated(
            f"{train.select_on} {train.select_metric}",
            trainer.shown(self._score),
            trainer.shown(selection.best_score),
            selection.best_epoch,
        )
        self._log.write(self.step, {"epoch": selection.epoch, train.select_on: scores})

        # 3. Checkpoint.
        if better or self.is_over or self._save_is_due():
            self.save()
        if self.is_over:
            self.close()

    def save(self) -> None:
        """Saves the state, unless it is saved."""
        if self._saved_step == self.step:
            return
        self._report()
        meta = self.trainer.meta(self.selection)
        self._checkpoints.save(self.step, self._state, meta, self._score)
        self._saved_at, self._saved_step = time.monotonic(), self.step

    def close(self) -> None:
        """Returns when all is on disk; the state is given up."""
        self._checkpoints.wait()
        self._log.close()
        self._state = None

    def _save_is_due(self) -> bool:
        return first_decides(time.monotonic() - self._saved_at > SECONDS_BETWEEN_CHECKPOINTS)

    def _report(self) -> None:
        """Fetches the losses since the last report, checks, logs and shows them.

        Raises:
          UserError: a loss is not finite; the message names its step.
        """
        if not self._pending:
            return
        losses = jax.device_get(self._pending)
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
        rate = self._progress.line(self.step, means["loss"])
        self._log.write(self.step, {**means, "utterances_per_second": round(rate, 1)})


def _of_descriptions(record: Any) -> Any:
    """What of a checkpoint's record decides the vectors of descriptions, and the ratings."""
    keys = ("emotions", "descriptions", "vad_scale", "sha256")
    return {k: record[k] for k in keys if record.get(k)} if record else None
