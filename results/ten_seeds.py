"""Compares ten seeds in one program with the ten runs that they would be alone.

python results/ten_seeds.py RUNS [FLAGS]

Mtl-ERC-ES on the sample corpus, as configs/quickstart.py has it but for further FLAGS; RUNS is a
new folder for both.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SEEDS = 10
STEPS = 20  # whose losses are compared: after many more, rounding has grown to other numbers


def main(runs: Path, further: Sequence[str]) -> None:
    for name, together in (("alone", 1), ("together", SEEDS)):
        options = {"seeds": SEEDS, "seeds_together": together, "log_every": 1}
        flags = [f"--config.{field}={value}" for field, value in options.items()]
        command = [sys.executable, "-m", "erc_jax.main", "--config", "quickstart", *flags, *further]
        subprocess.run([*command, "--workdir", str(runs / name)], check=True)

    print(f"| seed | largest difference in {STEPS} steps, relative | epochs alone | together |")
    print("|---|---|---|---|")
    for seed in range(SEEDS):
        alone, together = (lines_of(runs / name, seed) for name in ("alone", "together"))
        pairs = zip(losses_of(alone), losses_of(together), strict=True)
        worst = max(abs(one - other) / abs(one) for one, other in pairs)
        print(f"| {seed} | {worst:.1e} | {epochs_of(alone)} | {epochs_of(together)} |")
    seconds = [
        json.loads((runs / name / "metrics.json").read_text())["run"]["seconds"]
        for name in ("alone", "together")
    ]
    print("\n{:.0f} s alone, {:.0f} s together, compilation included".format(*seconds))


def lines_of(workdir: Path, seed: int) -> list[dict[str, Any]]:
    """What metrics.jsonl holds."""
    text = (workdir / "seeds" / str(seed) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def losses_of(lines: list[dict[str, Any]]) -> list[float]:
    """Of each of the first steps."""
    return [line["loss"] for line in lines if "loss" in line][:STEPS]


def epochs_of(lines: list[dict[str, Any]]) -> int:
    return max(line.get("epoch", 0) for line in lines)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
