from types import SimpleNamespace

import jax
import numpy as np
import pytest

from erc_jax.config import check_values
from erc_jax.cross_fitting import out_of_fold_features
from erc_jax.data.features import save_features, utterance_features
from erc_jax.encoders.hub import ENCODER
from erc_jax.encoders.sentence import SentenceEncoder
from erc_jax.errors import UserError
from erc_jax.experiment import prepare
from erc_jax.workdir import save_encoder
from tests.tiny import tiny_config


@pytest.fixture
def experiment(place, tmp_path, monkeypatch):
    monkeypatch.setenv("ERC_JAX_CACHE", str(tmp_path / "cache"))
    return prepare(tiny_config(place, system="fine_tuning"), ["train"])


def test_a_dialogue_is_encoded_by_an_encoder_that_was_not_trained_on_it(experiment, tmp_path):
    seen, encoders = [], []

    def make_trainer(part):
        """Its "training" scales all parameters, by another factor for each fold."""

        def fit(seed, folder):
            assert folder == tmp_path / "folds" / f"{len(seen)}_of_3"
            (folder / "checkpoints").mkdir(parents=True)
            seen.append(part.examples["train"].n_utterances)
            params = part.system.init(jax.random.key(seed), None)
            params = jax.tree.map(lambda x: x * (1 + 0.1 * len(seen)), params)
            encoders.append(experiment.encoder.adapted(params=params["encoder"]))
            return params, None

        return SimpleNamespace(fit=fit)

    features = out_of_fold_features(experiment, make_trainer, 3, 0, tmp_path)
    dialogues = experiment.corpus.splits["train"]
    by_each = [encoder.encode_dialogues(dialogues) for encoder in encoders]
    of_dialogue = np.repeat(np.arange(8), 4)
    encoded_by = []
    for number in range(8):
        rows = of_dialogue == number
        near = [np.abs(features[rows] - vectors[rows]).max() < 1e-5 for vectors in by_each]
        assert sum(near) == 1
        encoded_by.append(near.index(True))
    # Three folds of eight dialogues of four utterances; each encoder saw all but its own fold.
    held_out = np.bincount(encoded_by, minlength=3)
    assert sorted(held_out) == [2, 3, 3]
    assert seen == (32 - 4 * held_out).tolist()

    # What is done is kept, without the checkpoints, and not done again.
    assert not list(tmp_path.rglob("checkpoints"))
    again = out_of_fold_features(experiment, None, 3, 0, tmp_path)
    np.testing.assert_array_equal(again, features)
    with pytest.raises(UserError, match="folds is 9, for 8 training dialogues"):
        out_of_fold_features(experiment, make_trainer, 9, 0, tmp_path)


def test_they_stand_for_those_dialogues_only_and_change_the_fingerprint(experiment, tmp_path):
    dialogues = experiment.corpus.splits["train"]
    params = experiment.system.init(jax.random.key(0), None)
    save_encoder(experiment, params, tmp_path / "plain", None)
    plain = SentenceEncoder.from_pretrained(str(tmp_path / "plain"))
    mine = np.arange(32.0 * 16, dtype=np.float32).reshape(32, 16)
    save_encoder(experiment, params, tmp_path / "run", mine)
    tuned = SentenceEncoder.from_pretrained(str(tmp_path / "run"))
    assert tuned.sha256 == plain.sha256
    assert tuned.fingerprint != plain.fingerprint
    np.testing.assert_array_equal(utterance_features(dialogues, tuned), mine)
    np.testing.assert_allclose(
        utterance_features(dialogues[1:], tuned), plain.encode_dialogues(dialogues[1:]), atol=1e-6
    )


def test_a_damaged_file_of_them_is_told(experiment, tmp_path):
    dialogues = experiment.corpus.splits["train"]
    params = experiment.system.init(jax.random.key(0), None)
    save_encoder(experiment, params, tmp_path, np.ones((32, 16), np.float32))
    file = tmp_path / ENCODER / "train_features.safetensors"
    tuned = SentenceEncoder.from_pretrained(str(tmp_path))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"\x01")
    with pytest.raises(UserError, match=r"train_features\.safetensors: damaged"):
        utterance_features(dialogues, tuned)
    file.write_bytes(whole[:40])
    with pytest.raises(UserError, match=r"train_features\.safetensors: damaged"):
        utterance_features(dialogues, tuned)
    save_features(file, np.ones((32, 16), np.float32), dialogues)
    assert utterance_features(dialogues, tuned).shape == (32, 16)


def test_one_fold_or_another_system_is_refused(place):
    with pytest.raises(UserError, match=r"fine_tuning\.folds is 1; expected 0 .* or at least 2"):
        check_values(tiny_config(place, fine_tuning__folds=1))
    with pytest.raises(UserError, match=r"folds is for runs of fine_tuning"):
        prepare(tiny_config(place, fine_tuning__folds=2))
    with pytest.raises(UserError, match=r"pooling is for runs of fine_tuning"):
        prepare(tiny_config(place, fine_tuning__pooling="cls"))
    fields = {"system": "fine_tuning", "fine_tuning__folds": 2, "init_from": "runs/x"}
    with pytest.raises(UserError, match=r"folds with init_from: the other run may have seen"):
        prepare(tiny_config(place, **fields))


def test_other_training_dialogues_are_told(experiment, place, tmp_path, capsys):
    params = experiment.system.init(jax.random.key(0), None)
    save_encoder(experiment, params, tmp_path, np.ones((32, 16), np.float32))
    prepare(tiny_config(place, encoder=str(tmp_path)), ["train"])
    assert "keeps cross-fitted features, but" not in capsys.readouterr().out
    save_features(tmp_path / ENCODER / "train_features.safetensors", np.ones((4, 16)), [])
    prepare(tiny_config(place, encoder=str(tmp_path)), ["train"])
    assert "keeps cross-fitted features, but of other training dial" in capsys.readouterr().out
