"""python -m erc_jax.benchmarks NAME [options]: how fast it is, where it can be against PyTorch."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from erc_jax.benchmarks import harness
from erc_jax.errors import UserError

# Modules of this package; harness.main says what one has.
BENCHMARKS = (
    "encoder",
    "fmerl",
    "mtl_erc_es",
    "predict",
    "response",
    "scale",
    "sent_emo_context",
    "serve",
)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m erc_jax.benchmarks", description=__doc__)
    parser.add_argument("benchmark", choices=BENCHMARKS)
    name = parser.parse_args(argv[:1]).benchmark
    harness.main(name, importlib.import_module(f"erc_jax.benchmarks.{name}"), argv[1:])


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"Error: {error}")
