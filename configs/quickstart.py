"""Mtl-ERC-ES on the sample corpus that comes with the package: everything, in a minute or two.

    python -m erc_jax.main --config configs/quickstart.py --workdir runs/quickstart

The corpus is synthetic: its scores say that the program works, nothing about real conversations.
"""

from ml_collections import ConfigDict

from erc_jax.config import base_config, check_variant, fine_tune


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; the variant ``encoder`` fine-tunes."""
    check_variant(variant, ("encoder",))
    config = base_config()
    config.data.name = "sample"
    config.log_every = 20
    if variant == "encoder":
        config = fine_tune(config)
        config.train.epochs = 1
        return config
    config.train.learning_rate = 1e-3
    config.train.epochs = 12
    config.train.batch_size = 16
    config.train.patience = 4
    return config
