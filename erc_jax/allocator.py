"""Memory that is kept from one training step to the next."""

from __future__ import annotations

import ctypes
import sys

# mallopt's names for what it sets, from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Has glibc keep freed memory for the next request, however large, instead of returning it.

    A step on a CPU asks for the memory of its gradients and intermediate values anew. Each time,
    the kernel fills what it hands out with zeros, page by page: a tenth of a training step. The
    price is that the process stays as large as its largest step, which it soon was anyway.

    Works on the whole process, so it is for programs, not for libraries; call it before JAX starts
    its threads. Where the C library is not glibc, nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)  # memory freed by one thread serves the others
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
