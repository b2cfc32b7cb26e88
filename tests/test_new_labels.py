"""Labels that a run was not trained on: from a support file, and measured in episodes."""

import json

import pytest

from erc_jax import Recognizer, UserError
from erc_jax.figures import run_figures
from erc_jax.train import train
from tests.test_predict import untrained
from tests.tiny import EMOTION_ONLY, tiny_config

pytestmark = pytest.mark.slow

SMALL = {
    "system": "sent_emo_context",
    "sent_emo_context__heads": 4,
    "sent_emo_context__ffn": 32,
    "train__epochs": 3,
    "train__batch_size": 16,
    "train__learning_rate": 3e-3,
    "sent_emo_context__triplet__learning_rate": 3e-3,
}
SUPPORT = [
    {"speaker": "Ann", "text": "we won x", "emotion": "relief"},
    {"speaker": "Bo", "text": "oh my x", "emotion": "envy"},
    {"speaker": "Ann", "text": "oh my z", "emotion": "envy"},
    {"speaker": "Bo", "text": "a b c", "emotion": None},
]


@pytest.fixture(scope="module")
def workdir(place):
    train(tiny_config(place, **SMALL), place / "run")
    return place / "run"


@pytest.fixture
def ask(workdir, command, capsys):
    """Runs a mode on the run; returns its exit message (or None), and what it printed."""

    def run(*arguments):
        return command("--workdir", workdir, *arguments), capsys.readouterr().out

    return run


def write(path, *dialogues):
    path.write_text(
        "".join(
            json.dumps({"id": f"d{i}", "utterances": utterances}) + "\n"
            for i, utterances in enumerate(dialogues)
        )
    )
    return path


def test_a_handful_of_examples_gives_new_emotions(ask, tmp_path):
    support = write(tmp_path / "few.jsonl", SUPPORT)
    talk = write(
        tmp_path / "talk.jsonl",
        [{"speaker": "Cy", "text": "we won x"}, {"speaker": "Di", "text": "oh my x"}],
    )
    target = tmp_path / "out.jsonl"
    error, printed = ask(
        "--mode", "predict", "--support", support, "--input", talk, "--output", target
    )
    assert error is None
    assert "relief (1), envy (2)" in printed
    (record,) = [json.loads(line) for line in target.read_text().splitlines()]
    for utterance in record["utterances"]:
        assert set(utterance["probabilities"]) == {"relief", "envy"}
        assert sum(utterance["probabilities"].values()) == pytest.approx(1)
    assert [u["emotion"] for u in record["utterances"]] == ["relief", "envy"]


def test_the_order_of_the_examples_changes_nothing(workdir, tmp_path):
    there = write(tmp_path / "there.jsonl", SUPPORT[:2], SUPPORT[2:])
    back = write(tmp_path / "back.jsonl", SUPPORT[2:], SUPPORT[:2])
    talk = {"id": "t", "utterances": [{"speaker": "Cy", "text": "we won"}]}
    found = [
        Recognizer.from_pretrained(workdir, support=path).predict(talk)["utterances"][0]
        for path in (there, back)
    ]
    assert found[0]["emotion"] == found[1]["emotion"]
    for emotion, probability in found[0]["probabilities"].items():
        assert found[1]["probabilities"][emotion] == pytest.approx(probability, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "relief"}, r"few\.jsonl:1: utterance 1: unknown key 'label'"),
        ({"emotion": ""}, r"few\.jsonl:1: utterance 1: expected a label name"),
        ({"text": 3}, r"few\.jsonl:1: utterance 1: expected text"),
    ],
)
def test_what_is_wrong_with_a_support_file_is_told(workdir, tmp_path, change, message):
    support = write(tmp_path / "few.jsonl", [{**SUPPORT[0], **change}, *SUPPORT[1:]])
    with pytest.raises(UserError, match=message):
        Recognizer.from_pretrained(workdir, support=support)


def test_one_emotion_is_no_choice(workdir, tmp_path):
    support = write(tmp_path / "few.jsonl", SUPPORT[1:])
    with pytest.raises(UserError, match="at least two emotions are needed, found envy"):
        Recognizer.from_pretrained(workdir, support=support)


def test_other_systems_say_that_they_cannot(place, tmp_path):
    workdir = untrained(place, tmp_path / "run", **EMOTION_ONLY)
    support = write(tmp_path / "few.jsonl", SUPPORT)
    with pytest.raises(UserError, match="learned no space"):
        Recognizer.from_pretrained(workdir, support=support)


def test_episodes_on_a_labelled_file(ask, place, workdir):
    error, printed = ask(
        "--mode", "few_shot", "--input", place / "corpus" / "test.jsonl", "--ways", 3, "--shots", 1
    )
    assert error is None
    assert "test, 3-way 1-shot" in printed
    assert "chance 0.3333" in printed
    scores = json.loads((workdir / "few_shot_test_3_way_1_shot.json").read_text())
    assert scores["chance"] == pytest.approx(1 / 3)
    assert scores["accuracy"] > 0.6  # each emotion has words of its own
    error, _ = ask(
        "--mode", "few_shot", "--input", place / "corpus" / "test.jsonl", "--ways", 4, "--shots", 1
    )
    assert error is not None
    assert "4" in error


def test_a_run_draws_its_figures(workdir):
    pytest.importorskip("matplotlib")
    drawn = run_figures(workdir)
    assert {path.name for path in drawn} >= {"confusion_test.png", "labels.png"}
    assert all(path.stat().st_size > 1000 for path in drawn)
