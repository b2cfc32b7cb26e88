"""FMERL: a training step on text, audio and visual features, against PyTorch.

16 dialogues of about 50 utterances a batch: 703 utterances, in 1136 places where dialogues are
padded to the longest. Features have the widths of IEMOCAP's (1024 of RoBERTa, 1582 of openSMILE,
342 of the face), all inner vectors one width, d. A step is forward, backward and Adam of the whole
model: fusion, the three VAD nets, and the comparison with six descriptions. Features and labels
are random. Without dropout, both sides compute the same.

Ours is paired with two peers in turn:

"train": the backbone as its authors write it, on padded dialogues.

"train_packed": what a careful user would write: real utterances alone in all dense layers, padding
in attention alone, which is PyTorch's fused one.

GFLOP are those of the real utterances; with what the first peer spends on padding it is judged
whether it keeps the machine busy.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from erc_jax.benchmarks import harness
from erc_jax.data.batching import Examples, make_examples
from erc_jax.data.dialogue import VAD, Dialogue, Utterance
from erc_jax.data.modalities import Modalities

# Drawn once, from a normal distribution.
LENGTHS = (60, 71, 26, 42, 47, 42, 63, 49, 34, 38, 24, 39, 44, 44, 31, 49)
WIDTHS = {"text": 1024, "audio": 1582, "visual": 342}
DESCRIBED = 1024  # width of the descriptions' vectors, those of RoBERTa-large
EMOTIONS = ("anger", "excitement", "frustration", "happiness", "neutral", "sadness")
HEADS, SPEAKERS, HIDDEN_LAYERS = 8, 2, 2
LEARNING_RATE = 1e-4
CASES = ("train", "train_packed")
OURS = "erc_jax.benchmarks.fmerl_jax"
PEER = "erc_jax.benchmarks.fmerl_torch"


def sample(n_batches: int) -> Examples:
    """Dialogues with random features and labels, the same in every process."""
    rng = np.random.default_rng(0)
    dialogues = [
        Dialogue(str(number), tuple(Utterance("AB"[turn % 2], "") for turn in range(length)))
        for number, length in enumerate(LENGTHS * n_batches)
    ]
    n = sum(LENGTHS) * n_batches
    features = {name: rng.standard_normal((n, width), np.float32) for name, width in WIDTHS.items()}
    labels = {
        "emotion": rng.integers(len(EMOTIONS), size=n).astype(np.int32),
        "vad": rng.random((n, len(VAD)), np.float32),
    }
    present = {name: np.ones(n, bool) for name in WIDTHS}
    return make_examples(dialogues, Modalities(features, present), labels)


def descriptions() -> np.ndarray:
    """Random vectors of the emotions' descriptions, float32 [C, DESCRIBED]."""
    return np.random.default_rng(1).standard_normal((len(EMOTIONS), DESCRIBED), np.float32)


def batches(count: int) -> list[np.ndarray]:
    """Dialogue numbers of the batches, which are all of the same lengths."""
    return list(np.arange(count * len(LENGTHS)).reshape(count, -1))


def flops(
    widths: Sequence[int], width: int, described: int, lengths: Sequence[int], n_places: int
) -> float:
    """Floating-point operations of the products in a training step; a multiply-add is two.

    Backward adds two products to each forward one, but for those with features and descriptions,
    which need no gradient.

    Args:
      widths: of the features of each modality.
      width: d, of all inner vectors.
      described: width of the descriptions' vectors.
      lengths: utterances that those of each dialogue attend to.
      n_places: utterances in dense layers.
    """
    d, n_modalities = width, len(widths)
    n_pairs = n_modalities**2
    of_constants = sum(widths) * d + described * len(EMOTIONS)
    encoder = 4 * d * d + 2 * d * d  # query, key, value and output; the feed-forward network
    gates = n_pairs * d * d + (n_modalities * d * d if n_modalities > 1 else 0)
    reduce = n_modalities * (n_modalities * d) * d
    vad = len(VAD) * (HIDDEN_LAYERS * d * d + d)
    projection = d * described if described != d else 0
    dense = n_places * (n_pairs * encoder + gates + reduce + vad + projection)
    attention = n_pairs * sum(2 * length**2 * d for length in lengths)
    return 2.0 * (2 * n_places * of_constants + 3 * (dense + attention))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--width", type=int, default=1024, help="of all inner vectors, d")


def run(args: argparse.Namespace) -> dict[str, Any]:
    options = {"width": args.width, "n_batches": args.batches}
    with harness.two_sides(
        f"{OURS}:cases", f"{PEER}:cases", options, args.threads, args.dtype
    ) as sides:
        peak = sides.peak(args.pairs)
        times = {case: sides.measure(case, args.pairs, warm_up=args.batches) for case in CASES}
    longest = [max(LENGTHS)] * len(LENGTHS)
    # What is computed: by ours (but for rounded up shapes), by the padded peer, by the packed one.
    needed, padded, packed = (
        flops(list(WIDTHS.values()), args.width, DESCRIBED, lengths, n_places)
        for lengths, n_places in (
            (LENGTHS, sum(LENGTHS)),
            (longest, sum(longest)),
            (longest, sum(LENGTHS)),
        )
    )
    record = harness.report(
        f"FMERL, d = {args.width}: batches of {len(LENGTHS)} dialogues",
        "utterances",
        times,
        {
            case: harness.Work(
                [sum(LENGTHS)] * args.pairs, [needed] * args.pairs, [of_peer] * args.pairs
            )
            for case, of_peer in zip(CASES, (padded, packed), strict=True)
        },
        peak,
        args.threads,
    )
    return {**record, "width": args.width}
