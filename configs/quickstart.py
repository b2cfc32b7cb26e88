"""Mtl-ERC-ES on the sample corpus that comes with the package: everything, in about a minute.

    python -m erc_jax.main --config configs/quickstart.py --workdir runs/quickstart

The corpus is synthetic: its scores say that the program works, nothing about real conversations.
"""

from ml_collections import ConfigDict

from erc_jax.config import base_config, check_variant, fine_tune, fmerl, response, sent_emo_context


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; ``encoder`` fine-tunes; ``sent_emo_context``, ``fmerl``: other systems."""
    check_variant(variant, ("encoder", "sent_emo_context", "fmerl", "response"))
    config = base_config()
    config.data.name = "sample"
    config.log_every = 20
    if variant.startswith("response"):
        config.response.tasks = "R+E"
        config = response(config, variant + ",size=tiny")
        config.response.scratch.vocabulary = 2000
        config.response.scratch.width = 128
        config.response.scratch.layers = 2
        config.response.scratch.ffn = 512
        config.response.max_tokens = 32
        config.response.min_length = 0  # the sample's replies are short
        config.train.epochs = 8
        config.train.steps = 0
        config.train.batch_size = 32
        config.train.warmup_steps = 50
        return config
    if variant == "fmerl":
        return fmerl(config)
    if variant == "encoder":
        config = fine_tune(config)
        config.train.epochs = 1
        return config
    if variant == "sent_emo_context":
        config = sent_emo_context(config)
        config.train.batch_size = 32
        return config
    config.train.learning_rate = 1e-3
    config.train.epochs = 12
    config.train.batch_size = 16
    config.train.patience = 4
    return config
