"""Exported models: they say what Recognizer says, of any sizes, and without this package."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from importlib.metadata import distribution
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export
from packaging.requirements import Requirement

from erc_jax import Recognizer, UserError
from erc_jax.encoders.mpnet import MAX_DISTANCE, MPNet, MPNetConfig, _bucket
from erc_jax.experiment import prepare
from erc_jax.export import export_model, export_run
from erc_jax.export.standalone import InputError, Model, checked, load, read_lines
from erc_jax.train import Trainer
from erc_jax.workdir import Run
from tests.fabricated import change, make_run
from tests.test_predict import TALK, untrained, write_lines
from tests.tiny import EMOTION_ONLY, drawn_parameters, tiny_config, tiny_tokenizer

SYSTEMS = {
    "mtl_erc_es": {},
    "fine_tuning": {"system": "fine_tuning", "fine_tuning__pooling": "cls"},
    "in_context": {
        "system": "fine_tuning",
        "fine_tuning__context": "dialogue",
        "fine_tuning__pooling": "max",
    },
    "sent_emo_context": {"system": "sent_emo_context", "sent_emo_context__heads": 4},
    "dialogue_vector": {
        "system": "sent_emo_context",
        "sent_emo_context__context": "dialogue_vector",
    },
    "fmerl": {
        "system": "fmerl",
        "fmerl__modalities": ("text",),
        "fmerl__width": 16,
        "fmerl__heads": 2,
        "train__select_metric": "accuracy",
    },
}


def talk(*lengths, seed=0):
    """Dialogues of these lengths; up to four speakers, who do not speak in turn."""
    random = np.random.default_rng(seed)
    texts = ["we won", "oh my", "", "a b c é 🙂", "x " * 80, "We, my"]
    return [
        {
            "id": f"{length}/{number}",
            "utterances": [
                {"speaker": str(random.choice([*"ABCD"])), "text": str(random.choice(texts))}
                for _ in range(length)
            ],
        }
        for number, length in enumerate(lengths)
    ]


def recognizer_of(folder, **fields):
    """A model that was not trained; a reference is read off the tiny corpus, if it has one."""
    if fields.get("system") == "fmerl":
        fields["fmerl__description_encoder"] = str(folder / "encoder")
        tiny_config(folder)
        for file in (folder / "corpus").glob("*.jsonl"):
            rate(file)
    config = tiny_config(folder, **fields)
    experiment = prepare(config, ["train", "validation"])
    trainer = Trainer(config, experiment)
    params = trainer.scorer.complete(drawn_parameters(trainer.fresh_params))
    return Recognizer(experiment.system, params, experiment.encoder)


def rate(file):
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for record in records:
        record["vad_scale"] = [1, 5]
        for utterance in record["utterances"]:
            utterance["vad"] = {"valence": 2, "arousal": 4.5, "dominance": 3}
    write_lines(file, records)


def exported(recognizer, folder):
    export_model(recognizer.system, recognizer._params, recognizer.encoder, folder)
    return folder


def assert_same(found, expected):
    """Records that differ in the fifth decimal of a number at most."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-5)
    else:
        assert found == expected


@pytest.fixture(scope="module")
def recognizer(place):
    return recognizer_of(place, **EMOTION_ONLY)


@pytest.fixture(scope="module")
def folder(recognizer, place):
    return exported(recognizer, place / "exported")


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of the folder, to be damaged."""
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_it_says_what_recognizer_says(tmp_path, name):
    recognizer = recognizer_of(tmp_path, **SYSTEMS[name])
    model = load(exported(recognizer, tmp_path / "exported"))
    dialogues = [*talk(1, 17, 3), *TALK]
    expected = recognizer.predict(dialogues)
    assert_same(model.predict(dialogues), expected)
    said = [u["probabilities"]["happy"] for record in expected for u in record["utterances"]]
    assert np.std(said) > 1e-3, "a model that always says the same shows nothing"


@pytest.mark.slow
def test_batches_and_lengths_of_any_size(folder, recognizer):
    model = load(folder)
    # More than are read at once, of lengths on both sides of powers of two.
    dialogues = talk(*(1, 2, 8, 9, 3) * 4)
    together = recognizer.predict(dialogues)
    assert_same(model.predict(dialogues), together)
    assert_same(model.predict(dialogues[3:4]), together[3:4])
    assert_same(model.predict(dialogues[:3]), together[:3])
    assert model.predict([]) == []


def test_a_long_dialogue_is_not_read_beside_short_ones():
    """Each of a call's dialogues is padded to the longest, and attention is of its square."""
    about = {
        "tasks": {"emotion": ["short", "long"]},
        "reading": {"context": "none", "lower_case": True, "max_length": 9, "begin": 2, "end": 3},
        "rows": 16,
        "limits": {"utterances": 10_000},
        "vad_scale": None,
    }
    shapes = []

    def run(tokens, lengths, owners, speakers):
        shapes.append(speakers.shape)
        is_long = (speakers >= 0).sum(-1, keepdims=True) > 8
        return {"emotion": np.stack([~is_long, is_long], -1).repeat(speakers.shape[1], 1)}

    lengths = [1, 300, 5, *[2] * 20, 1000, 8, 64, 300, 2000, 64]
    labelled = Model(about, run, tiny_tokenizer()).predict(talk(*lengths))
    assert [len(record["utterances"]) for record in labelled] == lengths
    named = [{u["emotion"] for u in record["utterances"]} for record in labelled]
    assert named == [{"long" if n > 8 else "short"} for n in lengths]
    assert shapes == [(16, 8), (16, 64), (2, 512), (1, 1024), (1, 2048)]


def test_any_numbers_tell_speakers_apart(folder):
    model = load(folder)
    tokens, lengths, owners, speakers = model._arrays(
        [checked(dialogue, model.about) for dialogue in talk(8, 5)]
    )
    other_numbers = np.where(speakers >= 0, 97 - 13 * speakers, -1).astype(np.int32)
    expected = model._run(tokens, lengths, owners, speakers)
    found = model._run(tokens, lengths, owners, other_numbers)
    merged = model._run(tokens, lengths, owners, np.minimum(speakers, 0))
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
    assert not np.allclose(merged["emotion"], expected["emotion"], atol=1e-4)


def test_mpnet_takes_any_width():
    far = np.arange(-500, 501)
    np.testing.assert_array_equal(
        _bucket(far, 32), _bucket(far.clip(-MAX_DISTANCE, MAX_DISTANCE), 32)
    )
    config = MPNetConfig(
        vocab_size=9,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        hidden_act="gelu",
        max_position_embeddings=400,
        layer_norm_eps=1e-6,
        pad_token_id=1,
        relative_attention_num_buckets=32,
    )
    module = MPNet(config)
    token = jnp.zeros((1, 1), jnp.int32)
    params = drawn_parameters(module.init, token, token, token)
    (width,) = jax_export.symbolic_shape("w")
    tokens = jax.ShapeDtypeStruct((1, width), jnp.int32)
    program = jax_export.export(jax.jit(module.apply))(
        jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype), params), *[tokens] * 3
    )
    arrays = (np.arange(300)[None] % 9, np.ones((1, 300)), np.arange(300)[None])
    arrays = tuple(array.astype(np.int32) for array in arrays)
    np.testing.assert_allclose(
        program.call(params, *arrays), jax.jit(module.apply)(params, *arrays), atol=1e-5
    )


# Runs a script, as Python does, where some packages are not to be had.
WITHOUT = """
import runpy, sys

class Missing:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
MISSING = ("erc_jax", "flax", "ml_collections", "optax", "orbax", "safetensors", "transformers")


def run_script(folder, *arguments, missing=MISSING, cwd=None):
    return subprocess.run(
        [sys.executable, "-c", WITHOUT.format(missing=missing), folder / "predict.py", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        timeout=300,
    )


def test_the_script_needs_none_of_this_package(folder, recognizer, tmp_path):
    source = write_lines(tmp_path / "talk.jsonl", TALK)
    done = run_script(folder, source, "--output", tmp_path / "labelled.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "labelled.jsonl").read_text().splitlines()]
    assert_same(records, json.loads(json.dumps(recognizer.predict(TALK))))


def test_the_script_says_which_line_is_wrong(folder, tmp_path):
    source = tmp_path / "talk.jsonl"
    source.write_text(json.dumps(TALK[0]) + "\n\n{not json\n")
    done = run_script(folder, source)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {source}:3: not a JSON object")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", 'expected an object with a list "utterances"'),
        ('{"utterances": []}', "the dialogue has no utterances"),
        ('{"utterances": [{"speaker": "A"}]}', 'utterance 1: expected text as "text"'),
        ('{"utterances": [{"speaker": " ", "text": ""}]}', 'utterance 1: "speaker" is empty'),
        ('{"id": [], "utterances": [{"speaker": "A", "text": ""}]}', 'expected text as "id"'),
        ('{"utterances": [{"speaker": "A", "text": "\\ud83d"}]}', "not a JSON object in UTF-8"),
        ("", "no dialogues in the file"),
    ],
)
def test_what_is_no_conversation_is_refused(folder, tmp_path, line, message):
    file = tmp_path / "talk.jsonl"
    file.write_text(line)
    with pytest.raises(InputError, match=f"^{file}.*{message}"):
        read_lines(file, load(folder).about)


def test_too_long_a_dialogue_is_refused(folder):
    with pytest.raises(InputError, match="10001 utterances; the model reads up to 10000"):
        load(folder).predict([{"utterances": [{"speaker": "A", "text": ""}] * 10_001}])


@pytest.mark.parametrize(
    "name", ["labels.json", "model.stablehlo", "weights.npz", "tokenizer.json"]
)
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(InputError, match=f"{name}: not found"):
        load(copy)


def test_a_file_of_another_export_is_refused(copy):
    with (copy / "weights.npz").open("ab") as file:
        file.write(b"!")
    with pytest.raises(InputError, match=r"weights\.npz: not the file that was exported"):
        load(copy)


def test_another_version_is_refused(copy):
    change(copy / "labels.json", lambda about: about.update(format=0))
    with pytest.raises(InputError, match=r"is of version 0, but this predict\.py reads version 1"):
        load(copy)
    (copy / "labels.json").write_text("[")
    with pytest.raises(InputError, match=r"labels\.json: damaged"):
        load(copy)


def test_a_program_that_jax_does_not_read_is_told_at_once(copy):
    """As of a release that knows other operations; not when the first conversation comes."""
    program = (copy / "model.stablehlo").read_bytes()
    before, magic, after = program.partition(b"ML\xefR")  # of MLIR's bytecode
    assert magic
    (copy / "model.stablehlo").write_bytes(before + b"XXXX" + after)
    found = hashlib.sha256((copy / "model.stablehlo").read_bytes()).hexdigest()
    change(copy / "labels.json", lambda about: about["sha256"].update({"model.stablehlo": found}))
    with pytest.raises(InputError, match=r"model\.stablehlo: jax .* does not read it .* exported"):
        load(copy)


def test_the_program_does_not_tell_where_it_was_made(folder):
    program = (folder / "model.stablehlo").read_bytes()
    assert str(Path(__file__).parents[1]).encode() not in program
    assert sys.prefix.encode() not in program
    # Weights are not in it.
    assert len(program) < 500_000


@pytest.mark.slow
def test_the_command(place, command, capsys, tmp_path):
    workdir = untrained(place, tmp_path / "run", **EMOTION_ONLY)
    assert command("--workdir", workdir, "--mode", "export") is None
    assert f"{workdir}/exported" in capsys.readouterr().out
    model, recognizer = load(workdir / "exported"), Recognizer.from_pretrained(workdir)
    assert_same(model.predict(TALK), recognizer.predict(TALK))


def test_the_card_goes_with_its_model(copy, recognizer, tmp_path, monkeypatch):
    """Where an unfinished run is exported, that of an earlier export would be another model's."""
    run = Run(recognizer.system, recognizer._params, recognizer.encoder, None, {})
    monkeypatch.setattr("erc_jax.export.load_labelling_run", lambda *args: run)
    monkeypatch.setattr("erc_jax.export._program", lambda *args: b"")
    workdir = make_run(tmp_path / "run")
    scores = (workdir / "metrics.json").read_text()

    (workdir / "metrics.json").write_text("{}")
    before = {file: file.read_bytes() for file in copy.rglob("*.*")}
    with pytest.raises(UserError, match=r"metrics\.json: damaged"):
        export_run(workdir, copy)
    assert {file: file.read_bytes() for file in copy.rglob("*.*")} == before

    (workdir / "metrics.json").write_text(scores)
    export_run(workdir, copy)
    assert "# mtl\\_erc\\_es on meld" in (copy / "README.md").read_text()
    (workdir / "metrics.json").unlink()
    export_run(workdir, copy)
    assert not (copy / "README.md").exists()


def test_what_reads_more_than_text_is_refused(place, tmp_path):
    from erc_jax.encoders.multimodal import FileModality, MultimodalEncoder
    from erc_jax.encoders.word_vectors import WordVectors

    audio = FileModality("openSMILE", "1", np.zeros(3, np.float32), np.ones(3, np.float32))
    with pytest.raises(UserError, match="reads audio from feature files"):
        export_model(None, None, MultimodalEncoder(None, {"audio": audio}), tmp_path)
    (tmp_path / "glove.txt").write_text("we 1 2\nwon 3 4\n")
    with pytest.raises(UserError, match="this run reads word vectors"):
        export_model(None, None, WordVectors.from_file(str(tmp_path / "glove.txt")), tmp_path)
    assert not (tmp_path / "labels.json").exists()


def test_a_run_that_replies_is_refused(place, tmp_path):
    from erc_jax.config import save_config

    save_config(tiny_config(place, system="response"), tmp_path)
    with pytest.raises(UserError, match="this run replies to utterances"):
        export_run(tmp_path, tmp_path / "exported")


# What the fresh environment runs: a conversation or several for each folder.
IN_FRESH_ENVIRONMENT = """
import importlib.util, json, sys
missing = ["erc_jax", "flax", "flatbuffers", "safetensors", "transformers"]
assert not any(importlib.util.find_spec(name) for name in missing)
asked = json.load(sys.stdin)
sys.path.insert(0, next(iter(asked)))
import predict
print(json.dumps({name: predict.load(name).predict(talk) for name, talk in asked.items()}))
"""


@pytest.mark.slow
def test_a_fresh_environment(folder, recognizer, tmp_path, fresh_python):
    in_context = recognizer_of(tmp_path, **SYSTEMS["in_context"])
    models = {
        str(folder): (recognizer, talk(10, 4, 7)),
        str(exported(in_context, tmp_path / "exported")): (in_context, TALK),
    }
    environment = {
        "PATH": os.environ["PATH"],
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    done = subprocess.run(
        [fresh_python, "-c", IN_FRESH_ENVIRONMENT],
        input=json.dumps({folder: talk for folder, (_, talk) in models.items()}),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    expected = {folder: model.predict(talk) for folder, (model, talk) in models.items()}
    assert_same(json.loads(done.stdout), json.loads(json.dumps(expected)))


@pytest.fixture(scope="module")
def fresh_python(tmp_path_factory):
    """Python of an environment that has jax, numpy and tokenizers, what they need, and no more."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for package in needed("jax", "numpy", "tokenizers"):
        for name in {file.parts[0] for file in package.files} - {"..", "__pycache__"}:
            (packages / name).symlink_to(package.locate_file(name))
    return folder / "bin" / "python"


def needed(*names):
    """The distributions of these names, and those that they require, each once."""
    found, left = {}, list(names)
    while left:
        package = distribution(left.pop())
        if package.name in found:
            continue
        found[package.name] = package
        requirements = map(Requirement, package.requires or ())
        left += [r.name for r in requirements if not r.marker or r.marker.evaluate({"extra": ""})]
    return found.values()
