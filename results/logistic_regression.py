"""The floor under every table: a logistic regression on the frozen vectors, utterance alone.

    python results/logistic_regression.py DATA

Prints a row per corpus; C is chosen on validation. Needs scikit-learn (in the extra `test`).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from erc_jax import metrics
from erc_jax.data.corpora import load_corpus
from erc_jax.data.features import utterance_features
from erc_jax.encoders.sentence import SentenceEncoder

CORPORA = ("meld", "emorynlp", "iemocap")
METRIC = "weighted_f1"


def main(data: Path) -> None:
    encoder = SentenceEncoder.from_pretrained("all-MiniLM-L6-v2")
    print(f"| corpus | {METRIC}, validation | test |\n|---|---|---|")
    for name in CORPORA:
        corpus = load_corpus(name, str(data / name))
        labels = corpus.labels
        x = {s: utterance_features(dialogues, encoder) for s, dialogues in corpus.splits.items()}
        y = {
            split: np.concatenate([labels.emotion_ids(dialogue) for dialogue in dialogues])
            for split, dialogues in corpus.splits.items()
        }
        candidates = []
        for c in (1.0, 4.0):
            model = LogisticRegression(C=c, max_iter=1000).fit(x["train"], y["train"])
            scores = {}
            for split in ("validation", "test"):
                counts = metrics.confusion(y[split], model.predict(x[split]), len(labels.emotions))
                scores[split] = metrics.block(counts, labels.emotions, labels.neutral)
            candidates.append(scores)
        best = max(candidates, key=lambda scores: scores["validation"][METRIC])
        cells = [f"{100 * best[split][METRIC]:.2f}" for split in ("validation", "test")]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
