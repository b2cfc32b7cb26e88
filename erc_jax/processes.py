"""Several processes that train one model together, and being told to stop.

All processes run the same command and make the same decisions from the same numbers. They share
the workdir's checkpoints; of the other files each writes its own, and only the first one's stay.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from erc_jax.errors import (
    CRASHED_EXIT_CODE,
    LOST_EXIT_CODE,
    MISTAKE_EXIT_CODE,
    Stopped,
    UserError,
)

# A process that does not answer for so long is dead; the others then end, too.
HEARTBEAT_SECONDS = 60
JOIN_SECONDS = 300


# The first process ends so much later than it fails: its end ends the others, which may be about to
# say the same of themselves.
GRACE_SECONDS = 5
# Of XLA's errors, those that are not about the other processes.
OWN_FAILURES = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")


@contextlib.contextmanager
def joined(how: str | None) -> Iterator[None]:
    """Works together with other processes; must come before anything is computed.

    If this process fails, it ends at once, with a message and its exit code: in order it could not,
    for the others wait for it. If another one dies, this one ends, too, with ``LOST_EXIT_CODE``:
    what is left cannot go on alone.

    Args:
      how: see ``join``; None is for a process by itself.

    Raises:
      UserError: there is no cluster, or the others do not come.
    """
    if how is None:
        yield
        return
    join(how)
    try:
        yield
    except Stopped:
        raise  # all of them stop
    except Exception as error:
        if jax.process_count() == 1:
            raise
        code = _told(error)
        if is_first():
            time.sleep(GRACE_SECONDS)
        os._exit(code)


def _told(error: Exception) -> int:
    """Prints an error, and returns the exit code that goes with it."""
    code = CRASHED_EXIT_CODE
    if isinstance(error, UserError):
        code, message = MISTAKE_EXIT_CODE, f"Error: {error}"
    else:
        message = "".join(traceback.format_exception(error))
    if isinstance(error, jax.errors.JaxRuntimeError) and not str(error).startswith(OWN_FAILURES):
        code = LOST_EXIT_CODE
        message += (
            "Error: the processes lost each other, most likely because one has died; its own log "
            "tells why. Start them all again: they go on from the last checkpoint."
        )
    print(message, file=sys.stderr, flush=True)
    return code


def join(how: str) -> None:
    """Joins the other processes.

    Args:
      how: "auto", which asks the cluster (TPU pods, SLURM, Open MPI, Kubernetes), or
        "HOST:PORT,PROCESSES,NUMBER" with the address of the first process' machine, how many there
        are, and which one this is, from 0.

    Raises:
      UserError: there is no cluster, or the others do not come.
    """
    explicit: dict[str, Any] = {}
    if how != "auto":
        address, *numbers = how.split(",")
        if len(numbers) != 2 or ":" not in address or not all(n.isdecimal() for n in numbers):
            raise UserError(
                f"--distributed={how}: expected auto, or HOST:PORT,PROCESSES,NUMBER, such as "
                "10.0.0.2:1234,4,0"
            )
        count, number = map(int, numbers)
        if number >= count:
            raise UserError(f"--distributed={how}: of {count} processes the last is {count - 1}")
        explicit = {
            "coordinator_address": address,
            "num_processes": count,
            "process_id": number,
        }
        if number > 0:
            _wait_for_first(address, how)
    try:
        jax.distributed.initialize(
            **explicit,
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"--distributed={how}: the processes did not come together ({error}). On TPU pods and "
            "under SLURM, start the same command on all hosts with --distributed=auto; elsewhere "
            "with --distributed=HOST:PORT,PROCESSES,NUMBER"
        ) from error
    if jax.process_count() == 1:
        # jax.distributed hears it to tell the others, of whom there are none: without them it ends
        # the process, as ever, or is heard by StopRequest.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # one of them tells how the run goes


def _wait_for_first(address: str, how: str) -> None:
    """Returns when the first process can be reached; JAX itself would die of that, not raise.

    Raises:
      UserError: it cannot.
    """
    host, _, port = address.rpartition(":")
    end = time.monotonic() + JOIN_SECONDS
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except (OSError, ValueError) as error:
            if time.monotonic() > end or isinstance(error, ValueError | socket.gaierror):
                raise UserError(
                    f"--distributed={how}: the first process, at {address}, cannot be reached "
                    f"({error}). Is it running, and is this its address?"
                ) from error
            time.sleep(1)


def is_first() -> bool:
    """Whether this process' files are those that stay."""
    return jax.process_index() == 0


@contextlib.contextmanager
def own_folder(workdir: Path) -> Iterator[Path]:
    """The folder for what this process writes: the workdir, or one that is deleted afterwards."""
    if is_first():
        yield workdir
        return
    with tempfile.TemporaryDirectory(prefix="erc_jax-") as folder:
        yield Path(folder)


def first_decides(asked: bool) -> bool:
    """The first process' answer, in all of them: clocks differ, and what follows must not."""
    if jax.process_count() == 1:
        return asked
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(asked)))


def all_say(number: int) -> bool:
    """Whether all processes have the same number; the same answer in all of them."""
    if jax.process_count() == 1:
        return True
    numbers = multihost_utils.process_allgather(np.int32(number))
    return bool((numbers == numbers[0]).all())


def wait_for_all(where: str) -> None:
    """Returns when all processes are there."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


class StopRequest:
    """Hears SIGTERM, which a cluster sends before it takes a machine away.

    In use as a context manager; outside of it SIGTERM ends the process as ever. Of several
    processes, any one may be told: all then stop at the same step, which jax.distributed arranges.
    """

    # Over all groups of seeds that a process trains: JAX wants numbers that grow.
    _asked: ClassVar[Iterator[int]] = itertools.count(1)

    def __enter__(self) -> StopRequest:
        self._told = False
        # jax.distributed listens itself, and Python lets only the main thread do it.
        self._listens = (
            jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
        )
        if self._listens:
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *raised: Any) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._before)

    def _hear(self, number: int, frame: Any) -> None:
        del number, frame
        self._told = True

    def has_come(self) -> bool:
        """Whether to stop; to be asked after every step, and the same answer in all processes."""
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(next(self._asked)))
        return self._told
