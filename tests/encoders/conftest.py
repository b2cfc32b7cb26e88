"""Small random models in the published layout, and no network."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz", "we", "won", "oh", "my"]

CONFIG = {
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


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    # The library reads the environment when it is imported, which may have been earlier.
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


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


@pytest.fixture
def tiny_model(tmp_path):
    """Returns a function that writes a model's folder; keywords change the published files."""

    def write(
        name="model", *, tensors=None, pooling="mean_tokens", normalize=True, limits=None, **config
    ) -> Path:
        folder = tmp_path / name
        (folder / "1_Pooling").mkdir(parents=True)
        config = {**CONFIG, **config}
        modules = ["Transformer", "Pooling"] + ["Normalize"] * normalize
        records = {
            "config.json": config,
            "modules.json": [
                {"type": f"sentence_transformers.models.{kind}", "path": path}
                for kind, path in zip(modules, ("", "1_Pooling", "2_Normalize"), strict=False)
            ],
            "1_Pooling/config.json": {
                "word_embedding_dimension": config["hidden_size"],
                **{
                    f"pooling_mode_{mode}": mode == pooling for mode in ("cls_token", "mean_tokens")
                },
            },
            "sentence_bert_config.json": {"max_seq_length": 60, **(limits or {})},
        }
        for file, record in records.items():
            (folder / file).write_text(json.dumps(record))
        tiny_tokenizer().save(str(folder / "tokenizer.json"))
        save_file(tensors or random_tensors(config), folder / "model.safetensors")
        return folder

    return write


@pytest.fixture
def make_tensors():
    return random_tensors
