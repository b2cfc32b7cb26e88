"""Conversations with the lengths and speakers of MELD's, of words that are common in talk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from erc_jax.benchmarks.meld_dialogues import DIALOGUES
from erc_jax.benchmarks.meld_sentences import sentences


def conversations(speakers: Sequence[str] = DIALOGUES) -> list[dict[str, Any]]:
    """Conversations as JSON has them; the same in every process.

    Args:
      speakers: of each conversation, a letter an utterance.
    """
    texts = iter(sentences(sum(map(len, speakers))))
    return [
        {
            "id": f"talk {number}",
            "utterances": [{"speaker": speaker, "text": next(texts)} for speaker in talk],
        }
        for number, talk in enumerate(speakers)
    ]
