"""Wav files written here; openSMILE itself where the package is installed."""

import functools
import json
import re
import wave

import numpy as np
import pytest

from erc_jax import audio
from erc_jax.audio import audio_features, check_wav, wav_paths
from erc_jax.data.dialogue import Dialogue, Utterance
from erc_jax.data.feature_files import load_feature_file
from erc_jax.errors import UserError

RATE = 16_000


def write_wav(path, seconds=0.5, hertz=220.0, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = 0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, 2, RATE, 0, "NONE", ""))
        file.writeframes(np.repeat((32767 * tone).astype("<i2"), channels).tobytes())
    return path


@pytest.fixture
def dialogues():
    return [
        Dialogue("d1", tuple(Utterance("A", f"{n}.", extra={"wav": f"x{n}.wav"}) for n in (1, 2))),
        Dialogue("d2", (Utterance("B", "3.", extra={"wav": "y.wav"}),)),
    ]


@pytest.fixture
def wavs(tmp_path):
    """The folder, in which d1's second utterance has no file."""
    write_wav(tmp_path / "wavs" / "d1_1.wav", hertz=220)
    write_wav(tmp_path / "wavs" / "d2_1.wav", hertz=440)
    return tmp_path / "wavs"


class Row:
    """As much of a data frame as is used."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return 1

    def to_numpy(self, dtype):
        return np.array([self.values], dtype)


@pytest.fixture
def fake_smile(monkeypatch):
    """In place of openSMILE: the number of samples, and how often the sound changes its sign."""

    class Smile:
        def process_file(self, path):
            with wave.open(path) as file:
                sound = np.frombuffer(file.readframes(file.getnframes()), "<i2")
            if len(sound) < 100:
                return Row([np.nan, np.nan])
            return Row([len(sound), (np.diff(np.signbit(sound)) != 0).sum()])

    loaded = (Smile(), "fake", "0")
    monkeypatch.setattr(audio, "_load_smile", lambda opensmile_config: loaded)


def test_files_are_found_by_their_pattern(tmp_path, dialogues):
    keys = [("d1", 1), ("d1", 2), ("d2", 1)]
    for pattern, names in {
        audio.PATTERN: ["d1_1.wav", "d1_2.wav", "d2_1.wav"],
        "{dialogue}/{utterance:03}.wav": ["d1/001.wav", "d1/002.wav", "d2/001.wav"],
        "{wav}": ["x1.wav", "x2.wav", "y.wav"],
    }.items():
        paths = wav_paths(dialogues, tmp_path, pattern)
        assert paths == {k: tmp_path / name for k, name in zip(keys, names, strict=True)}


@pytest.mark.parametrize(
    ("pattern", "told"),
    {
        "{dialog}.wav": r"KeyError 'dialog' for dialogue d1, utterance 1, which has the fields wav",
        "{dialogue.wav": "ValueError",
        "{}.wav": "IndexError",
        "{dialogue.x}.wav": "AttributeError",
        "{utterance:x.y}.wav": "ValueError",
        "{dialogue}.wav": r"d1\.wav would be the file of .*d1, utterance 1 and of .*utterance 2",
    }.items(),
)
def test_a_wrong_pattern_is_told(tmp_path, dialogues, pattern, told):
    with pytest.raises(UserError, match=f"^--pattern {re.escape(pattern)}: .*{told}"):
        wav_paths(dialogues, tmp_path, pattern)


def test_an_utterance_without_a_file_is_left_out_and_counted(dialogues, wavs, fake_smile, capsys):
    table = audio_features(dialogues, wavs)
    assert table.dialogues.tolist() == ["d1", "d2"]
    assert table.positions.tolist() == [1, 1]
    assert table.features.dtype == np.float32
    assert table.features[:, 0].tolist() == [8000, 8000]
    np.testing.assert_allclose(table.features[:, 1], [220, 440], atol=2)
    assert "2 of 3 utterances; 1 have no file" in capsys.readouterr().out


def test_no_file_at_all_is_an_error(dialogues, tmp_path):
    with pytest.raises(
        UserError, match=r"none of 3 utterances .* looked for d1_1\.wav .*--pattern"
    ):
        audio_features(dialogues, tmp_path)


SPOILT = {
    "empty": (lambda raw: b"", "the file is empty"),
    "text": (lambda raw: b"no sound at all", "not a wav file; convert it"),
    "half": (lambda raw: raw[: len(raw) // 2], "cut off: 16000 bytes of sound announced, 7978 th"),
    "last byte": (lambda raw: raw[:-1], "cut off: 16000 bytes of sound announced, 15999 there"),
    "header": (lambda raw: raw[:40], "holds no sound"),
    "half a header": (lambda raw: raw[:14], "holds no sound"),
    "no samples": (lambda raw: raw[:40] + b"\0\0\0\0", "holds no sound"),
    "pipe": (lambda raw: raw[:40] + b"\xff" * 4 + raw[44:], "cut off: .* into a pipe"),
}


@pytest.mark.parametrize(("spoil", "told"), SPOILT.values(), ids=SPOILT)
def test_a_file_that_is_no_whole_wav_is_told(dialogues, wavs, spoil, told):
    path = wavs / "d2_1.wav"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UserError, match=told) as error:
        audio_features(dialogues, wavs)
    assert str(error.value).startswith(f"{path}: ")


def test_other_chunks_may_stand_before_the_sound(tmp_path):
    path = write_wav(tmp_path / "a.wav")
    raw = path.read_bytes()
    path.write_bytes(raw[:36] + b"LIST\x03\0\0\0abc\0" + raw[36:])
    check_wav(path)
    with wave.open(str(path)) as file:  # it is one, to others too
        assert file.getnframes() == 8000


def test_files_that_are_too_short_are_told_together(dialogues, wavs, fake_smile):
    write_wav(wavs / "d1_2.wav", seconds=0.002)
    write_wav(wavs / "d2_1.wav", seconds=0.001)
    with pytest.raises(UserError, match=r"d1_2\.wav: too short .*2 such files: d1_2.wav, d2_1.wav"):
        audio_features(dialogues, wavs)


@pytest.fixture
def extract(command):
    return functools.partial(command, main=audio.main)


@pytest.fixture
def talk(tmp_path, dialogues):
    path = tmp_path / "talk.jsonl"
    path.write_text("".join(json.dumps(dialogue.to_json()) + "\n" for dialogue in dialogues))
    return path


def test_the_command(tmp_path, wavs, talk, extract, fake_smile, capsys):
    output = tmp_path / "audio" / "train.npz"
    assert extract("--input", talk, "--wavs", wavs, "--output", output) is None
    assert "2 vectors of width 2 in" in capsys.readouterr().out
    table = load_feature_file(output)
    assert (table.dialogues.tolist(), table.extractor) == (["d1", "d2"], "fake")
    assert "--wavs is missing" in extract("--input", talk, "--output", output)
    assert "unexpected arguments: x" in extract("x")
    told = extract("--input", talk, "--wavs", wavs, "--output", tmp_path / "train.csv")
    assert "ends in .safetensors or .npz" in told


def test_without_opensmile_it_is_said(dialogues, wavs, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "opensmile", None)
    with pytest.raises(UserError, match=r"pip install 'erc-jax\[audio\]'"):
        audio_features(dialogues, wavs)


# openSMILE itself.


@pytest.fixture
def opensmile():
    return pytest.importorskip("opensmile", reason="needs openSMILE: pip install '.[audio]'")


def test_egemaps_of_a_tone(dialogues, wavs, opensmile):
    write_wav(wavs / "d1_2.wav", hertz=220, channels=2)
    table = audio_features(dialogues, wavs)
    assert table.width == 88
    assert table.extractor == "opensmile eGeMAPSv02"
    assert table.version == opensmile.__version__
    # The first is the mean pitch, in semitones from 27.5 Hz: 36 are three octaves, 48 are four.
    np.testing.assert_allclose(table.features[:, 0], [36, 36, 48], atol=0.2)
    # Two channels of one sound are that sound.
    np.testing.assert_allclose(table.features[0], table.features[1], rtol=1e-3, atol=1e-3)


def test_other_configurations(dialogues, wavs, opensmile, tmp_path):
    table = audio_features(dialogues, wavs, opensmile_config="IS10")
    assert (table.width, table.extractor) == (1582, "opensmile IS10")
    smile = opensmile.Smile(opensmile.FeatureSet.emobase, opensmile.FeatureLevel.Functionals)
    table = audio_features(dialogues, wavs, opensmile_config=smile.config_path)
    assert (table.width, table.extractor) == (988, "opensmile emobase")
    assert ", configuration sha256 " in table.version
    with pytest.raises(UserError, match=r"nowhere\.conf: there is no such file.* IS10"):
        audio_features(dialogues, wavs, opensmile_config="nowhere.conf")
    wrong = tmp_path / "wrong.conf"
    wrong.write_text("nonsense\n")
    with pytest.raises(UserError, match=r"wrong\.conf: openSMILE cannot use it"):
        audio_features(dialogues, wavs, opensmile_config=str(wrong))


def test_what_opensmile_itself_refuses(dialogues, wavs, opensmile):
    path = wavs / "d2_1.wav"
    raw = path.read_bytes()
    path.write_bytes(raw[:20] + b"\x99\x99" + raw[22:])  # no known format of samples
    with pytest.raises(UserError, match=r"d2_1\.wav: cannot be read as a wav file"):
        audio_features(dialogues, wavs)
    write_wav(path, seconds=0.002)
    with pytest.raises(UserError, match=r"d2_1\.wav: too short for openSMILE"):
        audio_features(dialogues, wavs)
