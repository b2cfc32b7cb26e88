"""What benchmarks share: two programs that take turns on the same cores, and their report.

Ours and the peer run in a process each, since the threads of one library slow the other's in the
same process. Each does one step when told to, strictly in turn; a ratio is the median over the
pairs of neighbouring steps, so that a busy machine slows both sides of it alike.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import multiprocessing
import os
import platform
import re
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from erc_jax.allocator import keep_freed_memory
from erc_jax.errors import UserError

# What a worker can do: name to a function of the step's number that returns when it is done.
Cases = Mapping[str, Callable[[int], None]]

# Idle threads of OpenMP and of matrix libraries go on spinning for a moment after a step.
PAUSE_SECONDS = 0.05
PRODUCT_SIZE = 2048


class Worker:
    """A process that prepares cases, and then runs and times one step at a time.

    Use as a context manager: leaving it ends the process.
    """

    def __init__(self, factory: str, options: Mapping[str, Any], threads: int):
        """Args:
        factory: "module:function"; called with options in the new process, returns `Cases`.
        options: what to benchmark.
        threads: cores and threads that the process may use.
        """
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, factory, dict(options), threads), daemon=True
        )
        self._process.start()
        theirs.close()

    def seconds(self, case: str, step: int = 0) -> float:
        """Runs one step and returns how long it took.

        Raises:
          UserError: the worker failed; its traceback is on stderr.
        """
        try:
            self._connection.send((case, step))
            return self._connection.recv()
        except (EOFError, BrokenPipeError) as error:
            raise UserError("a benchmark's worker ended early; see above for why") from error

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.terminate()


def _serve(connection: Connection, factory: str, options: dict[str, Any], threads: int) -> None:
    # Before the libraries are loaded: they size their thread pools by what they find then.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(threads)
    # As in our programs; the peer gets the same, since it gains from it, too.
    keep_freed_memory()
    module, function = factory.split(":")
    try:
        cases: Cases = getattr(importlib.import_module(module), function)(**options)
        while True:
            case, step = connection.recv()
            start = time.perf_counter()
            cases[case](step)
            connection.send(time.perf_counter() - start)
    except EOFError:
        pass  # the parent is done
    except Exception:
        traceback.print_exc()
        sys.exit(1)


@dataclasses.dataclass(frozen=True)
class Paired:
    """Times of neighbouring steps, in seconds."""

    ours: Sequence[float]
    peer: Sequence[float]

    @property
    def ratio(self) -> float:
        """Median of peer's time by ours: above 1 we are faster."""
        return statistics.median(p / o for p, o in zip(self.peer, self.ours, strict=True))


def pairs(
    ours: Callable[[int], float], peer: Callable[[int], float], number: int, warm_up: int
) -> Paired:
    """Times two things in turn, each on the same steps; who goes first alternates.

    Args:
      ours: runs a step and returns its seconds.
      peer: the same.
      number: pairs that count.
      warm_up: steps that are run before and do not count; they compile.
    """
    for step in range(warm_up):
        ours(step)
        peer(step)
    times: tuple[list[float], list[float]] = ([], [])
    for step in range(number):
        for side in (0, 1) if step % 2 == 0 else (1, 0):
            time.sleep(PAUSE_SECONDS)
            times[side].append((ours, peer)[side](step))
    return Paired(*times)


def jax_product() -> Callable[[int], None]:
    """A product of two square matrices, the densest work that there is."""
    import jax
    import jax.numpy as jnp

    a = jnp.ones((PRODUCT_SIZE, PRODUCT_SIZE))
    product = jax.jit(jnp.matmul)
    return lambda step: product(a, a).block_until_ready()


def torch_product() -> Callable[[int], None]:
    """The same in PyTorch."""
    import torch

    a = torch.ones(PRODUCT_SIZE, PRODUCT_SIZE)
    out = torch.empty_like(a)

    def run(step: int) -> None:
        torch.matmul(a, a, out=out)

    return run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that all benchmarks have."""
    parser.add_argument("--threads", type=int, default=2, help="of each side")
    parser.add_argument("--pairs", type=int, default=20, help="of neighbouring steps that count")
    parser.add_argument("--batches", type=int, default=5, help="different ones, taken in turn")
    parser.add_argument("--json", help="file for the figures")


def machine(threads: int) -> dict[str, Any]:
    """Where figures come from, and how busy it is."""
    model = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        found = re.search(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.MULTILINE)
        model = found[1] if found else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": threads,
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "jax": metadata.version("jax"),
        # Only the peer needs it: what is measured without a peer runs where it is not installed.
        "torch": metadata.version("torch") if importlib.util.find_spec("torch") else None,
    }


@dataclasses.dataclass(frozen=True)
class Work:
    """What a case's steps do, pair by pair.

    Attributes:
      items: how many items (utterances, sentences) each pair's step handled.
      flops: the floating-point operations that each pair's step needs.
    """

    items: Sequence[int]
    flops: Sequence[float]


def report(
    title: str,
    item: str,
    times: Mapping[str, Paired],
    work: Mapping[str, Work],
    product: Paired,
    threads: int,
) -> dict[str, Any]:
    """Prints a benchmark's table and returns it as a JSON object.

    Args:
      title: what was measured.
      item: plural of what is counted, "utterances".
      times: case to its times.
      work: case to what was done in them.
      product: times of the matrix product that gives the machine's peak.
      threads: of each side.
    """
    peak = 2 * PRODUCT_SIZE**3 / min(*map(statistics.median, (product.ours, product.peer)))
    record: dict[str, Any] = {
        "title": title,
        "machine": machine(threads),
        "peak_gflops": round(peak / 1e9, 1),
        "pairs": len(product.ours),
        "cases": {},
    }
    rows = []
    for case, paired in times.items():
        figures: dict[str, Any] = {
            "ratio": round(paired.ratio, 3),
            "gflop_per_step": round(statistics.mean(work[case].flops) / 1e9, 2),
        }
        for side, seconds in (("ours", paired.ours), ("torch", paired.peer)):
            figures[side] = {
                "milliseconds": round(1e3 * statistics.median(seconds), 2),
                f"{item}_per_second": round(_median_rate(work[case].items, seconds), 1),
                "of_peak": round(_median_rate(work[case].flops, seconds) / peak, 3),
            }
            rows.append(
                [
                    f"{case}, {side}",
                    f"{figures[side]['milliseconds']:.1f} ms",
                    f"{figures[side][f'{item}_per_second']:.0f}",
                    f"{figures[side]['of_peak']:.0%}",
                    f"{paired.ratio:.2f}" if side == "ours" else "1",
                ]
            )
        record["cases"][case] = figures
    where = record["machine"]
    print(title)
    print(
        f"{where['processor']}, {threads} threads of {where['cores']} cores, "
        f"load {where['load_average']}; jax {where['jax']}, torch {where['torch']}"
    )
    print(f"Matrix product of {PRODUCT_SIZE}: {peak / 1e9:.0f} GFLOP/s. ", end="")
    flops = ", ".join(f"{c} {f['gflop_per_step']:.1f}" for c, f in record["cases"].items())
    print(f"GFLOP a step: {flops}. Medians of {len(product.ours)} pairs.\n")
    print_table(["", "step", f"{item}/s", "of peak", "ratio"], rows)
    record["counts"] = record["cases"]["train"]["torch"]["of_peak"] >= 0.5
    if not record["counts"]:
        print(
            "\nThe comparison does not count: in training, torch stays below half of the matrix "
            "peak. Is the machine busy?"
        )
    return record


def _median_rate(amounts: Sequence[float], seconds: Sequence[float]) -> float:
    return statistics.median(a / s for a, s in zip(amounts, seconds, strict=True))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """First column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        first, *others = (f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        print("  ".join([first.strip().ljust(widths[0]), *others]))


def write_json(path: str | None, record: Mapping[str, Any]) -> None:
    if path is not None:
        Path(path).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
