import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from erc_jax.encoders import hub
from erc_jax.encoders.bert import Bert
from erc_jax.errors import UserError


def load(folder):
    module = Bert.from_folder(folder, hub.read_json(folder / "config.json"))
    return module, {"params": hub.load_params(folder / "model.safetensors", module)}


def padded(lengths, width, vocabulary, seed=0):
    random = np.random.default_rng(seed)
    mask = np.arange(width) < np.array(lengths)[:, None]
    ids = np.where(mask, random.integers(0, vocabulary, mask.shape), 0)
    types = np.where(mask, random.integers(0, 2, mask.shape), 0)
    positions = np.broadcast_to(np.arange(width), mask.shape)
    return ids, mask.astype(np.int32), positions, types


@pytest.mark.parity
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "num_hidden_layers": 1},
        {"hidden_act": "relu", "num_attention_heads": 1, "layer_norm_eps": 1e-3},
        {"hidden_size": 33, "num_attention_heads": 3, "num_hidden_layers": 3, "hidden_act": "gelu"},
        {"intermediate_size": 7, "type_vocab_size": 5, "hidden_act": "gelu_pytorch_tanh"},
        {"max_position_embeddings": 512, "hidden_act": "gelu_fast"},
    ],
)
@pytest.mark.parametrize("lengths", [(1, 7, 13, 5), (31, 1, 30)])
def test_hidden_states_are_pytorchs(tiny_model, config, lengths):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tiny_model(**config)
    module, variables = load(folder)
    ids, mask, positions, types = padded(lengths, max(lengths) + 2, module.config.vocab_size)
    ours = module.apply(variables, ids, mask, positions, types)

    reference = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    with torch.no_grad():
        theirs = reference(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            token_type_ids=torch.tensor(types),
        ).last_hidden_state.numpy()
    real = mask.astype(bool)
    assert np.abs(np.asarray(ours)[real] - theirs[real]).max() < 1e-5


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


def test_large_published_sizes_have_the_published_parameter_count():
    from erc_jax.encoders.bert import BertConfig

    base = Bert(BertConfig(30522, 768, 12, 12, 3072, "gelu", 512, 2, 1e-12))
    token = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    shapes = jax.eval_shape(base.init, jax.random.key(0), token, token, token)
    # bert-base has 109,482,240 with its pooler, which is a dense layer of 768 by 768
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 109_482_240 - 768 * 769


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
    config = {**hub.read_json(folder / "config.json"), **change}
    with pytest.raises(UserError, match=r"config\.json: ") as error:
        Bert.from_folder(folder, config)
    assert message in str(error.value)
