"""Mtl-ERC-ES: a training step and prediction on MELD's lengths and speakers, against PyTorch.

Batches of 32 dialogues; features and labels are random, since the speed does not depend on them.
A training step is forward, backward and Adam, in float32. Models: "context", the context module
(both levels, both layers) with the heads of emotion and sentiment, without dropout; "whole", the
paper's model with its dropout; "speakers", our speaker level alone, with 2 and with 9 speakers.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import numpy as np

from erc_jax.benchmarks import harness
from erc_jax.benchmarks.meld_dialogues import DIALOGUES
from erc_jax.data.batching import Examples, make_examples
from erc_jax.data.dialogue import Dialogue, Utterance
from erc_jax.errors import UserError

DIALOGUES_PER_BATCH = 32
CLASSES = {"emotion": 7, "sentiment": 3, "shift_global": 5, "shift_speaker": 5}
DROPOUT = 0.2
CASES = ("train", "predict")
OURS = "erc_jax.benchmarks.mtl_erc_es_jax"
PEER = "erc_jax.benchmarks.mtl_erc_es_torch"


def tasks_of(model: str) -> tuple[str, ...]:
    return tuple(CLASSES) if model == "whole" else ("emotion", "sentiment")


def dropout_of(model: str) -> float:
    return DROPOUT if model == "whole" else 0.0


def sample(width: int, n_speakers: int | None = None) -> Examples:
    """320 dialogues with random features and labels, the same in every process.

    Args:
      width: of the features.
      n_speakers: draw the speakers from as many; None leaves MELD's.
    """
    rng = np.random.default_rng(0)
    dialogues = [
        Dialogue(
            str(number),
            tuple(
                Utterance(speaker if n_speakers is None else str(rng.integers(n_speakers)), "")
                for speaker in word
            ),
        )
        for number, word in enumerate(DIALOGUES)
    ]
    n = sum(map(len, DIALOGUES))
    labels = {task: rng.integers(0, c, n).astype(np.int32) for task, c in CLASSES.items()}
    return make_examples(dialogues, rng.standard_normal((n, width), np.float32), labels)


def batches(examples: Examples, count: int) -> list[np.ndarray]:
    """Dialogue numbers of the first batches, cut as in training."""
    return examples.batches(DIALOGUES_PER_BATCH, np.random.default_rng(0))[:count]


def flops_per_utterance(model: str, width: int, training: bool) -> float:
    """Floating-point operations of the products that the model needs; a multiply-add is two.

    Training adds two products to each forward one, but for layers that read the features, which
    need no gradient. Attention's own products, far below a percent, are left out.
    """
    d, half = width, width // 2
    over_features, over_states = 0, 0  # weights that one utterance meets
    for _ in range(4):  # two levels, two directions
        over_features += d * 4 * half
        over_states += half * 4 * half + (d + half) * 4 * half
    if model == "whole":
        # Per level: two units of query, key, value and a feed-forward network of width d.
        over_features += 2 * 3 * d * d
        over_states += 2 * (3 * d * d + 2 * 2 * d * d)
    over_states += sum(2 * d * CLASSES[task] for task in tasks_of(model))
    return 2.0 * (
        (2 * over_features + 3 * over_states) if training else over_features + over_states
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=("context", "whole", "speakers"), default="context")
    parser.add_argument("--width", type=int, default=1024, help="of the features, d")


def run(args: argparse.Namespace) -> dict[str, Any]:
    return _speakers(args) if args.model == "speakers" else _against_torch(args)


def _against_torch(args: argparse.Namespace) -> dict[str, Any]:
    options = {"model": args.model, "width": args.width, "n_batches": args.batches}
    with harness.two_sides(
        f"{OURS}:cases", f"{PEER}:cases", options, args.threads, args.dtype
    ) as sides:
        peak = sides.peak(args.pairs)
        times = {case: sides.measure(case, args.pairs, warm_up=args.batches) for case in CASES}
    examples = sample(width=2)
    counts = [len(examples.rows(b)) for b in batches(examples, args.batches)]
    items = [counts[step % args.batches] for step in range(args.pairs)]
    work = {}
    for case in CASES:
        each = flops_per_utterance(args.model, args.width, training=case == "train")
        work[case] = harness.Work(items, [n * each for n in items])
    title = (
        f"Mtl-ERC-ES, {args.model}, d = {args.width}: batches of {DIALOGUES_PER_BATCH} dialogues"
    )
    return harness.report(title, "utterances", times, work, peak, args.threads)


def _speakers(args: argparse.Namespace) -> dict[str, Any]:
    if args.dtype != "float32":
        raise UserError("--model speakers is measured in float32 alone; leave --dtype out")
    options = {"width": args.width, "n_batches": args.batches}
    with harness.Worker(f"{OURS}:speaker_cases", options, args.threads) as worker:
        times = harness.pairs(
            lambda step: worker.seconds("nine", step),
            lambda step: worker.seconds("two", step),
            args.pairs,
            warm_up=args.batches,
        )
    nine, two = (1e3 * statistics.median(t) for t in (times.ours, times.peer))
    cost = 1 / times.ratio
    print(f"Speaker level, training step, d = {args.width}, batches of the same lengths")
    print(f"2 speakers {two:.1f} ms, 9 speakers {nine:.1f} ms: {cost:.2f} times the cost")
    return {
        "benchmark": "mtl_erc_es",
        "model": "speakers",
        "width": args.width,
        "two_speakers_ms": two,
        "nine_speakers_ms": nine,
        "cost_of_nine_by_two": cost,
        "machine": harness.machine(args.threads),
    }
