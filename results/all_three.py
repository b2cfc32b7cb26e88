"""Writes a made-up corpus whose emotion needs text, audio and visual features, all three.

python results/all_three.py OUTPUT

OUTPUT/{train,validation,test}.jsonl are conversations of several speakers in words without meaning;
OUTPUT/features/{text,audio,visual}/{split}.safetensors are their features. Each utterance has three
random bits, and its emotion is "odd" if one or all of them are 1, else "even". Each bit is easily
read from the features of its modality, where it is the sign along a fixed direction in noise. Two
bits without the third say nothing about the emotion, nor do words, speakers and other utterances:
a model of all three can get nearly every utterance right, any other only half of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from erc_jax.data.dialogue import Dialogue, Utterance, save_dialogues
from erc_jax.data.feature_files import FeatureTable, save_feature_file

SEED = 0
DIALOGUES = {"train": 800, "validation": 100, "test": 300}
UTTERANCES = 6  # of each dialogue: batches of one shape are compiled once
WIDTHS = {"text": 24, "audio": 16, "visual": 20}
STRENGTH = 4.0  # of a bit, in standard deviations of the noise: 3 of 100,000 cannot be read
EMOTIONS = ("even", "odd")
SPEAKERS = ("Ann", "Ben", "Cleo")
WORDS = ("bo", "fim", "gar", "lun", "mek", "pol", "rit", "sul", "tav", "wen")


def main(output: Path) -> None:
    random = np.random.default_rng(SEED)
    directions = {modality: random.normal(size=width) for modality, width in WIDTHS.items()}
    for split, count in DIALOGUES.items():
        ids = [f"{split}{number}" for number in range(1, count + 1)]
        bits = random.integers(2, size=(len(WIDTHS), count * UTTERANCES))
        for bit, (modality, direction) in zip(bits, directions.items(), strict=True):
            signal = np.outer(2 * bit - 1, STRENGTH * direction / np.linalg.norm(direction))
            table = FeatureTable(
                features=(signal + random.normal(size=signal.shape)).astype(np.float32),
                dialogues=np.repeat(ids, UTTERANCES),
                positions=np.tile(np.arange(1, UTTERANCES + 1, dtype=np.int32), count),
                extractor="results/all_three.py",
                version="1",
            )
            save_feature_file(output / "features" / modality / f"{split}.safetensors", table)
        parity = bits.sum(axis=0).reshape(count, UTTERANCES) % 2
        save_dialogues(
            output / f"{split}.jsonl",
            [
                Dialogue(
                    identifier,
                    tuple(
                        Utterance(
                            speaker=str(random.choice(SPEAKERS)),
                            text=" ".join(random.choice(WORDS, 4)),
                            emotion=EMOTIONS[odd],
                        )
                        for odd in of_dialogue
                    ),
                )
                for identifier, of_dialogue in zip(ids, parity, strict=True)
            ],
        )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
