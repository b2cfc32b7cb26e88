"""What the papers report, beside which a run's own scores are read.

A paper's encoder, features and protocol are not a run's: docs/systems.md says what differs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from erc_jax.data.labels import SHIFTS
from erc_jax.finished import value_at

WANG = "Wang and Mine (2023)"
SEC = "Gendron and Guibon, SEC"
FMERL = "FMERL"
IDE = "Ide and Kawahara (2021)"


@dataclasses.dataclass(frozen=True)
class Published:
    """A figure of a paper, of the test split.

    Attributes:
      system: a name in ``erc_jax.systems``.
      corpus: its name.
      metric: where the run's own score stands in a split's block of metrics.json, dotted.
      value: as it is printed: in percent, where it is a share.
      where: paper and table.
      fields: of the config, dotted, that a run must have for the figure to be of the same thing.
    """

    system: str
    corpus: str
    metric: str
    value: float
    where: str
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def printed(self) -> str:
        """The value as in the paper: with two digits, or none."""
        return f"{self.value:.0f}" if self.value == round(self.value) else f"{self.value:.2f}"


def _ablation(shift: bool, sentiment: bool) -> dict[str, Any]:
    return {"tasks.shift": shift, "tasks.sentiment": sentiment}


_WHOLE = _ablation(True, True)

TABLE_4 = {  # Mtl-ERC-ES: corpus to score and value
    "meld": {"weighted_f1": 66.50},
    "emorynlp": {"weighted_f1": 39.46},
    "iemocap": {"weighted_f1": 68.68},
    "dailydialog": {"macro_f1": 53.06, "micro_f1_no_neutral": 60.10},
}
TABLE_5 = {  # its ablations, weighted F1: with shift, with sentiment, to IEMOCAP, EmoryNLP
    (True, True): (68.68, 39.46),
    (False, True): (68.05, 38.91),
    (True, False): (68.01, 38.74),
    (False, False): (67.75, 38.88),
}
TABLE_6 = {  # its F1 of shifts on IEMOCAP: global, speaker
    "strong_negative": (76.47, 79.04),
    "negative": (32.17, 21.19),
    "none": (80.87, 86.12),
    "positive": (34.57, 19.82),
    "strong_positive": (47.37, 58.82),
}
RATED = {  # FMERL, Table 3: accuracy and weighted F1, with the nets of V, A, D and without
    "iemocap": ((74.92, 75.14), (72.46, 72.75)),
    "meld": ((67.66, 66.78), (67.09, 65.87)),
}
HELD_OUT = {  # FMERL, Table 2: accuracy and F1 on the unseen utterances alone, then on all
    ("iemocap", "happy"): (36.81, 27.32, 58.38, 57.30),
    ("meld", "fear"): (11.86, 21.21, 61.38, 60.30),
}
REPLIES = {  # Replies, Table 2: tasks to BLEU, distinct-1, distinct-2, average length
    "R": (32.35, 5.87, 30.48, 14.12),
    "R+E6": (32.29, 5.93, 30.48, 14.12),
}
REPLY_HEADS = {("R+E6", "E6"): (64.32, 56.53)}  # Table 4: tasks and head to accuracy, macro F1

_ZERO_SHOT = tuple(
    f"zero_shot.{name}" for name in ("unseen_recall", "unseen_f1_subset", "accuracy", "weighted_f1")
)
_REPLY_SCORES = ("bleu", "distinct_1", "distinct_2", "average_length")
_BLEU = "; of which program it does not say, so that it cannot be compared"
_REPLY_CORPORA = {"R": "dailydialog", "R+E6": "dailydialog+tec"}
_TRIPLETS = {"sent_emo_context.network": "transformer", "sent_emo_context.context": "utterances"}
_DIRECT = {
    "sent_emo_context.network": "transformer",
    "sent_emo_context.context": "none",
    "data.leave_out_neutral": False,
}

PUBLISHED = (
    *(
        Published("mtl_erc_es", corpus, metric, value, f"{WANG}, Table 4", _WHOLE)
        for corpus, values in TABLE_4.items()
        for metric, value in values.items()
    ),
    *(
        Published("mtl_erc_es", corpus, "weighted_f1", value, f"{WANG}, Table 5", _ablation(*tasks))
        for tasks, values in TABLE_5.items()
        if tasks != (True, True)  # Table 4's
        for corpus, value in zip(("iemocap", "emorynlp"), values, strict=True)
    ),
    *(
        Published(
            "mtl_erc_es",
            "iemocap",
            f"shift_{level}.per_class.{shift}.f1",
            TABLE_6[shift][place],
            f"{WANG}, Table 6, where first utterances count as strongly negative",
            _WHOLE,
        )
        for place, level in enumerate(("global", "speaker"))
        for shift in SHIFTS
    ),
    *(
        Published(
            "sent_emo_context", "dailydialog", metric, value, f"{SEC}: direct classifier", _DIRECT
        )
        for metric, value in (
            ("macro_f1_no_neutral", 20.22),
            ("micro_f1_no_neutral", 33.11),
            ("mcc", 40.0),
        )
    ),
    *(
        Published(
            "sent_emo_context",
            "dailydialog",
            f"triplet_verification.{metric}",
            value,
            f"{SEC}; no score of classification, see docs/results.md",
            _TRIPLETS,
        )
        for metric, value in (
            ("macro_f1_no_neutral", 57.71),
            ("micro_f1_no_neutral", 57.75),
            ("mcc", 49.0),
        )
    ),
    *(
        Published(
            "fmerl",
            corpus,
            metric,
            value,
            f"{FMERL}, Table 3",
            {"fmerl.vad.dimensions": dimensions, "zero_shot.unseen": ""},
        )
        for corpus, rows in RATED.items()
        for dimensions, row in zip((["valence", "arousal", "dominance"], []), rows, strict=True)
        for metric, value in zip(("accuracy", "weighted_f1"), row, strict=True)
    ),
    *(
        Published("fmerl", corpus, metric, value, f"{FMERL}, Table 2", {"zero_shot.unseen": unseen})
        for (corpus, unseen), row in HELD_OUT.items()
        for metric, value in zip(_ZERO_SHOT, row, strict=True)
    ),
    *(
        Published(
            "response",
            _REPLY_CORPORA[tasks],
            metric,
            value,
            f"{IDE}, Table 2{_BLEU if metric == 'bleu' else ''}",
            {"response.tasks": tasks},
        )
        for tasks, row in REPLIES.items()
        for metric, value in zip(_REPLY_SCORES, row, strict=True)
    ),
    *(
        Published(
            "response",
            _REPLY_CORPORA[tasks],
            f"heads.{head}.{metric}",
            value,
            f"{IDE}, Table 4",
            {"response.tasks": tasks},
        )
        for (tasks, head), row in REPLY_HEADS.items()
        for metric, value in zip(("accuracy", "macro_f1"), row, strict=True)
    ),
)


def published(system: str, corpus: str, config: Mapping[str, Any]) -> list[Published]:
    """The papers' figures for a run.

    Args:
      system: of the run.
      corpus: of the run.
      config: of the run, as config.json holds it.
    """
    return [
        figure
        for figure in PUBLISHED
        if (figure.system, figure.corpus) == (system, corpus)
        and all(value_at(config, field) == value for field, value in figure.fields.items())
    ]
