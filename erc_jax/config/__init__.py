"""An experiment's config: its fields, recipes of the systems, checks, and where configs are kept.

An experiment is a file in ``configs/`` whose ``get_config(variant)`` starts from ``base_config``
and changes what differs. A run's config is kept as ``config.json`` in its workdir.
"""

from erc_jax.config.checks import check_values
from erc_jax.config.fields import base_config, config_of_seed, flatten, value_of
from erc_jax.config.files import (
    check_same_run,
    find_config,
    load_config,
    read_config,
    save_config,
)
from erc_jax.config.recipes import (
    SENT_EMO_CONTEXT,
    check_variant,
    fine_tune,
    fmerl,
    response,
    sent_emo_context,
)

__all__ = [
    "SENT_EMO_CONTEXT",
    "base_config",
    "check_same_run",
    "check_values",
    "check_variant",
    "config_of_seed",
    "find_config",
    "fine_tune",
    "flatten",
    "fmerl",
    "load_config",
    "read_config",
    "response",
    "save_config",
    "sent_emo_context",
    "value_of",
]
