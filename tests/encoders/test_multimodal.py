"""What makes the modalities of utterances: a tiny text encoder, and tables of features."""

import dataclasses
import json

import chex
import numpy as np
import pytest

from erc_jax.data.dialogue import Dialogue, Utterance
from erc_jax.data.feature_files import FeatureTable
from erc_jax.encoders.multimodal import FileModality, MultimodalEncoder
from erc_jax.encoders.sentence import SentenceEncoder
from erc_jax.errors import UserError

DIALOGUES = [
    Dialogue("d1", tuple(Utterance("AB"[i % 2], "we won") for i in range(3))),
    Dialogue("d2", (Utterance("A", "oh my"), Utterance("B", "a b c"))),
]
PLACES = [("d1", 1), ("d1", 2), ("d1", 3), ("d2", 1), ("d2", 2)]


def table(places=PLACES, width=3, seed=0, extractor="a program", version="1"):
    rng = np.random.default_rng(seed)
    return FeatureTable(
        (5 + 2 * rng.normal(size=(len(places), width))).astype(np.float32),
        np.array([dialogue for dialogue, _ in places], str),
        np.array([position for _, position in places], np.int32),
        extractor,
        version,
    )


@pytest.fixture
def text(tiny_model):
    return SentenceEncoder.from_pretrained(str(tiny_model()))


@pytest.fixture
def said(monkeypatch):
    """What the encoder says."""
    found = []
    monkeypatch.setattr("erc_jax.encoders.multimodal.say", found.append)
    return found


def encoder_of(text=None, **tables):
    return MultimodalEncoder(text, {n: FileModality.of(t) for n, t in tables.items()}, tables)


def test_text_is_encoded_and_files_are_read(text, said):
    audio, visual = table(), table(width=2, seed=1)
    encoder = encoder_of(text, audio=audio, visual=visual)
    assert encoder.widths == {"text": text.width, "audio": 3, "visual": 2}
    assert encoder.width == text.width + 5
    found = encoder.encode(DIALOGUES, {"audio": audio, "visual": visual})
    assert set(found.features) == set(found.present) == {"text", "audio", "visual"}
    for name, width in encoder.widths.items():
        chex.assert_shape(found.features[name], (5, width))
        assert found.features[name].dtype == np.float32
        assert found.present[name].dtype == bool
        assert found.present[name].all()
    np.testing.assert_array_equal(found.features["text"], text.encode_dialogues(DIALOGUES))
    assert said == []
    chex.assert_trees_all_equal_shapes_and_dtypes(
        encoder.blank(), type(found)(*({n: x[:1] for n, x in d.items()} for d in (
            found.features, found.present
        )))
    )  # fmt: skip


@pytest.mark.parametrize("cached", [True, False])
def test_the_cache_changes_nothing(text, cached):
    found = encoder_of(text).encode(DIALOGUES, {}, cached=cached)
    np.testing.assert_array_equal(found.features["text"], text.encode_dialogues(DIALOGUES))


def test_channels_are_scaled_as_in_training():
    train, other = table(), table(seed=1)
    train.features[:, 2] = 7.0  # does not vary
    encoder = encoder_of(audio=train)
    scaled = encoder.encode(DIALOGUES, {"audio": train}).features["audio"]
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(scaled.std(axis=0), [1, 1, 0], atol=1e-6)
    # Another split's numbers are moved by the training split's.
    mean, deviation = train.features.mean(axis=0), train.features.std(axis=0)
    found = encoder.encode(DIALOGUES, {"audio": other}).features["audio"]
    np.testing.assert_allclose(
        found, (other.features - mean) / np.where(deviation > 0, deviation, 1), rtol=1e-4
    )


def test_features_are_brought_into_the_order_of_utterances():
    ordered = table()
    order = [3, 0, 4, 2, 1]
    mixed = dataclasses.replace(
        ordered,
        features=ordered.features[order],
        dialogues=ordered.dialogues[order],
        positions=ordered.positions[order],
    )
    encoder = encoder_of(audio=ordered)
    expected = encoder.encode(DIALOGUES, {"audio": ordered}).features["audio"]
    found = encoder.encode(DIALOGUES, {"audio": mixed}).features["audio"]
    np.testing.assert_array_equal(found, expected)


def test_what_is_missing_is_zero_and_counted(said):
    encoder = encoder_of(audio=table(), visual=table(width=2))
    found = encoder.encode(DIALOGUES, {"audio": table(PLACES[:1] + PLACES[3:])}, where="validation")
    assert found.present["audio"].tolist() == [True, False, False, True, True]
    assert not found.features["audio"][1:3].any()
    assert found.features["audio"][[0, 3, 4]].all()
    # Of a modality without a file all is missing.
    assert not found.present["visual"].any()
    chex.assert_trees_all_equal(found.features["visual"], np.zeros((5, 2), np.float32))
    assert said == [
        "Note: 2 of 5 validation utterances have no audio",
        "Note: 5 of 5 validation utterances have no visual",
    ]


def test_of_conversations_of_one_s_own(text, said):
    """What is missing is said of them, too; without anything to read there is no prediction."""
    encoder_of(text, audio=table()).encode(DIALOGUES, {})
    assert said == ["Note: 5 of 5 utterances have no audio"]
    with pytest.raises(UserError, match=r"none of the utterances has any .*; --features aud"):
        encoder_of(audio=table()).encode(DIALOGUES, {})
    with pytest.raises(UserError, match="none of the test utterances has any of the features"):
        encoder_of(audio=table()).encode(DIALOGUES, {"audio": table([])}, where="test")


def test_a_training_split_without_features():
    with pytest.raises(UserError, match="features of a program are of no utterance"):
        FileModality.of(table([]))


@pytest.mark.parametrize(
    "changes", [{"extractor": "another"}, {"version": "2"}, {"width": 4}], ids=lambda c: min(c)
)
def test_files_of_another_program_are_refused(changes):
    encoder = encoder_of(audio=table())
    width = changes.get("width", 3)
    made = f"{changes.get('extractor', 'a program')} {changes.get('version', '1')}"
    with pytest.raises(
        UserError,
        match=rf"^test audio features: the features are {made} of width {width}; the model was "
        "trained on a program 1 of width 3$",
    ):
        encoder.encode(DIALOGUES, {"audio": table(**changes)}, where="test")


def test_files_that_are_not_read_are_refused(text):
    for encoder, reads in ((encoder_of(text), "text alone"), (encoder_of(audio=table()), "audio")):
        with pytest.raises(UserError, match=f"features of visual are given, .* it reads {reads}$"):
            encoder.encode(DIALOGUES, {"visual": table()})


def test_files_of_other_dialogues_are_refused():
    other = table([*PLACES, ("d3", 1)])
    with pytest.raises(UserError, match="test audio features: features of dialogue d3"):
        encoder_of(audio=other).encode(DIALOGUES, {"audio": other}, where="test")


def test_a_checkpoint_keeps_how_files_are_scaled(text):
    audio = table()
    encoder = encoder_of(text, audio=audio)
    record = json.loads(json.dumps(encoder.to_json()))
    assert record["text"] == {"sha256": text.sha256}
    assert set(record["files"]) == {"audio"}
    again = MultimodalEncoder(
        text,
        {name: FileModality.from_json(of) for name, of in record["files"].items()},
        sha256=encoder.sha256,
    )
    assert (again.widths, again.width) == (encoder.widths, encoder.width)
    assert (again.sha256, again.name) == (encoder.sha256, encoder.name)
    chex.assert_trees_all_equal(
        again.encode(DIALOGUES, {"audio": audio}), encoder.encode(DIALOGUES, {"audio": audio})
    )


def test_the_checksum_is_of_all_that_decides(text):
    """Of text alone it is the text encoder's: nothing else decides."""
    assert encoder_of(text).sha256 == text.sha256
    audio = table()
    changed = dataclasses.replace(audio, features=audio.features + 1)
    sums = [
        encoder_of(text).sha256,
        encoder_of(text, audio=audio).sha256,
        encoder_of(text, audio=changed).sha256,
        encoder_of(text, visual=audio).sha256,
        encoder_of(audio=audio).sha256,
        encoder_of(audio=table(version="2")).sha256,
    ]
    assert len(set(sums)) == len(sums)
    assert encoder_of(text, audio=table()).sha256 == sums[1]


def test_leaps_are_clipped():
    """A channel that hardly varies in training may leap elsewhere."""
    train = table()
    encoder = encoder_of(audio=train)
    mean, deviation = train.features.mean(axis=0), train.features.std(axis=0)
    factors = np.array([-1e6, -9.9, 0, 9.9, 1e6], np.float32)
    other = dataclasses.replace(train, features=mean + factors[:, None] * deviation)
    found = encoder.encode(DIALOGUES, {"audio": other}).features["audio"]
    expected = np.broadcast_to(np.array([-10, -9.9, 0, 9.9, 10])[:, None], (5, 3))
    np.testing.assert_allclose(found, expected, atol=1e-3)
