"""A BART with its tokenizer: published, made from scratch, and saved again.

The published configuration decides: config.json, and generation_config.json where there is one. How
replies are searched for (beams, length penalty, …) is not the model's to say, but the run's.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tokenizers import Tokenizer

from erc_jax.encoders.bart import Bart
from erc_jax.encoders.bart_config import BartConfig
from erc_jax.encoders.hub import MODEL
from erc_jax.encoders.model_folder import (
    CONFIG,
    TOKENIZER,
    ModelFolder,
    fingerprint_of,
    to_json,
    type_of,
    write_model,
)
from erc_jax.encoders.new_tokenizer import TOKENIZER_CONFIG
from erc_jax.encoders.reading import Reader
from erc_jax.encoders.weights import WEIGHTS, load_params, read_json
from erc_jax.errors import UserError

GENERATION = "generation_config.json"
# What is fetched of a model on the hub; see ``hub.FILES``.
FILES = (CONFIG, TOKENIZER, "tokenizer_config.json", GENERATION, WEIGHTS)
# Published files that say nothing to us, but without which transformers knows no special tokens.
CARRIED_ALONG = ("tokenizer_config.json", "special_tokens_map.json")
# By config.json and generation_config.json: what a generated text has to begin and to end with.
FORCED = ("forced_bos_token_id", "forced_eos_token_id")


class Seq2Seq:
    """An encoder-decoder that reads and writes texts.

    Attributes:
      name: what the user asked for, for example "facebook/bart-base".
      folder: where its files were found; None if it is new.
      sha256: SHA-256 of the weights; of a new model, of what it was made from.
      fingerprint: SHA-256 over everything that decides an output: weights, configuration,
        tokenizer and type.
      module: the Flax module.
      params: its parameters.
      tokenizer: without padding and truncation. Special tokens within a text, "</s>" say, are
        ordinary characters to it.
      special: numbers of the special tokens.
      width: D.
      longest: tokens that a text can have, the start token of a generated one included.
      forced_first: token that a generated text begins with, or None (forced_bos_token_id).
      forced_last: token that it ends with if it gets too long, or None (forced_eos_token_id).
    """

    def __init__(
        self,
        *,
        name: str,
        folder: Path | None,
        module: Bart,
        params: dict[str, Any],
        tokenizer: Tokenizer,
        forced: tuple[int | None, int | None],
        sha256: str,
        fingerprint: str,
        files: Mapping[str, bytes],
    ):
        """Made by ``from_pretrained`` and ``from_scratch``.

        Args:
          forced: by FORCED.
          files: the published files that ``save_pretrained`` writes again, by name.
        """
        self.name = name
        self.folder = folder
        self.sha256 = sha256
        self.fingerprint = fingerprint
        self.module = module
        self.params = jax.device_put(params)
        self.tokenizer = tokenizer
        self.tokenizer.encode_special_tokens = True
        self.special = module.config.special
        self.width = module.config.d_model
        self.longest = module.config.max_position_embeddings
        self.forced_first, self.forced_last = forced
        self._files = files

    @classmethod
    def from_pretrained(
        cls, name_or_path: str, *, sha256: str | None = None, dtype: str = "float32"
    ) -> Seq2Seq:
        """Loads a model: from a local folder, or the hub.

        Args:
          name_or_path: a folder with config.json, tokenizer.json and model.safetensors; the workdir
            of a run that trained such a model; or a model's name, such as "facebook/bart-base".
          sha256: the weights' SHA-256 that a trained model expects.
          dtype: "float32", or "bfloat16" for parameters and computation of half the size.

        Raises:
          UserError: there is no such model here and the hub cannot be reached; a file is missing,
            damaged, or does not belong to the others; the weights are not the expected ones.
        """
        kind = type_of(dtype)
        found = ModelFolder.find(name_or_path, sha256, part=MODEL, files=FILES)
        where = str(found.path / CONFIG)
        if found.config.get("model_type") != "bart":
            raise UserError(
                f"{where}: model_type is {found.config.get('model_type')!r}; expected 'bart': a "
                "model that writes texts is needed here, such as facebook/bart-base"
            )
        config = BartConfig.from_json(found.config, where)
        forced = _read_forced(found, config)
        module = Bart(config, dtype=kind, param_dtype=kind)
        params = load_params(found.weights, module, kind)
        file = found.path / TOKENIZER
        if not file.is_file():
            raise UserError(
                f"{file}: not found; fetch it from where the weights are from. Where they have "
                "only vocab.json and merges.txt, transformers makes it of these: "
                "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            )
        tokenizer = found.tokenizer(config.vocab_size)
        frame = [config.bos_token_id, config.eos_token_id]
        if (ids := tokenizer.encode("").ids) != frame:
            raise UserError(
                f"{file}: puts texts between the tokens {ids}; expected "
                f"{frame} by config.json; take both files from one model"
            )
        decisive = (CONFIG, TOKENIZER, GENERATION)
        return cls(
            name=name_or_path,
            folder=found.path.absolute(),
            module=module,
            params=params,
            tokenizer=tokenizer,
            forced=forced,
            sha256=found.sha256,
            fingerprint=fingerprint_of([found.sha256, *found.sums(decisive), dtype]),
            files=found.contents((*decisive, *CARRIED_ALONG)),
        )

    @classmethod
    def from_scratch(
        cls,
        tokenizer: Tokenizer,
        *,
        width: int,
        layers: int,
        heads: int,
        ffn: int,
        max_tokens: int,
        seed: int = 0,
    ) -> Seq2Seq:
        """A new model with random parameters; the same arguments give the same one.

        Args:
          tokenizer: from ``train_tokenizer``.
          width: D.
          layers: of the encoder, and as many of the decoder.
          heads: H, of each attention.
          ffn: inner features of the feed-forward networks.
          max_tokens: that a text has, special ones included.
          seed: of the parameters.

        Raises:
          UserError: there can be no model of these sizes.
        """
        record = {
            "model_type": "bart",
            "is_encoder_decoder": True,
            "vocab_size": tokenizer.get_vocab_size(),
            "d_model": width,
            **{"encoder_layers": layers, "decoder_layers": layers},
            **{"encoder_attention_heads": heads, "decoder_attention_heads": heads},
            **{"encoder_ffn_dim": ffn, "decoder_ffn_dim": ffn},
            "activation_function": "gelu",
            # Those who count the start token with a generated text have room for it.
            "max_position_embeddings": max_tokens + 1,
            "scale_embedding": False,
            "decoder_start_token_id": tokenizer.token_to_id("</s>"),
            "bos_token_id": tokenizer.token_to_id("<s>"),
            "eos_token_id": tokenizer.token_to_id("</s>"),
            "pad_token_id": tokenizer.token_to_id("<pad>"),
            "forced_eos_token_id": tokenizer.token_to_id("</s>"),
        }
        config = BartConfig.from_json(record, "a model from scratch")
        module = Bart(config)
        files = {
            CONFIG: record,
            TOKENIZER: json.loads(tokenizer.to_str()),
            "tokenizer_config.json": {**TOKENIZER_CONFIG, "model_max_length": max_tokens},
        }
        made_from = fingerprint_of([files, seed])
        return cls(
            name="a model from scratch",
            folder=None,
            module=module,
            params=jax.jit(module.fresh_params)(jax.random.key(seed)),
            tokenizer=Tokenizer.from_str(tokenizer.to_str()),
            forced=(None, config.eos_token_id),
            sha256=made_from,
            fingerprint=made_from,
            files={name: to_json(of).encode() for name, of in files.items()},
        )

    def tokenize(self, texts: Sequence[str], max_tokens: int) -> list[np.ndarray]:
        """Token numbers of ``<s> text </s>``.

        Args:
          texts: may be empty.
          max_tokens: of a text, special ones included; what is longer loses words at its end.

        Returns:
          For each text int32 [L], L from 2 to ``max_tokens``.

        Raises:
          UserError: the model has no room for so many tokens, or the tokens none for words.
        """
        if not 3 <= max_tokens <= self.longest:
            raise UserError(
                f"{max_tokens} tokens of a text are asked for; expected at least 3, and at most "
                f"{self.longest}, which is how many positions {self.name} has"
            )
        reader = Reader(self.tokenizer, max_tokens, lower_case=False)
        return [sequence.ids for sequence in reader.alone(texts)]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of token numbers [L]; special tokens are left out."""
        return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def save_pretrained(self, folder: str | Path, params: dict[str, Any] | None = None) -> None:
        """Writes a folder in the published layout, which transformers loads too.

        Args:
          folder: made if it is not there.
          params: parameters to be written instead of the model's own.

        Raises:
          UserError: nothing can be written there.
        """
        params = self.params if params is None else params
        # What is saved is this, whatever the model was published as.
        config = json.loads(self._files[CONFIG])
        config = {k: v for k, v in config.items() if k not in ("dtype", "torch_dtype")}
        config["architectures"] = ["BartForConditionalGeneration"]
        bias = "final_logits_bias"
        body = {name: value for name, value in params.items() if name != bias}
        tensors = {Bart.PREFIX.rstrip("."): body, bias: params[bias]}
        write_model(Path(folder), tensors, {**self._files, CONFIG: to_json(config)})


def _read_forced(found: ModelFolder, config: BartConfig) -> tuple[int | None, int | None]:
    """The tokens that a text has to begin and to end with.

    Args:
      found: the model's folder.
      config: read from its config.json.

    Raises:
      UserError: generation_config.json contradicts config.json.
    """
    file = found.path / GENERATION
    generation = read_json(file) if file.is_file() else {}
    for field in dataclasses.fields(config):
        said, known = generation.get(field.name), getattr(config, field.name)
        if said not in (None, known, [known]):
            raise UserError(
                f"{file}: {field.name} is {said!r}, but {known!r} by config.json; take both files "
                "from one model"
            )
    first, last = (generation.get(name, found.config.get(name)) for name in FORCED)
    for name, token in zip(FORCED, (first, last), strict=True):
        if token is not None and token not in range(config.vocab_size):
            raise UserError(
                f"{found.path}: {name} is {token!r}; expected the number of a token, or null; take "
                f"config.json and {GENERATION} from one model"
            )
    return first, last
