"""How devices share the work: batches are split over them, parameters lie as rules say.

The mesh has one axis over all devices of all processes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from erc_jax.errors import UserError

DATA_AXIS = "data"
# Where a rule says "largest", arrays of fewer numbers stay whole: they are not worth the exchange.
LEAST_SPLIT = 1024


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis over the devices; those of all processes by default."""
    # make_mesh's default, explicit axes, is not for Linen modules.
    return Mesh(np.array(devices or jax.devices()), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_blocks(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """A batch's axis of blocks, one block per device."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, DATA_AXIS))


def put_batch(batch: Any, mesh: Mesh, axis: int = 0) -> Any:
    """A batch on the devices; each process sends what its own devices need.

    Args:
      batch: pytree of numpy arrays with an axis of blocks, the same in all processes.
      mesh: where to.
      axis: which axis this is.

    Returns:
      The same of jax arrays.
    """
    sharding = over_blocks(mesh, axis)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(
        lambda array: jax.make_array_from_callback(array.shape, sharding, array.__getitem__), batch
    )


def state_shardings(state: Any, mesh: Mesh, rules: Sequence[str]) -> Any:
    """Where the leaves of a training state lie.

    Parameters that are split (FSDP) are brought together where they are needed, and gradients and
    optimizer state are split like them: an optimizer's moments have its parameter's name in theirs.

    Args:
      state: pytree of arrays or their shapes.
      mesh: the devices.
      rules: as "PATTERN=AXIS". The first whose regular expression is found in a leaf's name, such
        as "params/lstm/kernel", says which axis is split over the devices: its number; "largest",
        which is the longest that the devices divide; or "whole". Without a rule a leaf is whole.

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
                return NamedSharding(mesh, _spec(name, tuple(leaf.shape), axis, mesh.size))
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


def _spec(name: str, shape: tuple[int, ...], axis: str, n_devices: int) -> PartitionSpec:
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
