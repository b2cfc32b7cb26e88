import json

import jax
import numpy as np
import pytest

from erc_jax.benchmarks.__main__ import main
from erc_jax.benchmarks.fmerl import DESCRIBED, LENGTHS, WIDTHS, batches, flops, sample
from tests.benchmarks.test_encoder import products

WIDTH = 16


def test_sample_has_the_padding_that_is_told():
    assert (sum(LENGTHS), len(LENGTHS) * max(LENGTHS)) == (703, 1136)
    examples = sample(2)
    assert np.diff(examples.starts).tolist() == list(LENGTHS) * 2
    assert {name: f.shape for name, f in examples.features.features.items()} == {
        name: (2 * 703, width) for name, width in WIDTHS.items()
    }
    assert [b.tolist() for b in batches(2)] == [list(range(16)), list(range(16, 32))]


def test_flops_of_the_papers_size():
    # 85.94 million parameters meet each utterance, those of the last gate three times; the inputs
    # in all but the last of three passes. Biases and norms are no products.
    inputs = sum(WIDTHS.values()) * 1024
    expected = 2 * (3 * (85.94e6 + 2 * 1024**2) - inputs) * 1000
    assert flops(list(WIDTHS.values()), 1024, 1024, [], 1000) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("width", [WIDTH, DESCRIBED])
def test_flops_are_those_of_the_products(width, monkeypatch):
    from erc_jax.benchmarks import fmerl
    from erc_jax.benchmarks.fmerl_jax import make_system

    # Eight dialogues of eight utterances fill a batch without any padding.
    monkeypatch.setattr(fmerl, "LENGTHS", (8,) * 8)
    batch = sample(1).batch(np.arange(8))
    system = make_system(width)
    key = jax.random.key(0)
    params = jax.eval_shape(system.init, key, batch)
    gradient = jax.grad(system.loss, has_aux=True)
    jaxpr = jax.make_jaxpr(gradient)(params, batch, key).jaxpr
    expected = flops(list(WIDTHS.values()), width, DESCRIBED, [8] * 8, 64)
    assert products(jaxpr) == expected


@pytest.mark.parity
@pytest.mark.parametrize(("hidden_layers", "millions"), [(2, 85.94), (1, 82.79)])
def test_the_peer_has_the_papers_parameters(hidden_layers, millions):
    torch = pytest.importorskip("torch")
    from erc_jax.benchmarks.fmerl_torch import Fusion, Model

    with torch.device("meta"):
        fusion = Fusion(WIDTHS, 1024, heads=8, ffn=1024, speakers=0, dropout=0.0)
        model = Model(fusion, torch.zeros(6, 1024), hidden_layers)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == pytest.approx(millions * 1e6, rel=1e-3)


@pytest.mark.parity
def test_the_packed_peer_is_the_same_model():
    torch = pytest.importorskip("torch")
    from erc_jax.benchmarks.fmerl_torch import (
        Fusion,
        PackedFusion,
        arrange,
        losses,
        make_model,
        total,
    )

    torch.manual_seed(0)
    models = [make_model(fusion, WIDTH).eval() for fusion in (Fusion, PackedFusion)]
    models[1].load_state_dict(models[0].state_dict())
    examples = sample(1)
    outputs, gradients, found = [], [], []
    for model, packed in zip(models, (False, True), strict=True):
        batch = arrange(examples, batches(1)[0], packed)
        ratings, similarities = model(batch)
        loss = total(losses(ratings, similarities, batch))
        loss.backward()
        seen = ... if packed else batch.seen
        outputs.append([ratings[seen], similarities[seen]])
        found.append(loss)
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)
    largest = [float(gradient.abs().max()) for gradient in gradients[0].values()]  # type: ignore
    assert max(largest) > 1e-2


@pytest.mark.parity
def test_padding_is_invisible_to_the_peer():
    torch = pytest.importorskip("torch")
    from erc_jax.benchmarks.fmerl_torch import Fusion, arrange, make_model

    torch.manual_seed(0)
    model = make_model(Fusion, WIDTH).eval()
    examples = sample(1)
    together = arrange(examples, np.array([0, 1]), packed=False)
    alone = arrange(examples, np.array([0]), packed=False)
    length = LENGTHS[0]
    assert length < LENGTHS[1]
    for one, both in zip(model(alone), model(together), strict=True):
        torch.testing.assert_close(one[0], both[0, :length], rtol=0, atol=1e-5)


@pytest.mark.parity
def test_losses_of_the_peer_by_hand():
    torch = pytest.importorskip("torch")
    import dataclasses

    from erc_jax.benchmarks.fmerl_torch import arrange, losses, total

    batch = arrange(sample(1), np.array([10]), packed=False)
    unlabelled = torch.full_like(batch.emotions, -1)
    unlabelled[0, :3] = torch.tensor([0, 2, 2])  # class 1 is not in the batch
    vad = torch.full_like(batch.vad, -1.0)
    vad[0, 5:7] = torch.tensor([[0.5, 0.5, 0.5], [0.0, 0.5, 1.0]])
    batch = dataclasses.replace(batch, emotions=unlabelled, vad=vad)
    ratings = torch.full_like(vad, 0.5)
    similarities = torch.zeros(*unlabelled.shape, 3)
    similarities[0, :3] = torch.tensor([[0.5, 9.0, 0.1], [0.2, 9.0, 0.3], [-0.4, 9.0, 0.6]])
    parts = losses(ratings, similarities, batch)
    margins = np.array([0.5 - 0.1, 0.3 - 0.2, 0.6 + 0.4])
    contrast = np.log1p(np.exp(-margins)).mean()
    assert parts["mse"].item() == pytest.approx(2 * 0.25 / 2)
    assert parts["contrast"].item() == pytest.approx(contrast, rel=1e-6)
    assert parts["negatives"].item() == pytest.approx((1.1 + 1.2 + 0.6) / 3)
    assert total(parts).item() == pytest.approx(0.25 + contrast + 0.5 * 2.9 / 3, rel=1e-6)


@pytest.mark.parity
@pytest.mark.slow
def test_the_benchmark_runs(tmp_path, capsys):
    pytest.importorskip("torch")
    path = tmp_path / "figures.json"
    arguments = f"--width {WIDTH} --pairs 2 --batches 2 --threads 1 --json {path}"
    main(["fmerl", *arguments.split()])
    record = json.loads(path.read_text())
    assert list(record["cases"]) == ["train", "train_packed"]
    assert all(case["ratio"] > 0 for case in record["cases"].values())
    assert record["torch_busy"] > record["cases"]["train"]["torch"]["of_peak"]
    assert "utterances/s" in capsys.readouterr().out
