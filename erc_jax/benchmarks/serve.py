"""The server under load: throughput and latency of POST /predict at several concurrencies.

The server is started in a process of its own, as users start it, and waited for until it is ready.
Then so many clients at a time send it conversations with the lengths of MELD's, each client the
next one when the last has been answered. The clients run on the same machine and take their share
of it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx2

from erc_jax.benchmarks import harness
from erc_jax.benchmarks.meld_talk import conversations
from erc_jax.errors import UserError

IN_PAIRS = False
CLIENTS = (1, 2, 4, 8, 16, 32)
READY_SECONDS = 600.0  # for loading and compiling
ANSWER_SECONDS = 180.0  # more than the server takes to say that it is busy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", required=True, help="a run that names emotions")
    parser.add_argument("--encoder", help="where the run's encoder is, if it has moved")
    parser.add_argument("--clients", nargs="+", type=int, default=CLIENTS, help="at a time")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each number of clients")


def run(args: argparse.Namespace) -> dict[str, Any]:
    print(f"POST /predict, one conversation of MELD's lengths a request, {args.workdir}")
    record: dict[str, Any] = {"machine": harness.say_machine(args.threads), "clients": {}}
    command = [sys.executable, "-m", "erc_jax.serve", "--workdir", args.workdir, "--port", "0"]
    if args.encoder:
        command += ["--encoder", args.encoder]
    rows = []
    with serving(command, args.threads) as url:
        record["seconds_until_ready"] = round(_wait_until_ready(url), 1)
        for clients in args.clients:
            # The first seconds fill what is empty at the start, and do not count.
            asyncio.run(load(url, clients, min(args.seconds / 4, 3.0)))
            measured = asyncio.run(load(url, clients, args.seconds))
            record["clients"][clients] = figures = measured.figures()
            rows.append([str(clients), *_cells(figures)])
    print(f"Ready {record['seconds_until_ready']:.1f} s after it could be reached.\n")
    header = ["clients", "requests/s", "utterances/s", "p50", "p95", "p99", "errors"]
    harness.print_table(header, rows)
    return record


def _cells(figures: Mapping[str, Any]) -> list[str]:
    times = [figures[f"p{percent}_ms"] for percent in PERCENTS]
    return [
        f"{figures['requests_per_second']:.1f}",
        f"{figures['utterances_per_second']:.0f}",
        *("-" if ms is None else f"{ms:.0f} ms" for ms in times),
        ", ".join(f"{n} × {what}" for what, n in figures["errors"].items()) or "0",
    ]


PERCENTS = (50, 95, 99)


@dataclasses.dataclass
class Load:
    """What came of some seconds of load.

    Attributes:
      seconds: until the last answer.
      latencies: in seconds, of each request that was answered with 200.
      utterances: in these.
      errors: status, or name of the exception, to how many there were.
    """

    seconds: float = 0.0
    latencies: list[float] = dataclasses.field(default_factory=list)
    utterances: int = 0
    errors: dict[str, int] = dataclasses.field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        times = {
            f"p{percent}_ms": round(1e3 * harness.percentile(self.latencies, percent), 1)
            if self.latencies
            else None
            for percent in PERCENTS
        }
        return {
            "requests_per_second": round(len(self.latencies) / self.seconds, 2),
            "utterances_per_second": round(self.utterances / self.seconds, 1),
            **times,
            "errors": dict(self.errors),
        }


async def load(url: str, clients: int, seconds: float) -> Load:
    """Has so many clients send conversations for some seconds, each one at a time."""
    result = Load()
    talks = itertools.cycle(conversations())

    async def client(connection: httpx2.AsyncClient, start: float) -> None:
        while (begin := time.perf_counter()) < start + seconds:
            talk = next(talks)
            try:
                answer = await connection.post(f"{url}/predict", json=talk)
                error = None if answer.status_code == 200 else str(answer.status_code)
            except httpx2.HTTPError as failure:
                error = type(failure).__name__
            if error:
                result.errors[error] = result.errors.get(error, 0) + 1
                await asyncio.sleep(0.1)  # a server that refuses is not asked all the faster
                continue
            result.latencies.append(time.perf_counter() - begin)
            result.utterances += len(talk["utterances"])

    limits = httpx2.Limits(max_connections=clients)
    async with httpx2.AsyncClient(
        timeout=ANSWER_SECONDS, limits=limits, trust_env=False
    ) as connection:
        start = time.perf_counter()
        await asyncio.gather(*(client(connection, start) for _ in range(clients)))
        result.seconds = time.perf_counter() - start
    return result


@contextlib.contextmanager
def serving(command: Sequence[str], threads: int) -> Iterator[str]:
    """The address of a server that a command starts on so many cores; ends it afterwards.

    Raises:
      UserError: it ended before it could be reached.
    """
    # On stderr it writes a line a request.
    to_us: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with harness.start_on_cores(command, threads, **to_us) as process:
        try:
            assert process.stdout is not None
            told = []
            for line in process.stdout:
                told.append(line)
                if found := re.search(r"http://\S+:\d+", line):
                    break
            else:
                raise UserError(
                    f"the server ended with {process.wait()}: {''.join(told).strip()}\n"
                    f"Try it alone: {' '.join(command)}"
                )
            yield found[0]
        finally:
            process.terminate()


def _wait_until_ready(url: str) -> float:
    """Seconds until the server says that it is ready.

    Raises:
      UserError: that takes too long.
    """
    start = time.perf_counter()
    while (waited := time.perf_counter() - start) < READY_SECONDS:
        with contextlib.suppress(httpx2.HTTPError):
            if httpx2.get(f"{url}/health", timeout=ANSWER_SECONDS, trust_env=False).json()["ready"]:
                return waited
        time.sleep(0.1)
    raise UserError(f"{url} is not ready after {READY_SECONDS:.0f} s")
