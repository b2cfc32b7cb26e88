"""Mtl-ERC-ES on the sample corpus that comes with the package: everything, in a minute or two.

    python -m erc_jax.main --config configs/quickstart.py --workdir runs/quickstart

The corpus is synthetic: its scores say that the program works, nothing about real conversations.
"""

from ml_collections import ConfigDict

from erc_jax.config import base_config


def get_config() -> ConfigDict:
    """The experiment."""
    config = base_config()
    config.data.name = "sample"
    config.train.learning_rate = 1e-3
    config.train.epochs = 12
    config.train.batch_size = 16
    config.train.patience = 4
    config.log_every = 20
    return config
