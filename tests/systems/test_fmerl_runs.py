"""Whole runs of FMERL: a corpus of a few words, with ratings and audio features made up for it."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from erc_jax.config import load_config, save_config
from erc_jax.data.annotation import save_annotation
from erc_jax.data.descriptions import known_descriptions
from erc_jax.data.dialogue import VAD, load_dialogues
from erc_jax.data.feature_files import FeatureTable, load_split, save_feature_file
from erc_jax.errors import UserError
from erc_jax.evaluate import evaluate_file, evaluate_split
from erc_jax.experiment import prepare
from erc_jax.predict import Recognizer
from erc_jax.train import train
from tests.tiny import QUESTION, SAID, SCORES, tiny_config, write_encoder

SPLITS = ("train", "validation", "test")
EMOTIONS = ("calm", "happy", "sad")
SCALE = (1.0, 9.0)
RATINGS = {"calm": (5.0, 2.0, 5.0), "happy": (8.5, 6.0, 7.0), "sad": (1.5, 3.0, 3.0)}
UNRATED = 3  # the place, in every dialogue, of an utterance without a rating
FIELDS = {
    "system": "fmerl",
    "fmerl__width": 12,
    "fmerl__heads": 2,
    "fmerl__ffn": 16,
    "fmerl__speakers": 3,
    "fmerl__temperature": 0.2,
    "model__dropout": 0.1,
    "train__learning_rate": 0.01,
    "train__epochs": 8,
}
AGREEMENT = {"ccc", "pearson", "mse"}
ZERO_SHOT = {
    *("unseen_recall", "unseen_f1", "unseen_f1_subset", "seen_recall", "harmonic_mean"),
    *("accuracy", "weighted_f1"),
}


def corpus_of(place, split):
    return load_dialogues(place / "corpus" / f"{split}.jsonl")


def write_annotation(place, folder, descriptions=SAID):
    """Rates all but one utterance of each dialogue by its emotion; phrases are what is said."""
    ratings = {
        split: {
            (dialogue.id, position): dict(zip(VAD, RATINGS[utterance.emotion], strict=True))
            for dialogue in corpus_of(place, split)
            for position, utterance in enumerate(dialogue.utterances, start=1)
            if position != UNRATED
        }
        for split in SPLITS
    }
    phrases = {e: {"description": d, "origin": "a test"} for e, d in descriptions.items()}
    save_annotation(folder, ratings, phrases, {"annotator": "a test", "scale": list(SCALE)})
    return folder


def audio_of(dialogues, extractor="a program", seed=0):
    """Three channels that tell the emotion; the first dialogue has none, nor has the second's end.

    Where there is no label, they are noise.
    """
    rng = np.random.default_rng(seed)
    rows = [
        (dialogue.id, position, utterance.emotion)
        for number, dialogue in enumerate(dialogues)
        for position, utterance in enumerate(dialogue.utterances, start=1)
        if number > 0 and (number, position) != (1, 4)
    ]
    told = np.array([[emotion == e for e in EMOTIONS] for _, _, emotion in rows], float)
    return FeatureTable(
        (told + 0.3 * rng.normal(size=told.shape)).astype(np.float32),
        np.array([dialogue for dialogue, _, _ in rows]),
        np.array([position for _, position, _ in rows], np.int32),
        extractor,
        "1",
    )


def write_audio(place, folder, **changes):
    for number, split in enumerate(SPLITS):
        table = audio_of(corpus_of(place, split), **({"seed": number} | changes))
        save_feature_file(folder / f"{split}.safetensors", table)
    return folder


def config_of(place, *, audio=False, ratings=True, **fields):
    """An experiment in a folder; what it reads is made there at first."""
    tiny_config(place)  # makes encoder and corpus
    if not (place / "annotation").exists():
        write_annotation(place, place / "annotation")
        write_audio(place, place / "audio")
    places = {"fmerl__description_encoder": str(place / "encoder")}
    if ratings:
        places["data__annotation"] = str(place / "annotation")
    if audio:
        places["data__features__audio"] = str(place / "audio")
        places["fmerl__modalities"] = ("text", "audio")
    return tiny_config(place, **(FIELDS | places | fields))


@pytest.fixture(scope="module")
def run(place):
    """A finished run on text and audio, its config and what was returned. Not to be changed."""
    config = config_of(place, audio=True)
    return config, place / "run", train(config, place / "run")


@pytest.fixture(scope="module")
def recognizer(run):
    return Recognizer.from_pretrained(run[1])


@pytest.fixture
def predict(run, tmp_path, command, capsys):
    """Runs ``--mode predict``; returns exit message (or None), utterances, what was printed."""

    def ask(*arguments, talk=QUESTION, workdir=run[1]):
        source, target = tmp_path / "talk.jsonl", tmp_path / "labelled.jsonl"
        source.write_text(json.dumps({"id": "talk", **talk}))
        target.unlink(missing_ok=True)
        error = command(
            *("--mode", "predict", "--workdir", workdir, "--input", source, "--output", target),
            *arguments,
        )
        printed = capsys.readouterr().out
        if error is not None:
            return error, None, printed
        (line,) = target.read_text().splitlines()
        return None, json.loads(line)["utterances"], printed

    return ask


def read(workdir):
    return json.loads((workdir / "metrics.json").read_text())


def without_run(content):
    return {key: value for key, value in content.items() if key != "run"}


def losses_of(workdir, name):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [record[name] for record in map(json.loads, lines) if name in record]


def changed(workdir, **fields):
    """The config of a run, after fields of it were changed where it is kept."""
    config = load_config(workdir)
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    save_config(config, workdir)
    return config


def assert_same(found, expected):
    """Utterances' records, to rounding."""
    assert len(found) == len(expected)
    for here, there in zip(found, expected, strict=True):
        assert here["emotion"] == there["emotion"]
        for key in ("probabilities", "similarity", "vad"):
            assert here[key] == pytest.approx(there[key], abs=1e-5)


# What a run leaves


@pytest.mark.slow
def test_a_run_learns_and_leaves_what_is_documented(run):
    _, workdir, content = run
    for name in ("loss", "loss_contrast", "loss_negatives", "loss_valence", "loss_arousal"):
        losses = losses_of(workdir, name)
        assert losses[-1] < 0.7 * losses[0], name
    assert read(workdir) == json.loads(json.dumps(content))
    assert set(content) == {"validation", "test", "run"}
    for split in ("validation", "test"):
        assert set(content[split]) == {*SCORES, "vad"}
        assert set(content[split]["vad"]) == set(VAD)
        for scores in content[split]["vad"].values():
            assert set(scores) == AGREEMENT
        assert np.sum(content[split]["confusion"]) == 32
    assert content["test"]["accuracy"] > 0.8
    # Better than the mean, on the scale from 1 to 9.
    assert content["test"]["vad"]["valence"]["pearson"] > 0.7
    spread = np.var([RATINGS[e][0] for e in EMOTIONS])
    assert content["test"]["vad"]["valence"]["mse"] < 0.6 * spread
    modalities = content["run"]["modalities"]
    assert set(modalities) == {"text", "audio"}
    assert modalities["audio"] == {
        "extractor": "a program",
        "version": "1",
        "width": 3,
        "missing": dict.fromkeys(SPLITS, 5),
    }
    assert modalities["text"]["missing"] == dict.fromkeys(SPLITS, 0)
    assert modalities["text"]["sha256"] == content["run"]["description_encoder"]["sha256"]
    annotation = content["run"]["corpus"]["annotation"]
    assert annotation["annotator"] == "a test"
    assert annotation["scale"] == [1.0, 9.0]
    found = {path.name.partition(".out.")[0] for path in workdir.iterdir()}
    assert found == {
        *("config.json", "metrics.jsonl", "events", "checkpoints", "metrics.json", "model_card.md"),
        *("predictions_validation.jsonl", "predictions_test.jsonl", "early_validation.jsonl"),
    }
    # What the first epoch said, for figures: another thing than what the best said.
    early, last = (
        load_dialogues(workdir / f"{name}_validation.jsonl") for name in ("early", "predictions")
    )
    for before, after in zip(early, last, strict=True):
        assert before.id == after.id
        for a, b in zip(before.utterances, after.utterances, strict=True):
            assert set(a.extra["similarity"]) == set(EMOTIONS)
            assert a.vad != b.vad
            assert a.extra["gold"] == b.extra["gold"]


@pytest.mark.slow
def test_a_workdir_predicts_what_was_written(run, recognizer, place):
    _, workdir, _ = run
    asked = corpus_of(place, "test")
    written = [json.loads(x) for x in (workdir / "predictions_test.jsonl").read_text().splitlines()]
    found = recognizer.predict(asked, {"audio": load_split(place / "audio", "test")})
    load_dialogues(workdir / "predictions_test.jsonl")  # as anybody's conversations are
    for here, there in zip(found, written, strict=True):
        assert_same(here["utterances"], there["utterances"])
        assert here["vad_scale"] == there["vad_scale"] == [1.0, 9.0]
        for position, utterance in enumerate(there["utterances"], start=1):
            # Ratings that were given stand beside those that are predicted.
            emotion = utterance["gold"]["emotion"]
            rating = dict(zip(VAD, RATINGS[emotion], strict=True))
            assert utterance["gold"].get("vad") == (None if position == UNRATED else rating)
            for value in utterance["vad"].values():
                assert SCALE[0] <= value <= SCALE[1]
            assert set(utterance["similarity"]) == set(EMOTIONS)
            nearest = max(utterance["similarity"], key=utterance["similarity"].get)
            assert utterance["emotion"] == nearest


@pytest.mark.slow
def test_a_run_is_scored_again_with_the_same_result(copied, place):
    _, workdir, content = copied
    assert evaluate_split(workdir, "test", {})["test"] == content["test"]
    path, table = place / "corpus" / "test.jsonl", load_split(place / "audio", "test")
    scores = evaluate_file(workdir, path, None, features={"audio": table})
    assert scores["test.jsonl"].items() <= content["test"].items()


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_end(run, tmp_path, train_and_kill):
    """Killed in the first epoch, and again in the middle of a later one."""
    config, finished, content = run
    workdir = tmp_path / "run"
    assert train_and_kill(config, workdir, saves=1) == [1, 2]
    assert train_and_kill(config, workdir, saves=4) == [2, 3, 4, 5, 6]
    assert without_run(train(config, workdir)) == without_run(content)
    for name in ("predictions_test.jsonl", "early_validation.jsonl"):
        assert (workdir / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.slow
def test_prediction_needs_neither_annotation_nor_the_package_s_phrases(
    copied, recognizer, monkeypatch
):
    """Descriptions and scale are kept with the weights."""
    workdir = copied[1]
    changed(workdir, data__annotation="gone")
    for module in ("predict", "experiment"):
        monkeypatch.setattr(f"erc_jax.{module}.known_descriptions", lambda: {})
    before = recognizer.predict(QUESTION)["utterances"]
    assert_same(Recognizer.from_pretrained(workdir).predict(QUESTION)["utterances"], before)
    # Named once more, the trained emotions have the phrases that they were trained with.
    named = Recognizer.from_pretrained(workdir, emotions=EMOTIONS)
    assert_same(named.predict(QUESTION)["utterances"], before)


@pytest.mark.slow
def test_a_run_is_scored_with_its_own_phrases(copied, place, tmp_path):
    """Whatever the annotation has come to say of the emotions."""
    _, workdir, content = copied
    turned = dict(zip(EMOTIONS, [SAID["sad"], SAID["calm"], SAID["happy"]], strict=True))
    other = write_annotation(place, tmp_path / "annotation", turned)
    scores = evaluate_split(workdir, "test", {"data.annotation": str(other)})
    assert scores["test"] == content["test"]


# What is refused


@pytest.mark.slow
def test_files_of_another_program(copied, place, tmp_path):
    workdir = copied[1]
    other = write_audio(place, tmp_path / "audio", extractor="another")
    config = changed(workdir, data__features__audio=str(other))
    with pytest.raises(UserError, match="holds a run on another encoder"):
        train(config, workdir)
    with pytest.raises(UserError, match="features are not those that the run was trained on"):
        evaluate_split(workdir, "test", {})
    talk = load_dialogues(write_talk(tmp_path / "one.jsonl"))
    table = audio_of([talk[0], *talk], extractor="another")
    with pytest.raises(
        UserError, match="audio features: the features are another 1 of width 3; the model was "
        "trained on a program 1 of width 3",
    ):  # fmt: skip
        Recognizer.from_pretrained(workdir).predict(talk, {"audio": table})


def write_talk(path, emotions=("happy", "sad")):
    utterances = [
        {"speaker": "AB"[i % 2], "text": f"{SAID[e]} x", "emotion": e}
        for i, e in enumerate(emotions)
    ]
    path.write_text(json.dumps({"id": "talk", "utterances": utterances}))
    return path


@pytest.mark.slow
def test_the_encoder_of_descriptions_must_be_the_same(place, tmp_path, monkeypatch):
    """It may have been named from elsewhere; what is there must be what was there."""
    monkeypatch.chdir(tmp_path)
    fields = {"fmerl__description_encoder": "phrases", "train__epochs": 1}
    config, workdir = config_of(place, **fields), tmp_path / "run"
    shutil.copytree(place / "encoder", "phrases")
    train(config, workdir)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert set(Recognizer.from_pretrained(workdir).predict(QUESTION)) > {"utterances"}
    shutil.rmtree(tmp_path / "phrases")
    with pytest.raises(UserError, match=r"^fmerl\.description_encoder: .*phrases: the model is"):
        Recognizer.from_pretrained(workdir)
    write_encoder(tmp_path / "phrases", hidden_size=16)
    with pytest.raises(UserError, match=r"^fmerl\.description_encoder: .*not the encoder that the"):
        Recognizer.from_pretrained(workdir)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="was trained with descriptions embedded by phrases"):
        evaluate_split(workdir, "test", {})
    with pytest.raises(UserError, match="other values of the encoder of descriptions"):
        train(config, workdir)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"fmerl__modalities": ("text", "audio")},
            r"names audio, but data\.features\.audio does not say where",
        ),
        (
            {"fmerl__modalities": ("visual",), "data__features__visual": "corpus"},
            r"data\.features\.visual is 'corpus', but own brings no such features",
        ),
        ({"zero_shot__unseen": "joy"}, r"zero_shot\.unseen is 'joy', .*: calm, happy, sad"),
        ({"zero_shot__unseen": "happy,sad"}, "fewer than two emotions to learn from"),
        ({"fmerl__modalities": ("text", "smell")}, "names 'smell'; expected some of text, audio"),
        ({"fmerl__vad__dimensions": ("power",)}, "names 'power'; expected some of valence"),
        ({"fmerl__modalities": ("text", "text")}, "names one twice: text, text"),
        ({"system": "mtl_erc_es"}, r"^fmerl\.\w+ is for runs of fmerl; give .*:fmerl"),
        ({"fmerl__description_encoder": "nothing"}, r"fmerl\.description_encoder: .*nothing"),
        ({"data__features__audio": "x"}, r"data\.features\.audio is x, but .* does not name audio"),
        (
            {"zero_shot__unseen": "sad", "init_from": "x"},
            r"zero_shot\.unseen with init_from: x may",
        ),
    ],
    ids=lambda x: min(x) if isinstance(x, dict) else "",
)
def test_fields_that_do_not_fit(place, fields, message):
    with pytest.raises(UserError, match=message):
        prepare(config_of(place, **fields))


@pytest.mark.parametrize(
    "fields",
    [{"zero_shot__unseen": "sad"}, {"data__features__audio": "x"}, {"data__annotation": "x"}],
    ids=str,
)
def test_fields_of_fmerl_alone(place, fields):
    with pytest.raises(UserError, match="is for runs of fmerl"):
        prepare(tiny_config(place, **fields))


# What is said before


def test_what_is_missing_is_counted_for_each_split(place, capsys):
    experiment = prepare(config_of(place, audio=True))
    printed = capsys.readouterr().out
    for split in SPLITS:
        assert f"Note: 5 of 32 {split} utterances have no audio\n" in printed
        present = experiment.examples[split].features.present
        assert present["text"].all()
        assert np.flatnonzero(~present["audio"]).tolist() == [0, 1, 2, 3, 7]
        ratings = experiment.examples[split].labels["vad"]
        unrated = (ratings == -1).all(axis=1)
        assert unrated.reshape(8, 4).tolist() == [[False, False, True, False]] * 8
        assert ratings[~unrated].min() >= 0
    assert "no description" not in printed
    assert "rated" not in printed


def test_without_ratings_and_descriptions(place, capsys):
    """Descriptions of the package: it knows calm, happy and sad, in words that the tiny encoder
    takes for one; so bare names are, and no utterance is rated."""
    config = config_of(place, ratings=False, fmerl__descriptions="phrase")
    experiment = prepare(config)
    printed = capsys.readouterr().out
    assert "Note: No utterance is rated, so valence, arousal and dominance are left out" in printed
    assert set(experiment.examples["train"].labels) == {"emotion"}
    assert experiment.corpus.labels.vad_scale is None
    assert set(experiment.corpus.labels.descriptions) == set(EMOTIONS)


def test_ratings_off_the_scale_are_counted(place, tmp_path, capsys):
    """A corpus' own ratings, of which two are none: they are left out, and the first is named."""
    config = config_of(place, ratings=False)
    corpus = Path(shutil.copytree(place / "corpus", tmp_path / "corpus"))
    for split in SPLITS:
        lines = []
        for dialogue in corpus_of(place, split):
            record = {**dialogue.to_json(), "vad_scale": [1, 5]}
            for utterance in record["utterances"]:
                utterance["vad"] = {"valence": 1, "arousal": 3, "dominance": 5.0}
            lines.append(record)
        if split == "validation":
            lines[2]["utterances"][1]["vad"]["arousal"] = 0.5
            lines[4]["utterances"][0]["vad"]["valence"] = 5.5
        (corpus / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config.data.source = str(corpus)
    experiment = prepare(config)
    assert (
        "Note: 2 ratings are not between 1 and 5 and are left out (dialogue validation2, "
        "utterance 2: arousal 0.5)\n"
    ) in capsys.readouterr().out
    ratings = experiment.examples["validation"].labels["vad"]
    off = [(4 * 2 + 1, 1), (4 * 4, 0)]
    assert [tuple(place) for place in np.argwhere(ratings == -1)] == off
    kept = experiment.examples["train"].labels["vad"]
    np.testing.assert_array_equal(kept, np.broadcast_to([0, 0.5, 1], kept.shape))


# Prediction


@pytest.mark.slow
def test_without_audio_it_is_said(recognizer, capsys):
    found = recognizer.predict(QUESTION)["utterances"]
    assert "Note: 2 of 2 utterances have no audio" in capsys.readouterr().out
    assert set(found[0]) == {"speaker", "text", "emotion", "probabilities", "similarity", "vad"}
    assert found[0]["emotion"] == "happy"
    assert found[0]["vad"]["valence"] > found[1]["vad"]["valence"]


@pytest.mark.slow
def test_audio_of_a_file(predict, recognizer, tmp_path):
    (talk,) = load_dialogues(write_talk(tmp_path / "one.jsonl"))
    table = audio_of([talk, talk])
    question = {"id": "talk", **QUESTION}
    for suffix in ("npz", "safetensors"):
        file = tmp_path / f"audio.{suffix}"
        save_feature_file(file, table)
        error, found, printed = predict("--features", f"audio={file}")
        assert error is None
        assert "no audio" not in printed
        assert_same(found, recognizer.predict(question, {"audio": table})["utterances"])
    _, without, _ = predict()
    assert abs(found[0]["similarity"]["sad"] - without[0]["similarity"]["sad"]) > 1e-3
    # Of one utterance there is none.
    half = dataclasses.replace(
        table,
        features=table.features[:1],
        dialogues=table.dialogues[:1],
        positions=table.positions[:1],
    )
    save_feature_file(file, half)
    error, _, printed = predict("--features", f"audio={file}")
    assert error is None
    assert "Note: 1 of 2 utterances have no audio" in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ("audio", "--features=audio: expected a modality and its file, such as audio=talk.npz"),
        ("smell={file}", "--features=smell=.*; modalities are text, audio, visual"),
        ("audio=missing.npz", r"missing\.npz: there is no such file"),
        ("visual={file}", "features of visual are given, but this model .* it reads audio"),
        ("audio={other}", "audio features: features of dialogue another, utterance 1, but"),
    ],
)
def test_features_that_do_not_fit(predict, tmp_path, feature, message):
    (talk,) = load_dialogues(write_talk(tmp_path / "one.jsonl"))
    table = audio_of([talk, talk])
    save_feature_file(tmp_path / "a.npz", table)
    other = dataclasses.replace(table, dialogues=np.full_like(table.dialogues, "another", "U9"))
    save_feature_file(tmp_path / "b.npz", other)
    given = feature.format(file=tmp_path / "a.npz", other=tmp_path / "b.npz")
    error, _, _ = predict("--features", given)
    assert re.search(f"^Error: {message}", error), error


@pytest.mark.slow
def test_emotions_that_training_never_saw(predict, monkeypatch):
    asked = {"joy": "a we", "relief": "b won", "envy": "c oh"}
    assert known_descriptions().keys() >= asked.keys()
    # In place of the package's, whose words the tiny encoder does not know.
    monkeypatch.setattr("erc_jax.predict.known_descriptions", lambda: dict(asked))
    error, found, printed = predict("--emotions", "joy,relief,envy")
    assert error is None
    assert "no description" not in printed
    for utterance in found:
        assert set(utterance["similarity"]) == set(utterance["probabilities"])
        assert list(utterance["similarity"]) == ["joy", "relief", "envy"]
        assert sum(utterance["probabilities"].values()) == pytest.approx(1)
        assert utterance["emotion"] == max(utterance["similarity"], key=utterance["similarity"].get)
        assert SCALE[0] < utterance["vad"]["valence"] < SCALE[1]
    # Their order is a matter of taste, and trained ones stay as similar as they were.
    _, turned, _ = predict("--emotions", "envy,happy,joy,relief")
    _, trained, _ = predict()
    for here, there, before in zip(turned, found, trained, strict=True):
        similarity = {e: here["similarity"][e] for e in ("joy", "relief", "envy")}
        assert similarity == pytest.approx(there["similarity"], abs=1e-5)
        assert here["similarity"]["happy"] == pytest.approx(before["similarity"]["happy"], abs=1e-5)
        assert here["vad"] == pytest.approx(before["vad"], abs=1e-5)


@pytest.mark.slow
def test_descriptions_of_a_file(predict, tmp_path):
    """What is described as something that was trained is as near as that."""
    error, bare, printed = predict("--emotions", "victory,oh")
    assert error is None
    assert "Note: no description of victory, oh: compared by the bare name." in printed
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"victory": SAID["happy"], "oh": {"description": SAID["sad"]}}))
    error, found, printed = predict("--emotions", "victory,oh", "--descriptions", file)
    assert error is None
    assert "no description" not in printed
    assert [u["emotion"] for u in found] == ["victory", "oh"]
    _, trained, _ = predict()
    for here, there in zip(found, trained, strict=True):
        expected = {"victory": there["similarity"]["happy"], "oh": there["similarity"]["sad"]}
        assert here["similarity"] == pytest.approx(expected, abs=1e-5)
    assert found[0]["similarity"] != bare[0]["similarity"]
    # Alone, it describes the trained emotions anew.
    file.write_text(json.dumps({"happy": SAID["sad"], "sad": SAID["happy"]}))
    error, found, _ = predict("--descriptions", file)
    assert error is None
    for here, there in zip(found, trained, strict=True):
        assert here["similarity"]["happy"] == pytest.approx(there["similarity"]["sad"], abs=1e-5)
        assert here["similarity"]["calm"] == pytest.approx(there["similarity"]["calm"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--emotions", "joy"), "--emotions: expected two or more different ones, found joy"),
        (("--emotions", "joy,joy"), "--emotions: expected two or more .*, found joy, joy"),
        (("--emotions", "joy,,envy"), "--emotions names ''; expected names with commas"),
        (("--emotions", "joy,envy", "--descriptions", "missing.json"), "missing.json: cannot be"),
        (("--support", "{talk}"), "this run learned no space in which distances tell emotions"),
        (
            ("--support", "{talk}", "--emotions", "joy,envy"),
            "--support gives the emotions by examples, --emotions and --descriptions by phrases",
        ),
    ],
)
def test_emotions_that_cannot_be_named(predict, tmp_path, arguments, message):
    talk = write_talk(tmp_path / "support.jsonl")
    error, _, _ = predict(*(argument.format(talk=talk) for argument in arguments))
    assert re.search(f"^Error: {message}", error), error


# Emotions that are held out


@pytest.fixture(scope="module")
def zero_shot(place):
    """Two seeds that never saw what is sad, on text alone."""
    config = config_of(place, zero_shot__unseen="sad", train__epochs=2, seeds=2)
    return config, place / "zero_shot", train(config, place / "zero_shot")


@pytest.mark.slow
def test_zero_shot_is_scored_on_test_alone(zero_shot, place):
    config, workdir, content = zero_shot
    sad = {s: sum(u.emotion == "sad" for d in corpus_of(place, s) for u in d.utterances)
           for s in SPLITS}  # fmt: skip
    assert min(sad.values()) > 0
    assert "zero_shot" not in content["validation"]
    # Sums over the two seeds.
    assert np.sum(content["validation"]["confusion"], axis=1)[2] == 0
    assert np.sum(content["validation"]["confusion"]) == 2 * (32 - sad["validation"])
    assert np.sum(content["test"]["confusion"], axis=1)[2] == 2 * sad["test"]
    found = content["test"]["zero_shot"]
    assert set(found) == {*ZERO_SHOT, "std"}
    runs = [of_seed["test"]["zero_shot"] for of_seed in content["seeds"]]
    for name in ZERO_SHOT:
        values = [run[name] for run in runs]
        assert found[name] == pytest.approx(np.mean(values))
        assert found["std"][name] == pytest.approx(np.std(values, ddof=1))
    for run in runs:
        a = run["unseen_recall"]
        assert run["unseen_f1_subset"] == pytest.approx(2 * a / (1 + a))
    block = content["test"]["vad"]["valence"]
    values = [of_seed["test"]["vad"]["valence"]["ccc"] for of_seed in content["seeds"]]
    assert block["ccc"] == pytest.approx(np.mean(values))
    assert block["std"]["ccc"] == pytest.approx(np.std(values, ddof=1))
    # Training knows neither labels nor ratings; the emotion can be named all the same.
    experiment = prepare(config)
    for split in SPLITS:
        said = np.array([u.emotion == "sad" for d in corpus_of(place, split) for u in d.utterances])
        labels = experiment.examples[split].labels
        kept = said & (split == "test")
        assert ((labels["emotion"] == 2) == kept).all()
        assert ((labels["emotion"] == -1) == (said & ~kept)).all()
        rated = (labels["vad"] >= 0).all(axis=1)
        unrated = np.arange(32) % 4 == UNRATED - 1
        assert (rated == ~unrated & ~(said & ~kept)).all()
    answer = Recognizer.from_pretrained(workdir).predict(QUESTION)["utterances"]
    assert set(answer[0]["similarity"]) == set(EMOTIONS)


@pytest.mark.slow
def test_zero_shot_is_scored_again_with_the_same_result(zero_shot):
    _, workdir, content = zero_shot
    again = evaluate_split(workdir, "test", {})
    assert again["test"] == content["test"]


@pytest.mark.slow
def test_what_trained_emotions_lead_by_is_kept(zero_shot, place, tmp_path):
    """It is read off validation, beside the weights; prediction needs it."""
    _, workdir, content = zero_shot
    references = [workdir / "seeds" / seed / "reference.safetensors" for seed in "01"]
    leads = [float(load_file(path)["lead"]) for path in references]
    assert len(set(leads)) == 2
    best = int(np.argmax([s["validation"]["weighted_f1"] for s in content["seeds"]]))
    recognizer = Recognizer.from_pretrained(workdir, emotions=("happy", "sad", "joy"))
    for utterance in recognizer.predict(QUESTION)["utterances"]:
        lowered = dict(utterance["similarity"])
        lowered["happy"] -= leads[best]
        odds = {emotion: np.exp(value / 0.2) for emotion, value in lowered.items()}
        assert utterance["probabilities"] == pytest.approx(
            {emotion: of / sum(odds.values()) for emotion, of in odds.items()}, abs=1e-4
        )
    references[best].unlink()
    with pytest.raises(UserError, match=r"reference\.safetensors is missing"):
        Recognizer.from_pretrained(workdir)


@pytest.mark.slow
def test_nothing_is_given_up_for_unseen_emotions(place, tmp_path, monkeypatch):
    """Nor is a run gone on with, when the package has come to describe emotions otherwise."""
    fields = {"zero_shot__unseen": "sad", "zero_shot__give_up": 0.0, "train__epochs": 1}
    phrases = {**SAID, "sad": "my x oh"}
    monkeypatch.setattr("erc_jax.experiment.known_descriptions", lambda: dict(phrases))
    config, workdir = config_of(place, ratings=False, **fields), tmp_path / "run"
    content = train(config, workdir)
    assert not (workdir / "reference.safetensors").exists()
    assert set(content["test"]) == {*SCORES, "zero_shot"}
    for utterance in Recognizer.from_pretrained(workdir).predict(QUESTION)["utterances"]:
        odds = {e: np.exp(value / 0.2) for e, value in utterance["similarity"].items()}
        assert utterance["probabilities"] == pytest.approx(
            {e: of / sum(odds.values()) for e, of in odds.items()}, abs=1e-4
        )
    assert without_run(train(config, workdir)) == without_run(content)
    phrases["sad"] = "oh my"
    with pytest.raises(UserError, match=r"other values of emotions, .*'my x oh'.* 'oh my'"):
        train(config, workdir)
