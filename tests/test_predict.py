"""Prediction from a workdir: what comes back, and what is said when it cannot."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from erc_jax import Recognizer, UserError
from erc_jax.checkpoint import Checkpointer
from erc_jax.config import save_config
from erc_jax.data.dialogue import Dialogue
from erc_jax.data.feature_files import FeatureTable, save_feature_file
from erc_jax.data.labels import SENTIMENTS, SHIFTS
from erc_jax.evaluate import evaluate_file
from erc_jax.experiment import prepare, to_arrays
from erc_jax.predictor import Predictor, label_dialogues
from erc_jax.sharding import make_mesh
from erc_jax.train import Selection, Trainer
from tests.tiny import EMOTION_ONLY, tiny_config, write_encoder

EMOTIONS = {"calm", "happy", "sad"}

TALK = [
    {
        "id": "t1",
        "scene": 3,
        "utterances": [
            {"speaker": "Ann", "text": "we won", "emotion": "sad", "sentiment": "negative"},
            {"speaker": "Bob", "text": "oh my", "time": 1.5},
            {"speaker": "Ann", "text": ""},
        ],
    },
    {"id": "t2", "utterances": [{"speaker": "Cleo", "text": "a b c é 🙂"}]},
]


def untrained(folder: Path, workdir: Path, **fields) -> Path:
    """A workdir with one checkpoint, of the parameters that a run begins with."""
    config = tiny_config(folder, **fields)
    trainer = Trainer(config, prepare(config, ["train"]))
    save_config(config, workdir)
    selection = Selection(epoch=1, best_epoch=1, best_step=1, best_score=0.5)
    state = dataclasses.replace(
        trainer.new_state(trainer.fresh_params(jax.random.key(0))), step=jax.numpy.int32(1)
    )
    checkpoints = Checkpointer(workdir)
    checkpoints.save(1, state, trainer.meta(selection), 0.5)
    checkpoints.wait()
    return workdir


@pytest.fixture(scope="module")
def workdir(place):
    return untrained(place, place / "run")


@pytest.fixture(scope="module")
def recognizer(workdir):
    return Recognizer.from_pretrained(workdir)


@pytest.fixture
def predict(workdir, command, capsys):
    """Runs ``--mode predict``; returns its exit message (or None), and what it printed."""

    def run(*arguments, workdir=workdir):
        error = command("--workdir", workdir, "--mode", "predict", *arguments)
        return error, capsys.readouterr().out

    return run


def write_lines(path: Path, records) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return path


def test_a_line_comes_back_with_its_labels(predict, tmp_path):
    source = write_lines(tmp_path / "talk.jsonl", TALK)
    target = tmp_path / "new" / "labelled.jsonl"
    error, printed = predict("--input", source, "--output", target)
    assert error is None
    assert f"2 labelled conversations in {target}" in printed
    assert "we won" in printed
    records = [json.loads(line) for line in target.read_text().splitlines()]
    assert [record["id"] for record in records] == ["t1", "t2"]
    assert records[0]["scene"] == 3
    for record, given in zip(records, TALK, strict=True):
        assert len(record["utterances"]) == len(given["utterances"])
        for position, (labelled, utterance) in enumerate(
            zip(record["utterances"], given["utterances"], strict=True)
        ):
            assert labelled["speaker"] == utterance["speaker"]
            assert labelled["text"] == utterance["text"]
            assert set(labelled["probabilities"]) == EMOTIONS
            assert sum(labelled["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
            likeliest = max(labelled["probabilities"], key=labelled["probabilities"].get)
            assert labelled["emotion"] == likeliest
            assert labelled["sentiment"] in SENTIMENTS
            assert set(labelled["shift"]) == {"global", "speaker"}
            assert (labelled["shift"]["global"] is None) == (position == 0)
    shifts = [utterance["shift"] for utterance in records[0]["utterances"]]
    assert [shift["speaker"] is None for shift in shifts] == [True, True, False]
    assert {shifts[1]["global"], shifts[2]["global"], shifts[2]["speaker"]} <= set(SHIFTS)
    # What was given stays: other keys as they were, labels beside what is predicted.
    first, second, _ = records[0]["utterances"]
    assert first["gold"] == {"emotion": "sad", "sentiment": "negative"}
    assert second["time"] == 1.5
    assert "gold" not in second


def test_csv_gives_what_json_lines_give(predict, recognizer, tmp_path):
    source = tmp_path / "talk.csv"
    source.write_text('dialogue,speaker,text\nd,Ann,"we, won"\nd,Bob,oh my\n', encoding="utf-8-sig")
    assert predict("--input", source, "--output", tmp_path / "out.jsonl")[0] is None
    (record,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    turns = [{"speaker": "Ann", "text": "we, won"}, {"speaker": "Bob", "text": "oh my"}]
    expected = recognizer.predict({"id": "d", "utterances": turns})
    assert record == json.loads(json.dumps(expected))


def test_without_output_the_conversations_are_shown(predict, tmp_path):
    error, printed = predict("--input", write_lines(tmp_path / "talk.jsonl", TALK))
    assert error is None
    assert "Conversation t1" in printed
    assert "Conversation t2" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["talk.jsonl"]


def test_one_several_and_none(recognizer):
    several = recognizer.predict(TALK)
    assert [record["id"] for record in several] == ["t1", "t2"]
    one = recognizer.predict(TALK[1])
    assert one["utterances"][0]["emotion"] == several[1]["utterances"][0]["emotion"]
    assert recognizer.predict([]) == []
    with pytest.raises(UserError, match='expected a list "utterances"'):
        recognizer.predict({"turns": []})


def turns(number, start=0):
    said = [("Ann", "we won"), ("Bob", "oh my"), ("Ann", "a b c"), ("Cleo", "x y")]
    chosen = (said[(start + i) % 4] for i in range(number))
    return [{"speaker": speaker, "text": text} for speaker, text in chosen]


def test_few_programs_are_compiled_and_padding_changes_nothing(workdir, monkeypatch):
    from erc_jax.systems.mtl_erc_es import MtlErcEs

    shapes = []
    predict = MtlErcEs.predict

    def traced(self, params, batch):
        shapes.append(batch.dialogue.index.shape[1:])
        return predict(self, params, batch)

    monkeypatch.setattr(MtlErcEs, "predict", traced)
    recognizer = Recognizer.from_pretrained(workdir)
    talks = [{"id": str(n), "utterances": turns(n, start=n)} for n in (1, 5, 10, 16, 17, 30)]
    alone = [recognizer.predict(talk) for talk in talks]
    assert shapes == [(16, 1), (32, 1)]
    together = recognizer.predict(talks)
    assert len(shapes) == 3  # and no more where there is more of the same
    recognizer.predict([*talks, {"utterances": turns(3)}])
    assert len(shapes) == 3

    def probabilities(records):
        return [
            u["probabilities"][name]
            for r in records
            for u in r["utterances"]
            for name in u["probabilities"]
        ]

    # Different programs round differently, and by no more.
    np.testing.assert_allclose(probabilities(together), probabilities(alone), rtol=0, atol=1e-6)
    whole = evaluated(recognizer, talks)  # as training's evaluation pads
    np.testing.assert_allclose(probabilities(whole), probabilities(alone), rtol=0, atol=1e-6)


def evaluated(recognizer, talks):
    dialogues = [Dialogue.from_json(talk) for talk in talks]
    examples = to_arrays(dialogues, recognizer.encoder, recognizer.system, {}, cached=False)
    predictor = Predictor(recognizer.system, make_mesh())
    return label_dialogues(recognizer.system, dialogues, predictor(recognizer._params, examples))


def test_what_the_model_did_not_learn_is_left_out(tmp_path):
    workdir = untrained(tmp_path, tmp_path / "run", **EMOTION_ONLY)
    record = Recognizer.from_pretrained(workdir).predict(TALK[1])
    assert set(record["utterances"][0]) == {"speaker", "text", "emotion", "probabilities"}


@pytest.mark.parametrize("text", ["", "not json\n", '{"utterances": []}\n'])
def test_a_bad_second_input_leaves_the_first_output(predict, tmp_path, text):
    good, bad = write_lines(tmp_path / "good.jsonl", TALK), tmp_path / "bad.jsonl"
    bad.write_text(text)
    output = tmp_path / "out.jsonl"
    assert predict("--input", good, "--output", output)[0] is None
    before = output.read_bytes()
    error, _ = predict("--input", bad, "--output", output)
    assert error.startswith(f"Error: {bad}:")
    assert output.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bad.jsonl",
        "good.jsonl",
        "out.jsonl",
    ]


def test_a_full_disk_leaves_the_first_output(predict, tmp_path, monkeypatch):
    source, output = write_lines(tmp_path / "talk.jsonl", TALK), tmp_path / "out.jsonl"
    assert predict("--input", source, "--output", output)[0] is None
    before = output.read_bytes()
    write_bytes = Path.write_bytes

    def full(self, raw):
        write_bytes(self, raw[: len(raw) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    error, _ = predict("--input", source, "--output", output)
    assert error.startswith(f"Error: {output}: cannot be written (No space left on device)")
    assert output.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "talk.jsonl"]


def test_an_output_that_cannot_be_written(predict, tmp_path):
    source = write_lines(tmp_path / "talk.jsonl", TALK)
    (tmp_path / "folder").mkdir()
    error, _ = predict("--input", source, "--output", tmp_path / "folder")
    assert error.startswith(f"Error: {tmp_path / 'folder'}: cannot be written (Is a directory)")
    error, _ = predict("--input", source, "--output", source / "labelled.jsonl")
    assert error.startswith(f"Error: {source / 'labelled.jsonl'}: cannot be written")


def test_a_workdir_before_its_first_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"not a workdir.*train one with"):
        Recognizer.from_pretrained(tmp_path / "run")
    save_config(tiny_config(tmp_path), tmp_path / "run")
    with pytest.raises(UserError, match=r"no checkpoint in .*train first with"):
        Recognizer.from_pretrained(tmp_path / "run")


def test_an_encoder_that_is_gone_or_changed(tmp_path):
    workdir = untrained(tmp_path, tmp_path / "run", **EMOTION_ONLY)
    shutil.rmtree(tmp_path / "encoder")
    with pytest.raises(UserError, match="encoder: there is no such folder"):
        Recognizer.from_pretrained(workdir)
    write_encoder(tmp_path / "encoder", hidden_size=16)
    with pytest.raises(UserError, match="not the encoder that the model was trained with"):
        Recognizer.from_pretrained(workdir)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--emotions", "joy,envy"), "this run names the emotions that it was trained on; runs of"),
        (("--descriptions", "{file}"), "this run names the emotions that it was trained on; runs"),
        (("--features", "audio={file}.npz"), "this run reads no feature files; runs of fmerl do"),
        (
            ("--support", "{file}", "--descriptions", "{file}"),
            "--support gives the emotions by examples, --emotions and --descriptions by phrases; "
            "leave one of them out",
        ),
    ],
    ids=lambda x: "" if isinstance(x, str) else x[0],
)
def test_what_runs_of_another_system_cannot_do(predict, tmp_path, arguments, message):
    file = tmp_path / "file.json"
    file.write_text('{"joy": "Valence: positive"}')
    one = FeatureTable(np.ones((1, 2), np.float32), np.array(["t1"]), np.array([1]), "mine", "")
    save_feature_file(f"{file}.npz", one)
    source = write_lines(tmp_path / "talk.jsonl", TALK)
    error, _ = predict("--input", source, *(a.format(file=file) for a in arguments))
    assert error.startswith(f"Error: {message}")


def test_labelled_conversations_are_scored(workdir, place, tmp_path):
    path = place / "corpus" / "test.jsonl"
    content = evaluate_file(workdir, path, tmp_path / "scores.json")
    assert set(content) == {"test.jsonl"}
    assert content["test.jsonl"]["per_class"].keys() == EMOTIONS
    assert sum(map(sum, content["test.jsonl"]["confusion"])) == 32
    assert {"sentiment", "shift_global", "shift_speaker"} <= content["test.jsonl"].keys()
    assert json.loads((tmp_path / "scores.json").read_text()) == json.loads(json.dumps(content))


def test_conversations_without_labels_cannot_be_scored(workdir, tmp_path):
    path = write_lines(tmp_path / "talk.jsonl", TALK[1:])
    with pytest.raises(UserError, match='no utterance has an "emotion"; use --mode predict'):
        evaluate_file(workdir, path, None)


def test_an_unknown_label_names_its_place(workdir, tmp_path):
    lines = [
        {"id": "d", "utterances": [{"speaker": "A", "text": "x", "emotion": e}]}
        for e in ("sad", "rage")
    ]
    lines[1]["id"] = "e"
    path = write_lines(tmp_path / "talk.jsonl", lines)
    with pytest.raises(UserError, match=r"talk\.jsonl:2: utterance 1: unknown label 'rage'.*calm"):
        evaluate_file(workdir, path, None)


@pytest.mark.slow
def test_an_encoder_that_was_named_from_elsewhere_or_has_moved(
    place, tmp_path, monkeypatch, predict
):
    write_encoder(tmp_path / "a" / "enc", hidden_size=16)
    monkeypatch.chdir(tmp_path / "a")
    workdir = untrained(place, tmp_path / "run", **EMOTION_ONLY, encoder="enc")
    before = Recognizer.from_pretrained(workdir).predict(TALK)
    monkeypatch.chdir(tmp_path)
    assert Recognizer.from_pretrained(workdir).predict(TALK) == before
    shutil.move(tmp_path / "a" / "enc", tmp_path / "b")
    with pytest.raises(UserError, match=r"(?s)enc.*If the encoder is elsewhere now: --encoder="):
        Recognizer.from_pretrained(workdir)
    assert Recognizer.from_pretrained(workdir, encoder=str(tmp_path / "b")).predict(TALK) == before
    (tmp_path / "talk.jsonl").write_text("\n".join(map(json.dumps, TALK)))
    message, shown = predict(
        *("--input", tmp_path / "talk.jsonl", "--encoder", tmp_path / "b"), workdir=workdir
    )
    assert message is None
    assert "oh my" in shown
    other = write_encoder(tmp_path / "other", hidden_size=16, num_hidden_layers=1)
    with pytest.raises(UserError, match="not the encoder that the model was trained with"):
        Recognizer.from_pretrained(workdir, encoder=str(other))
