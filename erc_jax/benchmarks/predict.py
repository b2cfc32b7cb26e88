"""Prediction as users meet it: one conversation at a time, and the command's cold start.

Recognizer.predict is timed in a process of its own, after a warm-up, on conversations of so many
turns that are all different. The cold start is the whole of "--mode predict" with one conversation
in a fresh process: first without any compiled program, then with those that the first one left.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from erc_jax.benchmarks import harness
from erc_jax.benchmarks.meld_talk import conversations
from erc_jax.data.dialogue import save_dialogues
from erc_jax.errors import UserError

IN_PAIRS = False
DIFFERENT = 50  # conversations, taken in turn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", required=True, help="a run that names emotions")
    parser.add_argument("--encoder", help="where the run's encoder is, if it has moved")
    parser.add_argument("--turns", type=int, default=10, help="of a conversation")
    parser.add_argument("--predictions", type=int, default=300, help="that count")
    parser.add_argument("--starts", type=int, default=3, help="of the command; 0 leaves it out")


def run(args: argparse.Namespace) -> dict[str, Any]:
    print(f"Recognizer.predict on conversations of {args.turns} turns, {args.workdir}")
    record: dict[str, Any] = {"machine": harness.say_machine(args.threads), "turns": args.turns}
    options = {"workdir": args.workdir, "encoder": args.encoder, "turns": args.turns}
    with harness.Worker(f"{__name__}:cases", options, args.threads) as worker:
        for step in range(DIFFERENT):
            worker.seconds("predict", step)
        seconds = [worker.seconds("predict", step) for step in range(args.predictions)]
    record["predict_ms"] = {
        f"p{percent}": round(1e3 * harness.percentile(seconds, percent), 1) for percent in (50, 95)
    }
    rows = [[f"warm, {name}", f"{value:.1f} ms"] for name, value in record["predict_ms"].items()]
    record["start_seconds"] = {}
    for what, starts in _starts(args).items() if args.starts else ():
        record["start_seconds"][what] = median = round(statistics.median(starts), 2)
        rows.append([f"--mode predict, {what}, median of {len(starts)}", f"{median:.2f} s"])
    harness.print_table(["", "time"], rows)
    return record


def cases(workdir: str, encoder: str | None, turns: int) -> harness.Cases:
    """Predictions in this process."""
    from erc_jax.predict import Recognizer

    recognizer = Recognizer.from_pretrained(workdir, encoder=encoder)
    asked = conversations([_speakers(turns)] * DIFFERENT)

    def predict(step: int) -> None:
        recognizer.predict(asked[step % DIFFERENT])

    return {"predict": predict}


def _speakers(turns: int) -> str:
    return "".join("AB"[turn % 2] for turn in range(turns))


def _starts(args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of the whole command, by what it finds compiled."""
    found: dict[str, list[float]] = {"nothing compiled": [], "programs compiled before": []}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "talk.jsonl")
        save_dialogues(source, conversations([_speakers(args.turns)]))
        command = [sys.executable, "-m", "erc_jax.main", "--mode", "predict"]
        command += ["--workdir", args.workdir, "--input", str(source)]
        command += ["--output", str(Path(folder, "labelled.jsonl"))]
        if args.encoder:
            command += ["--encoder", args.encoder]
        for number in range(args.starts):
            programs = str(Path(folder, f"programs-{number}"))
            for seconds in found.values():
                seconds.append(_seconds(command, programs, args.threads))
    return found


def _seconds(command: list[str], programs: str, threads: int) -> float:
    """How long a command takes, with its compiled programs in this folder."""
    kept = {
        "JAX_COMPILATION_CACHE_DIR": programs,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",  # as main sets it
    }
    start = time.perf_counter()
    to_us: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with harness.start_on_cores(command, threads, kept, **to_us) as process:
        _, told = process.communicate()
    seconds = time.perf_counter() - start
    if process.returncode:
        raise UserError(f"the command failed: {told.strip() or process.returncode}")
    return seconds
