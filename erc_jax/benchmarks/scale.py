"""Many seeds in one program, and many devices: what a seed costs, and whether numbers stay.

"seeds": a training step of Mtl-ERC-ES on batches of 32 dialogues with MELD's lengths, as training
draws them, for so many seeds at once, each with its own batch, against as many single steps in
turn. These ways are measured: seeds one after another in one program ("unrolled"), and as one
computation ("vmapped"); and, where there are several devices, or cores that can pretend to be some,
seeds on devices of their own ("side by side"). The cost of a seed is the joint step's time by that
of the single steps, which have one device, or all cores; below 1 it pays.

"devices": the losses of some steps on 1, 2, 4 and 8 devices, each with 8 dialogues, against the
same batches on one. On a CPU the devices are pretended: it is about correctness, not about speed.
"""

from __future__ import annotations

import argparse
import math
import statistics
from functools import partial
from typing import Any

import numpy as np

from erc_jax.benchmarks import harness
from erc_jax.benchmarks.mtl_erc_es import DIALOGUES_PER_BATCH

OURS = "erc_jax.benchmarks.scale_jax"
SEEDS = (1, 2, 4, 8)
WAYS = ("unrolled", "vmapped", "side by side")
DEVICES = (1, 2, 4, 8)
DIALOGUES_PER_DEVICE = 8
STEPS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--width", type=int, default=384, help="of the features, d")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.set_defaults(pairs=10, batches=2)


def run(args: argparse.Namespace) -> dict[str, Any]:
    record: dict[str, Any] = {"machine": harness.machine(args.threads), "seeds": {}, "devices": {}}
    options = {
        **{"width": args.width, "n_batches": args.batches, "dtype": args.dtype},
        "seeds": tuple(args.seeds),
        "n_cpus": args.threads,
    }
    rows = []
    with harness.Worker(f"{OURS}:seed_cases", options, args.threads) as worker:
        facts = worker.value("facts")
        for n_seeds in args.seeds:
            for way in args.ways:
                if way == "side by side" and math.gcd(n_seeds, facts["devices"]) == 1:
                    continue
                paired = harness.pairs(
                    partial(worker.seconds, f"{way} {n_seeds}"),
                    partial(worker.seconds, f"apart {n_seeds}"),
                    args.pairs,
                    warm_up=args.batches,
                )
                cost = 1 / paired.ratio
                joint, apart = (1e3 * statistics.median(of) for of in (paired.ours, paired.peer))
                rows.append(
                    [
                        f"{n_seeds} seeds, {way}",
                        *(f"{joint:.1f} ms", f"{joint / n_seeds:.1f} ms", f"{apart:.1f} ms"),
                        f"{cost:.2f}",
                    ]
                )
                figures = {"ms": joint, "apart_ms": apart, "cost": cost}
                record["seeds"][f"{n_seeds} {way}"] = figures
    print(
        f"Mtl-ERC-ES, d = {args.width}, {args.dtype}, batches of {DIALOGUES_PER_BATCH} dialogues "
        f"per seed; {facts['device']}, {args.threads} threads"
    )
    header = ["", "a step of all", "per seed", "single steps", "cost of a seed"]
    harness.print_table(header, rows)

    with harness.Worker(
        f"{OURS}:device_cases", {"width": args.width, "n_steps": STEPS}, args.threads
    ) as worker:
        rows = []
        for n_devices in range(worker.value("devices") + 1):
            if n_devices not in DEVICES:
                continue
            one, here = (worker.value(case, n_devices) for case in ("one device", "all devices"))
            difference = float(np.max(np.abs(np.subtract(here, one)) / np.abs(one)))
            rows.append([f"{n_devices} devices", f"{difference:.1e}"])
            record["devices"][n_devices] = difference
    print(f"\nLosses of {STEPS} steps, {DIALOGUES_PER_DEVICE} dialogues a device:")
    harness.print_table(["", "largest relative difference from one device"], rows)
    return record
