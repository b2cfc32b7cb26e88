"""BART computes what PyTorch's does, whichever way it is asked, and reads the files there are."""

import dataclasses
import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from erc_jax.encoders.bart import Bart, shift_right
from erc_jax.encoders.bart_config import BartConfig
from erc_jax.encoders.bart_layers import DropoutRates
from erc_jax.encoders.weights import load_params, read_json, save_params, weights_files
from erc_jax.errors import UserError

SIZES = {
    "vocab_size": 50,
    "d_model": 24,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 40,
    "activation_function": "gelu",
    "max_position_embeddings": 70,
    "scale_embedding": False,
    "decoder_start_token_id": 2,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
BASE = {
    **{"vocab_size": 50265, "d_model": 768, "max_position_embeddings": 1024},
    **{"encoder_layers": 6, "encoder_attention_heads": 12, "encoder_ffn_dim": 3072},
    **{"decoder_layers": 6, "decoder_attention_heads": 12, "decoder_ffn_dim": 3072},
}
LARGE = {
    **{"d_model": 1024},
    **{"encoder_layers": 12, "encoder_attention_heads": 16, "encoder_ffn_dim": 4096},
    **{"decoder_layers": 12, "decoder_attention_heads": 16, "decoder_ffn_dim": 4096},
}
MORE_DECODER = {
    **{"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 17},
    **{"decoder_layers": 3, "decoder_attention_heads": 3, "decoder_ffn_dim": 33},
}
MORE_ENCODER = {
    **{"encoder_layers": 3, "encoder_attention_heads": 3, "activation_function": "relu"},
    **{"decoder_layers": 1, "decoder_attention_heads": 1, "scale_embedding": True},
}


def tiny(sizes=SIZES, **options):
    """A module, and parameters that are far from their initial 0 and 1."""
    module = Bart(BartConfig(**sizes), **options)
    leaves, tree = jax.tree.flatten(module.shapes())
    random = np.random.default_rng(0)
    leaves = [jnp.asarray(random.normal(0, 0.3, x.shape), x.dtype) for x in leaves]
    return module, {"params": jax.tree.unflatten(tree, leaves)}


def batch(lengths=((5, 7), (9, 3)), width=(9, 7), left=0, seed=0):
    """Source, its mask, target, its mask: random words, padded; of each row the lengths of both."""
    random = np.random.default_rng(seed)
    arrays = []
    for of_side, places in zip(np.array(lengths).T, width, strict=True):
        place = np.arange(places)
        mask = (place >= left) & (place < left + of_side[:, None])
        arrays += [np.where(mask, random.integers(3, 50, mask.shape), 1), mask]
    return arrays


def apply(module, variables, *arguments, method="__call__", **keywords):
    return _applied(module)(variables, *arguments, method=method, **keywords)


@functools.cache
def _applied(module):
    return jax.jit(module.apply, static_argnames=("method", "rates"))


# What PyTorch computes.


def published(folder, kind="BartForConditionalGeneration", **changes):
    """A random model of transformers, saved by it; biases and norms are far from 0 and 1."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BartConfig(**{**SIZES, **changes})
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        if kind == "BartForConditionalGeneration":
            model.final_logits_bias += torch.randn_like(model.final_logits_bias)
    model.save_pretrained(folder)
    return model


def load(folder, dtype=np.float32, **options):
    file = folder / "config.json"
    module = Bart(BartConfig.from_json(read_json(file), str(file)), **options)
    return module, {"params": load_params(weights_files(folder), module, dtype)}


@pytest.mark.parity
@pytest.mark.parametrize(
    ("changes", "lengths", "left"),
    [
        ({}, ((7, 5), (11, 1), (1, 9)), 0),
        ({"scale_embedding": True}, ((7, 5), (11, 1), (1, 9)), 2),
        (MORE_DECODER, ((3, 13), (8, 6)), 1),
        (MORE_ENCODER, ((64, 60), (31, 66)), 3),
        ({"activation_function": "gelu_new", "max_position_embeddings": 19}, ((19, 19),), 0),
    ],
)
def test_states_and_logits_are_pytorchs(tmp_path, changes, lengths, left):
    torch = pytest.importorskip("torch")
    theirs = published(tmp_path, **changes)
    module, variables = load(tmp_path)
    width = np.max(lengths, axis=0) + left + (1 if left else 0)
    source, source_mask, target, target_mask = batch(lengths, width, left)
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(source),
            attention_mask=torch.tensor(source_mask.astype(int)),
            decoder_input_ids=torch.tensor(target),
            decoder_attention_mask=torch.tensor(target_mask.astype(int)),
            output_hidden_states=True,
        )
    encoded = apply(module, variables, source, source_mask, method="encode")
    states = apply(module, variables, source, source_mask, target, target_mask)
    logits = apply(module, variables, states, method="logits")
    chex.assert_type([encoded, states, logits], jnp.float32)
    for ours, other, mask in (
        (encoded, expected.encoder_last_hidden_state, source_mask),
        (states, expected.decoder_hidden_states[-1], target_mask),
        (logits, expected.logits, target_mask),
    ):
        assert np.abs(other.numpy()[mask]).max() > 0.5
        assert np.abs(np.asarray(ours)[mask] - other.numpy()[mask]).max() < 1e-5


@pytest.mark.parity
@pytest.mark.parametrize("changes", [{}, {"scale_embedding": True, "num_labels": 6}])
def test_class_logits_are_pytorchs(tmp_path, changes):
    torch = pytest.importorskip("torch")
    theirs = published(tmp_path, "BartForSequenceClassification", **changes)
    module, variables = load(tmp_path)
    head = load_file(tmp_path / "model.safetensors")
    lengths = np.array([4, 11, 2])
    source, mask, _, _ = batch(np.stack([lengths, lengths], 1), (11, 11))
    rows, ends = np.arange(3), lengths - 1
    source[rows, ends] = 2
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(source), attention_mask=torch.tensor(mask.astype(int))
        ).logits.numpy()
    read = shift_right(jnp.asarray(source), module.config.special)
    states = np.asarray(apply(module, variables, source, mask, read, mask))[rows, ends]
    for part, after in (("dense", np.tanh), ("out_proj", np.asarray)):
        weight, bias = (head[f"classification_head.{part}.{x}"] for x in ("weight", "bias"))
        states = after(states @ weight.T + bias)
    assert states.shape == (3, changes.get("num_labels", 3))
    assert np.abs(expected).max() > 0.1
    assert np.abs(states - expected).max() < 1e-5


@pytest.mark.parity
def test_the_decoder_reads_what_transformers_lets_it_read():
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("transformers.models.bart.modeling_bart")
    target = np.array([[0, 7, 8, 2], [0, 9, 2, 1]])
    special = BartConfig(**{**SIZES, "decoder_start_token_id": 5}).special
    np.testing.assert_array_equal(
        shift_right(jnp.asarray(target), special),
        modeling.shift_tokens_right(torch.tensor(target), 1, 5).numpy(),
    )


# One step after another.


@pytest.mark.parametrize("scale", [False, True])
def test_a_step_is_a_position_of_decode_whatever_slots_hypotheses_had(scale):
    module, variables = tiny()
    module = module.clone(config=dataclasses.replace(module.config, scale_embedding=scale))
    rows, slots, length = 3, 4, 6
    random = np.random.default_rng(0)
    source, source_mask, _, _ = batch(((5, 1), (9, 1), (2, 1)), (9, 1))
    encoded = apply(module, variables, source, source_mask, method="encode")
    cross = apply(module, variables, encoded, method="cross")
    caches = module.blank_caches(rows, slots, length)
    chex.assert_shape(jax.tree.leaves(caches), (rows, 4, length * slots, 6))
    chex.assert_shape(jax.tree.leaves(cross), (rows, 4, 9, 6))
    compiled = _applied(module)._cache_size()

    texts = np.zeros((rows, slots, 0), int)
    ancestors = np.zeros((rows, slots, 0), int)  # the slot in which each word was read
    moved = 0
    for t in range(length):
        # Hypotheses go on from any others, some from the same one, and some end there.
        parents = random.integers(0, slots, (rows, slots, 1))
        moved += (parents != np.arange(slots)[:, None]).sum()
        words = random.integers(3, 50, (rows, slots, 1))
        own = np.broadcast_to(np.arange(slots)[:, None], words.shape)
        texts, ancestors = (
            np.concatenate([np.take_along_axis(old, parents, axis=1), new], axis=2)
            for old, new in ((texts, words), (ancestors, own))
        )
        sees = np.zeros((rows, slots, length, slots), bool)
        np.put_along_axis(sees[:, :, : t + 1], ancestors[..., None], True, axis=-1)
        states, caches = apply(
            module,
            variables,
            *(words[..., 0], jnp.int32(t), caches, cross, source_mask),
            sees.reshape(rows, slots, -1),
            method="step",
        )
        for k in range(slots):
            told = np.pad(texts[:, k], ((0, 0), (0, length - t - 1)))
            arguments = (told, np.ones_like(told, bool), encoded, source_mask)
            whole = apply(module, variables, *arguments, method="decode")
            np.testing.assert_allclose(states[:, k], whole[:, t], atol=1e-5)
    assert moved > 20
    assert _applied(module)._cache_size() == compiled + 2


def test_a_call_is_encode_and_decode():
    module, variables = tiny()
    source, source_mask, target, target_mask = batch()
    encoded = apply(module, variables, source, source_mask, method="encode")
    np.testing.assert_allclose(
        apply(module, variables, target, target_mask, encoded, source_mask, method="decode"),
        apply(module, variables, source, source_mask, target, target_mask),
        atol=1e-6,
    )


# Padding, dropout, gradients, types.


def wider(arrays, extra, rows):
    """The same batch with more padding, and rows that are nothing but padding."""
    return [
        np.pad(x, ((0, rows), (0, extra)), constant_values=0 if x.dtype == bool else 1)
        for x in arrays
    ]


def test_padding_changes_nothing():
    module, variables = tiny()
    arrays = batch()
    states = apply(module, variables, *arrays)
    padded = apply(module, variables, *wider(arrays, extra=4, rows=2))
    chex.assert_tree_all_finite(padded)  # where there is no text at all, too
    mask = arrays[3]
    np.testing.assert_allclose(padded[:2, :7][mask], states[mask], atol=1e-5)


def dropping(arrays, seed=1, **rates):
    """Arguments of dropout; a token's place in the whole batch is its own."""
    ids = [np.arange(x.size, dtype=np.int32).reshape(x.shape) for x in arrays[1::2]]
    return {
        "key": jax.random.key(seed),
        "source_tokens": ids[0],
        "target_tokens": ids[1],
        "rates": DropoutRates(**rates),
    }


@pytest.mark.slow  # random bits take long to compile
def test_dropout_belongs_to_tokens_and_not_to_their_places():
    # Each pair of layers makes the compilation of masks longer.
    module, variables = tiny(SIZES | {"encoder_layers": 1, "decoder_layers": 1})
    arrays = batch()
    kept = apply(module, variables, *arrays)
    everything = {"hidden": 0.2, "attention": 0.2, "activation": 0.2}
    keywords = dropping(arrays, **everything)
    dropped = apply(module, variables, *arrays, **keywords)

    more = wider(arrays, extra=4, rows=2)
    for name in ("source_tokens", "target_tokens"):
        # Padding has numbers of words that are elsewhere.
        keywords[name] = np.pad(keywords[name], ((0, 2), (0, 4)), constant_values=3)
    reversed_rows = [x[::-1] for x in more]
    for name in ("source_tokens", "target_tokens"):
        keywords[name] = keywords[name][::-1]
    again = apply(module, variables, *reversed_rows, **keywords)[::-1]
    mask = arrays[3]
    np.testing.assert_allclose(again[:2, :7][mask], dropped[mask], atol=1e-5)

    def distance(**keywords):
        return np.abs(apply(module, variables, *arrays, **keywords) - kept)[mask].max()

    for name in everything:
        assert distance(**dropping(arrays, **{name: 0.2})) > 0.01
    other = apply(module, variables, *arrays, **dropping(arrays, seed=2, **everything))
    assert np.abs(other - dropped)[mask].max() > 0.01


def gradient(module, params, arrays, **dropout):
    """Of the negative log-likelihood of what the decoder reads."""

    def loss(params):
        states = module.apply({"params": params}, *arrays, **dropout)
        logits = module.apply({"params": params}, states, method="logits")
        right = jnp.take_along_axis(jax.nn.log_softmax(logits), arrays[2][..., None], axis=-1)
        return -jnp.mean(right[..., 0], where=arrays[3])

    return jax.jit(jax.grad(loss))(params)


def test_gradients_reach_encoder_and_decoder():
    module, variables = tiny()
    found = gradient(module, variables["params"], batch())
    chex.assert_trees_all_equal_shapes_and_dtypes(found, variables["params"])
    chex.assert_tree_all_finite(found)
    for path, value in jax.tree_util.tree_leaves_with_path(found):
        # A softmax does not change when the same is added to all of its scores.
        constant = "k_proj" in jax.tree_util.keystr(path) and path[-1].key == "bias"
        constant |= path[-1].key == "final_logits_bias"  # not trained
        assert constant == (np.abs(value).max() < 1e-6), path


@pytest.mark.slow
def test_remat_computes_the_same():
    module, variables = tiny(SIZES | {"encoder_layers": 1, "decoder_layers": 1})
    arrays = batch()
    dropout = dropping(arrays, hidden=0.1, attention=0.1, activation=0.1)
    plain, again = (
        gradient(m, variables["params"], arrays, **dropout)
        for m in (module, module.clone(remat=True))
    )
    chex.assert_trees_all_close(again, plain, rtol=1e-4, atol=1e-6)


def test_bfloat16_is_near_float32():
    module, variables = tiny()
    half, _ = tiny(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables)
    chex.assert_trees_all_equal_shapes_and_dtypes(rounded["params"], half.shapes())
    mixed = half.clone(param_dtype=jnp.float32)
    chex.assert_trees_all_equal_shapes_and_dtypes(variables["params"], mixed.shapes())
    arrays = batch()
    states = apply(module, variables, *arrays)
    logits = apply(module, variables, states, method="logits")
    for other, params in ((half, rounded), (mixed, variables)):
        near = apply(other, params, *arrays)
        chex.assert_type(near, jnp.bfloat16)
        assert 0 < np.abs(near.astype(jnp.float32) - states)[arrays[3]].max() < 0.2
        scores = apply(other, params, near, method="logits")
        chex.assert_type(scores, jnp.float32)
        assert np.abs(scores - logits)[arrays[3]].max() < 0.5
    caches = half.blank_caches(2, 1, 3)
    chex.assert_type(jax.tree.leaves(caches), jnp.bfloat16)
    encoded = apply(half, rounded, *arrays[:2], method="encode")
    cross = apply(half, rounded, encoded, method="cross")
    sees = np.tile(np.arange(3) < 1, (2, 1, 1))
    first, written = apply(
        half, rounded, arrays[2][:, :1], 0, caches, cross, arrays[1], sees, method="step"
    )
    chex.assert_type([first, *jax.tree.leaves(written)], jnp.bfloat16)


# Sizes and files.


@pytest.mark.parametrize(
    ("sizes", "parameters"), [(BASE, 139_420_416), (BASE | LARGE, 406_291_456)]
)
def test_published_sizes_have_the_published_parameter_count(sizes, parameters):
    config = BartConfig(**{**SIZES, **sizes})
    module = Bart(config)
    shapes = module.shapes()
    # The published counts leave the bias of the logits out.
    assert sum(x.size for x in jax.tree.leaves(shapes)) == parameters + config.vocab_size
    ids, seen = jax.ShapeDtypeStruct((8, 64), jnp.int32), jax.ShapeDtypeStruct((8, 64), bool)
    states = jax.eval_shape(module.apply, {"params": shapes}, ids, seen, ids, seen)
    chex.assert_shape(states, (8, 64, config.d_model))
    logits = jax.eval_shape(
        functools.partial(module.apply, method="logits"), {"params": shapes}, states
    )
    chex.assert_shape(logits, (8, 64, 50265))


@pytest.fixture
def saved(tmp_path):
    """A folder with weights as bart-large-cnn has them, and their tensors."""
    _, variables = tiny()
    params = dict(variables["params"])
    bias = params.pop("final_logits_bias")
    save_params(tmp_path / "model.safetensors", {"model": params, "final_logits_bias": bias})
    (tmp_path / "config.json").write_text(json.dumps(SIZES))
    return tmp_path, variables, load_file(tmp_path / "model.safetensors")


def test_the_published_names(saved):
    _, _, tensors = saved
    assert tensors["model.shared.weight"].shape == (50, 24)
    assert tensors["model.encoder.embed_positions.weight"].shape == (72, 24)
    assert tensors["model.encoder.layers.1.fc1.weight"].shape == (40, 24)
    assert tensors["model.decoder.layers.0.encoder_attn.k_proj.weight"].shape == (24, 24)
    assert tensors["model.decoder.layernorm_embedding.bias"].shape == (24,)
    assert tensors["final_logits_bias"].shape == (1, 50)
    assert len(tensors) == 92


TABLES = (
    "model.shared.weight",
    "model.encoder.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
    "lm_head.weight",
)


@pytest.mark.parametrize("kept", [*TABLES, TABLES])
@pytest.mark.parametrize("prefix", ["model.", ""])
def test_the_table_of_words_has_four_names(saved, kept, prefix):
    folder, variables, tensors = saved
    table = tensors.pop("model.shared.weight")
    tensors |= dict.fromkeys([kept] if isinstance(kept, str) else kept, table)
    tensors["model.encoder.version"] = np.array([3.0])
    tensors["classification_head.dense.weight"] = np.zeros((24, 24), np.float32)
    tensors = {k.replace("model.", prefix, 1): v for k, v in tensors.items()}
    save_file(tensors, folder / "model.safetensors")
    chex.assert_trees_all_equal(load(folder)[1], variables)


def test_tables_that_differ(saved):
    folder, _, tensors = saved
    tensors["lm_head.weight"] = tensors["model.shared.weight"] + np.float32(0.1)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"tensor .* differs from others .* a single shared.weight"):
        load(folder)


def test_no_table_at_all(saved):
    folder, _, tensors = saved
    del tensors["model.shared.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"tensor shared.weight is missing"):
        load(folder)


def test_base_models_have_no_bias(saved):
    folder, variables, tensors = saved
    del tensors["final_logits_bias"]
    save_file(tensors, folder / "model.safetensors")
    _, found = load(folder)
    assert not found["params"]["final_logits_bias"].any()
    variables["params"]["final_logits_bias"] *= 0
    chex.assert_trees_all_equal(found, variables)


def test_shards(saved):
    folder, variables, tensors = saved
    # A table in one, a copy in the other.
    parts = {
        "a.safetensors": {k: v for k, v in tensors.items() if "encoder" in k},
        "b.safetensors": {k: v for k, v in tensors.items() if "encoder" not in k},
    }
    parts["a.safetensors"]["model.encoder.embed_tokens.weight"] = tensors["model.shared.weight"]
    for name, part in parts.items():
        save_file(part, folder / name)
    index = {"weight_map": {k: name for name, part in parts.items() for k in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    chex.assert_trees_all_equal(load(folder)[1], variables)


def test_weights_of_another_vocabulary(saved):
    folder, _, _ = saved
    (folder / "config.json").write_text(json.dumps(SIZES | {"vocab_size": 51}))
    with pytest.raises(UserError, match=r"is F32\[(1, )?50.*expected .*51.* by config.json; take"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": None}, "expected int as 'd_model', found None"),
        ({"encoder_layers": True}, "expected int as 'encoder_layers', found True"),
        ({"decoder_layers": 0}, "expected int as 'decoder_layers', found 0"),
        ({"scale_embedding": None}, "expected bool as 'scale_embedding', found None"),
        ({"scale_embedding": 1}, "expected bool as 'scale_embedding', found 1"),
        ({"eos_token_id": [2]}, r"expected int as 'eos_token_id', found \[2\]"),
        ({"pad_token_id": -1}, "expected int as 'pad_token_id', found -1"),
        ({"pad_token_id": 50}, "pad_token_id is 50, but there are 50 words"),
        ({"encoder_attention_heads": 5}, "not a multiple of encoder_attention_heads 5"),
        ({"decoder_attention_heads": 7}, "not a multiple of decoder_attention_heads 7"),
        ({"activation_function": "swoosh"}, "unknown activation_function 'swoosh'; expected one"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False; only True is supported"),
        ({"normalize_before": True}, "normalize_before is True; only False is supported"),
    ],
)
def test_a_config_that_says_something_else(change, message):
    with pytest.raises(UserError, match=rf"^here/config.json: .*{message}"):
        BartConfig.from_json({**SIZES, **change}, "here/config.json")
    assert BartConfig.from_json(SIZES, "here/config.json") == BartConfig(**SIZES)
