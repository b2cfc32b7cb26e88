"""The encoder benchmark's peer: transformers' PyTorch model, used as sentence-transformers does.

Attention is transformers' default (PyTorch's fused one where the model has it), the pooling layer
that published files bring along and nothing reads is left out, and AdamW is the fused one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

from erc_jax.benchmarks import harness
from erc_jax.benchmarks.encoder import (
    CLASSES,
    LEARNING_RATE,
    WEIGHT_DECAY,
    flops,
    labels,
    train_batches,
)
from erc_jax.benchmarks.meld_sentences import sentences

BATCH_SIZE = 32  # sentence-transformers' default

Batch = Mapping[str, Tensor]


class MeanEncoder(nn.Module):
    """Tokens to the mean of their last hidden states."""

    def __init__(self, folder: str, dropout: float = 0.0):
        super().__init__()
        self.model = transformers.AutoModel.from_pretrained(
            folder,
            add_pooling_layer=False,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=0.0,
        )

    def forward(self, batch: Batch) -> Tensor:
        """Vectors float32 [B, D] of B padded sentences."""
        hidden = self.model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None].to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)


class Classifier(nn.Module):
    """Dropout and a linear layer on top of it."""

    def __init__(self, folder: str, dropout: float):
        super().__init__()
        self.encoder = MeanEncoder(folder, dropout)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(self.encoder.model.config.hidden_size, CLASSES)

    def forward(self, batch: Batch) -> Tensor:
        """Logits float32 [B, C]."""
        return self.head(self.drop(self.encoder(batch)))


class Tokenizer:
    """The fast tokenizer, padding to the longest sentence."""

    def __init__(self, folder: str):
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, use_fast=True)

    def __call__(self, texts: list[str]) -> Batch:
        return dict(self._tokenizer(texts, padding=True, return_tensors="pt"))


def cut_by_length(texts: list[str]) -> list[np.ndarray]:
    """Numbers of the texts in each batch, the longest first."""
    order = np.argsort([-len(text) for text in texts], kind="stable")
    return np.split(order, np.arange(BATCH_SIZE, len(texts), BATCH_SIZE))


def encode(module: MeanEncoder, tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """Vectors float32 [N, D], in the order of the texts."""
    batches = cut_by_length(texts)
    vectors = []
    with torch.inference_mode():
        for numbers in batches:
            batch = tokenizer([texts[i] for i in numbers])
            vectors.append(functional.normalize(module(batch), dim=-1))
        return torch.cat(vectors).numpy()[np.argsort(np.concatenate(batches))]


def padded_flops(module: MeanEncoder, batches: list[Batch], training: bool) -> float:
    """Floating-point operations of batches in which every sentence is as long as the longest."""
    lengths = [length for batch in batches for length in map(len, batch["input_ids"])]
    return flops(module.model.config, lengths, training)


def make_optimizer(module: nn.Module) -> torch.optim.Optimizer:
    """AdamW that, like ours, decays neither biases nor layer norms."""
    decayed: list[Tensor] = []
    kept: list[Tensor] = []
    for name, parameter in module.named_parameters():
        (kept if name.endswith("bias") or "LayerNorm" in name else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": kept, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)


def train_step(
    module: Classifier, optimizer: torch.optim.Optimizer, batch: Batch, classes: Tensor
) -> Tensor:
    """One update; returns the loss before it."""
    optimizer.zero_grad()
    loss = functional.cross_entropy(module(batch), classes)
    loss.backward()
    optimizer.step()
    return loss.detach()


def encode_cases(encoder: str, n_sentences: int) -> harness.Cases:
    _prepare()
    module = MeanEncoder(encoder).eval()
    tokenizer = Tokenizer(encoder)
    texts = sentences(n_sentences)

    def run(step: int) -> None:
        encode(module, tokenizer, texts)

    batches = [tokenizer([texts[i] for i in numbers]) for numbers in cut_by_length(texts)]
    padded = padded_flops(module, batches, training=False)
    return {**harness.torch_product(), "encode": run, "padded": lambda step: padded}


def train_cases(encoder: str, batch_size: int, n_batches: int, dropout: float) -> harness.Cases:
    _prepare()
    module = Classifier(encoder, dropout).train()
    optimizer = make_optimizer(module)
    tokenizer = Tokenizer(encoder)
    texts = sentences(batch_size * n_batches)
    targets = torch.from_numpy(labels(len(texts)))
    batches = [
        (tokenizer([texts[i] for i in batch]), targets[batch])
        for batch in train_batches(batch_size, n_batches)
    ]

    def train(step: int) -> None:
        train_step(module, optimizer, *batches[step % n_batches])

    def padded(step: int) -> float:
        return padded_flops(module.encoder, [batches[step % n_batches][0]], training=True)

    return {**harness.torch_product(), "train": train, "padded": padded}


def _prepare() -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
