"""What a model is compiled for before anybody asks: a conversation of every usual size."""

from __future__ import annotations

from collections.abc import Iterator

from erc_jax.data.dialogue import Dialogue, Utterance
from erc_jax.data.shapes import shapes_up_to

LONG_TEXT = "and so on " * 60  # more tokens than most rows of an encoder's block hold


def calls(utterances: int) -> Iterator[list[Dialogue]]:
    """Calls of a recognizer that have it compiled for all shapes of up to so many utterances.

    The first is a conversation of up to 16 turns, which is what most people ask about.
    """
    for number, (slots, rows) in enumerate(shapes_up_to(utterances)):
        # An encoder reads equal texts once, so all differ; one call has a long one among them.
        yield [
            Dialogue(
                f"warm-up {row}",
                tuple(
                    Utterance(
                        "AB"[turn % 2],
                        LONG_TEXT if number == 1 and turn == 0 else f"Is it you, {row}.{turn}?",
                    )
                    for turn in range(slots)
                ),
            )
            for row in range(rows)
        ]
