"""The training loop, for every system: train, choose on validation, test once."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from ml_collections import ConfigDict

from erc_jax.checkpoint import Checkpointer
from erc_jax.config import check_same_run, config_of_seed, load_config, save_config
from erc_jax.cross_fitting import out_of_fold_features
from erc_jax.data.batching import training_order
from erc_jax.errors import Stopped, UserError
from erc_jax.evaluate import Predictor, SplitResult, make_scorer, metrics_file
from erc_jax.experiment import Experiment, blank_batch, prepare
from erc_jax.facts import run_facts, selection_facts
from erc_jax.metrics import shown_score
from erc_jax.processes import StopRequest, first_decides, own_folder
from erc_jax.progress import RunLog, TrainingProgress, say
from erc_jax.sharding import make_mesh, put_batch, replicated, state_shardings
from erc_jax.systems import Objective, Params
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


@struct.dataclass
class TrainState:
    """All that a step changes. What a step draws at random follows from the seed and ``step``."""

    step: jax.Array  # int32 [], steps done
    params: Params
    opt_state: tuple[optax.OptState, ...]  # one per objective


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
    for seed, folder in seed_folders(config, workdir):
        if config.seeds > 1:
            say(f"\nSeed {seed}, {len(chosen) + 1} of {config.seeds}")
            save_config(config_of_seed(config, seed), folder)
        params, selection = trainer.fit(seed, folder, shared / folder.relative_to(workdir))
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


class Trainer:
    """What the seeds of an experiment share: mesh, optimizer and compiled steps."""

    def __init__(self, config: ConfigDict, experiment: Experiment):
        self.config = config
        self.experiment = experiment
        self.mesh = make_mesh()
        self._whole = replicated(self.mesh)
        self.examples = experiment.system.training_examples(experiment.examples["train"])
        self.steps_per_epoch = len(training_order(self.examples, config.train.batch_size, 0, 0))
        self.steps = _bounded(config.train.epochs * self.steps_per_epoch, config)
        self.objectives = experiment.system.objectives()
        self.optimizers = make_optimizers(config, self.objectives, self.steps_per_epoch)
        self.shardings = state_shardings(
            jax.eval_shape(lambda: first_state(self.fresh_params(0), self.optimizers)),
            self.mesh,
            config.mesh.rules,
        )
        self.train_step = make_train_step(self.objectives, self.optimizers, self.shardings)
        self.predictor = Predictor(experiment.system, self.mesh, config.train.batch_size)
        self.scorer = make_scorer(config, experiment, self.predictor)

    def fit(self, seed: int, workdir: Path, shared: Path | None = None) -> tuple[Params, Selection]:
        """Trains one seed, from its latest checkpoint if there is one.

        Args:
          seed: of initialisation, shuffling and dropout.
          workdir: folder of the run, where this process writes.
          shared: folder of the checkpoints, where all processes write, if that is another.

        Returns:
          The parameters that scored best on the selection split, with the system's reference, and
          which ones these are.
        """
        # 1. State: that of the latest checkpoint, or new, or taken over from another run.
        state = self.new_state(self.fresh_params(seed))
        selection = Selection()
        checkpoints = Checkpointer(shared or workdir)
        if restored := checkpoints.restore_latest(state):
            state, meta = restored
            self.check_same_data(meta, workdir)
            selection = Selection(**meta["selection"])
            say(f"Going on from step {int(state.step)}, after {selection.epoch} whole epochs")
        elif self.config.init_from:
            state = self.new_state(self.take_over(state.params))

        # 2. Epochs, unless all were done before.
        if not self.is_over(selection):
            with StopRequest() as stop:
                state = self.run_epochs(seed, workdir, state, selection, checkpoints, stop)

        # 3. The best, as it was saved.
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._whole),
            state.params,
        )
        best, _ = checkpoints.restore_best({"params": target}, partial=True)
        say(
            f"Chosen: epoch {selection.best_epoch}, {self.config.train.select_on} "
            f"{self.config.train.select_metric} {self.shown(selection.best_score):.4f}"
        )
        return self.scorer.complete(best["params"]), selection

    def run_epochs(
        self,
        seed: int,
        workdir: Path,
        state: TrainState,
        selection: Selection,
        checkpoints: Checkpointer,
        stop: StopRequest,
    ) -> TrainState:
        """Trains on from where ``selection`` is, which is kept up to date; the state is donated.

        Raises:
          Stopped: SIGTERM came; the state is saved.
        """
        config, examples = self.config, self.examples
        step = int(state.step)
        started, seconds_before = time.monotonic(), selection.seconds
        log = RunLog(workdir, resume_step=step)
        progress = TrainingProgress(self.steps, self.steps_per_epoch, step)
        pending: list[dict[str, jax.Array]] = []
        saved_at = time.monotonic()

        def save(score: float) -> None:
            nonlocal saved_at
            selection.seconds = seconds_before + time.monotonic() - started
            checkpoints.save(step, state, self.meta(selection), score)
            saved_at = time.monotonic()

        def due() -> bool:
            return first_decides(time.monotonic() - saved_at > SECONDS_BETWEEN_CHECKPOINTS)

        while not self.is_over(selection):
            # 1. Steps. Losses stay on the device until a line of progress is due.
            order = training_order(examples, config.train.batch_size, seed, selection.epoch)
            active = self.active(selection.epoch)
            begin = selection.epoch * self.steps_per_epoch
            end = min(begin + self.steps_per_epoch, self.steps)
            for items in order[step - begin : end - begin]:  # what was not done before a stop
                batch = examples.batch(items, self.mesh.size)
                progress.saw(int(batch.real.sum()))
                on_device = put_batch(batch, self.mesh)
                state, losses = self.train_step(state, on_device, np.uint32(seed), active)
                pending.append(losses)
                step += 1
                shown = step % config.log_every == 0
                if shown:
                    self.report(step, pending, progress, log)
                if step == end:
                    break
                stopped = stop.at(step)
                # Several processes ask each other only where they wait anyway.
                if stopped or ((shown or jax.process_count() == 1) and due()):
                    self.report(step, pending, progress, log)
                    save(NOT_SCORED)
                if stopped:
                    raise self.stopped(step, checkpoints)

            # 2. Validation. Nothing is saved before losses and scores are known to be finite.
            self.report(step, pending, progress, log)
            score, scores = self.validate(step, state.params, workdir, selection.epoch == 0)
            better = selection.update(step, score)
            progress.validated(
                f"{config.train.select_on} {config.train.select_metric}",
                self.shown(score),
                self.shown(selection.best_score),
                selection.best_epoch,
            )
            log.write(step, {"epoch": selection.epoch, config.train.select_on: scores})

            # 3. Checkpoint.
            stopped = stop.at(step)
            if better or stopped or self.is_over(selection) or due():
                save(score)
            if stopped and not self.is_over(selection):
                raise self.stopped(step, checkpoints)
        checkpoints.wait()
        log.close()
        return state

    def stopped(self, step: int, checkpoints: Checkpointer) -> Stopped:
        checkpoints.wait()
        return Stopped(
            f"Stopped after step {step:,} of {self.steps:,}, as SIGTERM asked. The state is saved; "
            "the same command goes on from there."
        )

    def active(self, epoch: int) -> tuple[int, ...]:
        """Which objectives an epoch has."""
        return tuple(
            number
            for number, objective in enumerate(self.objectives)
            if epoch in range(*_epochs(objective, self.config))
        )

    def fresh_params(self, seed: int) -> Params:
        system = self.experiment.system
        return system.init(jax.random.key(seed), blank_batch(system, self.experiment.encoder))

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
        self, step: int, params: Params, workdir: Path, first: bool
    ) -> tuple[float, dict[str, Any]]:
        """The selection score, the higher the better, and all scores of the selection split.

        Raises:
          UserError: the last update has left parameters that give no finite prediction.
        """
        try:
            return self.scorer.validate(params, workdir if first else None)
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

    def is_over(self, selection: Selection) -> bool:
        """Whether all epochs are done, or too many of them were no better than the best."""
        train = self.config.train
        done = selection.epoch * self.steps_per_epoch >= self.steps
        without_gain = selection.epoch - selection.best_epoch
        return done or 0 < train.patience <= without_gain

    def meta(self, selection: Selection) -> dict[str, Any]:
        """What lies beside the weights: all that prediction needs to know of this run."""
        experiment = self.experiment
        return {
            "selection": dataclasses.asdict(selection),
            "corpus": {"name": experiment.corpus.name, "sha256": experiment.corpus.sha256},
            **experiment_to_json(experiment),
        }

    def report(
        self,
        step: int,
        pending: list[dict[str, jax.Array]],
        progress: TrainingProgress,
        log: RunLog,
    ) -> None:
        """Fetches the losses since the last report, checks, logs and shows them.

        Raises:
          UserError: a loss is not finite; the message names its step.
        """
        if not pending:
            return
        losses = jax.device_get(pending)
        first = step - len(losses) + 1
        pending.clear()
        for offset, parts in enumerate(losses):
            if not all(np.isfinite(value) for value in parts.values()):
                shown = ", ".join(f"{name} {float(value):g}" for name, value in parts.items())
                raise self.diverged(f"the loss of step {first + offset} is not finite ({shown})")
        # A step of one task has no loss of another.
        names = {name: None for parts in losses for name in parts}
        means = {
            name: float(np.mean([parts[name] for parts in losses if name in parts]))
            for name in names
        }
        rate = progress.line(step, means["loss"])
        log.write(step, {**means, "utterances_per_second": round(rate, 1)})


def _of_descriptions(record: Any) -> Any:
    """What of a checkpoint's record decides the vectors of descriptions, and the ratings."""
    keys = ("emotions", "descriptions", "vad_scale", "sha256")
    return {k: record[k] for k in keys if record.get(k)} if record else None


def first_state(params: Params, optimizers: Sequence[optax.GradientTransformation]) -> TrainState:
    """The state before the first step."""
    opt_state = tuple(optimizer.init(params) for optimizer in optimizers)
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state)


def make_optimizers(
    config: ConfigDict, objectives: Sequence[Objective], steps_per_epoch: int
) -> tuple[optax.GradientTransformation, ...]:
    """An optimizer for each objective, over the epochs that have it."""
    made = []
    for objective in objectives:
        train = config.train.copy_and_resolve_references()
        train.update(objective.changes)
        first, end = _epochs(objective, config)
        optimizer = make_optimizer(train, _bounded((end - first) * steps_per_epoch, config))
        if modules := objective.modules:
            optimizer = optax.multi_transform(
                {"trained": optimizer, "left": optax.set_to_zero()},
                lambda params, modules=modules: {
                    name: "trained" if name in modules else "left" for name in params
                },
            )
        made.append(optimizer)
    return tuple(made)


def _bounded(steps: int, config: ConfigDict) -> int:
    """Steps, but no more than the config allows."""
    return min(steps, config.train.steps or steps)


def _epochs(objective: Objective, config: ConfigDict) -> tuple[int, int]:
    """The first epoch that has an objective, and the first that no longer has it."""
    first, end = objective.epochs
    return first, config.train.epochs if end is None else end


def make_optimizer(train: ConfigDict, n_steps: int) -> optax.GradientTransformation:
    """Adam or SGD, with warm-up, decay, weight decay, clipping and accumulation.

    Args:
      train: as ``config.train``.
      n_steps: batches that it will see.

    Raises:
      UserError: these are too few for one update.
    """
    updates = n_steps // train.accumulate
    if not updates:
        raise UserError(
            f"train.accumulate is {train.accumulate}, but there are {max(n_steps, 0)} steps in "
            "all (train.epochs times batches); no update would be made"
        )
    warmup = min(train.warmup_steps, updates // 4)
    decay_steps = max(updates - warmup, 1)
    after = {
        "none": lambda: optax.constant_schedule(train.learning_rate),
        "linear": lambda: optax.linear_schedule(train.learning_rate, 0.0, decay_steps),
        "cosine": lambda: optax.cosine_decay_schedule(train.learning_rate, decay_steps),
    }
    schedule = after[train.decay]()
    if warmup:
        up = optax.linear_schedule(0.0, train.learning_rate, warmup)
        schedule = optax.join_schedules([up, schedule], [warmup])
    mask = decayed if train.weight_decay else None
    if train.optimizer == "sgd":
        parts = [optax.sgd(schedule, momentum=0.9)]
        if train.weight_decay:
            parts.insert(0, optax.add_decayed_weights(train.weight_decay, mask))
    else:
        parts = [optax.adamw(schedule, weight_decay=train.weight_decay, mask=mask)]
    if train.clip_norm:
        parts.insert(0, optax.clip_by_global_norm(train.clip_norm))
    optimizer = optax.chain(*parts)
    if train.accumulate > 1:
        return optax.MultiSteps(optimizer, train.accumulate).gradient_transformation()
    return optimizer


def decayed(params: Params) -> Any:
    """True for the parameters that weight decay shrinks: not for biases and scales of norms."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not path[-1].key.endswith(("bias", "scale")), params
    )


def make_train_step(
    objectives: Sequence[Objective],
    optimizers: Sequence[optax.GradientTransformation],
    shardings: Any = None,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """One jitted step: an update per objective; the state is donated.

    Args:
      objectives: in the order of their updates.
      optimizers: one for each.
      shardings: of the new state; by default the compiler chooses, which is as it was where
        nothing is split.

    Returns:
      (state, batch, seed uint32 [], numbers of the objectives to use; by default all) to (new
      state, {"loss", the sum, and its parts: float32 []}).
    """

    def step(state, batch, seed, active=None):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        params, opt_states = state.params, list(state.opt_state)
        total = jnp.zeros(())
        shown: dict[str, jax.Array] = {}
        for number in range(len(objectives)) if active is None else active:
            (loss, parts), gradient = jax.value_and_grad(objectives[number].loss, has_aux=True)(
                params, batch, key
            )
            updates, opt_states[number] = optimizers[number].update(
                gradient, opt_states[number], params
            )
            params = optax.apply_updates(params, updates)
            total += loss
            shown |= {f"loss_{name}": value for name, value in parts.items()}
        return TrainState(state.step + 1, params, tuple(opt_states)), {"loss": total, **shown}

    return jax.jit(
        step,
        donate_argnums=0,
        static_argnames="active",
        out_shardings=None if shardings is None else (shardings, None),
    )
