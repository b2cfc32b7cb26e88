import json
import math
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from erc_jax.benchmarks.__main__ import main
from erc_jax.benchmarks.encoder import flops, train_batches
from erc_jax.benchmarks.meld_sentences import sentences
from erc_jax.encoders.sentence import SentenceEncoder
from erc_jax.errors import UserError
from tests.tiny import write_encoder


@pytest.fixture
def folder(tmp_path):
    """A tiny encoder that no sentence is too long for."""
    return write_encoder(
        tmp_path / "encoder",
        pooling="cls_token",  # which the benchmark does not use
        max_position_embeddings=128,
        limits={"max_seq_length": 128},
        num_hidden_layers=2,
    )


def test_sentences_are_as_long_as_those_of_meld():
    texts = sentences(2000)
    lengths = np.array([len(text.split()) for text in texts])
    assert len(texts) == 2000
    assert lengths.mean() == pytest.approx(11.84, abs=0.02)
    assert np.quantile(lengths, [0.5, 0.9, 0.99]).tolist() == [10, 24, 36]
    assert sum(map(len, texts)) / lengths.sum() == pytest.approx(3.42, abs=0.05)
    assert texts == sentences(2000)


def test_batches_are_of_different_sentences():
    assert [batch.tolist() for batch in train_batches(2, 3)] == [[0, 1], [2, 3], [4, 5]]


def products(jaxpr) -> float:
    """Floating-point operations of all matrix products of a computation."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            inner = math.prod(shape[axis] for axis in contracted)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * inner
        total += sum(products(inner) for inner in jax.extend.core.jaxprs_in_params(equation.params))
    return total


@pytest.mark.parametrize("training", [False, True])
def test_flops_are_those_of_the_products(folder, training):
    encoder = SentenceEncoder.from_pretrained(str(folder))

    def run(params, ids):
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        hidden: Any = encoder.module.apply({"params": params}, ids, jnp.ones_like(ids), positions)
        return hidden.sum()

    ids = jnp.ones((3, 7), int)
    function = jax.grad(run) if training else run
    jaxpr = jax.make_jaxpr(function)(encoder.params, ids).jaxpr
    assert flops(encoder.module.config, [7, 7, 7], training) == products(jaxpr)


def test_an_encoder_that_cuts_sentences_off_is_refused(tmp_path):
    from erc_jax.benchmarks.encoder_jax import encode_cases

    folder = write_encoder(tmp_path / "encoder", limits={"max_seq_length": 20})
    with pytest.raises(UserError, match="reads 20 tokens at most, too few"):
        encode_cases(str(folder), 100, "float32")


@pytest.mark.parity
def test_both_sides_compute_the_same_vectors(folder):
    pytest.importorskip("torch")
    from erc_jax.benchmarks import encoder_jax, encoder_torch

    texts = sentences(100)
    ours = encoder_jax.load(str(folder)).encode(texts)
    module = encoder_torch.MeanEncoder(str(folder)).eval()
    peer = encoder_torch.encode(module, encoder_torch.Tokenizer(str(folder)), texts)
    assert peer.shape == ours.shape
    assert np.abs(ours - peer).max() < 1e-5


@pytest.mark.parity
@pytest.mark.slow
def test_both_sides_learn_the_same(folder, monkeypatch):
    torch = pytest.importorskip("torch")
    from erc_jax.benchmarks import encoder, encoder_jax, encoder_torch
    from erc_jax.steps import first_state, make_optimizers, make_train_step

    for module in (encoder_jax, encoder_torch):
        monkeypatch.setattr(module, "LEARNING_RATE", 1e-3)
        monkeypatch.setattr(module, "WEIGHT_DECAY", 10.0)  # enough to be seen in three steps
    config, system, examples = encoder_jax.fine_tuning(
        encoder_jax.load(str(folder)), 24, 0.0, "float32"
    )
    batches = train_batches(8, 3)
    arrays: list[Any] = [examples.batch(batch) for batch in batches]
    optimizers = make_optimizers(config, system.objectives(), 3)
    params = system.init(jax.random.key(0), arrays[0])

    peer = encoder_torch.Classifier(str(folder), 0.0).train()
    head = jax.tree.map(np.asarray, params["head_emotion"])
    peer.head.weight.data = torch.tensor(head["kernel"].T)
    peer.head.bias.data = torch.tensor(head["bias"])
    peer_optimizer = encoder_torch.make_optimizer(peer)
    tokenizer = encoder_torch.Tokenizer(str(folder))

    texts, classes = sentences(24), torch.from_numpy(encoder.labels(24))
    state = first_state(params, optimizers)
    step = make_train_step(system.objectives(), optimizers)
    losses, expected = [], []
    for batch, array in zip(batches, arrays, strict=True):
        state, parts = step(state, array, np.uint32(0))
        losses.append(float(parts["loss"]))
        tokens = tokenizer([texts[i] for i in batch])
        expected.append(
            float(encoder_torch.train_step(peer, peer_optimizer, tokens, classes[batch]))
        )
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    np.testing.assert_allclose(
        state.params["head_emotion"]["kernel"].T, peer.head.weight.detach(), atol=1e-4
    )


def run(folder, tmp_path, arguments):
    path = tmp_path / "figures.json"
    fixed = f"--encoder {folder} --pairs 2 --batches 2 --threads 1 --json {path}"
    main(["encoder", *fixed.split(), *arguments.split()])
    return json.loads(path.read_text())


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "item"),
    [("--sentences 64", "sentences"), ("--task train --batch-size 4", "utterances")],
)
def test_the_benchmark_runs(folder, tmp_path, capsys, arguments, item):
    pytest.importorskip("torch")
    record = run(folder, tmp_path, arguments)
    (case,) = record["cases"].values()
    assert case["ratio"] > 0
    assert case["torch"][f"{item}_per_second"] > 0
    assert record["torch_busy"] >= case["torch"]["of_peak"]
    assert 1 <= record["compiles"] <= 2
    assert f"{item}/s" in capsys.readouterr().out


@pytest.mark.slow
def test_ours_alone_in_bfloat16(folder, tmp_path):
    record = run(folder, tmp_path, "--task train --batch-size 4 --dtype bfloat16 --dropout 0.1")
    assert record["dtype"] == "bfloat16"
    assert list(record["cases"]["train"]) == ["ratio", "gflop_per_step", "ours"]


def test_an_unknown_encoder_is_met_at_once(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        main(["encoder", "--encoder", str(tmp_path / "nowhere")])
