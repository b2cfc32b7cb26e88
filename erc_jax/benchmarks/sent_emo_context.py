"""SentEmoContext: a training step on DailyDialog's lengths and emotions, against PyTorch.

The paper's recipe on batches of 128 utterances (anchors), drawn with inverse label frequency, that
bring their whole dialogues. One step, after pre-training, is forward, backward and SGD of the
anchors' class-weighted cross-entropy, then forward, backward and AdamW of their triplet loss, in
float32 with dropout. Features are random; lengths and emotions are those of DailyDialog's training
split, paired at random: a batch then has 8% more utterances than one of the corpus itself.

Of the context layer, queries, keys and values are needed of all utterances, the rest of the anchors
alone. Ours computes no more; it is paired with two peers in turn, which pad dialogues to the
longest:

"train": PyTorch's layer, as its users write it. It gives the outputs of all utterances, so its
ratio is for the most part work that we avoid.

"train_anchors": the layer taken apart, so that its rest runs for the anchors alone here, too. Its
ratio is of speed, and of padding.

GFLOP are those of ours, without what rounding up of shapes adds; with what the first peer adds it
is judged whether it keeps the machine busy.

Ours alone also gives the time of an epoch: its steps as training runs them, batches made on the
way, and its end, where the training split is encoded and the validation split is classified.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from erc_jax.benchmarks import harness
from erc_jax.config import base_config, sent_emo_context
from erc_jax.data.anchors import AnchorExamples
from erc_jax.data.batching import make_examples, training_order
from erc_jax.data.dialogue import Dialogue, Utterance

CASES = ("train", "train_anchors")
OURS = "erc_jax.benchmarks.sent_emo_context_jax"
PEER = "erc_jax.benchmarks.sent_emo_context_torch"

# Dialogues of 2, 3, 4 ... 35 utterances in DailyDialog's training split.
DIALOGUES_BY_LENGTH = (
    *(483, 386, 1980, 942, 1183, 805, 1069, 717, 966, 436, 977, 272, 262, 158, 154, 94, 63),
    *(34, 48, 27, 12, 13, 11, 4, 7, 1, 3, 5, 2, 1, 2, 0, 0, 1),
)
UTTERANCES_BY_EMOTION = {
    "no emotion": 72143,
    "anger": 827,
    "disgust": 303,
    "fear": 146,
    "happiness": 11182,
    "sadness": 969,
    "surprise": 1600,
}
VALIDATION_DIALOGUES = 1000
REPEATS = 3  # of what is measured of ours alone


def recipe() -> ConfigDict:
    """The experiment whose training step is measured."""
    config = sent_emo_context(base_config(), "sent_emo_context_paper")
    config.train.batch_size = 128
    return config


def sample(config: ConfigDict, width: int) -> AnchorExamples:
    """The training split with random features of so many channels, the same in every process."""
    rng = np.random.default_rng(0)
    lengths = rng.permutation(np.repeat(np.arange(2, 36), DIALOGUES_BY_LENGTH))
    counts = list(UTTERANCES_BY_EMOTION.values())
    labels = rng.permutation(np.repeat(np.arange(len(counts), dtype=np.int32), counts))
    dialogues = [
        Dialogue(str(number), tuple(Utterance("AB"[turn % 2], "") for turn in range(length)))
        for number, length in enumerate(lengths)
    ]
    features = rng.standard_normal((len(labels), width), np.float32)
    examples = make_examples(dialogues, features, {"emotion": labels})
    return AnchorExamples(examples, "emotion", config.sent_emo_context.balance)


def batches(config: ConfigDict, examples: AnchorExamples, count: int) -> list[np.ndarray]:
    """Utterance numbers of the first batches, drawn as in training."""
    return training_order(examples, config.train.batch_size, seed=0, epoch=0)[:count]


def dialogue_lengths(examples: AnchorExamples, anchors: np.ndarray) -> np.ndarray:
    """Utterances in each dialogue of a batch, int64 [B]."""
    return np.diff(examples.examples.starts)[np.unique(examples.dialogue_of[anchors])]


def flops(
    config: ConfigDict, width: int, lengths: np.ndarray, n_anchors: int, n_outputs: int
) -> float:
    """Floating-point operations of the products in a training step; a multiply-add is two.

    Backward adds two products to each forward one, but for the context layer's queries, keys and
    values, which read the features, and these need no gradient. The classifier's layer has an
    utterance attend to itself alone: queries and keys are not needed.

    Args:
      config: the recipe.
      width: of the features, d.
      lengths: int [B], utterances in each dialogue.
      n_anchors: those that are classified and compared.
      n_outputs: utterances whose output the context layer gives.
    """
    d, ffn = width, config.sent_emo_context.ffn
    read = int(lengths.sum()) * 3 * d * d
    attention = int((lengths**2).sum()) * 2 * d
    context = 2 * read + 3 * (attention + n_outputs * (d * d + 2 * d * ffn))
    classifier = n_anchors * (2 * d * d + 2 * d * ffn + d * len(UTTERANCES_BY_EMOTION))
    distances = n_anchors**2 * d
    return 2.0 * (2 * context + 3 * classifier + 3 * distances)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--width", type=int, default=384, help="of the features, d")


def run(args: argparse.Namespace) -> dict[str, Any]:
    options = {"width": args.width, "n_batches": args.batches}
    with harness.two_sides(
        f"{OURS}:cases", f"{PEER}:cases", options, args.threads, args.dtype
    ) as sides:
        peak = sides.peak(args.pairs)
        times = {case: sides.measure(case, args.pairs, warm_up=args.batches) for case in CASES}
        loop, validation = (_seconds(sides.ours, case) for case in ("loop", "validation"))
    config = recipe()
    examples = sample(config, width=2)
    drawn = batches(config, examples, args.batches)
    record = harness.report(
        f"SentEmoContext, d = {args.width}: batches of {config.train.batch_size} anchors",
        "anchors",
        times,
        {
            case: _work(config, args.width, examples, drawn, args.pairs, case == "train_anchors")
            for case in CASES
        },
        peak,
        args.threads,
    )

    steps = -(-examples.n_items // config.train.batch_size)
    training = steps * loop / args.batches
    print(
        f"\nAn epoch of ours: {steps} steps {training:.0f} s, and at its end {validation:.0f} s "
        f"for the vectors of {examples.n_utterances} utterances and the predictions of "
        f"{VALIDATION_DIALOGUES} dialogues"
    )
    epoch = {"steps": steps, "training_seconds": training, "validation_seconds": validation}
    return {**record, "width": args.width, "epoch": epoch}


def _seconds(worker: harness.Worker, case: str) -> float:
    """What a case of ours takes, without its compilation."""
    worker.seconds(case)
    return statistics.median(worker.seconds(case) for _ in range(REPEATS))


def _work(
    config: ConfigDict,
    width: int,
    examples: AnchorExamples,
    drawn: Sequence[np.ndarray],
    pairs: int,
    anchors_alone: bool,
) -> harness.Work:
    needed, padded = [], []
    for items in drawn:
        lengths, n_anchors = dialogue_lengths(examples, items), len(np.unique(items))
        needed.append(flops(config, width, lengths, n_anchors, n_anchors))
        longest = np.full_like(lengths, lengths.max())
        n_outputs = n_anchors if anchors_alone else int(longest.sum())
        padded.append(flops(config, width, longest, n_anchors, n_outputs))
    taken = [step % len(drawn) for step in range(pairs)]
    return harness.Work(
        [len(drawn[i]) for i in taken], [needed[i] for i in taken], [padded[i] for i in taken]
    )
