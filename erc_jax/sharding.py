"""The device mesh: batches are split over it, parameters are whole on every device."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis over the devices; all of this process' devices by default."""
    # make_mesh's default, explicit axes, is not for Linen modules.
    return Mesh(np.array(devices or jax.devices()), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device: parameters and optimizer state."""
    return NamedSharding(mesh, PartitionSpec())


def over_blocks(mesh: Mesh) -> NamedSharding:
    """A batch's leading axis, one block per device."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))
