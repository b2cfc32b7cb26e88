import dataclasses
import hashlib
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from erc_jax.data.dialogue import Dialogue, Utterance
from erc_jax.data.feature_files import (
    FeatureTable,
    align,
    load_feature_file,
    load_split,
    save_feature_file,
)
from erc_jax.errors import UserError

FORMATS = (".npz", ".safetensors")
both_formats = pytest.mark.parametrize("suffix", FORMATS)


def make_table(dialogues=("b", "a", "b"), positions=(2, 1, 1), **fields):
    features = np.arange(len(dialogues) * 2, dtype=np.float32).reshape(-1, 2)
    table = FeatureTable(
        features, np.array(dialogues, str), np.array(positions, np.int32), "camera", "2.1"
    )
    return dataclasses.replace(table, **fields)


def dialogues(**lengths):
    return [
        Dialogue(name, tuple(Utterance("A", "Hi.") for _ in range(length)))
        for name, length in lengths.items()
    ]


def write_by_hand(path, *, manifest='{"extractor": "mine"}', dialogue_ids=("a", "b"), **arrays):
    """A file as a stranger writes it from the module's text; keywords change what it holds."""
    arrays = {
        "features": np.ones((3, 2), np.float32),
        "dialogue": ["a", "a", "b"] if path.suffix == ".npz" else np.array([0, 0, 1], np.int32),
        "utterance": np.array([1, 2, 1], np.int32),
        **arrays,
    }
    arrays = {name: array for name, array in arrays.items() if array is not None}
    if path.suffix == ".npz":
        np.savez(path, manifest=manifest, **arrays)
        return path
    if dialogue_ids is not None:
        manifest = json.dumps(json.loads(manifest) | {"dialogues": list(dialogue_ids)})
    save_file(arrays, path, {"manifest": manifest})
    return path


@both_formats
@pytest.mark.parametrize("ids", [("b", "a", "b"), ("Ünï 1", "", "Ünï 1"), ()])
def test_what_is_saved_is_loaded(tmp_path, suffix, ids):
    table = make_table(ids, (2, 1, 1)[: len(ids)])
    path = tmp_path / "audio" / f"train{suffix}"
    save_feature_file(path, table)
    loaded = load_feature_file(path)
    np.testing.assert_array_equal(loaded.features, table.features)
    assert loaded.features.dtype == np.float32
    assert loaded.dialogues.tolist() == list(ids)
    assert loaded.positions.tolist() == table.positions.tolist()
    assert (loaded.extractor, loaded.version, loaded.width) == ("camera", "2.1", 2)
    assert loaded.sha256 == table.sha256
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@both_formats
def test_a_file_written_by_hand_is_loaded(tmp_path, suffix):
    loaded = load_feature_file(write_by_hand(tmp_path / f"test{suffix}"))
    assert loaded.dialogues.tolist() == ["a", "a", "b"]
    assert loaded.positions.tolist() == [1, 2, 1]
    assert (loaded.extractor, loaded.version) == ("mine", "")


@both_formats
def test_the_checksum_is_the_documented_one(tmp_path, suffix):
    head = b'["mine", "3", 2, ["a", "a", "b"], [1, 2, 1]]\n'
    checksum = hashlib.sha256(head + np.ones((3, 2), "<f4").tobytes()).hexdigest()
    manifest = {"extractor": "mine", "version": "3", "sha256": checksum}
    path = write_by_hand(tmp_path / f"train{suffix}", manifest=json.dumps(manifest))
    assert load_feature_file(path).sha256 == checksum


def test_the_checksum_covers_everything():
    tables = [
        make_table(),
        make_table(("a", "b", "b")),
        make_table(positions=(2, 1, 3)),
        make_table(features=make_table().features + 1),
        make_table(extractor="microphone"),
        make_table(version="2.2"),
        make_table(features=make_table().features.reshape(-1)[:3].reshape(3, 1)),
    ]
    assert len({table.sha256 for table in tables}) == len(tables)


WRONG = {
    "float64": ({"features": np.ones((3, 2))}, "float32"),
    "float16": ({"features": np.ones((3, 2), np.float16)}, "float32"),
    "one vector": ({"features": np.ones(3, np.float32)}, r"expected float32 \[utterances, width"),
    "no width": ({"features": np.ones((3, 0), np.float32)}, r"expected float32 \[utterances, wid"),
    "few rows": ({"features": np.ones((2, 2), np.float32)}, "2 rows of features, 3 of dialogue"),
    "few places": ({"utterance": np.array([1, 2])}, "2 of utterance"),
    "places of reals": ({"utterance": np.array([1.0, 2, 1])}, "expected integers as utterance"),
    "square places": ({"utterance": np.ones((3, 1), int)}, r"expected one number for each"),
    "from 0": ({"utterance": np.array([0, 1, 0])}, "dialogue a, utterance 0: .* from 1"),
    "beyond": ({"utterance": np.array([1, 2, 2**40])}, "beyond 32 bits"),
    "twice": ({"utterance": np.array([2, 2, 1])}, "dialogue a, utterance 2 is there twice"),
    "NaN": (
        {"features": np.array([[0, 0], [0, np.nan], [0, 0]], np.float32)},
        r"dialogue a, utterance 2: NaN or infinity .*\(1 of 3",
    ),
    "infinity": (
        {"features": np.array([[0, 0], [0, 0], [-np.inf, np.inf]], np.float32)},
        "dialogue b, utterance 1: NaN or infinity",
    ),
    "no array": ({"utterance": None}, "utterance missing; found dialogue, features, manifest"),
    "no extractor": ({"manifest": '{"version": "1"}'}, '"extractor"'),
    "no text": ({"manifest": '{"extractor": "x", "version": 1}'}, 'text as "version"'),
    "width": ({"manifest": '{"extractor": "x", "width": 3}'}, "width is 3, the features have 2"),
    "checksum": ({"manifest": '{"extractor": "x", "sha256": "00"}'}, "checksum .* damaged or"),
}


@both_formats
@pytest.mark.parametrize(("arrays", "told"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_in_a_file_is_told(tmp_path, suffix, arrays, told):
    path = write_by_hand(tmp_path / f"train{suffix}", **arrays)
    with pytest.raises(UserError, match=told) as error:
        load_feature_file(path)
    assert str(error.value).startswith(f"{path}: ")


WRONG_NPZ = {
    "objects": ({"dialogue": np.array(["a", "a", None], object)}, "pickled Python objects"),
    "numbers": ({"dialogue": np.array([0, 0, 1])}, "expected one text for each utterance"),
    "bytes": ({"dialogue": np.array([b"a", b"a", b"b"])}, "expected one text for each utterance"),
    "texts": ({"manifest": ['{"extractor": "x"}']}, "expected one text as manifest"),
    "no JSON": ({"manifest": "extractor: x"}, "manifest: not a JSON object"),
    "no object": ({"manifest": '["x"]'}, "expected a JSON object"),
}


@pytest.mark.parametrize(("arrays", "told"), WRONG_NPZ.values(), ids=WRONG_NPZ)
def test_what_is_wrong_in_an_npz_is_told(tmp_path, arrays, told):
    path = write_by_hand(tmp_path / "train.npz", **arrays)
    with pytest.raises(UserError, match=told) as error:
        load_feature_file(path)
    assert str(error.value).startswith(f"{path}: ")


WRONG_SAFETENSORS = {
    "no ids": ({"dialogue_ids": None}, 'expected the list .* "dialogues"'),
    "ids": ({"dialogue_ids": (1, 2)}, 'expected the list .* "dialogues"'),
    "few ids": ({"dialogue_ids": ("a",)}, "dialogue goes from 0 to 1, .* names 1"),
    "negative": ({"dialogue": np.array([0, -1, 0], np.int32)}, "goes from -1 to 0"),
    "reals": ({"dialogue": np.zeros(3, np.float32)}, "expected integers as dialogue"),
}


@pytest.mark.parametrize(("arrays", "told"), WRONG_SAFETENSORS.values(), ids=WRONG_SAFETENSORS)
def test_what_is_wrong_in_a_safetensors_file_is_told(tmp_path, arrays, told):
    path = write_by_hand(tmp_path / "train.safetensors", **arrays)
    with pytest.raises(UserError, match=told) as error:
        load_feature_file(path)
    assert str(error.value).startswith(f"{path}: ")


def test_an_object_array_runs_nothing(tmp_path):
    class Malicious:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = write_by_hand(tmp_path / "a.npz", features=np.array([Malicious()], object))
    with pytest.raises(UserError, match="pickled Python objects"):
        load_feature_file(path)
    assert not (tmp_path / "ran").exists()


@both_formats
def test_a_damaged_file_is_told_wherever_it_is_damaged(tmp_path, suffix):
    whole = tmp_path / f"whole{suffix}"
    save_feature_file(whole, make_table())
    raw = whole.read_bytes()
    path = tmp_path / f"damaged{suffix}"
    for damaged in (b"", raw[:9], raw[: len(raw) // 2], raw[:-1], b"nothing of the kind"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged, cut off or not a"):
            load_feature_file(path)
    # A flipped bit is found, or does not matter (zip holds names and flags twice).
    table = load_feature_file(whole)
    told = 0
    for place in range(0, len(raw), 5):
        altered = bytearray(raw)
        altered[place] ^= 1 << place % 8
        path.write_bytes(altered)
        try:
            assert load_feature_file(path).sha256 == table.sha256
        except UserError:
            told += 1
    assert told > 20


@both_formats
def test_missing_files_and_other_names(tmp_path, suffix):
    with pytest.raises(UserError, match=r"nowhere.*: there is no such file"):
        load_feature_file(tmp_path / f"nowhere{suffix}")
    with pytest.raises(UserError, match=r"features\.pkl: expected a name .*convert_features"):
        load_feature_file(tmp_path / "features.pkl")
    with pytest.raises(UserError, match=r"features\.pkl: expected a name"):
        save_feature_file(tmp_path / "features.pkl", make_table())


@both_formats
def test_no_wrong_table_is_saved(tmp_path, suffix):
    path = tmp_path / f"train{suffix}"
    with pytest.raises(UserError, match="dialogue b, utterance 2: NaN"):
        save_feature_file(path, make_table(features=np.full((3, 2), np.nan, np.float32)))
    assert not path.exists()


def test_the_file_of_a_split(tmp_path):
    save_feature_file(tmp_path / "train.npz", make_table())
    save_feature_file(tmp_path / "test.safetensors", make_table(extractor="other"))
    assert load_split(tmp_path, "train").extractor == "camera"
    assert load_split(str(tmp_path), "test").extractor == "other"
    with pytest.raises(UserError, match=r"no features of validation; .*validation\.safetensors"):
        load_split(tmp_path, "validation")
    save_feature_file(tmp_path / "train.safetensors", make_table())
    with pytest.raises(UserError, match="which one is meant"):
        load_split(tmp_path, "train")


def test_alignment_follows_the_dialogues(tmp_path):
    features, there = align(make_table(), dialogues(a=2, c=1, b=2), "audio")
    np.testing.assert_array_equal(features, [[2, 3], [0, 0], [0, 0], [4, 5], [0, 1]])
    assert features.dtype == np.float32
    assert there.tolist() == [True, False, False, True, True]


def test_alignment_of_nothing():
    features, there = align(make_table((), ()), dialogues(a=2), "audio")
    assert (features.shape, there.tolist()) == ((2, 2), [False, False])


def test_features_of_other_dialogues_are_refused():
    with pytest.raises(UserError, match=r"^audio: .* dialogue b, utterance 2, .*has 1 utterances"):
        align(make_table(), dialogues(a=1, b=1), "audio")
    with pytest.raises(UserError, match=r"dialogue b, utterance 2, .*is not there \(2 of 3"):
        align(make_table(), dialogues(a=1), "audio")
    with pytest.raises(UserError, match="dialogue b, utterance 1 is there twice"):
        align(make_table(positions=(1, 1, 1)), dialogues(a=1, b=2), "audio")
    with pytest.raises(UserError, match="two dialogues of the split have the id a"):
        align(make_table(), [*dialogues(a=1, b=2), *dialogues(a=1)], "audio")
