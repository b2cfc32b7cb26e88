"""Whether replies have to do with what was said: perplexity after other utterances than theirs.

python results/other_utterances.py DATA RUN [RUN ...]

DATA holds dailydialog/ with the original files. Of the validation split 512 pairs are drawn, and
each response is scored after its own utterance, and after the utterance of another pair. A model
that does not use its encoder has the same perplexity in both.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from erc_jax.data.corpora import load_corpus
from erc_jax.data.pairs import PAD, response_pairs
from erc_jax.encoders.bart import shift_right
from erc_jax.encoders.seq2seq import Seq2Seq

PAIRS = 512
MAX_TOKENS = 64


def main(data: Path, runs: list[Path]) -> None:
    pairs = response_pairs(
        load_corpus("dailydialog", str(data / "dailydialog")).splits["validation"]
    )
    chosen = np.random.default_rng(0).choice(len(pairs), PAIRS, replace=False)
    print("| run | perplexity | after others' utterances | factor |\n|---|---|---|---|")
    for run in runs:
        model = Seq2Seq.from_pretrained(str(run))
        utterances = padded(model.tokenize([pairs[i].utterance for i in chosen], MAX_TOKENS))
        responses = padded(model.tokenize([pairs[i].response for i in chosen], MAX_TOKENS))
        own, other = (
            perplexity(model, np.roll(utterances, places, axis=0), responses) for places in (0, 1)
        )
        print(f"| {run.name} | {own:.2f} | {other:.2f} | {other / own:.2f} |")


def padded(texts: list[np.ndarray]) -> np.ndarray:
    rows = np.full((len(texts), MAX_TOKENS), PAD, np.int32)
    for row, tokens in zip(rows, texts, strict=True):
        row[: len(tokens)] = tokens
    return rows


def perplexity(model: Seq2Seq, utterances: np.ndarray, responses: np.ndarray) -> float:
    """Per token; as in metrics.json, the end counts as one and the beginning does not."""

    @jax.jit
    def log_likelihood(params, source, target):
        read = shift_right(target, model.special)
        states = model.module.apply({"params": params}, source, source != PAD, read, target != PAD)
        logits = model.module.apply({"params": params}, states, method="logits")
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, target)
        counted = (target != PAD) & (jnp.arange(MAX_TOKENS) > 0)
        return jnp.sum(losses * counted) / jnp.sum(counted)

    return float(np.exp(log_likelihood(model.params, utterances, responses)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(run) for run in sys.argv[2:]])
