"""A small run as a process of its own, alone or as one of several; see tests/test_processes.py.

    python -m tests.pod CONFIG WORKDIR [HOST:PORT,PROCESSES,NUMBER SLOW_DISK]

CONFIG is a config's JSON. Several configs, joined by commas, are run one after another, in folders
named like their files.
"""

import sys
import time
from pathlib import Path

from ml_collections import ConfigDict


def run(names: str, workdir: str, how: str | None = None, slow_disk: str = "False") -> None:
    from erc_jax import processes, sharding
    from erc_jax.checkpoint import Checkpointer
    from erc_jax.config import load_config
    from erc_jax.errors import STOPPED_EXIT_CODE, Stopped
    from erc_jax.processes import joined
    from erc_jax.train import train

    sharding.LEAST_SPLIT = 1  # models of tests have no large parameters
    processes.HEARTBEAT_SECONDS = 10  # tests wait for it
    if slow_disk == "True":
        write = Checkpointer._write_checksums
        Checkpointer._write_checksums = lambda self: (time.sleep(2), write(self))[1]  # type: ignore[method-assign]
    with joined(how):
        for name in names.split(","):
            config: ConfigDict = load_config(Path(name))
            try:
                train(config, Path(workdir) / Path(name).name)
            except Stopped as stopped:
                print(stopped)
                sys.exit(STOPPED_EXIT_CODE)


if __name__ == "__main__":
    run(*sys.argv[1:])
