"""What benchmarks share: two programs that take turns on the same cores, and their report.

Ours and the peer run in a process each, since the threads of one library slow the other's in the
same process. Each does one step when told to, strictly in turn; a ratio is the median over the
pairs of neighbouring steps, so that a busy machine slows both sides of it alike.

The peer, PyTorch, computes on CPUs. Where it is not installed, or where jax finds an accelerator,
ours is measured alone.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from erc_jax.allocator import keep_freed_memory
from erc_jax.errors import UserError

# What a worker can do: name to a function of the step's number that returns when it is done. What
# it returns can be asked for, such as facts that only this process knows.
Cases = Mapping[str, Callable[[int], Any]]

# Idle threads of OpenMP and of matrix libraries go on spinning for a moment after a step.
PAUSE_SECONDS = 0.05
# Of the square matrices whose product gives the peak: a tenth of a second on CPUs, and long enough
# on an accelerator that the start of a computation does not count.
PRODUCT_SIZE, PRODUCT_SIZE_ACCELERATOR = 2048, 16384


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
        return self._run(case, step)[0]

    def value(self, case: str, step: int = 0) -> Any:
        """Runs one step and returns what it returned; see ``seconds``."""
        return self._run(case, step)[1]

    def _run(self, case: str, step: int) -> tuple[float, Any]:
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
    use_cores(threads)
    # As in our programs; the peer gets the same, since it gains from it, too.
    keep_freed_memory()
    module, function = factory.split(":")
    try:
        cases: Cases = getattr(importlib.import_module(module), function)(**options)
        while True:
            case, step = connection.recv()
            start = time.perf_counter()
            value = cases[case](step)
            connection.send((time.perf_counter() - start, value))
    except EOFError:
        pass  # the parent is done


def use_cores(number: int) -> None:
    """Keeps this process to so many cores and threads.

    To be called before libraries are loaded: they size their thread pools by what they find then.
    """
    _pin(0, number)
    os.environ |= _thread_limits(number)


def start_on_cores(
    command: Sequence[str], number: int, environment: Mapping[str, str] | None = None, **how: Any
) -> subprocess.Popen[str]:
    """Starts a command that keeps to so many cores and threads.

    Args:
      command: with its arguments.
      number: of cores.
      environment: variables besides those of this process.
      how: further arguments of ``subprocess.Popen``.
    """
    variables = {**os.environ, **_thread_limits(number), **(environment or {})}
    process = subprocess.Popen(command, env=variables, text=True, **how)
    _pin(process.pid, number)  # long before it has loaded a library
    return process


def _pin(process: int, number: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process, sorted(os.sched_getaffinity(0))[:number])


def _thread_limits(number: int) -> dict[str, str]:
    variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return dict.fromkeys(variables, str(number))


@dataclasses.dataclass(frozen=True)
class Paired:
    """Times of neighbouring steps, in seconds; ``peer`` is empty where ours was alone."""

    ours: Sequence[float]
    peer: Sequence[float]

    @property
    def ratio(self) -> float:
        """Median of peer's time by ours: above 1 we are faster. Needs a peer."""
        return statistics.median(p / o for p, o in zip(self.peer, self.ours, strict=True))


def pairs(
    ours: Callable[[int], float],
    peer: Callable[[int], float] | None,
    number: int,
    warm_up: int,
) -> Paired:
    """Times two things in turn, each on the same steps; who goes first alternates.

    Args:
      ours: runs a step and returns its seconds.
      peer: the same; None leaves ours alone.
      number: pairs that count.
      warm_up: steps that are run before and do not count; they compile.
    """
    sides = [ours] if peer is None else [ours, peer]
    for step in range(warm_up):
        for side in sides:
            side(step)
    times: list[list[float]] = [[] for _ in sides]
    for step in range(number):
        order = list(zip(sides, times, strict=True))
        for side, of_side in order if step % 2 == 0 else reversed(order):
            time.sleep(PAUSE_SECONDS)
            of_side.append(side(step))
    return Paired(times[0], times[1] if peer else ())


@dataclasses.dataclass(frozen=True)
class Peak:
    """The densest work that there is, a product of two square matrices, at its fastest."""

    device: str  # where ours computes, "cpu" or an accelerator's name
    size: int  # of the matrices
    dtype: str
    flops: float  # per second


@dataclasses.dataclass(frozen=True)
class Sides:
    """Our worker and the peer's, if there is one."""

    ours: Worker
    peer: Worker | None

    def measure(self, case: str, number: int, warm_up: int) -> Paired:
        """Times a case that both have; see ``pairs``."""
        peer = self.peer
        return pairs(
            lambda step: self.ours.seconds(case, step),
            None if peer is None else lambda step: peer.seconds(case, step),
            number,
            warm_up,
        )

    def peak(self, number: int) -> Peak:
        """The machine's limit: the faster side's median of so many products."""
        facts = self.ours.value("facts")
        times = self.measure("product", number, warm_up=1)
        seconds = min(statistics.median(t) for t in (times.ours, times.peer) if t)
        return Peak(**facts, flops=2 * facts["size"] ** 3 / seconds)


@contextlib.contextmanager
def two_sides(
    ours: str, peer: str, options: Mapping[str, Any], threads: int, dtype: str = "float32"
) -> Iterator[Sides]:
    """Starts the workers, and ends them. Ours is alone on accelerators, and in bfloat16.

    Args:
      ours: "module:function" of our cases, among them those of ``jax_product``.
      peer: the same of the peer, with ``torch_product``.
      options: what to benchmark; both functions are called with them, ours with ``dtype``, too.
      threads: of each side.
      dtype: of the computation.
    """
    with contextlib.ExitStack() as stack:
        worker = stack.enter_context(Worker(ours, {**options, "dtype": dtype}, threads))
        comparable = (
            dtype == "float32"
            and importlib.util.find_spec("torch") is not None
            and worker.value("facts")["device"] == "cpu"
        )
        yield Sides(
            worker,
            stack.enter_context(Worker(peer, options, threads)) if comparable else None,
        )


def jax_product(dtype: str = "float32", precision: str | None = None) -> Cases:
    """A product of two square matrices, and the facts about it that ``Peak`` holds.

    Args:
      dtype: of the matrices.
      precision: that accelerators multiply float32 with, as ``jax.default_matmul_precision``.
    """
    import jax
    import jax.numpy as jnp

    device = jax.devices()[0]
    size = PRODUCT_SIZE if device.platform == "cpu" else PRODUCT_SIZE_ACCELERATOR
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    with jax.default_matmul_precision(precision):
        product = jax.jit(jnp.matmul).lower(a, a).compile()
    facts = {"device": device.device_kind, "size": size, "dtype": dtype}

    def run(step: int) -> None:
        product(a, a).block_until_ready()

    return {"product": run, "facts": lambda step: facts}


def torch_product() -> Cases:
    """The same product in PyTorch."""
    import torch

    a = torch.randn(PRODUCT_SIZE, PRODUCT_SIZE)
    out = torch.empty_like(a)

    def run(step: int) -> None:
        torch.matmul(a, a, out=out)

    return {"product": run}


def main(name: str, benchmark: ModuleType, argv: Sequence[str]) -> None:
    """Runs a benchmark as a command.

    Args:
      name: of the benchmark on the command line.
      benchmark: its module. The docstring is the help; ``add_arguments(parser)`` adds options to
        those that all have; ``run(args)`` measures, prints, and returns a JSON object. One with
        IN_PAIRS = False does not go by pairs of steps.
      argv: the options.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m erc_jax.benchmarks {name}",
        description=benchmark.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--threads", type=int, default=2, help="of each side")
    if getattr(benchmark, "IN_PAIRS", True):
        parser.add_argument("--pairs", type=int, default=20, help="of steps that count")
        parser.add_argument("--batches", type=int, default=5, help="different ones, taken in turn")
        parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", help="file for the figures")
    benchmark.add_arguments(parser)
    args = parser.parse_args(argv)
    write_json(args.json, benchmark.run(args))


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
      padded: the same with those that the peer spends on padding; None where it does not pad.
    """

    items: Sequence[int]
    flops: Sequence[float]
    padded: Sequence[float] | None = None


def report(
    title: str,
    item: str,
    times: Mapping[str, Paired],
    work: Mapping[str, Work],
    peak: Peak,
    threads: int,
    *,
    judged: bool = True,
) -> dict[str, Any]:
    """Prints a benchmark's table and returns it as a JSON object.

    Args:
      title: what was measured.
      item: plural of what is counted, "utterances".
      times: case to its times; by the first case it is judged whether the comparison counts: the
        peer must keep the machine busy, be it with padding.
      work: case to what was done in them.
      peak: the machine's limit.
      threads: of each side.
      judged: False where products have so few rows that no peer comes near the peak.
    """
    record: dict[str, Any] = {
        "title": title,
        "machine": {"device": peak.device, **machine(threads)},
        "dtype": peak.dtype,
        "peak_gflops": round(peak.flops / 1e9, 1),
        "pairs": len(next(iter(times.values())).ours),
        "cases": {},
    }
    rows = []
    for case, paired in times.items():
        ratio = paired.ratio if paired.peer else None
        figures: dict[str, Any] = {
            "ratio": None if ratio is None else round(ratio, 3),
            "gflop_per_step": round(statistics.mean(work[case].flops) / 1e9, 2),
        }
        for side, seconds in (("ours", paired.ours), ("torch", paired.peer)):
            if not seconds:
                continue
            figures[side] = {
                "milliseconds": round(1e3 * statistics.median(seconds), 2),
                f"{item}_per_second": round(_median_rate(work[case].items, seconds), 1),
                "of_peak": round(_median_rate(work[case].flops, seconds) / peak.flops, 3),
            }
            shown = "-" if ratio is None else f"{ratio:.2f}" if side == "ours" else "1"
            rows.append(
                [
                    f"{case}, {side}",
                    f"{figures[side]['milliseconds']:.1f} ms",
                    f"{figures[side][f'{item}_per_second']:.0f}",
                    f"{figures[side]['of_peak']:.0%}",
                    shown,
                ]
            )
        record["cases"][case] = figures
    where = record["machine"]
    on = "" if peak.device == "cpu" else f"{peak.device}; "
    print(title)
    print(
        f"{on}{where['processor']}, {threads} threads of {where['cores']} cores, "
        f"load {where['load_average']}; jax {where['jax']}, torch {where['torch']}"
    )
    print(f"Matrix product of {peak.size}, {peak.dtype}: {peak.flops / 1e9:.0f} GFLOP/s. ", end="")
    flops = ", ".join(f"{c} {f['gflop_per_step']:.1f}" for c, f in record["cases"].items())
    print(f"GFLOP a step: {flops}. Medians of {record['pairs']} pairs.\n")
    print_table(["", "step", f"{item}/s", "of peak", "ratio"], rows)
    judge = next(iter(times))
    record["counts"] = None
    if judged and (seconds := times[judge].peer):
        padded = work[judge].padded
        busy = _median_rate(padded or work[judge].flops, seconds) / peak.flops
        record["torch_busy"] = round(busy, 3)
        record["counts"] = busy >= 0.5
        if padded:
            print(
                f"\nWith its padding, torch computes {statistics.mean(padded) / 1e9:.1f} GFLOP "
                f"a step, at {busy:.0%} of the peak."
            )
    if record["counts"] is False:
        print(
            f"\nThe comparison does not count: in {judge}, torch stays below half of the matrix "
            "peak. Is the machine busy?"
        )
    return record


def _median_rate(amounts: Sequence[float], seconds: Sequence[float]) -> float:
    return statistics.median(a / s for a, s in zip(amounts, seconds, strict=True))


def say_machine(threads: int) -> dict[str, Any]:
    """Prints and returns where figures come from, for benchmarks without a peer."""
    where = machine(threads)
    print(
        f"{where['processor']}, {threads} threads of {where['cores']} cores, "
        f"load {where['load_average']}; jax {where['jax']}, Python {where['python']}\n"
    )
    return where


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent of them do not exceed."""
    return sorted(values)[max(math.ceil(len(values) * percent / 100) - 1, 0)]


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """First column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        first, *others = (f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        print("  ".join([first.strip().ljust(widths[0]), *others]))


def write_json(path: str | None, record: Mapping[str, Any]) -> None:
    if path is not None:
        Path(path).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
