"""Labelled texts that are no conversations, such as tweets: each is a dialogue of one utterance."""

from __future__ import annotations

import numpy as np

from erc_jax.data.dialogue import Dialogue, Located, Utterance
from erc_jax.errors import UserError

SEED = 0  # of every draw here: scores are comparable only if all have the same splits


def labelled(where: str, identifier: str, text: str, emotion: str) -> Located:
    """A text as a dialogue, without the spaces around it.

    Args:
      where: its place, "file:line".
      identifier: of the dialogue.
      text: what was written.
      emotion: its label.

    Raises:
      UserError: the text is empty.
    """
    if not text.strip():
        raise UserError(f"{where}: the text is empty; remove the line")
    return [where], Dialogue(identifier, (Utterance("A", text.strip(), emotion),))


def drawn(count: int, share: float = 1.0) -> np.ndarray:
    """Numbers of the texts that are used, int64 [floor(share · count)], in random order."""
    return np.random.default_rng(SEED).permutation(count)[: int(share * count)]


def deal(count: int, share: float = 1.0) -> dict[str, np.ndarray]:
    """Splits texts that were published in one piece at 8:1:1.

    Args:
      count: of the texts.
      share: of them that is used.

    Returns:
      Split to the numbers of its texts, in ascending order. Of the n that are used, validation has
      the first floor(n / 10) drawn, test the next as many, train the rest.
    """
    numbers = drawn(count, share)
    tenth = len(numbers) // 10
    parts = np.split(numbers, [tenth, 2 * tenth])
    return dict(zip(("validation", "test", "train"), map(np.sort, parts), strict=True))
