"""The fields that every experiment has, and how configs are found, kept and compared.

An experiment is a file in ``configs/`` whose ``get_config(variant)`` starts from ``base_config``
and changes what differs. A run's config is kept as ``config.json`` in its workdir.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from erc_jax.data.dialogue import write_whole
from erc_jax.errors import UserError

# Fields that may differ between two starts of one run: they change no result.
FREE_FIELDS = ("log_every",)


def base_config() -> ConfigDict:
    """The fields of all experiments, with Mtl-ERC-ES' values where the paper gives one."""
    config = ConfigDict()
    config.system = "mtl_erc_es"  # the model, a name in erc_jax.systems
    # Sentence encoder that gives the features: a name (installed package or hub) or a folder.
    config.encoder = "all-MiniLM-L6-v2"
    config.seed = 0  # of initialisation, shuffling and dropout
    config.seeds = 1  # runs with seeds seed, seed + 1, …; metrics.json then holds means
    config.log_every = 50  # steps between two lines of progress; losses are fetched only then
    config.init_from = placeholder(str)  # a workdir whose weights start this run

    config.data = data = ConfigDict()
    data.name = "sample"  # the corpus, a name in erc_jax.data.corpora
    data.source = placeholder(str)  # folder of its original files or JSON lines; else downloaded
    data.first_shift = "ignore"  # first utterances' shift: "ignore", or "strong_negative" (Table 2)
    data.sentiment = "polarity"  # labels of sentiment: "polarity" of the emotion, or the "column"
    data.keep_unlabelled = False  # keep utterances outside the classes as context (IEMOCAP)
    data.neutral = placeholder(str)  # what *_no_neutral metrics leave out; else the corpus' own
    # Polarity of one's own emotions, as names: ("sad", "angry"); empty takes the corpus' own.
    data.polarity = ConfigDict({"negative": (), "neutral": (), "positive": ()})

    config.tasks = tasks = ConfigDict()  # besides emotion; a task left out has no parameters
    tasks.sentiment = True  # sentiment from the first LSTM layer
    tasks.shift = True  # emotion shift, between neighbours and within a speaker

    config.weights = weights = ConfigDict()  # of each task's loss in the sum (equation 18)
    weights.emotion = 1.0
    weights.sentiment = 1.0
    weights.shift_global = 1.0
    weights.shift_speaker = 1.0

    config.model = model = ConfigDict()
    model.dropout = 0.2  # on LSTM inputs, attention weights, feed-forward and head inputs

    # Bring each utterance's features to mean 0 and variance 1: embeddings of length 1 are small.
    model.normalize_input = True

    config.train = train = ConfigDict()
    train.epochs = 100  # at most; see patience
    train.batch_size = 32  # dialogues
    train.learning_rate = 1e-4  # of Adam, at its highest
    train.warmup_steps = 0  # steps from 0 up to the learning rate
    train.decay = "none"  # of the learning rate down to 0 at the last step: "linear", "cosine"
    train.weight_decay = 0.0  # decoupled, as in AdamW
    train.clip_norm = 0.0  # largest global norm of the gradient; 0 does not clip
    train.patience = 0  # epochs without a better validation score before stopping; 0 never stops
    train.select_metric = "weighted_f1"  # the score that chooses the checkpoint
    # The split that chooses it. "test" exists only to redo tables of papers that chose so.
    train.select_on = "validation"
    return config


def check_variant(variant: str, known: Collection[str]) -> None:
    """Refuses a variant (what stands after the colon in "meld:paper") that a config lacks.

    Raises:
      UserError: it is not among the known ones.
    """
    if variant and variant not in known:
        raise UserError(f"unknown variant {variant!r}; this config has {', '.join(known)}")


def find_config(name: str) -> str:
    """Path of a config that is named by path ("configs/meld.py") or by name ("meld").

    A variant after a colon ("meld:paper") stays as it is. A path that does not exist is looked
    for among the package's own configs, so that the same command works after pip install.

    Raises:
      UserError: there is no such file and no such name; the nearest names are given.
    """
    path, colon, variant = name.partition(":")
    if Path(path).is_file():
        return name
    shipped = _shipped_configs()
    stem = Path(path).stem
    if stem in shipped and path in (stem, f"{stem}.py", f"configs/{stem}.py"):
        return f"{shipped[stem]}{colon}{variant}"
    nearest = difflib.get_close_matches(stem, shipped, n=1)
    hint = f" Did you mean {nearest[0]}?" if nearest else ""
    raise UserError(f"--config {path}: no such file, nor one of {', '.join(shipped)}.{hint}")


def _shipped_configs() -> dict[str, Path]:
    package = Path(__file__).parent
    # In a wheel the folder lies inside the package, in a checkout beside it.
    for folder in (package / "configs", package.parent / "configs"):
        if found := {p.stem: p for p in sorted(folder.glob("*.py"))}:
            return found
    return {}


def save_config(config: ConfigDict, workdir: Path) -> None:
    write_whole(workdir / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")


def load_config(workdir: Path) -> ConfigDict:
    """The config of a run.

    Raises:
      UserError: the folder is not a workdir, or its config.json is damaged.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(
            f"{workdir}: not a workdir (no config.json); train one with "
            f"python -m erc_jax.main --config CONFIG --workdir {workdir}"
        )
    try:
        return ConfigDict(_with_tuples(json.loads(path.read_text())))
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); train again in another workdir") from error


def _with_tuples(value: Any) -> Any:
    """JSON knows lists only; configs hold tuples only."""
    if isinstance(value, dict):
        return {k: _with_tuples(v) for k, v in value.items()}
    return tuple(value) if isinstance(value, list) else value


def check_same_run(config: ConfigDict, workdir: Path) -> None:
    """Refuses to go on with a run under another config.

    Raises:
      UserError: the workdir's config.json differs; the message names the fields.
    """
    if not (workdir / "config.json").is_file():
        return
    there, here = dict(flatten(load_config(workdir))), dict(flatten(config))
    differences = [
        f"{field} is {there.get(field)!r} there and {here.get(field)!r} here"
        for field in sorted(there.keys() | here.keys())
        if there.get(field) != here.get(field) and field not in FREE_FIELDS
    ]
    if differences:
        raise UserError(
            f"{workdir} holds a run of another config: {'; '.join(differences)}. "
            "Choose another --workdir, or give the same config to go on with that run."
        )


def flatten(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ("train.epochs", 100) for every field."""
    for key in config:
        value = config.get(key)
        if isinstance(value, ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
