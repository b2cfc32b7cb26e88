"""What a report says of single utterances, dialogues and replies, from predictions."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from erc_jax import charts
from erc_jax.data.dialogue import VAD, parse_json, text_lines
from erc_jax.finished import Conversation, FinishedRun, Turn, damaged

BINS = 10
MISTAKES = 20
REPLIES_SHOWN = 20


def parts_of_utterances(
    run: FinishedRun, split: str, conversations: Sequence[Conversation]
) -> dict[str, Any]:
    """What is said of single utterances and dialogues."""
    return {
        "calibration": calibration(conversations),
        "planes": _planes(run, conversations),
        "mistakes": most_confident_mistakes(conversations),
        **_dialogues(run, split, conversations),
    }


def calibration(conversations: Sequence[Conversation]) -> dict[str, Any] | None:
    """How far confidence is earned (Guo et al., 2017).

    Returns:
      ``error``, the expected calibration error: the mean over utterances of the gap between mean
      confidence and accuracy in their bin, of ten equally wide ones; ``confidence`` and
      ``accuracy``, means over all; ``count``; and ``chart``. None where there are no probabilities.
    """
    turns = [t for c in conversations for t in c.turns if t.scored and t.probabilities]
    if not turns:
        return None
    confidence = np.array([turn.confidence for turn in turns])
    right = np.array([turn.right for turn in turns], float)
    places = np.minimum((confidence * BINS).astype(int), BINS - 1)
    counts = np.bincount(places, minlength=BINS)
    means = [
        np.bincount(places, values, minlength=BINS) / np.maximum(counts, 1)
        for values in (confidence, right)
    ]
    error = float((counts * np.abs(means[0] - means[1])).sum() / len(turns))
    bins = list(zip(counts.tolist(), means[0].tolist(), means[1].tolist(), strict=True))
    description = f"Expected calibration error {100 * error:.2f} percent."
    return {
        "error": error,
        "confidence": float(confidence.mean()),
        "accuracy": float(right.mean()),
        "count": len(turns),
        "chart": charts.reliability("Reliability diagram", description, bins),
    }


def most_confident_mistakes(conversations: Sequence[Conversation]) -> list[dict[str, Any]]:
    """The wrong predictions with the highest probability, each with its turn's neighbours."""
    wrong = [
        (turn.confidence, conversation, place)
        for conversation in conversations
        for place, turn in enumerate(conversation.turns)
        if turn.scored and not turn.right and turn.probabilities
    ]
    wrong.sort(key=lambda found: -found[0])
    return [
        {
            "id": conversation.id,
            "number": place + 1,
            "turns": _numbered(conversation.turns)[max(place - 2, 0) : place + 2],
        }
        for _, conversation, place in wrong[:MISTAKES]
    ]


def _numbered(turns: Sequence[Turn]) -> list[tuple[int, Turn]]:
    return list(enumerate(turns, start=1))


def _dialogues(
    run: FinishedRun, split: str, conversations: Sequence[Conversation]
) -> dict[str, Any]:
    """Timelines of the best, the worst and the most changing dialogue."""
    scored = {c: [t for t in c.turns if t.scored] for c in map(_Keyed, conversations)}
    scored = {c: turns for c, turns in scored.items() if turns}
    if not scored:
        return {"dialogues": [], "shortest": 0}
    shortest = statistics.median_high(len(turns) for turns in scored.values())
    long = {c: turns for c, turns in scored.items() if len(turns) >= shortest}

    def share(c: _Keyed) -> float:
        return sum(turn.right for turn in long[c]) / len(long[c])

    def changes(c: _Keyed) -> int:
        true = [turn.true for turn in long[c]]
        return sum(a != b for a, b in itertools.pairwise(true))

    # Of equals the longest; of the best the one that changes most, as all neutral is easy.
    chosen = {
        "best": max(long, key=lambda c: (share(c), changes(c), len(long[c]))),
        "worst": min(long, key=lambda c: (share(c), -len(long[c]))),
        "most changes of emotion": max(long, key=lambda c: (changes(c), len(long[c]))),
    }
    reasons: dict[_Keyed, list[str]] = {}
    for why, c in chosen.items():
        reasons.setdefault(c, []).append(why)
    return {
        "shortest": shortest,
        "dialogues": [
            {
                "why": ", ".join(why).capitalize(),
                "id": c.conversation.id,
                "turns": _numbered(c.turns),
                "caption": (
                    f"{sum(t.right for t in long[c])} of {len(long[c])} right; changes of the true "
                    f"emotion: {changes(c)}"
                ),
                "chart": charts.timeline(
                    f"Emotions of dialogue {c.conversation.id} of {split}",
                    "Turn by turn; the same in words below.",
                    [turn.true for turn in c.turns],
                    [turn.predicted for turn in c.turns],
                    run.emotions,
                ),
            }
            for c, why in reasons.items()
        ],
    }


class _Keyed:
    """A conversation as a key of its own: ids may come twice."""

    def __init__(self, conversation: Conversation):
        self.conversation = conversation
        self.turns = conversation.turns


def _planes(run: FinishedRun, conversations: Sequence[Conversation]) -> list[tuple[Any, str]]:
    """Mean predicted ratings of each true emotion, where two dimensions or more are learned."""
    turns = [(t, c.scale) for c in conversations for t in c.turns if t.true is not None and t.vad]
    if not turns:
        return []
    dimensions = [d for d in VAD if d in turns[0][0].vad]
    scales = {scale for _, scale in turns}
    of_scale = ""
    if len(scales) == 1 and (scale := scales.pop()):
        of_scale = f" ({scale[0]:g} to {scale[1]:g})"
    drawn = []
    for other in dimensions[1:]:
        pair = (dimensions[0], other)
        means, rated = {}, {}
        for emotion in run.emotions:
            own = [(t, scale) for t, scale in turns if t.true == emotion]
            given = [
                [t.rated[d] for d in pair]
                for t, scale in own
                if all(d in t.rated and _on_scale(t.rated[d], scale) for d in pair)
            ]
            if own:
                x, y = np.mean([[t.vad[d] for d in pair] for t, _ in own], axis=0).tolist()
                means[emotion] = (x, y)
            if given:
                x, y = np.mean(given, axis=0).tolist()
                rated[emotion] = (x, y)
        crosses = " Crosses: mean of what these are rated." if rated else ""
        chart = charts.plane(
            f"{pair[0]} and {pair[1]}",
            "; ".join(f"{name} {x:.2f}, {y:.2f}" for name, (x, y) in means.items()),
            means,
            rated,
            (pair[0] + of_scale, pair[1] + of_scale),
            run.emotions,
        )
        drawn.append(
            (chart, f"Dots: mean of what is predicted of each true emotion's utterances.{crosses}")
        )
    return drawn


def _on_scale(rating: float, scale: tuple[float, float] | None) -> bool:
    return scale is None or scale[0] <= rating <= scale[1]


def replies(file: Path) -> dict[str, Any]:
    """Some pairs of an utterance and its reply, evenly spaced through the file."""
    lines = list(text_lines(file))
    found = []
    for where, line in lines[:: -(-len(lines) // REPLIES_SHOWN) or 1]:
        record = parse_json(line, where)
        with damaged(where):
            last = record["utterances"][-1]
            found.append(
                {
                    "id": record["id"],
                    "speaker": last["speaker"],
                    "text": last["text"],
                    "reply": record["reply"],
                    "reference": record.get("reference", ""),
                }
            )
    return {"replies": found, "n_replies": len(lines)}
