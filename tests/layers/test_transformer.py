import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from erc_jax.data.packing import pack_sequences
from erc_jax.layers.dropout import Dropout, PairDropout
from erc_jax.layers.transformer import TransformerLayer

D, HEADS, FFN, N, PADDED = 12, 3, 20, 17, 24
SEQUENCES = np.repeat([4, 9, 2, 7], [6, 1, 8, 2])


def nothing(x):
    return x


@pytest.fixture(scope="module")
def case():
    layout = pack_sequences(SEQUENCES, n_padded=PADDED)
    layer = TransformerLayer(HEADS, FFN)
    x = jax.random.normal(jax.random.key(0), (PADDED, D))
    params = layer.init(jax.random.key(1), x, layout, nothing, nothing)
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(2), p.shape), params)
    return layer, params, x, layout


@pytest.mark.parity
@pytest.mark.parametrize(("alone", "reach"), [(False, 0), (False, 3), (True, 0)])
def test_equals_torch_on_each_sequence(case, alone, reach):
    """With a reach, what was learned of distances is added to the scores of each head."""
    torch = pytest.importorskip("torch")
    layer, params, x, layout = case
    table = np.random.default_rng(0).normal(size=(2 * reach + 1, HEADS)).astype(np.float32)
    if reach:
        layer = TransformerLayer(HEADS, FFN, reach)
        params = {"params": {**params["params"], "distance_bias": jnp.asarray(table)}}
    peer = torch.nn.TransformerEncoderLayer(D, HEADS, FFN, 0.0, batch_first=True)
    p = params["params"]

    def tensor(array):
        return torch.from_numpy(np.array(array))

    attention = ("query", "key", "value")
    state = {
        "self_attn.in_proj_weight": np.concatenate([p[n]["kernel"].T for n in attention]),
        "self_attn.in_proj_bias": np.concatenate([p[n]["bias"] for n in attention]),
        "self_attn.out_proj.weight": p["output"]["kernel"].T,
        "self_attn.out_proj.bias": p["output"]["bias"],
        "linear1.weight": p["ffn_in"]["kernel"].T,
        "linear1.bias": p["ffn_in"]["bias"],
        "linear2.weight": p["ffn_out"]["kernel"].T,
        "linear2.bias": p["ffn_out"]["bias"],
        "norm1.weight": p["norm_attention"]["scale"],
        "norm1.bias": p["norm_attention"]["bias"],
        "norm2.weight": p["norm_ffn"]["scale"],
        "norm2.bias": p["norm_ffn"]["bias"],
    }
    peer.load_state_dict({name: tensor(value) for name, value in state.items()})
    ours = layer.apply(params, x, None if alone else layout, nothing, nothing)
    groups = np.arange(N) if alone else SEQUENCES
    for sequence in np.unique(groups):
        rows = np.flatnonzero(groups == sequence)
        mask = None
        if reach:
            place = np.arange(len(rows))
            distance = np.clip(place[:, None] - place, -reach, reach)  # of the query after the key
            mask = tensor(table[distance + reach].transpose(2, 0, 1))
        with torch.no_grad():
            theirs = peer(tensor(x[rows])[None], src_mask=mask)[0].numpy()
        np.testing.assert_allclose(ours[rows], theirs, atol=1e-5)


def test_no_sequence_sees_another_and_padding_changes_nothing(case):
    layer, params, x, layout = case
    before = layer.apply(params, x, layout, nothing, nothing)
    chex.assert_shape(before, (PADDED, D))
    # Rows 6 and 17 …: the sequence of one utterance, and padding.
    changed = x.at[6].add(1.0).at[N:].add(3.0)
    after = layer.apply(params, changed, layout, nothing, nothing)
    others = np.setdiff1d(np.arange(N), [6])
    np.testing.assert_array_equal(after[others], before[others])
    wider = pack_sequences(SEQUENCES, n_padded=PADDED + 8, n_slots=16)
    padded = jnp.pad(x, ((0, 8), (0, 0)))
    again = layer.apply(params, padded, wider, nothing, nothing)
    np.testing.assert_allclose(again[:N], before[:N], atol=1e-6)


def test_dropout_uses_the_channels_and_heads_that_are_named(case):
    layer, params, x, layout = case
    ids = jnp.arange(PADDED)
    drop = Dropout(jax.random.key(3), ids, 0.5, 2 * D + FFN)
    pairs = PairDropout(jax.random.key(4), ids[layout.index].T, 0.5, HEADS)
    plain = layer.apply(params, x, layout, nothing, nothing)
    assert np.abs(layer.apply(params, x, layout, drop, nothing) - plain).max() > 0.01
    assert np.abs(layer.apply(params, x, layout, nothing, pairs) - plain).max() > 0.01
    assert drop._used == 2 * D + FFN
    assert pairs._used == HEADS


@pytest.mark.parametrize("alone", [False, True])
def test_those_that_are_wanted_are_what_they_are_among_all(case, alone):
    """In evaluation and in training, with the masks of the utterances that are wanted."""
    layer, params, x, layout = case
    layout = None if alone else layout
    at = jnp.array([16, 3, 6, 3, 0])
    ids = jnp.arange(PADDED)
    pairs_ids = ids[case[3].index].T

    def run(wanted, rate):
        of = ids if wanted is None else ids[wanted]
        drop = Dropout(jax.random.key(3), of, rate, 2 * D + FFN)
        pairs = PairDropout(jax.random.key(4), pairs_ids, rate, HEADS)
        return layer.apply(params, x, layout, drop, pairs, wanted)

    for rate in (0.0, 0.5):
        found = run(at, rate)
        chex.assert_shape(found, (5, D))
        np.testing.assert_allclose(found, run(None, rate)[at], atol=1e-5)


def test_a_layer_that_starts_as_the_identity(case):
    """What comes in normalised comes out as it was, and yet every part of it will learn."""
    _, _, x, layout = case
    layer = TransformerLayer(HEADS, FFN, 2, starts_as_identity=True)
    params = layer.init(jax.random.key(1), x, layout, nothing, nothing)
    normalised = jax.nn.standardize(x)
    found = layer.apply(params, normalised, layout, nothing, nothing)
    np.testing.assert_allclose(found[:N], normalised[:N], atol=1e-4)

    def loss(params):
        return jnp.sum(layer.apply(params, normalised, layout, nothing, nothing)[:N] ** 3)

    for _ in range(3):  # the maps that start at zero learn first
        gradient = jax.grad(loss)(params)
        params = jax.tree.map(lambda p, g: p + 0.01 * g, params, gradient)
    moved = layer.apply(params, normalised, layout, nothing, nothing)
    assert np.abs(moved - found).max() > 0.01
    for name, module in gradient["params"].items():
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(module)) > 1e-6, name
