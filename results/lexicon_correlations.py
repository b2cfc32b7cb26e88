"""How far a lexicon's ratings of utterances agree with people's: Pearson correlations on IEMOCAP.

python results/lexicon_correlations.py DATA/iemocap Ratings_Warriner_et_al.csv
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from erc_jax.data.corpora import load_corpus
from erc_jax.data.dialogue import VAD
from erc_jax.lexicon import load_lexicon


def main(corpus: Path, norms: Path) -> None:
    """Prints each dimension's correlation, over the utterances of all splits that both rate."""
    lexicon = load_lexicon(norms)
    people, words = [], []
    for dialogues in load_corpus("iemocap", corpus).splits.values():
        for utterance in (u for dialogue in dialogues for u in dialogue.utterances):
            rated = lexicon.rate(utterance.text).vad
            if utterance.vad and rated:
                people.append([utterance.vad[dimension] for dimension in VAD])
                words.append([rated[dimension] for dimension in VAD])
    print(f"{len(words):,} utterances that people and the lexicon rate")
    for place, dimension in enumerate(VAD):
        r = np.corrcoef(np.array(people)[:, place], np.array(words)[:, place])[0, 1]
        print(f"{dimension}: {r:.2f}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
