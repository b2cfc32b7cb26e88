import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from erc_jax.encoders.bert import Bert, BertConfig
from erc_jax.encoders.mpnet import MPNet, MPNetConfig
from erc_jax.encoders.roberta import Roberta, RobertaConfig
from erc_jax.encoders.transformer import DropoutRates
from erc_jax.encoders.weights import load_params, read_json, weights_files
from erc_jax.errors import UserError


def load(folder, module=Bert):
    module = module.from_folder(folder, read_json(folder / "config.json"))
    return module, {"params": load_params(weights_files(folder), module)}


def padded(lengths, width, vocabulary, seed=0, pad=0):
    random = np.random.default_rng(seed)
    mask = np.arange(width) < np.array(lengths)[:, None]
    ids = np.where(mask, random.integers(pad + 1, vocabulary, mask.shape), pad)
    types = np.where(mask, random.integers(0, 2, mask.shape), 0)
    positions = np.broadcast_to(np.arange(width), mask.shape)
    return ids, mask.astype(np.int32), positions, types


SIZES = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 300,
}
FAMILIES = {
    "bert": (Bert, "BertModel", {"pad_token_id": 0}),
    "roberta": (Roberta, "RobertaModel", {"pad_token_id": 1, "type_vocab_size": 1}),
    "mpnet": (MPNet, "MPNetModel", {"pad_token_id": 1}),
}


def published(folder, family, **changes):
    """A random model of transformers, saved by it; biases and norms are far from 0 and 1."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    _, name, own = FAMILIES[family]
    config = transformers.AutoConfig.for_model(family, **{**SIZES, **own, **changes})
    model = getattr(transformers, name)(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


def hidden_states_of(model, ids, mask, types=None):
    torch = pytest.importorskip("torch")
    token_types = {} if types is None else {"token_type_ids": torch.tensor(types)}
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), **token_types
        ).last_hidden_state.numpy()


@pytest.mark.parity
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("bert", {}),
        ("bert", {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "num_hidden_layers": 1}),
        ("bert", {"hidden_act": "relu", "num_attention_heads": 1, "layer_norm_eps": 1e-3}),
        ("bert", {"hidden_size": 33, "num_attention_heads": 3, "num_hidden_layers": 3}),
        ("bert", {"type_vocab_size": 5, "hidden_act": "gelu_pytorch_tanh"}),
        ("roberta", {}),
        ("roberta", {"pad_token_id": 3, "layer_norm_eps": 1e-5, "num_hidden_layers": 3}),
        ("roberta", {"pad_token_id": 0, "hidden_act": "gelu_new", "intermediate_size": 7}),
        ("mpnet", {}),
        ("mpnet", {"num_hidden_layers": 3, "layer_norm_eps": 1e-5, "hidden_act": "gelu_new"}),
        ("mpnet", {"num_attention_heads": 2, "hidden_act": "relu"}),
    ],
)
@pytest.mark.parametrize("lengths", [(1, 7, 31, 5), (289, 150)])
def test_hidden_states_are_pytorchs(tmp_path, family, changes, lengths):
    theirs_module = published(tmp_path, family, **changes)
    module, variables = load(tmp_path, FAMILIES[family][0])
    pad = theirs_module.config.pad_token_id
    ids, mask, positions, types = padded(lengths, max(lengths) + 2, 50, pad=pad)
    types = types if family == "bert" else None
    ours = module.apply(variables, ids, mask, positions, types)
    theirs = hidden_states_of(theirs_module, ids, mask, types)
    real = mask.astype(bool)
    assert np.abs(np.asarray(ours)[real] - theirs[real]).max() < 1e-5


@pytest.mark.parity
@pytest.mark.parametrize("family", FAMILIES)
def test_several_sentences_in_a_row_are_pytorchs_one_by_one(tmp_path, family):
    theirs_module = published(tmp_path, family)
    module, variables = load(tmp_path, FAMILIES[family][0])
    lengths = (9, 140, 1, 33)
    ids, mask, _, _ = padded(lengths, max(lengths), 50, pad=theirs_module.config.pad_token_id)
    theirs = hidden_states_of(theirs_module, ids, mask)
    row = np.concatenate([ids[i, :n] for i, n in enumerate(lengths)] + [[0] * 3])[None]
    segments = np.repeat([[1, 2, 3, 4, 0]], [*lengths, 3], axis=1)
    places = np.concatenate([np.arange(n) for n in (*lengths, 3)])[None]
    ours = module.apply(variables, row, segments, places)[0, :-3]
    assert np.abs(ours - theirs[mask.astype(bool)]).max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("kind", [Bert, Roberta, MPNet])
def test_scanned_layers_compute_what_separate_ones_do(kind, remat):
    plain = tiny_module(kind)
    scanned = tiny_module(kind, scan_layers=True, remat=remat)
    ids, mask, positions, _ = padded((3, 9), 9, 50, pad=1)
    params = plain.init(jax.random.key(0), ids, mask, positions)["params"]
    stacked = plain.stack_layers(params)
    chex.assert_trees_all_equal(plain.unstack_layers(stacked), params)
    chex.assert_trees_all_equal_shapes(
        stacked, scanned.init(jax.random.key(0), ids, mask, positions)["params"]
    )
    tokens = np.arange(18).reshape(2, 9)
    dropping = {"key": jax.random.key(1), "tokens": tokens, "rates": DropoutRates(0.3, 0.2)}

    def loss(module):
        def run(params, **dropout):
            hidden = module.apply({"params": params}, ids, mask, positions, **dropout)
            return (hidden * mask[..., None]).sum() ** 2, hidden

        return run

    for dropout in ({}, dropping):
        ours, hidden = jax.grad(loss(scanned), has_aux=True)(stacked, **dropout)
        theirs, expected = jax.grad(loss(plain), has_aux=True)(params, **dropout)
        np.testing.assert_allclose(hidden, expected, atol=1e-5)
        chex.assert_trees_all_close(plain.unstack_layers(ours), theirs, rtol=1e-3, atol=1e-3)


def tiny_module(kind, **options):
    own = {"type_vocab_size": 2, "pad_token_id": 1, "relative_attention_num_buckets": 8}
    record = {**SIZES, "hidden_act": "gelu", "layer_norm_eps": 1e-5, **own}
    return kind(kind.CONFIG.from_json(record, "here"), **options)


@pytest.mark.parametrize("kind", [Bert, Roberta, MPNet])
def test_bfloat16_is_near_float32(kind):
    plain = tiny_module(kind)
    ids, mask, positions, _ = padded((3, 9), 9, 50, pad=1)
    params = plain.init(jax.random.key(0), ids, mask, positions)["params"]
    exact = plain.apply({"params": params}, ids, mask, positions)
    halved = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    module = tiny_module(kind, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        halved, module.init(jax.random.key(0), ids, mask, positions)["params"]
    )
    near = module.apply({"params": halved}, ids, mask, positions)
    chex.assert_type(near, jnp.bfloat16)
    np.testing.assert_allclose(np.asarray(near, np.float32), exact, atol=0.08)


def test_dropout_belongs_to_tokens_and_not_to_their_places():
    module = tiny_module(MPNet)
    ids, _, _, _ = padded((9,), 9, 50, pad=1)
    ones, places, tokens = np.ones((1, 9), int), np.arange(9)[None], np.arange(9)[None]
    params = module.init(jax.random.key(0), ids, ones, places)
    key = jax.random.key(1)

    def run(key, rates, tokens, ids, segments, positions):
        return module.apply(params, ids, segments, positions, key=key, tokens=tokens, rates=rates)

    both = DropoutRates(0.2, 0.2)
    alone = run(key, both, tokens, ids, ones, places)
    shifted = [np.pad(x, ((0, 0), (4, 2))) for x in (tokens, ids, ones, places)]
    np.testing.assert_allclose(run(key, both, *shifted)[:, 4:13], alone, atol=1e-5)
    kept = run(None, both, tokens, ids, ones, places)
    for rates in (both, DropoutRates(0.2, 0.0), DropoutRates(0.0, 0.2)):
        assert np.abs(run(key, rates, tokens, ids, ones, places) - kept).max() > 0.01
    none = run(key, DropoutRates(), tokens, ids, ones, places)
    np.testing.assert_array_equal(none, kept)
    other = run(jax.random.key(2), both, tokens, ids, ones, places)
    assert np.abs(other - alone).max() > 0.01


def test_shapes_and_token_types(tiny_model):
    module, variables = load(tiny_model())
    ids, mask, positions, types = padded((3, 9), 9, module.config.vocab_size)
    hidden = module.apply(variables, ids, mask, positions)
    chex.assert_shape(hidden, (2, 9, 24))
    chex.assert_type(hidden, jnp.float32)
    chex.assert_tree_all_finite(hidden)
    chex.assert_trees_all_equal(
        hidden, module.apply(variables, ids, mask, positions, np.zeros_like(types))
    )
    assert np.abs(hidden - module.apply(variables, ids, mask, positions, types)).max() > 0.01


@pytest.mark.parametrize(
    ("module", "parameters"),
    [
        # The published counts include a pooler, a dense layer of the hidden size.
        (Bert(BertConfig(30522, 768, 12, 12, 3072, "gelu", 512, 1e-12, 2)), 109_482_240),
        (Roberta(RobertaConfig(50265, 768, 12, 12, 3072, "gelu", 514, 1e-5, 1, 1)), 124_645_632),
        (Roberta(RobertaConfig(50265, 1024, 24, 16, 4096, "gelu", 514, 1e-5, 1, 1)), 355_359_744),
        (MPNet(MPNetConfig(30527, 768, 12, 12, 3072, "gelu", 514, 1e-5, 1, 32)), 109_486_464),
    ],
)
def test_published_sizes_have_the_published_parameter_count(module, parameters):
    token = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), token, token, token)
    size = module.config.hidden_size
    assert sum(x.size for x in jax.tree.leaves(shapes)) == parameters - size * (size + 1)


def test_sentences_in_one_row_do_not_see_one_another(tiny_model):
    module, variables = load(tiny_model())
    ids, _, positions, _ = padded((11,), 11, module.config.vocab_size)
    alone = module.apply(variables, ids, np.ones((1, 11), int), positions)
    row = np.concatenate([ids, np.ones((1, 6), int), ids, np.zeros((1, 3), int)], axis=1)
    segments = np.repeat([[1, 2, 3, 0]], [11, 6, 11, 3], axis=1)
    places = np.concatenate([np.arange(n) for n in (11, 6, 11, 3)])[None]
    packed = module.apply(variables, row, segments, places)
    np.testing.assert_allclose(packed[:, :11], alone, atol=1e-5)
    np.testing.assert_allclose(packed[:, 17:28], alone, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_norm_eps": None}, "expected float as 'layer_norm_eps', found None"),
        ({"hidden_size": "24"}, "expected int as 'hidden_size', found '24'"),
        ({"num_hidden_layers": True}, "expected int as 'num_hidden_layers', found True"),
        ({"num_attention_heads": 0}, "expected int as 'num_attention_heads', found 0"),
        ({"num_attention_heads": 5}, "hidden_size 24 is not a multiple of num_attention_heads 5"),
        ({"hidden_act": "swoosh"}, "unknown hidden_act 'swoosh'; expected one of gelu, gelu_new"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is True; only False is supported"),
    ],
)
def test_a_config_that_says_something_else(tiny_model, change, message):
    folder = tiny_model()
    config = {**read_json(folder / "config.json"), **change}
    with pytest.raises(UserError, match=r"config\.json: ") as error:
        Bert.from_folder(folder, config)
    assert message in str(error.value)
