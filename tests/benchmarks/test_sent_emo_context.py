import json

import jax
import numpy as np
import pytest
from jax.interpreters import partial_eval

from erc_jax.benchmarks.__main__ import main
from erc_jax.benchmarks.sent_emo_context import (
    batches,
    dialogue_lengths,
    flops,
    recipe,
    sample,
)
from erc_jax.data.anchors import AnchorExamples
from erc_jax.data.batching import make_examples
from erc_jax.data.dialogue import Dialogue, Utterance
from tests.benchmarks.test_encoder import products

WIDTH = 32


@pytest.fixture
def config():
    """The recipe without dropout, smaller, and with steps that can be seen."""
    config = recipe()
    config.model.dropout = 0.0
    config.sent_emo_context.ffn = 64
    config.train.learning_rate = 0.1
    config.sent_emo_context.triplet.learning_rate = 1e-3
    config.sent_emo_context.triplet.weight_decay = 10.0
    return config


def test_sample_has_the_lengths_and_emotions_of_dailydialog(config):
    examples = sample(config, 2)
    assert (examples.n_dialogues, examples.n_utterances) == (11118, 87170)
    lengths = np.diff(examples.examples.starts)
    assert (lengths.min(), lengths.max()) == (2, 35)
    counts = np.bincount(examples.labels["emotion"])
    assert counts.tolist() == [72143, 827, 303, 146, 11182, 969, 1600]
    drawn = batches(config, examples, 5)
    assert {len(items) for items in drawn} == {128}
    # In the corpus 1154, as its emotions cluster.
    utterances = [dialogue_lengths(examples, items).sum() for items in drawn]
    assert np.mean(utterances) == pytest.approx(1246, abs=20)


def test_flops_are_those_of_the_products(config):
    from erc_jax.benchmarks.sent_emo_context_jax import Training

    # Eight dialogues of eight utterances fill a batch without any padding.
    dialogues = [Dialogue(str(i), (Utterance("A", ""),) * 8) for i in range(8)]
    labels = (np.arange(64) % 7).astype(np.int32)
    features = np.random.default_rng(0).standard_normal((64, WIDTH), np.float32)
    examples = AnchorExamples(
        make_examples(dialogues, features, {"emotion": labels}), "emotion", 1.0
    )
    anchors = np.arange(0, 64, 4)
    batch = jax.device_put(examples.batch(anchors))
    training = Training(config, examples)

    def gradients(params):
        key = jax.random.key(0)
        return [
            jax.grad(loss, has_aux=True)(params, batch, key)[0]
            for loss in (training.system.loss, training.system.triplets)
        ]

    jaxpr = jax.make_jaxpr(gradients)(training.state.params).jaxpr
    # Compilers drop what nothing reads, the classifier's queries and keys.
    read, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    lengths = dialogue_lengths(examples, anchors)
    assert flops(config, WIDTH, lengths, len(anchors), len(anchors)) == products(read)


def copy_weights(torch, params, model):
    """Our parameters into the peer's model; every parameter of both is used once."""
    flat = {
        "/".join(key.key for key in path): torch.tensor(np.asarray(leaf).T)
        for path, leaf in jax.tree.leaves_with_path(params)
    }
    theirs = {
        "self_attn.out_proj": "output",
        "linear1": "ffn_in",
        "linear2": "ffn_out",
        "norm1": "norm_attention",
        "norm2": "norm_ffn",
    }
    state = {"head.weight": flat.pop("head_emotion/kernel")}
    state["head.bias"] = flat.pop("head_emotion/bias")
    for name, ours in (("context", "context/layer"), ("classifier", "classifier")):
        for part, of_ours in (("weight", "kernel"), ("bias", "bias")):
            state[f"{name}.self_attn.in_proj_{part}"] = torch.cat(
                [flat.pop(f"{ours}/{which}/{of_ours}") for which in ("query", "key", "value")]
            )
            for module, of_module in theirs.items():
                leaf = "scale" if "norm" in module and part == "weight" else of_ours
                state[f"{name}.{module}.{part}"] = flat.pop(f"{ours}/{of_module}/{leaf}")
    assert not flat, "parameters that the peer does not have"
    model.load_state_dict(state)


@pytest.mark.parity
@pytest.mark.slow
def test_both_sides_learn_the_same(config):
    torch = pytest.importorskip("torch")
    from erc_jax.benchmarks import sent_emo_context_jax, sent_emo_context_torch

    examples = sample(config, WIDTH)
    ours = sent_emo_context_jax.Training(config, examples)
    peer = sent_emo_context_torch.Training(config, sent_emo_context_torch.Model(config, WIDTH))
    copy_weights(torch, ours.state.params, peer.model)
    losses, expected = [], []
    for items in batches(config, examples, 3):
        of_ours = ours.step(examples.batch(items))
        of_peer = peer.step(sent_emo_context_torch.arrange(examples, items))
        losses.append([float(of_ours[f"loss_{name}"]) for name in of_peer])
        expected.append([float(loss) for loss in of_peer.values()])
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    np.testing.assert_allclose(
        ours.state.params["context"]["layer"]["ffn_in"]["kernel"].T,
        peer.model.context.linear1.weight.detach(),
        atol=1e-4,
    )


@pytest.mark.parity
def test_both_peers_are_the_same_model():
    torch = pytest.importorskip("torch")
    from erc_jax.benchmarks.sent_emo_context_torch import AnchorModel, Model, arrange

    config = recipe()
    examples = sample(config, WIDTH)
    batch = arrange(examples, batches(config, examples, 1)[0])
    assert batch.padding.any()
    torch.manual_seed(0)
    layer, anchors = Model(config, WIDTH).eval(), AnchorModel(config, WIDTH).eval()
    anchors.load_state_dict(layer.state_dict())
    for name in ("cross_entropy", "triplet_loss"):
        losses, gradients = [], []
        for model in (layer, anchors):
            model.zero_grad()
            loss = getattr(model, name)(batch)
            loss.backward()
            losses.append(loss.item())
            gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
        torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)
        assert gradients[0]["context.linear1.weight"].abs().max() > 1e-3


@pytest.mark.parity
@pytest.mark.slow
def test_the_benchmark_runs(tmp_path, capsys):
    pytest.importorskip("torch")
    path = tmp_path / "figures.json"
    arguments = f"--width {WIDTH} --pairs 2 --batches 2 --threads 1 --json {path}"
    main(["sent_emo_context", *arguments.split()])
    record = json.loads(path.read_text())
    cases = record["cases"]
    assert list(cases) == ["train", "train_anchors"]
    assert all(case["ratio"] > 0 for case in cases.values())
    assert record["torch_busy"] > cases["train"]["torch"]["of_peak"]
    assert record["epoch"]["steps"] == 682
    assert record["epoch"]["training_seconds"] > 0
    assert "An epoch of ours: 682 steps" in capsys.readouterr().out
