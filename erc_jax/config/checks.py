"""Which values the fields of an experiment can have."""

from __future__ import annotations

import math

from ml_collections import ConfigDict

from erc_jax.config.fields import flatten
from erc_jax.data.dialogue import MODALITIES, VAD
from erc_jax.errors import UserError

# Numbers from the first up to, and without, the second.
RANGES = {
    "seed": (0, 2**31),
    "seeds": (1, 1001),
    "seeds_together": (0, math.inf),
    "mesh.seeds": (0, math.inf),
    "log_every": (1, math.inf),
    "model.dropout": (0.0, 1.0),
    "fine_tuning.max_tokens": (0, math.inf),
    "fine_tuning.attention_dropout": (0.0, 1.0),
    "fine_tuning.folds": (0, 101),
    "sent_emo_context.heads": (1, math.inf),
    "sent_emo_context.ffn": (1, math.inf),
    "sent_emo_context.width": (1, math.inf),
    "sent_emo_context.reach": (0, math.inf),
    "sent_emo_context.input_dropout": (0.0, 1.0),
    "sent_emo_context.pretraining_epochs": (0, math.inf),
    "sent_emo_context.triplet.learning_rate": (0.0, math.inf),
    "sent_emo_context.triplet.weight_decay": (0.0, math.inf),
    "sent_emo_context.triplet.margin": (0.0, math.inf),
    "sent_emo_context.neighbours": (1, math.inf),
    "sent_emo_context.memory": (1, math.inf),
    "fmerl.width": (2, math.inf),
    "fmerl.heads": (1, math.inf),
    "fmerl.ffn": (1, math.inf),
    "fmerl.speakers": (0, math.inf),
    "fmerl.vad.hidden_layers": (0, math.inf),
    "fmerl.temperature": (1e-6, math.inf),
    "fmerl.lambda_negative": (0.0, math.inf),
    "fmerl.lambda_triple": (0.0, math.inf),
    "zero_shot.give_up": (0.0, 1.0),
    **{f"weights.{task}": (0.0, math.inf) for task in ("R", "E", "E6", "E2", "E12")},
    "response.max_tokens": (3, math.inf),
    "response.label_smoothing": (0.0, 1.0),
    "response.attention_dropout": (0.0, 1.0),
    "response.beams": (1, 101),
    "response.length_penalty": (-math.inf, math.inf),
    "response.no_repeat_ngram": (0, math.inf),
    "response.min_length": (0, math.inf),
    "response.scratch.vocabulary": (300, math.inf),
    "response.scratch.width": (1, math.inf),
    "response.scratch.layers": (1, math.inf),
    "response.scratch.heads": (1, math.inf),
    "response.scratch.ffn": (1, math.inf),
    "train.steps": (0, math.inf),
    "train.accumulate": (1, math.inf),
    "train.epochs": (1, math.inf),
    "train.batch_size": (1, math.inf),
    "train.learning_rate": (0.0, math.inf),
    "train.warmup_steps": (0, math.inf),
    "train.weight_decay": (0.0, math.inf),
    "train.clip_norm": (0.0, math.inf),
    "train.patience": (0, math.inf),
}
CHOICES = {
    "data.first_shift": ("ignore", "strong_negative"),
    "data.sentiment": ("polarity", "column"),
    "model.dtype": ("float32", "bfloat16"),
    "fine_tuning.context": ("none", "dialogue"),
    "fine_tuning.dtype": ("float32", "bfloat16"),
    "sent_emo_context.network": ("transformer", "mlp", "lstm"),
    "sent_emo_context.context": ("utterances", "dialogue_vector", "none"),
    "sent_emo_context.triplet.strategy": ("all", "batch_hard", "semi_hard"),
    "fmerl.descriptions": ("phrase", "name", "named_phrase"),
    "fmerl.negatives": ("classes", "in_batch"),
    "response.dtype": ("float32", "bfloat16"),
    "sweep": ("", "paper"),
    "train.optimizer": ("adam", "sgd"),
    "train.class_weights": ("none", "balanced"),
    "train.decay": ("none", "linear", "cosine"),
    "train.select_on": ("validation", "test"),
}


def check_values(config: ConfigDict) -> None:
    """Refuses what could only fail later, after features were computed or epochs have passed.

    Raises:
      UserError: a field is outside of its range or choices.
    """
    if not 0 <= config.sent_emo_context.balance <= 1:
        raise UserError(
            f"sent_emo_context.balance is {config.sent_emo_context.balance}; expected 0 to 1"
        )
    if config.fine_tuning.folds == 1:
        raise UserError("fine_tuning.folds is 1; expected 0 (no cross-fitting), or at least 2")
    for field, known in (("modalities", MODALITIES), ("vad.dimensions", VAD)):
        named = dict(flatten(config.fmerl))[field]
        if wrong := [name for name in named if name not in known]:
            raise UserError(
                f"fmerl.{field} names {wrong[0]!r}; expected some of {', '.join(known)}"
            )
        if len(set(named)) < len(named):
            raise UserError(f"fmerl.{field} names one twice: {', '.join(named)}")
    for field, value in flatten(config):
        if field in RANGES:
            low, high = RANGES[field]
            if not low <= value < high:  # true of NaN, too
                below = "" if high == math.inf else f" and below {high}"
                raise UserError(f"{field} is {value}; expected at least {low}{below}")
        elif field in CHOICES and value not in CHOICES[field]:
            raise UserError(f"{field} is {value!r}; expected {' or '.join(CHOICES[field])}")
