"""Cross-fitting: features of training utterances from encoders that were not trained on them.

A fine-tuned encoder is over-confident on its own training utterances, so that what reads its
features learns to trust them more than it may on others. Here the training dialogues are cut into k
folds; for each, an encoder is fine-tuned on the other folds and encodes this one. Validation and
test are encoded by the encoder of all training dialogues.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from erc_jax.data.features import load_features, save_features
from erc_jax.encoders.sentence import CROSS_FITTED, SentenceEncoder
from erc_jax.errors import UserError
from erc_jax.experiment import Experiment, to_arrays
from erc_jax.progress import say


def out_of_fold_features(
    experiment: Experiment,
    make_trainer: Callable[[Experiment], Any],
    folds: int,
    seed: int,
    workdir: Path,
) -> np.ndarray:
    """Fine-tunes an encoder per fold and encodes the fold with it.

    Args:
      experiment: of fine-tuning.
      make_trainer: from an experiment to its ``train.Trainer``.
      folds: k, at least 2.
      seed: of the runs. The folds are the same for every seed.
      workdir: of the run; the folds' runs lie in its folder folds/.

    Returns:
      float32 [N, D], for the training utterances in order.

    Raises:
      UserError: there are more folds than dialogues.
    """
    system, encoder = experiment.system, experiment.encoder
    if not isinstance(encoder, SentenceEncoder) or system.inputs != "tokens":
        raise TypeError("only fine-tuning is cross-fitted")
    dialogues = experiment.corpus.splits["train"]
    if jax.process_count() > 1:
        raise UserError("fine_tuning.folds: cross-fitting is for one process, not several")
    if folds > len(dialogues):
        raise UserError(f"fine_tuning.folds is {folds}, for {len(dialogues)} training dialogues")
    lengths = [len(dialogue.utterances) for dialogue in dialogues]
    fold_of = np.random.default_rng(0).permutation(len(dialogues)) % folds
    features = np.zeros((sum(lengths), encoder.width), np.float32)
    for fold in range(folds):
        say(f"\nFold {fold + 1} of {folds}")
        held_out = [d for d, of in zip(dialogues, fold_of, strict=True) if of == fold]
        folder = workdir / "folds" / f"{fold}_of_{folds}"
        kept = folder / CROSS_FITTED
        of_fold = load_features(kept, held_out)
        if of_fold is None:
            others = [d for d, of in zip(dialogues, fold_of, strict=True) if of != fold]
            train = to_arrays(others, encoder, system, system.targets(others))
            part = dataclasses.replace(experiment, examples={**experiment.examples, "train": train})
            params, _ = make_trainer(part).fit(seed, folder)
            tuned = encoder.adapted(params=system.trained_encoder(params))
            of_fold = tuned.encode_dialogues(held_out)
            save_features(kept, of_fold, held_out)
            # Gigabytes, of which nothing is needed any more.
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        features[np.repeat(fold_of == fold, lengths)] = of_fold
    return features
