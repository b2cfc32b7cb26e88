"""A training step: optimizers, and what is compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from erc_jax.errors import UserError
from erc_jax.sharding import SEED_AXIS, replicated, side_by_side
from erc_jax.systems import REFERENCE, Objective, Params
from erc_jax.utilization import flops_of


@struct.dataclass
class TrainState:
    """All that a step changes. What a step draws at random follows from the seed and ``step``."""

    step: jax.Array  # int32 [], steps done
    params: Params
    opt_state: tuple[optax.OptState, ...]  # one per objective


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
        first, end = epochs_of(objective, config)
        optimizer = make_optimizer(
            train, bounded(end * steps_per_epoch, config) - first * steps_per_epoch
        )
        if modules := objective.modules:
            optimizer = optax.multi_transform(
                {"trained": optimizer, "left": optax.set_to_zero()},
                lambda params, modules=modules: {
                    name: "trained" if name in modules else "left" for name in params
                },
            )
        made.append(optimizer)
    return tuple(made)


def bounded(steps: int, config: ConfigDict) -> int:
    """Steps, but no more than the config allows."""
    return min(steps, config.train.steps or steps)


def epochs_of(objective: Objective, config: ConfigDict) -> tuple[int, int]:
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
    if updates < 1:
        raise UserError(
            f"train.accumulate is {train.accumulate}, but there are {max(n_steps, 0)} steps in "
            "all (of train.epochs times batches, or of train.steps, what follows pre-training); no "
            "update would be made"
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
    dtype: str = "float32",
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """One jitted step: an update per objective; the state is donated, shardings are the arguments'.

    Args:
      objectives: in the order of their updates.
      optimizers: one for each.
      dtype: of the computation, ``config.model.dtype``.

    Returns:
      (state, batch, seed uint32 [], numbers of the objectives to use; by default all) to (new
      state, {"loss", the sum, and its parts: float32 []}).
    """
    return jax.jit(
        _step_function(objectives, optimizers, dtype), donate_argnums=0, static_argnames="active"
    )


class JointStep:
    """A jitted step of several seeds in one program.

    The seeds form R rows. Those of a row, S, lie side by side on the mesh's axis of seeds, and so
    are computed at the same time by different devices, which need not hear of each other; a row's
    state has S in front of all shapes, unless S is 1. The rows are computed one after another, or
    all as one (vmap), which pays where a single seed leaves a device idle, and compiles faster.

    Attributes:
      vectorized: whether all rows are computed as one.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        optimizers: Sequence[optax.GradientTransformation],
        shardings: TrainState,
        mesh: Mesh,
        *,
        dtype: str = "float32",
        vectorized: bool = False,
    ):
        """Args:
        objectives: in the order of their updates.
        optimizers: one for each.
        shardings: of each seed's state, see ``erc_jax.sharding.state_shardings``.
        mesh: of these.
        dtype: of the computation, ``config.model.dtype``.
        vectorized: compute all rows as one.
        """
        self._mesh, self.vectorized = mesh, vectorized
        self._in_a_row = mesh.shape[SEED_AXIS]
        whole = PartitionSpec() if self._in_a_row > 1 else replicated(mesh)
        split = any(leaf.spec != PartitionSpec() for leaf in jax.tree.leaves(shardings.params))
        self._step = _step_function(objectives, optimizers, dtype, whole if split else None)
        if self._in_a_row > 1:
            shardings = jax.tree.map(side_by_side, shardings)
        self._shardings = shardings
        self._jitted = functools.cache(self._jit)  # by the number of rows
        self._flops: dict[Any, float] = {}

    def __call__(
        self,
        states: Sequence[TrainState],
        batch: Any,
        seeds: np.ndarray,
        stepping: np.ndarray,
        active: tuple[int, ...],
    ) -> list[tuple[TrainState, dict[str, jax.Array]]]:
        """Args:
          states: of the rows; they are donated.
          batch: its arrays have [R, S] in front.
          seeds: uint32 [R, S].
          stepping: bool [R, S], the seeds whose states change; rows that are not computed as one,
            and are of one seed, all do.
          active: numbers of the objectives to use, the same for all.

        Returns:
          For each row the new state, and {"loss", the sum, and its parts: float32 [] or [S]}.
        """
        return self._jitted(len(states))(list(states), batch, seeds, stepping, active)

    def flops(self, *arguments: Any) -> float:
        """Floating-point operations of the matrix products of a call."""
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(arguments[1]))
        key = (len(arguments[0]), shapes, arguments[-1])
        if key not in self._flops:
            # What is traced here, the call itself takes from the cache.
            self._flops[key] = flops_of(self._jitted(len(arguments[0])).trace(*arguments).jaxpr)
        return self._flops[key]

    def _jit(self, n_rows: int) -> Any:
        return jax.jit(
            self._rows,
            donate_argnums=0,
            static_argnums=4,
            # Losses are whole everywhere, so that every process can read them.
            out_shardings=[(self._shardings, replicated(self._mesh))] * n_rows,
        )

    def _rows(self, states, batch, seeds, stepping, active):
        as_one = self.vectorized and len(states) > 1
        row = functools.partial(self._row, active=active, masked=as_one)
        if as_one:
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
            results = jax.vmap(row)(stacked, batch, seeds, stepping)
            return [jax.tree.map(lambda leaf, i=i: leaf[i], results) for i in range(len(states))]
        return [
            row(state, jax.tree.map(lambda leaf, i=i: leaf[i], batch), seeds[i], stepping[i])
            for i, state in enumerate(states)
        ]

    def _row(self, state, batch, seeds, stepping, active, masked):
        def alone(state, batch, seed, steps):
            # Here every array has its seed's axis still, of length 1.
            state, batch = jax.tree.map(lambda leaf: leaf[0], (state, batch))
            new, losses = self._step(state, batch, seed[0], active)
            new = _chosen(steps[0], new, state)
            return jax.tree.map(lambda leaf: leaf[None], (new, losses))

        if self._in_a_row == 1:
            batch = jax.tree.map(lambda leaf: leaf[0], batch)
            new, losses = self._step(state, batch, seeds[0], active)
            return (_chosen(stepping[0], new, state) if masked else new), losses
        # Over the axis of data the compiler goes on to arrange the work itself.
        return jax.shard_map(
            alone,
            mesh=self._mesh,
            in_specs=PartitionSpec(SEED_AXIS),
            out_specs=PartitionSpec(SEED_AXIS),
            axis_names={SEED_AXIS},
            check_vma=False,
        )(state, batch, seeds, stepping)


def _chosen(condition: jax.Array, one: Any, other: Any) -> Any:
    """One pytree of arrays, or the other."""
    return jax.tree.map(functools.partial(jnp.where, condition), one, other)


def lowered(params: Params, batch: Any, dtype: str) -> tuple[Params, Any]:
    """Parameters and features as what is computed in; labels and references stay as they are."""
    if dtype == "float32":
        return params, batch

    def cast(path: Any, leaf: Any) -> Any:
        named = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        if "labels" in named or REFERENCE in named or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, (params, batch))


def _step_function(
    objectives: Sequence[Objective],
    optimizers: Sequence[optax.GradientTransformation],
    dtype: str = "float32",
    whole: NamedSharding | PartitionSpec | None = None,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """See ``make_train_step``.

    Args:
      objectives: in the order of their updates.
      optimizers: one for each.
      dtype: of the computation.
      whole: where parameters lie whole, if they are split otherwise.
    """

    def loss_of(objective, params, batch, key):
        if whole is not None:
            # Else the compiler may compute with the parts, at the price of many small exchanges.
            params = jax.lax.with_sharding_constraint(params, whole)
        # The gradient goes through the cast and so is of the parameters' own type.
        return objective.loss(*lowered(params, batch, dtype), key)

    def step(state, batch, seed, active=None):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        params, opt_states = state.params, list(state.opt_state)
        total = jnp.zeros(())
        shown: dict[str, jax.Array] = {}
        for number in range(len(objectives)) if active is None else active:
            (loss, parts), gradient = jax.value_and_grad(loss_of, argnums=1, has_aux=True)(
                objectives[number], params, batch, key
            )
            updates, opt_states[number] = optimizers[number].update(
                gradient, opt_states[number], params
            )
            params = optax.apply_updates(params, updates)
            total += loss
            shown |= {f"loss_{name}": value for name, value in parts.items()}
        return TrainState(state.step + 1, params, tuple(opt_states)), {"loss": total, **shown}

    return step
