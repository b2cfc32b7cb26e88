"""Text encoders: sentence embeddings and a step of fine-tuning, against PyTorch.

Both sides have the same weights and the same sentences, as long as MELD's utterances.

"encode": one step turns all the sentences, from texts, into vectors: the mean over tokens, of
length 1. The peer does what sentence-transformers' ``encode`` does around transformers' model: it
sorts by length, cuts batches of 32, tokenises and pads each to its longest sentence. (The library
itself adds nothing to that, and is not needed.)

"train": one step is forward, backward and AdamW on a random batch of utterances, each alone, with a
linear layer on the mean over tokens. Tokenised before, on both sides; the peer pads to the longest
of the batch. Without dropout, both sides compute the same.

GFLOP are those of the real tokens, so that what a side spends on padding lowers its fraction of the
peak. PyTorch takes part in float32 on CPUs; on an accelerator, or in bfloat16, ours is alone.
Unless --pairs says otherwise, 5 pairs of "encode" are run, and 20 of "train".
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from erc_jax.benchmarks import harness
from erc_jax.encoders import hub

OURS = "erc_jax.benchmarks.encoder_jax"
PEER = "erc_jax.benchmarks.encoder_torch"
PAIRS = {"encode": 5, "train": 20}
CLASSES = 7
LEARNING_RATE, WEIGHT_DECAY = 1e-5, 0.01


class Sizes(Protocol):
    """What ``flops`` reads of an encoder's configuration."""

    @property
    def num_hidden_layers(self) -> int: ...

    @property
    def hidden_size(self) -> int: ...

    @property
    def intermediate_size(self) -> int: ...


def train_batches(batch_size: int, n_batches: int) -> list[np.ndarray]:
    """Numbers of the sentences in each batch; sentences come in random order already."""
    return list(np.arange(n_batches * batch_size).reshape(n_batches, batch_size))


def labels(number: int) -> np.ndarray:
    """Random classes int64 [number]; the same in every process."""
    return np.random.default_rng(1).integers(0, CLASSES, number)


def flops(config: Sizes, lengths: Sequence[int], training: bool) -> float:
    """Floating-point operations of the products that an encoder needs; a multiply-add is two.

    A layer has query, key, value and output of d x d and a feed-forward network of d x f and
    f x d for each token, and two products of L x L x d for each sentence of L tokens. Training
    adds two products to each forward one. Embeddings have none; pooling and head, far below a
    percent, are left out.

    Args:
      config: ours or transformers'; d is its hidden_size and f its intermediate_size.
      lengths: tokens in each sentence, special ones included.
      training: backward pass included.
    """
    d, f = config.hidden_size, config.intermediate_size
    dense = sum(lengths) * (4 * d * d + 2 * d * f)
    attention = sum(2 * length**2 * d for length in lengths)
    forward = 2.0 * config.num_hidden_layers * (dense + attention)
    return 3 * forward if training else forward


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", choices=tuple(PAIRS), default="encode")
    parser.add_argument("--encoder", default="all-MiniLM-L6-v2", help="name or folder")
    parser.add_argument("--sentences", type=int, default=2000, help="to encode")
    parser.add_argument("--batch-size", type=int, default=32, help="utterances in a training step")
    parser.add_argument("--dropout", type=float, default=0.0, help="of hidden states, in training")
    parser.set_defaults(pairs=None)


def run(args: argparse.Namespace) -> dict[str, Any]:
    args.pairs = args.pairs or PAIRS[args.task]
    # Both sides read one folder, and a model that is not there is met before any process starts.
    folder, _ = hub.find_model(args.encoder)
    options: dict[str, Any] = {"encoder": str(folder)}
    if args.task == "encode":
        options |= {"n_sentences": args.sentences}
        what, item, warm_up = f"encoding {args.sentences} sentences", "sentences", 1
    else:
        options |= {"batch_size": args.batch_size, "n_batches": args.batches}
        options |= {"dropout": args.dropout}
        what = f"fine-tuning, batches of {args.batch_size} utterances, dropout {args.dropout:g}"
        item, warm_up = "utterances", args.batches
    ours, peer = (f"{module}:{args.task}_cases" for module in (OURS, PEER))
    with harness.two_sides(ours, peer, options, args.threads, args.dtype) as sides:
        peak = sides.peak(args.pairs)
        times = sides.measure(args.task, args.pairs, warm_up)
        work = _work(sides, args.pairs)
        compiles = sides.ours.value("compiles")
    record = harness.report(
        f"{args.encoder}, {what}, {args.dtype}",
        item,
        {args.task: times},
        {args.task: work},
        peak,
        args.threads,
    )
    print(f"\nOurs was compiled for {compiles} shapes in all.")
    return {**record, "compiles": compiles}


def _work(sides: harness.Sides, pairs: int) -> harness.Work:
    items, operations = zip(*(sides.ours.value("work", step) for step in range(pairs)), strict=True)
    if sides.peer is None:
        return harness.Work(items, operations)
    return harness.Work(
        items, operations, [sides.peer.value("padded", step) for step in range(pairs)]
    )
