"""The command line: flags, and which function they call.

python -m erc_jax.main --config configs/meld.py --workdir runs/meld
python -m erc_jax.main --workdir runs/meld --mode evaluate --split test
python -m erc_jax.main --workdir runs/meld --mode predict --input talk.jsonl --output labelled.jsonl
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from erc_jax.config import find_config, flatten
from erc_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Experiment: a file or the name of a shipped one, with a variant: meld:paper."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: all that it writes.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate", "predict"], "What to do.")
_SPLIT = flags.DEFINE_enum(
    "split", "test", ["train", "validation", "test"], "evaluate: the split to score."
)
_INPUT = flags.DEFINE_string(
    "input", None, "predict: conversations to label, JSON lines or CSV. evaluate: labelled ones."
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "predict: file for the labelled JSON lines. evaluate --input: for the scores."
)


def _train(workdir: Path) -> None:
    from erc_jax.show import show_scores
    from erc_jax.train import train

    if _CONFIG.value is None:
        raise UserError("--mode train needs --config, for instance --config configs/meld.py")
    show_scores(train(_CONFIG.value, workdir))


def _evaluate(workdir: Path) -> None:
    from erc_jax.evaluate import evaluate_file, evaluate_split
    from erc_jax.show import show_scores

    if _INPUT.value:
        output = Path(_OUTPUT.value) if _OUTPUT.value else None
        show_scores(evaluate_file(workdir, Path(_INPUT.value), output))
        return
    overrides = config_flags.get_override_values(flags.FLAGS["config"]) if _CONFIG.value else {}
    show_scores(evaluate_split(workdir, _SPLIT.value, overrides))


def _predict(workdir: Path) -> None:
    from erc_jax.data.dialogue import load_dialogues, save_dialogues
    from erc_jax.predict import Recognizer
    from erc_jax.show import show_conversation

    if not _INPUT.value:
        raise UserError("--mode predict needs --input: conversations as JSON lines or CSV")
    dialogues = load_dialogues(_INPUT.value)
    labelled = Recognizer.from_pretrained(workdir).predict(dialogues)
    if _OUTPUT.value:
        save_dialogues(_OUTPUT.value, labelled)
        print(f"{len(labelled)} labelled conversations in {_OUTPUT.value}")
    for record in labelled if not _OUTPUT.value else labelled[:_SHOWN]:
        show_conversation(record)
    if _OUTPUT.value and len(labelled) > _SHOWN:
        print(f"… and {len(labelled) - _SHOWN} more in the file")


_SHOWN = 2  # conversations that predict shows when it also writes them to a file

MODES: dict[str, Callable[[Path], None]] = {
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
}


def main(argv: Sequence[str]) -> None:
    """Runs the mode that the flags name; a user's mistake becomes one message and exit code 1."""
    _quiet_logs()
    try:
        if len(argv) > 1:
            raise UserError(f"unexpected arguments: {' '.join(argv[1:])}; flags begin with --")
        if not _WORKDIR.value:
            raise UserError("--workdir is missing: the folder of the run, such as runs/meld")
        _keep_compiled_programs()
        MODES[_MODE.value](Path(_WORKDIR.value))
    except UserError as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. The same command goes on from the last checkpoint.")


def _quiet_logs() -> None:
    """Warnings only, and without the prefix that absl gives them."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    handler = absl_logging.get_absl_handler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))


def _keep_compiled_programs() -> None:
    """Compiled programs are kept in the cache, so that the next start is quick."""
    import jax

    from erc_jax.data.cache import cache_dir

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags; config names are looked up, and mistakes in them explained in one line."""
    try:
        return app.parse_flags_with_usage(_with_config_paths(argv))
    except UserError as error:
        sys.exit(f"Error: {error}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        sys.exit(f"Error: {_explain(argv, error)}")


def _with_config_paths(argv: list[str]) -> list[str]:
    found = list(argv)
    for i, argument in enumerate(argv):
        if match := re.fullmatch(r"(--?config=)(.+)", argument):
            found[i] = match[1] + find_config(match[2])
        elif argument in ("--config", "-config") and i + 1 < len(argv):
            found[i + 1] = find_config(argv[i + 1])
    return found


def _explain(argv: list[str], error: Exception) -> str:
    """Which --config.field is unknown or has a value that does not fit."""
    config = flags.FLAGS["config"].value
    if not isinstance(config, ConfigDict):
        return f"--config cannot be loaded: {error}"
    values = dict(flatten(config))
    for argument in argv:
        match = re.match(r"--?(?:no)?config\.([\w.]+)", argument)
        if match and match[1] not in values:
            nearest = difflib.get_close_matches(match[1], values, n=1, cutoff=0.4)
            hint = f"; did you mean --config.{nearest[0]}?" if nearest else ""
            return f"--config.{match[1]}: there is no such field{hint}"
    return " ".join(str(error).split())


def run() -> None:
    """Entry point of the ``erc-jax`` command."""
    app.run(main, flags_parser=_parse)


if __name__ == "__main__":
    run()
