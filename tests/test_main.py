import subprocess
import sys

import pytest

from erc_jax.config import base_config, save_config
from tests.fabricated import dialogues, make_run


@pytest.fixture
def trained(monkeypatch):
    """Replaces training; gives the configs that it was asked for."""
    asked = []
    monkeypatch.setattr("erc_jax.train.train", lambda config, workdir: asked.append(config))
    monkeypatch.setattr("erc_jax.show.show_scores", lambda content: None)
    return asked


def test_the_command_line_starts_without_jax(tmp_path):
    """Help, mistakes and reports come at once."""
    workdir = make_run(tmp_path / "run")
    code = (
        "import sys; from erc_jax.main import main, parse_flags; "
        f"main(parse_flags(['erc-jax', '--mode', 'report', '--workdir', {str(workdir)!r}])); "
        "print([m for m in ('jax', 'flax', 'scipy') if m in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.stdout.splitlines() == [str(workdir / "report.html"), "[]"], told.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--config quickstart --config.train.epoch=3",
            "--config.train.epoch: there is no such field; did you mean --config.train.epochs?",
        ),
        (
            "--config=quickstart -config.train.epoch 3",
            "--config.train.epoch: there is no such field; did you mean --config.train.epochs?",
        ),
        (
            "--config quickstart --noconfig.tasks.shif",
            "--config.tasks.shif: there is no such field; did you mean --config.tasks.shift?",
        ),
        (
            "--config quickstart --config.qqqqqq=3",
            "--config.qqqqqq: there is no such field; known are data.annotation, data.",
        ),
        (
            "--config quickstart --config.train.epochs=abc",
            "--config.train.epochs=abc: expected a whole number, such as ",
        ),
        (
            "--config quickstart --config.train.epochs 1e3",
            "--config.train.epochs=1e3: expected a whole number, such as ",
        ),
        (
            "--config quickstart --config.train.learning_rate=high",
            "--config.train.learning_rate=high: expected a number, such as ",
        ),
        (
            "--config quickstart --config.tasks.shift=maybe",
            "--config.tasks.shift=maybe: expected true or false, such as true",
        ),
        ("--config.seed=3 --config quickstart", "--config.seed: a field of which config?"),
        ("--config meld:papr", "unknown variant 'papr'; did you mean paper?"),
        ("--config melt", "--config melt: no such file"),
        ("--workdri=x", "Unknown command line flag 'workdri'. Did you mean: workdir"),
        (
            "--mode=label",
            "flag --mode=label: value should be one of "
            "<train|evaluate|predict|respond|few_shot|figures|report|compare|annotate|export>",
        ),
        ("--config quickstart extra", "unexpected arguments: extra"),
        ("--config quickstart", "--workdir is missing"),
        ("--workdir x", "--mode train needs --config"),
        ("--workdir x --mode predict", "--mode predict needs --input"),
        ("--workdir x --emotions joy,envy", "--emotions is for --mode predict, not train"),
        ("--workdir x --features a=b", "--features is for --mode predict or evaluate, not train"),
        ("--workdir x --mode evaluate --features a=b", "--features is for --input; of a split, "),
        (
            "--workdir x --mode evaluate --descriptions mine.json",
            "--descriptions is for --mode predict, not evaluate",
        ),
        ("--workdir x --mode figures --support x", "--support is for --mode predict, not figures"),
        (
            "--workdir x --split test",
            "--split is for --mode evaluate, few_shot or compare, not train",
        ),
        (
            "--workdir x --mode report --input y",
            "--input is for --mode evaluate, predict, respond or few_shot, not report",
        ),
        (
            "--workdir x --mode few_shot --output y",
            "--output is for --mode evaluate, predict, respond, compare, annotate or export, not",
        ),
        (
            "--workdir x --mode respond --encoder y",
            "--encoder is for --mode evaluate, predict, few_shot or export, not respond",
        ),
        (
            "--workdir x --mode evaluate --output y",
            "--output is for --input; the scores of a split",
        ),
        ("--workdir x --mode evaluate --encoder y", "--encoder is for --input; of a split, "),
        (
            "--workdir x --mode evaluate --input y --split validation",
            "--split is for splits of a corpus, not for --input",
        ),
        (
            "--workdir x --mode few_shot --input y --split test",
            "--split is for splits of a corpus, not for --input",
        ),
    ],
)
def test_a_mistake_is_told_in_one_line(command, arguments, message):
    told = command(*arguments.split())
    assert told.startswith(f"Error: {message}")
    assert "\n" not in told


def test_the_process_ends_with_one_line_and_no_traceback(tmp_path):
    arguments = ["--config", "quickstart", "--config.train.epoch=3", "--workdir", "x"]
    done = subprocess.run(
        [sys.executable, "-m", "erc_jax.main", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "Error: --config.train.epoch: there is no such field; did you mean --config.train.epochs?\n"
    )
    assert done.stdout == ""
    assert not (tmp_path / "x").exists()


def test_a_config_that_fails_is_told_in_one_line(command, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def get_config(:\n")
    assert command("--config", str(path), "--workdir", "x") == f"Error: {path}:1: invalid syntax"


def test_overrides_reach_the_run(command, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # configs/ of the package are found from anywhere
    arguments = (
        "--config.train.epochs=3 --config.train.learning_rate 1e-2 --config.data.source=a=b "
        "--noconfig.tasks.shift --config.data.polarity.negative=('sad','angry') "
        "--config.data.polarity.positive=happy --config.init_from=elsewhere"
    )
    assert command("--config", "configs/own.py", "--workdir", "x", *arguments.split()) is None
    (config,) = trained
    assert (config.train.epochs, config.train.learning_rate) == (3, 1e-2)
    assert (config.data.source, config.init_from) == ("a=b", "elsewhere")
    assert config.tasks.shift is False
    assert config.tasks.sentiment is True
    assert config.data.polarity.negative == ("sad", "angry")
    assert config.data.polarity.positive == ("happy",)


def test_what_may_be_given_anew_when_a_run_is_evaluated(command, tmp_path, monkeypatch):
    config = base_config()
    config.data.name = "own"
    config.data.source = "there"
    save_config(config, tmp_path)
    asked = []
    monkeypatch.setattr("erc_jax.evaluate.evaluate_split", lambda *args: asked.append(args))
    monkeypatch.setattr("erc_jax.show.show_scores", lambda content: None)
    evaluate = ("--mode", "evaluate", "--workdir", str(tmp_path))

    assert command(*evaluate) is None
    assert command(*evaluate, "--config", "own", "--config.data.source=here") is None
    assert asked == [(tmp_path, "test", {}), (tmp_path, "test", {"data.source": "here"})]
    moved = ["data.annotation", *(f"data.features.{name}" for name in ("text", "audio", "visual"))]
    assert command(*evaluate, "--config", "own", *(f"--config.{f}=here" for f in moved)) is None
    assert asked[2:] == [(tmp_path, "test", dict.fromkeys(moved, "here"))]
    told = command(*evaluate, "--config", "meld")
    assert "holds a run on own, but --config is for meld" in told
    told = command(*evaluate, "--config", "own", "--noconfig.tasks.shift")
    assert "tasks.shift is True there and False here" in told


def test_a_workdir_that_is_none(command, tmp_path):
    (tmp_path / "talk.jsonl").write_text('{"utterances": [{"speaker": "A", "text": "hi"}]}\n')
    talk = ("--input", str(tmp_path / "talk.jsonl"))
    for mode in (("--mode", "predict", *talk), ("--mode", "evaluate")):
        assert "not a workdir" in command("--workdir", str(tmp_path), *mode)
    assert "talk.json: cannot be read" in command(
        "--workdir", str(tmp_path), "--mode", "predict", "--input", str(tmp_path / "talk.json")
    )


def test_a_report_and_a_comparison(command, tmp_path, capsys):
    """Runs are compared without --workdir; no other mode takes bare arguments."""
    a = make_run(tmp_path / "a", {0: dialogues(1)})
    b = make_run(tmp_path / "b", {0: dialogues(2)}, splits=("validation",))
    assert command("--mode", "report", "--workdir", a) is None
    assert capsys.readouterr().out == f"{a / 'report.html'}\n"
    page = tmp_path / "compare.html"
    compare = ("--mode", "compare", a, b, "--split", "validation")
    assert command(*compare, "--output", page) is None
    assert page.is_file()
    assert "B less A" in capsys.readouterr().out
    assert "the run was not scored on test" in command("--mode", "compare", a, b)
    assert "takes its workdirs without a flag" in command(*compare, "--workdir", a)
    assert "found 0" in command("--mode", "compare")
    assert "unexpected arguments: b;" in command("--mode", "report", "--workdir", a, "b")
