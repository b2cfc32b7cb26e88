"""Where prepared corpora, features and compiled programs are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """``$ERC_JAX_CACHE``, or ``~/.cache/erc_jax``; safe to delete. It need not exist yet."""
    return Path(os.environ.get("ERC_JAX_CACHE") or "~/.cache/erc_jax").expanduser()
