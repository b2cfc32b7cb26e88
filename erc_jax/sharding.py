"""How devices share the work: seeds lie side by side, each seed's batches are split over the rest.

The mesh of all devices of all processes has an axis of seeds, of length 1 unless several seeds are
trained in one program, and an axis of data. Parameters lie as rules say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from erc_jax.errors import UserError

SEED_AXIS, DATA_AXIS = "seed", "data"
# Where a rule says "largest", arrays of fewer numbers stay whole: they are not worth the exchange.
LEAST_SPLIT = 1024


def make_mesh(devices: Sequence[jax.Device] | None = None, seeds: int = 1) -> Mesh:
    """A mesh of the devices, by default those of all processes.

    Args:
      devices: their number is divisible by ``seeds``.
      seeds: length of the axis of seeds.
    """
    grid = np.array(devices or jax.devices()).reshape(seeds, -1)
    # make_mesh's default, explicit axes, is not for Linen modules.
    return Mesh(grid, (SEED_AXIS, DATA_AXIS), axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_blocks(mesh: Mesh) -> NamedSharding:
    """A batch's first axis, of blocks: one block per device."""
    return NamedSharding(mesh, PartitionSpec((SEED_AXIS, DATA_AXIS)))


def over_rows(mesh: Mesh) -> NamedSharding:
    """The first axes of batches of several seeds: rows, seeds of a row, blocks."""
    return NamedSharding(mesh, PartitionSpec(None, SEED_AXIS, DATA_AXIS))


def side_by_side(sharding: NamedSharding) -> NamedSharding:
    """Where arrays of the seeds of a row lie, with the seeds' axis in front of their own."""
    return NamedSharding(sharding.mesh, PartitionSpec(SEED_AXIS, *sharding.spec))


def map_blocks(function: Callable[..., Any], *batches: Any) -> Any:
    """``function`` of each block of batches, which all have the blocks' axis in front.

    A single block is computed as it is: with an axis of length 1 in front of all arrays, the CPU's
    compiler writes out a transposed copy for each product of a backward pass.
    """
    if any(leaf.shape[0] != 1 for leaf in jax.tree.leaves(batches)):
        return jax.vmap(function)(*batches)
    result = function(*jax.tree.map(lambda leaf: leaf[0], batches))
    return jax.tree.map(lambda leaf: leaf[None], result)


def put_batch(batch: Any, sharding: NamedSharding) -> Any:
    """A batch on the devices; each process sends what its own devices need.

    Args:
      batch: pytree of numpy arrays, the same in all processes.
      sharding: where to.

    Returns:
      The same of jax arrays.
    """
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(
        lambda array: jax.make_array_from_callback(array.shape, sharding, array.__getitem__), batch
    )


def state_shardings(state: Any, mesh: Mesh, rules: Sequence[str]) -> Any:
    """Where the leaves of a seed's training state lie: on the devices that the seed has.

    Parameters that are split (FSDP) are brought together where they are needed, and gradients and
    optimizer state are split like them: an optimizer's moments have its parameter's name in theirs.

    Args:
      state: pytree of arrays or their shapes.
      mesh: the devices.
      rules: as "PATTERN=AXIS". The first whose regular expression is found in a leaf's name, such
        as "params/lstm/kernel", says which axis is split over the devices: its number; "largest",
        which is the longest that its devices divide; or "whole". Without a rule a leaf is whole.

    Returns:
      Pytree of NamedSharding.

    Raises:
      UserError: a rule is not of this form, or names an axis that cannot be split.
    """
    parsed = [_parse_rule(rule) for rule in rules]

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for pattern, axis in parsed:
            if pattern.search(name):
                return NamedSharding(mesh, _spec(name, tuple(leaf.shape), axis, mesh))
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(sharding, state)


def _parse_rule(rule: str) -> tuple[re.Pattern[str], str]:
    pattern, equals, axis = rule.rpartition("=")
    if not equals or not (axis.isdecimal() or axis in ("largest", "whole")):
        raise UserError(
            f"mesh.rules: {rule!r} is no rule; expected PATTERN=AXIS, with the number of an axis, "
            'largest or whole, such as "embedding=0" or ".=largest"'
        )
    try:
        return re.compile(pattern), axis
    except re.error as error:
        raise UserError(f"mesh.rules: {pattern!r} is no regular expression ({error})") from error


def _spec(name: str, shape: tuple[int, ...], axis: str, mesh: Mesh) -> PartitionSpec:
    n_devices = mesh.shape[DATA_AXIS]
    if axis == "whole":
        return PartitionSpec()
    if axis == "largest":
        divisible = [i for i, size in enumerate(shape) if size and size % n_devices == 0]
        if not divisible or np.prod(shape) < LEAST_SPLIT:
            return PartitionSpec()
        split = max(divisible, key=lambda i: shape[i])
    else:
        split = int(axis)
        # Counters and such have the name of what they count for in theirs.
        if not shape:
            return PartitionSpec()
        if split >= len(shape) or shape[split] % n_devices:
            raise UserError(
                f"mesh.rules: axis {split} of {name}, of shape {list(shape)}, cannot be split over "
                f"{n_devices} devices"
            )
    return PartitionSpec(*(DATA_AXIS if i == split else None for i in range(len(shape))))
