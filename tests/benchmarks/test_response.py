import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from erc_jax.benchmarks import response
from erc_jax.benchmarks.__main__ import main
from erc_jax.benchmarks.response import batches, bytes_of_search, flops, write_model
from erc_jax.encoders.bart import Bart
from erc_jax.encoders.bart_config import BartConfig
from erc_jax.encoders.seq2seq import Seq2Seq
from erc_jax.errors import UserError
from tests.benchmarks.test_encoder import products
from tests.tiny import drawn_parameters

TINY = {"vocabulary": 300, "width": 24, "layers": 1, "heads": 4, "ffn": 40, "max_tokens": 70}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model, whose weights are so large that each source gets another reply."""
    new, moved = (tmp_path_factory.mktemp(name) for name in ("new", "moved"))
    write_model(new, **TINY)
    model = Seq2Seq.from_pretrained(str(new))
    params = drawn_parameters(model.module.fresh_params)
    model.save_pretrained(moved, jax.tree.map(lambda x: np.float32(2 * x), params))
    return moved


@pytest.fixture(scope="module")
def model(folder):
    return Seq2Seq.from_pretrained(str(folder))


def test_the_model_written_has_the_sizes_asked_for(model):
    config = model.module.config
    assert (config.vocab_size, config.d_model, config.encoder_layers) == (300, 24, 1)
    assert (config.decoder_attention_heads, config.decoder_ffn_dim) == (4, 40)
    assert [model.tokenize([text], 9)[0].tolist() for text in ("7", "no")] == [
        [0, 12, 2],
        [0, 3, 2],
    ]


def test_pairs_fill_their_places_and_differ(model):
    first, second = batches(model.module.config, 2)
    assert first.source.shape == first.target.shape == (1, 8, 64)
    assert first.source_mask.all()
    assert first.target_mask.all()
    for texts in (first.source, first.target, second.source, second.target):
        assert (texts[..., 0] == 0).all()
        assert (texts[..., -1] == 2).all()
        assert texts[..., 1:-1].min() >= 4
    assert (first.source != second.source).any()
    assert (first.source != first.target).any()
    np.testing.assert_array_equal(first.target, batches(model.module.config, 2)[0].target)


# What there is to compute and to read.


@pytest.fixture(scope="module")
def uneven():
    """A module in which no two sizes are the same, its parameters' shapes, source and mask."""
    config = BartConfig(
        **{"vocab_size": 50, "d_model": 24, "max_position_embeddings": 70},
        **{"encoder_layers": 3, "encoder_attention_heads": 4, "encoder_ffn_dim": 40},
        **{"decoder_layers": 2, "decoder_attention_heads": 6, "decoder_ffn_dim": 36},
        **{"activation_function": "gelu", "scale_embedding": False},
        **{"decoder_start_token_id": 2, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1},
    )
    module = Bart(config)
    return module, {"params": module.shapes()}


def products_of(module, variables, method, *arguments):
    def run(variables, *arguments):
        return module.apply(variables, *arguments, method=method)

    return products(jax.make_jaxpr(run)(variables, *arguments).jaxpr)


def shaped(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def test_flops_of_training_are_those_of_the_products(uneven):
    module, variables = uneven
    rows, length = 3, 7
    texts, seen = shaped(rows, length, dtype=jnp.int32), shaped(rows, length, dtype=bool)

    def loss(variables, *texts):
        states = module.apply(variables, *texts)
        return module.apply(variables, states, method="logits").sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss))(variables, texts, seen, texts, seen).jaxpr
    assert flops(module.config, "train", rows, length) == products(jaxpr)


def test_flops_of_the_search_are_those_of_the_products(uneven):
    module, variables = uneven
    rows, length, beams = 3, 5, 4
    seen, encoded = shaped(rows, length, dtype=bool), shaped(rows, length, 24)
    expected = products_of(
        module, variables, "encode", shaped(rows, length, dtype=jnp.int32), seen
    ) + products_of(module, variables, "cross", encoded)
    cross = jax.eval_shape(lambda v, x: module.apply(v, x, method="cross"), variables, encoded)
    words, position = shaped(rows, 1, dtype=jnp.int32), shaped(dtype=jnp.int32)
    for words_so_far in range(1, length + 1):
        # Of one hypothesis: with several, masked words of the others are multiplied too.
        caches = jax.eval_shape(lambda n=words_so_far: module.blank_caches(rows, 1, n))
        sees = shaped(rows, 1, words_so_far, dtype=bool)
        arguments = (words, position, caches, cross, seen, sees)
        expected += beams * products_of(module, variables, "step", *arguments)
        expected += beams * products_of(module, variables, "logits", shaped(rows, 1, 24))
    assert flops(module.config, "generate", rows, length, beams) == expected


def test_bytes_of_the_search_are_those_of_weights_and_caches(uneven):
    module, variables = uneven
    weights = variables["params"]["shared"]["embedding"].size
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        name = ".".join(key.key for key in path)
        of_source = "encoder_attn.k_proj" in name or "encoder_attn.v_proj" in name
        if name.startswith("decoder") and name.endswith("kernel") and not of_source:
            weights += leaf.size
    encoded = shaped(8, 64, 24)
    cross = jax.eval_shape(lambda v, x: module.apply(v, x, method="cross"), variables, encoded)
    numbers = 64 * (weights + sum(x.size for x in jax.tree.leaves(cross)))
    for words in range(1, 65):
        caches = jax.eval_shape(lambda n=words: module.blank_caches(8, 5, n))
        numbers += sum(x.size for x in jax.tree.leaves(caches))
    assert bytes_of_search(module.config) == 4 * numbers


# Both sides do the same.


@pytest.mark.parity
@pytest.mark.slow
def test_both_sides_learn_the_same(folder, model, monkeypatch):
    pytest.importorskip("torch")
    from erc_jax.benchmarks import response_jax, response_torch
    from erc_jax.steps import first_state, make_optimizers, make_train_step

    for module in (response_jax, response_torch):
        monkeypatch.setattr(module, "LEARNING_RATE", 1e-3)
        monkeypatch.setattr(module, "WEIGHT_DECAY", 10.0)  # enough to be seen in three steps
    config, system = response_jax.make_system(model)
    pairs = batches(model.module.config, 3)
    optimizers = make_optimizers(config, system.objectives(), len(pairs))
    params = system.init(jax.random.key(0), None)
    state = first_state(params, optimizers)
    step = make_train_step(system.objectives(), optimizers)
    peer = response_torch.load(str(folder)).train()
    peer_optimizer = response_torch.make_optimizer(peer)
    losses, expected = [], []
    for batch in pairs:
        state, parts = step(state, batch, np.uint32(0))
        losses.append(float(parts["loss"]))
        texts = response_torch.texts(batch)
        expected.append(float(response_torch.train_step(peer, peer_optimizer, *texts)))
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    table = np.asarray(state.params["model"]["shared"]["embedding"])
    np.testing.assert_allclose(table, peer.get_input_embeddings().weight.detach(), atol=1e-4)
    assert np.abs(table - model.params["shared"]["embedding"]).max() > 1e-3


@pytest.mark.parity
@pytest.mark.slow
def test_both_sides_write_the_same_replies(folder, model):
    pytest.importorskip("torch")
    from erc_jax.benchmarks import response_jax, response_torch

    _, system = response_jax.make_system(model)
    (batch,) = batches(model.module.config, 1)
    replies = np.asarray(system.reply({"model": model.params}, batch)["tokens"])
    peer = response_torch.load(str(folder)).eval()
    expected = response_torch.generate(peer, response_torch.texts(batch)[0]).numpy()[:, 1:]
    assert expected.shape == (8, 64)
    np.testing.assert_array_equal(replies.reshape(8, 5, 64)[:, 0], expected)
    assert (expected[:, 1:-1] != 2).all()
    assert len(np.unique(expected, axis=0)) == 8


def run(tmp_path, arguments):
    path = tmp_path / "figures.json"
    fixed = f"--pairs 2 --batches 2 --threads 1 --json {path}"
    main(["response", *fixed.split(), *arguments.split()])
    return json.loads(path.read_text())


@pytest.mark.parity
@pytest.mark.slow
def test_the_benchmark_runs(folder, tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    monkeypatch.setattr(response, "BASE", TINY)
    both = run(tmp_path, "--dropout 0.1")
    assert list(both) == ["train", "generate"]
    assert both["train"]["cases"]["train"]["ratio"] > 0
    written = run(tmp_path, f"--task generate --encoder {folder}")["generate"]["cases"]["generate"]
    assert written["ratio"] > 0
    for side in ("ours", "torch"):
        assert f"{side}_gigabytes_per_second" in written
        assert written[side]["tokens_per_second"] > 0
    assert "tokens/s" in capsys.readouterr().out


def test_an_unknown_model_is_met_at_once(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        main(["response", "--encoder", str(tmp_path / "nowhere")])
