from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import numpy as np
import pytest

from erc_jax import transfer
from erc_jax.config import base_config
from erc_jax.data.labels import LabelSpace
from erc_jax.errors import UserError
from erc_jax.experiment import blank_batch, load_encoder
from erc_jax.systems import HEAD, make_system
from erc_jax.workdir import Run
from tests.tiny import tiny_config

EMOTIONS = ("angry", "calm", "happy")
POLARITY = {"angry": "negative", "calm": "neutral", "happy": "positive"}
WIDTH = 16


def system_of(emotions=EMOTIONS, neutral=None, polarity=POLARITY):
    return make_system(base_config(), LabelSpace(emotions, neutral, polarity))


def filled(system, value):
    """Parameters of that system, all of one value; nothing is compiled for them."""
    shapes = jax.eval_shape(
        system.init, jax.random.key(0), blank_batch(system, SimpleNamespace(width=WIDTH))
    )
    return jax.tree.map(lambda leaf: np.full(leaf.shape, value, leaf.dtype), shapes)


@pytest.fixture
def take_over(monkeypatch):
    """Returns a function that gives, per module, where its parameters come from."""

    def run(new, other, width=WIDTH):
        record = {"name": "enc", "sha256": "aa", "width": WIDTH}
        encoder = SimpleNamespace(name="enc", sha256="aa", width=width)
        labels = LabelSpace(other.tasks[0].classes)
        trained = Run(other, filled(other, 1.0), encoder, labels, {})
        monkeypatch.setattr(transfer, "best_meta", lambda source: {"encoder": record})
        monkeypatch.setattr(transfer, "load_run", lambda source, encoder: trained)
        params = transfer.take_over(filled(new, 0.0), new, encoder, Path("runs/meld"))
        taken = {}
        for module, leaves in params.items():
            values = {float(leaf.ravel()[0]) for leaf in jax.tree.leaves(leaves)}
            taken[module] = values == {1.0}
            assert values <= {0.0, 1.0}
            assert len(values) == 1
        return taken

    return run


def test_the_same_labels_take_all(take_over, capsys):
    taken = take_over(system_of(), system_of())
    assert all(taken.values())
    assert capsys.readouterr().out == "Weights taken from runs/meld\n"


def test_the_neutral_label_is_of_the_metrics_alone(take_over):
    assert all(take_over(system_of(neutral="calm"), system_of()).values())


@pytest.mark.parametrize("emotions", [("angry", "calm", "glad"), ("angry", "calm", "happy", "sad")])
def test_heads_of_other_labels_start_fresh_and_this_is_said(take_over, capsys, emotions):
    polarity = dict.fromkeys(emotions, "neutral")
    taken = take_over(system_of(emotions, polarity=polarity), system_of())
    assert [module for module, is_taken in taken.items() if not is_taken] == [HEAD + "emotion"]
    assert "; these start fresh: head_emotion\n" in capsys.readouterr().out


def test_what_the_other_run_does_not_have_starts_fresh(take_over, capsys):
    taken = take_over(system_of(), system_of(polarity=None))
    assert taken[HEAD + "emotion"]
    assert taken["lstm_global_1"]
    assert not taken[HEAD + "sentiment"]
    assert not taken["shift_global_1"]
    assert "head_sentiment, head_shift_global" in capsys.readouterr().out


def test_what_the_new_run_does_not_need_is_left(take_over):
    taken = take_over(system_of(polarity=None), system_of())
    assert all(taken.values())
    assert "shift_global_1" not in taken


def test_another_encoder_is_refused(monkeypatch):
    system = system_of()
    record = {"name": "enc", "sha256": "aa", "width": WIDTH}
    monkeypatch.setattr(transfer, "best_meta", lambda source: {"encoder": record})
    encoder = SimpleNamespace(name="other", sha256="bb", width=WIDTH)
    with pytest.raises(
        UserError, match=r"features of enc, this run reads other.*config\.encoder=enc"
    ):
        transfer.take_over(filled(system, 0.0), system, encoder, Path("runs/meld"))


def test_an_encoders_layers_may_be_stacked_in_one_run_and_apart_in_the_other(tmp_path, monkeypatch):
    monkeypatch.setenv("ERC_JAX_CACHE", str(tmp_path / "cache"))
    labels = LabelSpace(("calm", "happy", "sad"))
    for old, new in ((False, True), (True, False)):
        systems = []
        for scan in (old, new):
            fields = {"system": "fine_tuning", "fine_tuning__scan_layers": scan}
            config = tiny_config(tmp_path, **fields)
            encoder = load_encoder(config)
            systems.append(make_system(config, labels, encoder))
        other, system = systems
        trained = jax.tree.map(lambda x: x + 1, other.init(jax.random.key(0), None))
        record = {"name": "enc", "sha256": encoder.sha256}
        monkeypatch.setattr(transfer, "best_meta", lambda source, r=record: {"encoder": r})
        run = Run(other, trained, encoder, labels, {})
        monkeypatch.setattr(transfer, "load_run", lambda source, encoder, run=run: run)
        fresh = system.init(jax.random.key(1), None)
        taken = transfer.take_over(fresh, system, encoder, Path("runs/meld"))
        chex.assert_trees_all_equal(system.to_published(taken), other.to_published(trained))
        chex.assert_trees_all_equal_shapes(taken, fresh)
