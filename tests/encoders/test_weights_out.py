import resource
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from erc_jax.encoders.bert import Bert
from erc_jax.encoders.weights import load_params, read_json, save_params, weights_files
from erc_jax.errors import UserError


def random_params(module, dtype):
    token = jnp.zeros((1, 1), int)
    shapes = jax.eval_shape(module.init, jax.random.key(0), token, token, token)["params"]
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    values = [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, [value.astype(dtype) for value in values])


@pytest.fixture
def folder(tiny_model):
    """A model's folder without its weights."""
    folder = tiny_model(num_attention_heads=3)
    (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture
def module(folder):
    return Bert.from_folder(folder, read_json(folder / "config.json"))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("prefix", ["", "bert."])
def test_what_is_saved_is_loaded_again(folder, module, dtype, prefix):
    params = random_params(module, dtype)
    save_params(folder / "model.safetensors", params, prefix)
    again = load_params(weights_files(folder), module, dtype)
    chex.assert_trees_all_equal_shapes_and_dtypes(again, params)
    chex.assert_trees_all_equal(again, params)


def test_the_published_layout(folder, module):
    params = random_params(module, jnp.float32)
    save_params(folder / "model.safetensors", params, "bert.")
    tensors = load_file(folder / "model.safetensors")
    assert len(tensors) == len(jax.tree.leaves(params))
    # As in bert-base-uncased: [outputs, inputs].
    assert tensors["bert.encoder.layer.1.intermediate.dense.weight"].shape == (40, 24)
    assert tensors["bert.embeddings.word_embeddings.weight"].shape[1] == 24
    assert tensors["bert.embeddings.LayerNorm.weight"].shape == (24,)
    with safe_open(folder / "model.safetensors", framework="np") as stored:
        assert stored.metadata() == {"format": "pt"}
    assert [file.name for file in folder.glob("model*")] == ["model.safetensors"]


def test_a_full_disk_leaves_the_old_file(folder, module):
    file = folder / "model.safetensors"
    save_params(file, random_params(module, jnp.float32))
    before = file.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # As a full disk does, it ends the write in the middle.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot be written"):
            save_params(file, jax.tree.map(jnp.zeros_like, random_params(module, jnp.float32)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert file.read_bytes() == before
    assert [file.name for file in folder.glob("model*")] == ["model.safetensors"]


@pytest.mark.parity
@pytest.mark.parametrize("prefix", ["", "bert."])
def test_transformers_loads_what_is_saved(folder, module, prefix):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    params = random_params(module, jnp.float32)
    save_params(folder / "model.safetensors", params, prefix)
    reference, report = transformers.BertModel.from_pretrained(
        folder, add_pooling_layer=False, output_loading_info=True
    )
    assert not any(report.values())  # missing, unexpected, mismatched

    random = np.random.default_rng(0)
    lengths = np.array([17, 3, 9])
    mask = np.arange(17) < lengths[:, None]
    ids = np.where(mask, random.integers(0, module.config.vocab_size, mask.shape), 0)
    positions = np.broadcast_to(np.arange(17), mask.shape)
    with torch.no_grad():
        theirs = reference.eval()(
            input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask.astype(int))
        ).last_hidden_state.numpy()
    ours = module.apply({"params": params}, ids, mask.astype(np.int32), positions)
    assert np.abs(theirs[mask]).max() > 0.1
    assert np.abs(np.asarray(ours)[mask] - theirs[mask]).max() < 1e-5
