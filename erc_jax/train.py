"""The training loop, for every system: train, choose on validation, test once."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from erc_jax.checkpoint import Checkpointer
from erc_jax.config import check_same_run, config_of_seed, load_config, save_config
from erc_jax.cross_fitting import out_of_fold_features
from erc_jax.data.batching import JointSplit, alike_in_training, training_order
from erc_jax.errors import Stopped, UserError
from erc_jax.experiment import Experiment, blank_batch, prepare
from erc_jax.facts import run_facts, selection_facts
from erc_jax.metrics import shown_score
from erc_jax.model_card import write_model_card
from erc_jax.predictor import Predictor
from erc_jax.processes import StopRequest, own_folder
from erc_jax.progress import say
from erc_jax.scoring import SplitResult, make_scorer, metrics_file
from erc_jax.seed_run import Place, Row, SeedRun, Selection
from erc_jax.sharding import (
    DATA_AXIS,
    SEED_AXIS,
    make_mesh,
    over_rows,
    put_batch,
    replicated,
    side_by_side,
    state_shardings,
)
from erc_jax.steps import (
    JointStep,
    TrainState,
    bounded,
    epochs_of,
    first_state,
    make_optimizers,
)
from erc_jax.systems import Params
from erc_jax.transfer import take_over
from erc_jax.utilization import peak_flops
from erc_jax.workdir import (
    experiment_to_json,
    publish_best,
    publish_encoder,
    save_encoder,
    save_reference,
    seed_folders,
)

SCORED_SPLITS = ("validation", "test")


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
            write_model_card(folder)
    facts = run_facts(config, experiment, chosen)
    content = metrics_file(workdir, scorer.tasks, results, facts)
    publish_best(config, workdir, SCORED_SPLITS)
    publish_encoder(config, workdir)
    write_model_card(workdir)
    return content


class Trainer:
    """What the seeds of an experiment share: mesh, optimizer and compiled steps."""

    def __init__(self, config: ConfigDict, experiment: Experiment):
        self.config = config
        self.experiment = experiment
        self.examples = experiment.system.training_examples(experiment.examples["train"])
        # The same, if batches of several seeds can be given one shape.
        self.joint = self.examples if isinstance(self.examples, JointSplit) else None
        self.on_cpu = jax.devices()[0].platform == "cpu"
        self.mesh = make_mesh(seeds=self._seeds_in_a_row())
        if self.joint is not None:
            self.examples = self.joint = alike_in_training(
                self.joint, config.train.batch_size, self.mesh.shape[DATA_AXIS]
            )
        # Operations a second that all devices together could do, if that is known.
        self.peak = (peak_flops(jax.devices()[0]) or 0.0) * jax.device_count()
        self._whole = replicated(self.mesh)
        self.steps_per_epoch = len(training_order(self.examples, config.train.batch_size, 0, 0))
        self.steps = bounded(config.train.epochs * self.steps_per_epoch, config)
        self.objectives = experiment.system.objectives()
        self.optimizers = make_optimizers(config, self.objectives, self.steps_per_epoch)
        state = jax.eval_shape(
            lambda key: first_state(self.fresh_params(key), self.optimizers), jax.random.key(0)
        )
        self.param_shapes = state.params
        self.shardings = state_shardings(state, self.mesh, config.mesh.rules)
        self.joint_step = JointStep(
            self.objectives,
            self.optimizers,
            self.shardings,
            self.mesh,
            dtype=config.model.dtype,
            # A CPU's cores are busy with one seed; one after another is what they like.
            vectorized=not self.on_cpu,
        )
        # The state of a row, from the states of its seeds; and of one of its seeds, on all devices.
        self.stacked = jax.jit(
            lambda *states: jax.tree.map(lambda *leaves: jnp.stack(leaves), *states),
            out_shardings=jax.tree.map(side_by_side, self.shardings),
        )
        self.picked = jax.jit(
            lambda row, number: jax.tree.map(lambda leaf: leaf[number], row),
            out_shardings=self.shardings,
        )
        self.predictor = Predictor(experiment.system, self.mesh, config.train.batch_size)
        self.scorer = make_scorer(config, experiment, self.predictor)

    def seeds_together(self) -> int:
        """How many seeds are trained in one program."""
        if self.joint is None:
            return 1
        together = self.config.seeds_together or (1 if self.on_cpu else self.config.seeds)
        return min(together, self.config.seeds)

    def _seeds_in_a_row(self) -> int:
        """The length of the mesh's axis of seeds.

        Raises:
          UserError: the config's number does not fit.
        """
        together, devices, wanted = (
            self.seeds_together(),
            jax.device_count(),
            self.config.mesh.seeds,
        )
        if wanted > together or (wanted and devices % wanted):
            raise UserError(
                f"mesh.seeds is {wanted}, but {together} seeds are trained in one program, on "
                f"{devices} devices: expected a divisor of the devices, no greater than the seeds "
                "(seeds_together), or 0 to have it chosen"
            )
        return wanted or math.gcd(together, devices)

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
        left = [run for run in runs if not run.is_over]
        in_a_row = self.mesh.shape[SEED_AXIS]
        rows = [Row(self, left[i : i + in_a_row]) for i in range(0, len(left), in_a_row)]
        rounds = 0
        with StopRequest() as stop, Trace(self.config.profile, places[0].folder) as trace:
            while left:
                # 1. A step of all seeds that are not done. After a restart they may not be equally
                # far; those that are to learn something else now wait.
                began = time.monotonic()
                active = self.active(left[0].selection.epoch)
                stepping = [run for run in left if self.active(run.selection.epoch) == active]
                if not self.joint_step.vectorized:
                    chosen = [row for row in rows if any(run in stepping for run in row.runs)]
                else:
                    # Another number of rows is another compilation: those that are done stay, too,
                    # until they are half of what is computed.
                    going = [row for row in rows if any(run in left for run in row.runs)]
                    rows = chosen = going if 2 * len(going) <= len(rows) else rows
                items = {run: run.next_items() for run in stepping}
                # Who does not step gets another's batch: it changes nothing.
                members = [
                    run if run in items else stepping[0] for row in chosen for run in row.slots
                ]
                shape = (len(chosen), in_a_row)
                arguments = (
                    [row.state for row in chosen],
                    self._joint_batch([items[run] for run in members], shape),
                    np.array([run.place.seed for run in members], np.uint32).reshape(shape),
                    np.array([[run in items for run in row.slots] for row in chosen]),
                    active,
                )
                flops = self.joint_step.flops(*arguments) if self.peak else 0.0
                # This returns before the devices are done: the next batch is laid out and sent to
                # them meanwhile.
                results = self.joint_step(*arguments)
                for row, result in zip(chosen, results, strict=True):
                    row.state, row.losses = result

                # 2. What is due after it: progress, validation, a checkpoint.
                for run in stepping:
                    run.stepped(flops * len(stepping) / len(members))
                took_time = [run.validate_and_save() for run in stepping]
                if any(took_time):
                    for run in left:
                        run.progress.restart()
                for run in stepping:
                    run.selection.seconds += (time.monotonic() - began) / len(stepping)
                left = [run for run in left if not run.is_over]
                rounds += 1
                trace.at(rounds, results)
                if stop.has_come():
                    for run in left:
                        run.save()
                    for run in left:
                        run.close()
                    raise Stopped(
                        f"Stopped after step {runs[0].step:,} of {self.steps:,}, as SIGTERM asked. "
                        "The state is saved; the same command goes on from there."
                    )
        return [run.selection for run in runs]

    def _joint_batch(self, items: Sequence[np.ndarray], shape: tuple[int, int]) -> Any:
        """Batches of some seeds as one, on the devices: arrays with rows and seeds in front."""
        n_blocks = self.mesh.shape[DATA_AXIS]
        if self.joint is not None:
            joint = self.joint.joint_batch(items, n_blocks)
        else:
            joint = jax.tree.map(lambda a: a[None], self.examples.batch(items[0], n_blocks))
        in_rows = jax.tree.map(lambda array: array.reshape(*shape, *array.shape[1:]), joint)
        return put_batch(in_rows, over_rows(self.mesh))

    def best(self, place: Place, selection: Selection) -> Params:
        """The parameters of a trained seed that scored best, with the system's reference."""
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._whole),
            self.param_shapes,
        )
        step = jax.ShapeDtypeStruct((), jnp.int32, sharding=self._whole)
        best, _ = Checkpointer(place.shared).restore_best(
            {"params": target, "step": step}, partial=True
        )
        if best["step"] != selection.best_step:
            raise UserError(
                f"{place.shared}: the chosen checkpoint, of step {selection.best_step}, cannot be "
                "read any more. Bring it back from a backup, or train again in another --workdir"
            )
        of_seed = f"seed {place.seed}, " if self.config.seeds > 1 else ""
        say(
            f"Chosen: {of_seed}epoch {selection.best_epoch}, {self.config.train.select_on} "
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


def _of_descriptions(record: Any) -> Any:
    """What of a checkpoint's record decides the vectors of descriptions, and the ratings."""
    keys = ("emotions", "descriptions", "vad_scale", "sha256")
    return {k: record[k] for k in keys if record.get(k)} if record else None
