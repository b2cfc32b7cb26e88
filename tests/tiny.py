"""Small stand-ins for what is large: a random sentence encoder, and a corpus of a few words.

And parameters as training may leave them, for tests that do not train.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from erc_jax.config import base_config

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz", "we", "won", "oh", "my"]

BERT = {
    "model_type": "bert",
    "vocab_size": len(WORDS),
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "hidden_act": "gelu",
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}


def random_tensors(config: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """Tensors of a BERT of that config under their published names, far from their initial 0, 1."""
    size, inner = config["hidden_size"], config["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], size),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], size),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], size),
    }
    norms = ["embeddings.LayerNorm"]
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}."
        dense = {f"attention.self.{part}": (size, size) for part in ("query", "key", "value")}
        dense |= {"attention.output.dense": (size, size), "intermediate.dense": (inner, size)}
        dense |= {"output.dense": (size, inner)}
        for name, shape in dense.items():
            shapes[f"{layer}{name}.weight"] = shape
            shapes[f"{layer}{name}.bias"] = shape[:1]
        norms += [f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm"]
    for norm in norms:
        shapes[f"{norm}.weight"] = shapes[f"{norm}.bias"] = (size,)
    random = np.random.default_rng(seed)
    return {
        name: random.normal(name.endswith("LayerNorm.weight"), 0.3, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def tiny_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    # As published: padding and truncation that a user of the file must not get.
    tokenizer.enable_padding(length=128)
    tokenizer.enable_truncation(128)
    return tokenizer


def write_encoder(
    folder: Path,
    *,
    tensors: dict[str, np.ndarray] | None = None,
    pooling: str = "mean_tokens",
    normalize: bool = True,
    limits: dict | None = None,
    **config,
) -> Path:
    """Writes a model's folder in the published layout; keywords change the published files."""
    (folder / "1_Pooling").mkdir(parents=True)
    config = {**BERT, **config}
    modules = ["Transformer", "Pooling"] + ["Normalize"] * normalize
    records = {
        "config.json": config,
        "tokenizer_config.json": {},
        "modules.json": [
            {"type": f"sentence_transformers.models.{kind}", "path": path}
            for kind, path in zip(modules, ("", "1_Pooling", "2_Normalize"), strict=False)
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": config["hidden_size"],
            **{f"pooling_mode_{mode}": mode == pooling for mode in ("cls_token", "mean_tokens")},
        },
        "sentence_bert_config.json": {"max_seq_length": 60, **(limits or {})},
    }
    for file, record in records.items():
        (folder / file).write_text(json.dumps(record))
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    save_file(tensors or random_tensors(config), folder / "model.safetensors")
    return folder


# What each emotion is said with: a model that learns anything at all tells them apart.
SAID = {"calm": "a b c", "happy": "we won", "sad": "oh my"}
POLARITY = {"negative": ("sad",), "neutral": ("calm",), "positive": ("happy",)}


def write_corpus(folder: Path, seed: int = 0, said: dict[str, str] = SAID) -> Path:
    """Writes train.jsonl, validation.jsonl and test.jsonl: 8 labelled dialogues of 4 turns each.

    All batches are of one shape, which is compiled once.
    """
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        lines = []
        for number in range(8):
            emotions = random.choice(list(said), 4).tolist()
            utterances = [
                {"speaker": "AB"[turn % 2], "text": f"{said[emotion]} {random.choice(list('xyz'))}"}
                | {"emotion": emotion}
                for turn, emotion in enumerate(emotions)
            ]
            lines.append(json.dumps({"id": f"{split}{number}", "utterances": utterances}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def tiny_config(folder: Path, **fields) -> ConfigDict:
    """An experiment of seconds in a folder, made there at first; keywords override fields.

    ``train__epochs=3`` stands for ``train.epochs``.
    """
    if not (folder / "encoder").exists():
        write_encoder(folder / "encoder", hidden_size=16, tensors=_telling_tensors())
        write_corpus(folder / "corpus")
    config = base_config()
    config.update_from_flattened_dict(
        {
            "data.name": "own",
            "data.source": str(folder / "corpus"),
            "data.neutral": "calm",
            "encoder": str(folder / "encoder"),
            "log_every": 3,
            "train.epochs": 4,
            "train.batch_size": 4,
            "train.learning_rate": 0.03,
        }
        | {f"data.polarity.{sentiment}": names for sentiment, names in POLARITY.items()}
        | {field.replace("__", "."): value for field, value in fields.items()}
    )
    return config


def _telling_tensors() -> dict[str, np.ndarray]:
    """Weights by which a sentence's vector is about the mean of its words': things to learn from.

    In a wholly random BERT the biases make all sentences alike.
    """
    return {
        name: value if "word" in name or name.endswith("Norm.weight") else value * np.float32(0.1)
        for name, value in random_tensors({**BERT, "hidden_size": 16}).items()
    }


# Emotion alone compiles in a fraction of the time.
EMOTION_ONLY = {"tasks__sentiment": False, "tasks__shift": False}


# Of a task, in metrics.json, where there is a neutral emotion.
SCORES = {
    *("accuracy", "weighted_f1", "macro_f1", "micro_f1", "micro_f1_no_neutral"),
    *("macro_f1_no_neutral", "mcc", "per_class", "confusion"),
}

# In words of the tiny corpus: what is happy, then what is sad.
QUESTION = {
    "utterances": [{"speaker": "A", "text": "we won x"}, {"speaker": "B", "text": "oh my y"}]
}


def drawn_parameters(init: Callable[..., Any], *arguments: Any) -> Any:
    """Of the shapes that ``init`` gives, but drawn here: nothing is compiled.

    No bias is 0 and no scale is 1, at which they would not show.
    """
    random = np.random.default_rng(1)

    def draw(path, leaf):
        values = random.standard_normal(leaf.shape, np.float32)
        if leaf.ndim == 1:
            return 0.3 * values + (path[-1].key == "scale")
        return values / np.sqrt(leaf.shape[0])

    shapes = jax.eval_shape(init, jax.random.key(0), *arguments)
    return jax.tree.map_with_path(draw, shapes)


def moved_parameters(init: Callable[..., Any], *arguments: Any) -> Any:
    """Those of ``init``, moved far from these values, at which biases and scales would not show."""
    params = jax.jit(lambda key: init(key, *arguments))(jax.random.key(0))
    random = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + 0.2 * random.normal(size=x.shape).astype(np.float32), params)
