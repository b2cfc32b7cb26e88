"""How well devices are used: the operations of a program, and the most that a device can do.

Model FLOPs utilization (MFU) is the rate of a training step's matrix products by the peak of the
devices. Here padding counts, and so does what remat computes again, which Chowdhery et al. (2022)
leave out.
"""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.extend import core

# Dense bfloat16 operations a second, from the makers' data sheets, by the beginning of
# ``device_kind``. Of each device as JAX counts them: a v2 or v3 TPU core is half a chip. CPUs are
# left out: their peak depends on much that nobody tells.
PEAKS = {
    "NVIDIA B200": 2250e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H100": 989e12,  # SXM; the others are slower
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L4": 121e12,
    "NVIDIA A10": 125e12,
    "Tesla V100": 125e12,  # float16
    "Tesla T4": 65e12,  # float16
    "TPU v6 lite": 918e12,
    "TPU v5p": 459e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
    "TPU v3": 61.5e12,
    "TPU v2": 22.5e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """The peak of a device in operations a second, at bfloat16; None where it is not known."""
    kind = device.device_kind
    # "NVIDIA A100-SXM4-40GB" is one; "NVIDIA A10" must not be taken for it.
    matching = [name for name in PEAKS if f"{kind} ".replace("-", " ").startswith(f"{name} ")]
    return PEAKS[max(matching, key=len)] if matching else None


def flops_of(program: Any) -> float:
    """Operations of the matrix products in a traced program.

    XLA's own analysis counts the body of a loop once; this counts it as often as it runs. Of
    branches the costliest counts. Loops whose length the data decide count once.

    Args:
      program: a ``Jaxpr`` or ``ClosedJaxpr``.
    """
    return sum(map(_flops_of_equation, getattr(program, "jaxpr", program).eqns))


def _flops_of_equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left, out = equation.invars[0].aval, equation.outvars[0].aval
        return 2.0 * math.prod(out.shape) * math.prod(left.shape[axis] for axis in contracted)
    inner = [
        flops_of(value)
        for param in params.values()
        for value in (param if isinstance(param, tuple | list) else (param,))
        if isinstance(value, core.Jaxpr | core.ClosedJaxpr)
    ]
    if name == "cond":
        return max(inner)
    times = 1
    if name == "scan":
        times = params["length"]
    if name == "shard_map":  # its program is that of one device, over the axes it names
        times = math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return times * sum(inner)
