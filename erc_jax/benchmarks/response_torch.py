"""The peer of the benchmark of replies: transformers' BART in PyTorch, and its ``generate``.

Attention is transformers' default, PyTorch's fused one, and so is the cache of the search; AdamW is
the fused one.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

from erc_jax.benchmarks import harness
from erc_jax.benchmarks.response import (
    BEAMS,
    CLIP_NORM,
    LEARNING_RATE,
    LENGTH,
    LENGTH_PENALTY,
    NO_REPEAT_NGRAM,
    SMOOTHING,
    WEIGHT_DECAY,
    batches,
)
from erc_jax.data.pairs import TextBatch
from erc_jax.encoders.bart_config import BartConfig


def load(encoder: str, dropout: float = 0.0) -> transformers.BartForConditionalGeneration:
    return transformers.BartForConditionalGeneration.from_pretrained(
        encoder, dropout=dropout, attention_dropout=0.0, activation_dropout=0.0
    )


def texts(batch: TextBatch) -> tuple[Tensor, Tensor]:
    """Source and target, int64 [R, L] each; there is no padding to be masked."""
    source, target = (torch.from_numpy(x[0]).long() for x in (batch.source, batch.target))
    return source, target


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW that, like ours, decays neither biases nor layer norms."""
    decayed: list[Tensor] = []
    kept: list[Tensor] = []
    for name, parameter in model.named_parameters():
        of_norm = "layer_norm" in name or "layernorm" in name
        (kept if name.endswith("bias") or of_norm else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": kept, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)


def train_step(
    model: transformers.BartForConditionalGeneration,
    optimizer: torch.optim.Optimizer,
    source: Tensor,
    target: Tensor,
) -> Tensor:
    """One update; returns the loss before it."""
    optimizer.zero_grad()
    read = model.prepare_decoder_input_ids_from_labels(target)
    logits = model(input_ids=source, decoder_input_ids=read, use_cache=False).logits
    loss = functional.cross_entropy(
        logits.flatten(0, 1), target.flatten(), label_smoothing=SMOOTHING
    )
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
    optimizer.step()
    return loss.detach()


def generate(model: Any, source: Tensor) -> Tensor:
    """Replies int64 [R, 1 + LENGTH], with what the decoder starts with."""
    with torch.inference_mode():
        return model.generate(
            source,
            attention_mask=torch.ones_like(source),
            do_sample=False,
            num_beams=BEAMS,
            length_penalty=LENGTH_PENALTY,
            no_repeat_ngram_size=NO_REPEAT_NGRAM,
            min_length=LENGTH + 1,
            max_length=LENGTH + 1,
            early_stopping=True,
            forced_bos_token_id=model.config.bos_token_id,
        )


def train_cases(encoder: str, n_batches: int, dropout: float) -> harness.Cases:
    _prepare()
    model = load(encoder, dropout).train()
    optimizer = make_optimizer(model)
    pairs = _pairs(model, n_batches)

    def train(step: int) -> None:
        train_step(model, optimizer, *pairs[step % n_batches])

    return {**harness.torch_product(), "train": train}


def generate_cases(encoder: str, n_batches: int) -> harness.Cases:
    _prepare()
    model = load(encoder).eval()
    pairs = _pairs(model, n_batches)

    def run(step: int) -> None:
        generate(model, pairs[step % n_batches][0])

    return {**harness.torch_product(), "generate": run}


def _pairs(
    model: transformers.BartForConditionalGeneration, n_batches: int
) -> list[tuple[Tensor, Tensor]]:
    config = BartConfig.from_json(model.config.to_dict(), "the model")
    return [texts(batch) for batch in batches(config, n_batches)]


def _prepare() -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
