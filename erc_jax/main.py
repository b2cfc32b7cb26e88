r"""The command line: flags, and which function they call.

python -m erc_jax.main --config configs/meld.py --workdir runs/meld
python -m erc_jax.main --workdir runs/meld --mode evaluate --split test
python -m erc_jax.main --workdir runs/meld --mode predict --input talk.jsonl --output labelled.jsonl
python -m erc_jax.main --workdir runs/reply --mode respond --input talk.jsonl --output replies.jsonl
python -m erc_jax.main --workdir runs/meld --mode figures
python -m erc_jax.main --workdir runs/meld --mode report
python -m erc_jax.main --workdir runs/meld --mode export --output exported
python -m erc_jax.main --mode compare runs/a runs/b runs/c --output compare.html
python -m erc_jax.main --mode annotate --config configs/meld.py:fmerl --annotator lexicon \
    --lexicon Ratings_Warriner_et_al.csv --output annotations/meld
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from erc_jax import chat_flags
from erc_jax.allocator import keep_freed_memory
from erc_jax.config import check_same_run, find_config, load_config, read_config, value_of
from erc_jax.data.dialogue import MODALITIES
from erc_jax.errors import CRASHED_EXIT_CODE, STOPPED_EXIT_CODE, Stopped, UserError
from erc_jax.plugins import import_plugins

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Experiment: a file or the name of a shipped one, with a variant: meld:paper."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: all that it writes.")
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    [
        *("train", "evaluate", "predict", "respond", "few_shot", "figures", "report", "compare"),
        *("annotate", "export"),
    ],
    "What to do.",
)
_SPLIT = flags.DEFINE_enum(
    "split",
    "test",
    ["train", "validation", "test"],
    "evaluate, few_shot, of the corpus: the split to score. compare: the one to compare on.",
)
_INPUT = flags.DEFINE_string(
    "input",
    None,
    "predict, respond: conversations, JSON lines or CSV. evaluate, few_shot: labelled ones.",
)
_SUPPORT = flags.DEFINE_string(
    "support", None, "predict: a few labelled conversations, whose labels are then the emotions."
)
_EMOTIONS = flags.DEFINE_list(
    "emotions", [], "predict: emotions to name in place of the trained ones, such as joy,envy."
)
_DESCRIPTIONS = flags.DEFINE_string(
    "descriptions", None, "predict: a JSON file of descriptions of emotions."
)
_FEATURES = flags.DEFINE_list(
    "features", [], "predict, evaluate --input: feature files, such as audio=FILE,visual=FILE."
)
_DECODING = flags.DEFINE_list(
    "decoding", [], "respond: how, where not as in training: beams=1,sample=true,top_p=0.9."
)
_SEED = flags.DEFINE_integer("seed", 0, "respond: of replies that are sampled.")
_WAYS = flags.DEFINE_integer("ways", 5, "few_shot: emotions of an episode.", lower_bound=2)
_SHOTS = flags.DEFINE_integer("shots", 5, "few_shot: examples of each emotion.", lower_bound=1)
_ENCODER = flags.DEFINE_string(
    "encoder",
    None,
    "predict, few_shot, export, evaluate --input: where the run's encoder is, if it has moved.",
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "predict, respond: file for the JSON lines. evaluate --input: for the scores. compare: for "
    "the page. annotate, export: a folder; of export, exported/ in the workdir without it.",
)
_ANNOTATOR = flags.DEFINE_enum(
    "annotator", None, ["lexicon", "llm"], "annotate: word norms, or a chat model."
)
_LEXICON = flags.DEFINE_string(
    "lexicon", None, "annotate: a CSV file of word norms (Warriner et al.)."
)
_DISTRIBUTED = flags.DEFINE_string(
    "distributed",
    None,
    "train: several processes, each started with this command, work together: auto (TPU "
    "pods, SLURM), or HOST:PORT,PROCESSES,NUMBER.",
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "annotate: say what a chat model would be asked.")
flags.adopt_module_key_flags(chat_flags)


def _train(workdir: Path) -> None:
    from erc_jax.processes import joined
    from erc_jax.show import show_scores, show_sweep
    from erc_jax.train import train

    if _CONFIG.value is None:
        raise UserError("--mode train needs --config, for instance --config configs/meld.py")
    config = _CONFIG.value
    with joined(_DISTRIBUTED.value):
        if config.sweep:
            from erc_jax.sweep import sweep

            show_sweep(sweep(config, workdir))
        else:
            show_scores(train(config, workdir))


def _evaluate(workdir: Path) -> None:
    from erc_jax.evaluate import evaluate_file, evaluate_split
    from erc_jax.show import show_scores

    if _INPUT.value:
        output = Path(_OUTPUT.value) if _OUTPUT.value else None
        features = _feature_files()
        show_scores(
            evaluate_file(
                workdir, Path(_INPUT.value), output, encoder=_ENCODER.value, features=features
            )
        )
        return
    overrides = _overrides_of_finished(workdir) if _CONFIG.value else {}
    show_scores(evaluate_split(workdir, _SPLIT.value, overrides))


# Fields that may be given anew for a finished run: files may have moved.
_MOVABLE = (
    *("data.source", "data.annotation", "encoder", "train.batch_size", "log_every"),
    *(f"data.features.{modality}" for modality in MODALITIES),
)


def _overrides_of_finished(workdir: Path) -> dict[str, Any]:
    """Fields given on the command line, if they and --config fit the run in the workdir."""
    config = load_config(workdir)
    if config.data.name != _CONFIG.value.data.name:
        raise UserError(
            f"{workdir} holds a run on {config.data.name}, but --config is for "
            f"{_CONFIG.value.data.name}; name that run's --workdir, or leave --config out"
        )
    overrides = config_flags.get_override_values(flags.FLAGS["config"])
    config.update_from_flattened_dict(overrides)
    check_same_run(config, workdir, free=_MOVABLE)
    return overrides


def _predict(workdir: Path) -> None:
    from erc_jax.data.dialogue import load_dialogues
    from erc_jax.predict import Recognizer
    from erc_jax.show import show_conversation

    if not _INPUT.value:
        raise UserError("--mode predict needs --input: conversations as JSON lines or CSV")
    dialogues = load_dialogues(_INPUT.value)
    recognizer = Recognizer.from_pretrained(
        workdir,
        encoder=_ENCODER.value,
        support=_SUPPORT.value,
        emotions=_EMOTIONS.value,
        descriptions=_DESCRIPTIONS.value,
    )
    labelled = recognizer.predict(dialogues, _feature_files())
    _give_out(labelled, "labelled conversations", show_conversation)


def _respond(workdir: Path) -> None:
    from erc_jax.data.dialogue import load_dialogues
    from erc_jax.respond import Responder, read_decoding
    from erc_jax.show import show_reply

    if not _INPUT.value:
        raise UserError("--mode respond needs --input: conversations as JSON lines or CSV")
    dialogues = load_dialogues(_INPUT.value)
    responder = Responder.from_pretrained(workdir, decoding=read_decoding(_DECODING.value))
    answered = responder.respond(dialogues, seed=_SEED.value)
    _give_out(answered, "conversations with a reply", show_reply)


def _give_out(
    records: Sequence[dict[str, Any]], what: str, show: Callable[[dict[str, Any]], None]
) -> None:
    """Writes conversations to --output and shows the first; without it, shows them all."""
    from erc_jax.data.dialogue import save_dialogues

    if not _OUTPUT.value:
        for record in records:
            show(record)
        return
    save_dialogues(_OUTPUT.value, records)
    print(f"{len(records)} {what} in {_OUTPUT.value}")
    for record in records[:_SHOWN]:
        show(record)
    if len(records) > _SHOWN:
        print(f"… and {len(records) - _SHOWN} more in the file")


def _feature_files() -> dict[str, Any]:
    """Modality to the features in the file that --features names."""
    from erc_jax.data.feature_files import load_feature_file

    tables = {}
    for named in _FEATURES.value:
        modality, equals, file = named.partition("=")
        if modality not in MODALITIES or not equals:
            raise UserError(
                f"--features={named}: expected a modality and its file, such as audio=talk.npz; "
                f"modalities are {', '.join(MODALITIES)}"
            )
        tables[modality] = load_feature_file(file)
    return tables


_SHOWN = 2  # conversations that predict shows when it also writes them to a file


def _few_shot(workdir: Path) -> None:
    from erc_jax.data.corpora import load_corpus
    from erc_jax.data.dialogue import Dialogue, load_dialogues
    from erc_jax.data.labels import LabelSpace
    from erc_jax.evaluate import few_shot

    dialogues: Sequence[Dialogue]
    if _INPUT.value:
        name, dialogues = Path(_INPUT.value).stem, load_dialogues(_INPUT.value)
        found = {u.emotion: None for d in dialogues for u in d.utterances if u.emotion}
        labels = LabelSpace(tuple(found))
    elif _CONFIG.value:
        data = _CONFIG.value.data
        corpus = load_corpus(data.name, data.source, neutral=data.neutral)
        dialogues, labels = corpus.splits[_SPLIT.value], corpus.labels
        name = f"{data.name}_{_SPLIT.value}"
    else:
        raise UserError(
            "--mode few_shot needs --config of the corpus whose labels are new to the run, or "
            "--input: labelled conversations"
        )
    scores = few_shot(
        workdir,
        dialogues,
        labels,
        name,
        ways=_WAYS.value,
        shots=_SHOTS.value,
        encoder=_ENCODER.value,
    )
    interval, over = scores["interval_dialogues"], "dialogues"
    if interval is None:
        interval, over = scores["interval"], "episodes of these dialogues alone"
    print(
        f"{name}, {scores['ways']}-way {scores['shots']}-shot, {scores['episodes']:,} episodes "
        f"over {', '.join(scores['classes'])}:\n"
        f"accuracy {scores['accuracy']:.4f}, 95% interval over {over} {interval[0]:.4f} to "
        f"{interval[1]:.4f}, chance {scores['chance']:.4f}"
    )


def _figures(workdir: Path) -> None:
    from erc_jax.figures import run_figures

    for path in run_figures(workdir):
        print(path)


def _report(workdir: Path) -> None:
    from erc_jax.report import write_report

    print(write_report(workdir))


def _export(workdir: Path) -> None:
    from erc_jax.export import export_run

    folder = Path(_OUTPUT.value) if _OUTPUT.value else workdir / "exported"
    export_run(workdir, folder, _ENCODER.value)
    print(f"{folder}: python {folder}/predict.py talk.jsonl")


def _compare(workdirs: Sequence[str]) -> None:
    from erc_jax.compare import compare, write_comparison
    from erc_jax.show import show_comparison

    if _WORKDIR.value:
        raise UserError(
            "--mode compare takes its workdirs without a flag: --mode compare runs/a runs/b"
        )
    comparison = compare([Path(workdir) for workdir in workdirs], _SPLIT.value)
    show_comparison(comparison)
    if _OUTPUT.value:
        write_comparison(comparison, Path(_OUTPUT.value))
        print(_OUTPUT.value)


def _annotate() -> None:
    from erc_jax.annotate import MAX_TOKENS, annotate

    if _CONFIG.value is None or not _OUTPUT.value or not _ANNOTATOR.value:
        raise UserError(
            "--mode annotate needs --config of the corpus, --annotator lexicon or llm, and "
            "--output: a folder for the annotation"
        )
    chat = flags.FLAGS
    annotate(
        _CONFIG.value,
        Path(_OUTPUT.value),
        annotator=_ANNOTATOR.value,
        lexicon=Path(_LEXICON.value) if _LEXICON.value else None,
        endpoint=chat.endpoint,
        model=chat.model,
        max_tokens=MAX_TOKENS if chat.max_tokens is None else chat.max_tokens,
        requests_per_minute=chat.requests_per_minute,
        concurrency=chat.concurrency,
        timeout=chat.timeout,
        dry_run=_DRY_RUN.value,
    )


# Flags that only some modes read.
_MODES_OF_FLAGS: dict[str, tuple[str, ...]] = {
    "input": ("evaluate", "predict", "respond", "few_shot"),
    "output": ("evaluate", "predict", "respond", "compare", "annotate", "export"),
    "split": ("evaluate", "few_shot", "compare"),
    "encoder": ("evaluate", "predict", "few_shot", "export"),
    **dict.fromkeys(("support", "emotions", "descriptions"), ("predict",)),
    "features": ("predict", "evaluate"),
    "distributed": ("train",),
    **dict.fromkeys(("decoding", "seed"), ("respond",)),
    **dict.fromkeys(("ways", "shots"), ("few_shot",)),
    **dict.fromkeys(("annotator", "lexicon", "dry_run"), ("annotate",)),
    **dict.fromkeys(
        ("endpoint", "model", "requests_per_minute", "concurrency", "timeout", "max_tokens"),
        ("annotate",),
    ),
}
# Those that evaluate reads beside --input alone, and what there is for a split of the corpus.
_BESIDE_INPUT = {
    "output": "the scores of a split stand in metrics.json",
    "encoder": "of a split, --config.encoder=PLACE says where it is now",
    "features": "of a split, --config.data.features.audio=FOLDER and such say where they are now",
}


def _check_flags() -> None:
    """Refuses a flag that would not be read."""
    for name, modes in _MODES_OF_FLAGS.items():
        if flags.FLAGS[name].present and _MODE.value not in modes:
            *others, last = modes
            listed = f"{', '.join(others)} or {last}" if others else last
            raise UserError(f"--{name} is for --mode {listed}, not {_MODE.value}")
    if _INPUT.value and flags.FLAGS["split"].present:
        raise UserError("--split is for splits of a corpus, not for --input")
    if _MODE.value == "evaluate" and not _INPUT.value:
        for name, instead in _BESIDE_INPUT.items():
            if flags.FLAGS[name].present:
                raise UserError(f"--{name} is for --input; {instead}")


MODES: dict[str, Callable[[Path], None]] = {
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
    "respond": _respond,
    "few_shot": _few_shot,
    "figures": _figures,
    "report": _report,
    "export": _export,
}


def main(argv: Sequence[str]) -> None:
    """Runs the mode that the flags name; a user's mistake becomes one message and exit code 1."""
    keep_freed_memory()
    quiet_logs()
    try:
        if len(argv) > 1 and _MODE.value != "compare":
            raise UserError(f"unexpected arguments: {' '.join(argv[1:])}; flags begin with --")
        _check_flags()
        if _MODE.value == "annotate":
            _annotate()
            return
        if _MODE.value == "compare":
            _compare(argv[1:])
            return
        if not _WORKDIR.value:
            raise UserError("--workdir is missing: the folder of the run, such as runs/meld")
        if _MODE.value != "report":  # which starts at once, without JAX
            _keep_compiled_programs()
        MODES[_MODE.value](Path(_WORKDIR.value))
    except UserError as error:
        sys.exit(f"Error: {error}")
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(STOPPED_EXIT_CODE)
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. The same command goes on from where it was.")
    except Exception:  # a bug, or a machine that fails: unlike a user's mistake worth a new start
        traceback.print_exc()
        sys.exit(CRASHED_EXIT_CODE)


def quiet_logs() -> None:
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


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags; a mistake in them, or in the config, is told in one line."""
    try:
        argv = _with_config_paths(argv)
        _check_overrides(argv)
        rest = flags.FLAGS(argv)
        if _CONFIG.value is not None:
            import_plugins(_CONFIG.value.plugins)
        return rest
    except (UserError, flags.Error) as error:
        sys.exit(f"Error: {' '.join(str(error).split())}")


def _with_config_paths(argv: list[str]) -> list[str]:
    """The arguments with the path of the config that --config names."""
    found = list(argv)
    for i, argument in enumerate(argv):
        if match := re.fullmatch(r"(--?config=)(.+)", argument):
            found[i] = match[1] + find_config(match[2])
        elif argument in ("--config", "-config") and i + 1 < len(argv):
            found[i + 1] = find_config(argv[i + 1])
    return found


# What absl reads a field's value with, and how to call such a value.
_PARSERS: dict[type, tuple[flags.ArgumentParser, str]] = {
    bool: (flags.BooleanParser(), "true or false"),
    int: (flags.IntegerParser(), "a whole number"),
    float: (flags.FloatParser(), "a number"),
}


def _check_overrides(argv: list[str]) -> None:
    """Says what is wrong with a --config.field=value, which config_flags meets with a traceback."""
    config: ConfigDict | None = None
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        flag, equals, value = argument.partition("=")
        if not equals:
            value = following
        if flag in ("--config", "-config") and value:
            config = read_config(value)
        elif match := re.fullmatch(r"--?(no)?config\.(.+)", flag):
            if config is None:
                raise UserError(f"{flag}: a field of which config? Give --config before it")
            default = value_of(config, match[2])
            if type(default) not in _PARSERS:
                continue
            if isinstance(default, bool) and not equals:
                continue  # --config.tasks.shift or --noconfig.tasks.shift
            parser, expected = _PARSERS[type(default)]
            try:
                parser.parse(value)
            except (TypeError, ValueError):
                raise UserError(
                    f"{flag}={value}: expected {expected}, such as {str(default).lower()}"
                ) from None


def run() -> None:
    """Entry point of the ``erc-jax`` command."""
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    run()
