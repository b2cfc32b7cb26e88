"""Emotion-aware replies: a training step, and the search for replies, against PyTorch.

Both sides have the same BART, of the base model's sizes unless --encoder names another, and the
same random pairs: 8 a batch, of 64 tokens each, so that nothing is padded.

"train": one step is forward, backward and AdamW of task R, with label smoothing and clipped
gradients. Without dropout, both sides compute the same.

"generate": one step writes a reply of 64 tokens to each of 8 utterances, by a search with five
beams in which no three words come twice. No reply may end earlier, so that both sides write as
much. The peer is transformers' ``generate``.

GFLOP are those of the products that are needed, the words' scores included. In the search, all
that the decoder multiplies with has to be read again for each word; the report says how much that
is. PyTorch takes part on CPUs; on an accelerator ours is alone. Unless --pairs says otherwise, 20
pairs of "train" are run, and 5 of "generate".
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, processors

from erc_jax.benchmarks import harness
from erc_jax.data.pairs import GENERATION, TaskTexts, TextBatch, TextExamples
from erc_jax.encoders import hub
from erc_jax.encoders.bart_config import BartConfig
from erc_jax.encoders.new_tokenizer import SPECIAL_TOKENS
from erc_jax.encoders.seq2seq import FILES, Seq2Seq
from erc_jax.encoders.weights import read_json

OURS = "erc_jax.benchmarks.response_jax"
PEER = "erc_jax.benchmarks.response_torch"
PAIRS = {"train": 20, "generate": 5}
ROWS, LENGTH = 8, 64  # of a batch, and tokens of each text
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM, SMOOTHING = 3e-5, 0.01, 0.1, 0.1
BEAMS, LENGTH_PENALTY, NO_REPEAT_NGRAM = 5, 1.0, 3
# Of facebook/bart-base; see ``write_model``.
BASE = {
    **{"vocabulary": 50265, "width": 768, "layers": 6, "heads": 12, "ffn": 3072},
    "max_tokens": 1023,
}


def write_model(folder: Path, vocabulary: int, **sizes: int) -> None:
    """Writes a model with random weights.

    Args:
      folder: where to.
      vocabulary: V; the words are numbers.
      **sizes: of ``Seq2Seq.from_scratch``.
    """
    words = [*SPECIAL_TOKENS, *map(str, range(vocabulary - len(SPECIAL_TOKENS)))]
    numbers = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<s> $A </s>", special_tokens=[(word, numbers[word]) for word in ("<s>", "</s>")]
    )
    Seq2Seq.from_scratch(tokenizer, **sizes).save_pretrained(folder)


def batches(config: BartConfig, count: int) -> list[TextBatch]:
    """Random pairs, the same in every process."""
    rng = np.random.default_rng(0)
    # BART's special tokens are the first ones, but for <mask>, which is an ordinary word here.
    texts = rng.integers(4, config.vocab_size, (2, count * ROWS, LENGTH), dtype=np.int32)
    texts[:, :, 0], texts[:, :, -1] = config.bos_token_id, config.eos_token_id
    part = TaskTexts(
        task=GENERATION,
        sources=list(texts[0]),
        targets=list(texts[1]),
        labels=None,
        dialogue_of=np.arange(count * ROWS),
        n_dialogues=count * ROWS,
    )
    examples = TextExamples([part], max_tokens=LENGTH)
    return [examples.batch(items) for items in np.arange(count * ROWS).reshape(count, ROWS)]


def flops(
    config: BartConfig, task: str, rows: int = ROWS, length: int = LENGTH, beams: int = BEAMS
) -> float:
    """Floating-point operations of the products that a step needs; a multiply-add is two.

    The encoder and its keys and values for the decoder are computed once for each source. In
    training, where backward adds two products to each forward one, a word attends to all words of
    its text, the later ones masked, as on both sides; in the search to itself and those before.

    Args:
      config: of the model.
      task: one of PAIRS.
      rows: sources, R.
      length: tokens of each source, and of each target or reply.
      beams: of the search, K.
    """
    d, f, layers = config.d_model, config.encoder_ffn_dim, config.encoder_layers
    training = task == "train"
    encoder = layers * (length * (4 * d * d + 2 * d * f) + 2 * length**2 * d)
    encoder += config.decoder_layers * length * 2 * d * d
    attended = length**2 if training else length * (length + 1) // 2
    attended += length**2  # of the source
    decoder = length * _read_for_each_word(config) + config.decoder_layers * 2 * attended * d
    forward = 2.0 * (rows * encoder + rows * (1 if training else beams) * decoder)
    return 3 * forward if training else forward


def _read_for_each_word(config: BartConfig) -> int:
    """Weights that a word's decoder states and scores are products with."""
    d, f = config.d_model, config.decoder_ffn_dim
    return config.decoder_layers * (6 * d * d + 2 * d * f) + config.vocab_size * d


def bytes_of_search(config: BartConfig) -> int:
    """Bytes that the decoder has to read in a step of "generate" in float32.

    For each word of a reply the weights, once for all hypotheses; keys and values of the sources;
    and those of the hypotheses' own words.
    """
    of_token = config.decoder_layers * 2 * config.d_model
    own = BEAMS * LENGTH * (LENGTH + 1) // 2
    kept = ROWS * (LENGTH * LENGTH + own) * of_token
    return 4 * (LENGTH * _read_for_each_word(config) + kept)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", choices=tuple(PAIRS), help="one of them; else both, in turn")
    parser.add_argument("--encoder", default="", help="another BART, name or folder")
    parser.add_argument("--dropout", type=float, default=0.0, help="of hidden states, in training")
    parser.set_defaults(pairs=None)


def run(args: argparse.Namespace) -> dict[str, Any]:
    if args.encoder:
        folder, _ = hub.find_model(args.encoder, part=hub.MODEL, files=FILES)
        return _tasks(args, folder)
    with tempfile.TemporaryDirectory() as made:
        # In a process that ends: whoever holds an accelerator would keep others from it.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context) as pool:
            pool.submit(functools.partial(write_model, Path(made), **BASE)).result()
        return _tasks(args, Path(made))


def _tasks(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    return {task: _task(args, task, folder) for task in ([args.task] if args.task else PAIRS)}


def _task(args: argparse.Namespace, task: str, folder: Path) -> dict[str, Any]:
    pairs = args.pairs or PAIRS[task]
    file = folder / "config.json"
    config = BartConfig.from_json(read_json(file), str(file))
    options: dict[str, Any] = {"encoder": str(folder), "n_batches": args.batches}
    what, warm_up = "searching for replies", 1
    if task == "train":
        options |= {"dropout": args.dropout}
        what, warm_up = f"training, dropout {args.dropout:g}", args.batches
    ours, peer = (f"{module}:{task}_cases" for module in (OURS, PEER))
    with harness.two_sides(ours, peer, options, args.threads, args.dtype) as sides:
        peak = sides.peak(pairs)
        times = sides.measure(task, pairs, warm_up)
    needed = flops(config, task)
    record = harness.report(
        f"{args.encoder or 'BART-base'}, {what}, batches of {ROWS} pairs of {LENGTH} tokens",
        "tokens",
        {task: times},
        {task: harness.Work([ROWS * LENGTH] * pairs, [needed] * pairs)},
        peak,
        args.threads,
        judged=task == "train",  # a search multiplies with 40 rows at a time
    )
    if task == "generate":
        record["cases"]["generate"] |= _rates_of_reading(bytes_of_search(config), times)
    return record


def _rates_of_reading(needed: int, times: harness.Paired) -> dict[str, float]:
    """Prints and returns what a search has to read, and how fast the sides were at that."""
    gigabytes = needed / 1e9
    rates = {
        f"{side}_gigabytes_per_second": round(gigabytes / statistics.median(seconds), 1)
        for side, seconds in (("ours", times.ours), ("torch", times.peer))
        if seconds
    }
    shown = ", ".join(f"{name.partition('_')[0]} {rate:.1f} GB/s" for name, rate in rates.items())
    print(f"\nA step has to read {gigabytes:.1f} GB of weights, keys and values: {shown}.")
    return {"gigabytes_per_step": round(gigabytes, 2), **rates}
