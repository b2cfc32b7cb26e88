import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from erc_jax.layers.dropout import Dropout
from erc_jax.layers.isolated import MLP, StackedLSTM

N, L, D, WIDTH, HIDDEN = 7, 20, 6, 8, 10
LENGTHS = np.array([20, 1, 7, 13, 2, 19, 0])  # the last utterance has no known word


def nothing(x):
    return x


def padded(vectors, tokens=L):
    """[N, tokens * D] of vectors [N, L, D], zeros from the utterance's length on."""
    kept = np.where(np.arange(L)[:, None] < LENGTHS[:, None, None], vectors, 0)
    return jnp.asarray(kept[:, :tokens].reshape(N, tokens * D), jnp.float32)


def init(module, x):
    return jax.jit(lambda key: module.init(key, x, nothing))(jax.random.key(0))


@functools.partial(jax.jit, static_argnums=0)
def run(module, params, x):
    return module.apply(params, x, nothing)


@functools.partial(jax.jit, static_argnums=0)
def gradients_of(module, params, x):
    """By parameters and input, of a loss in which every output counts differently."""
    weights = 1 + jnp.sin(jnp.arange(x.shape[0] * WIDTH)).reshape(-1, WIDTH)
    return jax.grad(lambda p, x: (module.apply(p, x, nothing) * weights).sum(), (0, 1))(params, x)


@functools.partial(jax.jit, static_argnums=0)
def run_with_dropout(module, params, x, ids):
    channels = HIDDEN if isinstance(module, MLP) else 4 * WIDTH
    drop = Dropout(jax.random.key(1), ids, 0.5, channels)
    out = module.apply(params, x, drop)
    assert drop._used == channels
    return out


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(0).normal(size=(N, L, D))


@pytest.fixture(scope="module", params=["MLP", "StackedLSTM"])
def case(request, vectors):
    module = MLP(WIDTH, HIDDEN) if request.param == "MLP" else StackedLSTM(WIDTH)
    x = padded(vectors)
    return module, init(module, x), x


def test_shapes_and_types(case):
    module, params, x = case
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    out = run(module, params, x)
    chex.assert_shape(out, (N, WIDTH))
    chex.assert_type(out, jnp.float32)
    expected = {
        "hidden": {"kernel": (L * D, HIDDEN), "bias": (HIDDEN,)},
        "output": {"kernel": (HIDDEN, WIDTH), "bias": (WIDTH,)},
    }
    if isinstance(module, StackedLSTM):
        expected = {}
        for layer in range(1, 6):
            expected[f"layer_{layer}_input_kernel"] = (D if layer == 1 else WIDTH, 4 * WIDTH)
            expected[f"layer_{layer}_hidden_kernel"] = (WIDTH, 4 * WIDTH)
            expected[f"layer_{layer}_bias"] = (4 * WIDTH,)
    assert jax.tree.map(jnp.shape, params["params"]) == expected


def test_an_utterance_does_not_see_the_others(case):
    module, params, x = case
    before = run(module, params, x)
    after = run(module, params, x.at[2, :D].add(1.0))
    others = np.delete(np.arange(N), 2)
    np.testing.assert_array_equal(after[others], before[others])
    assert np.abs(after[2] - before[2]).max() > 1e-4


def test_no_known_word_gives_finite_vectors_and_gradients(case):
    module, params, x = case
    nobody = jnp.zeros_like(x)
    chex.assert_tree_all_finite(run(module, params, nobody))
    chex.assert_tree_all_finite(gradients_of(module, params, nobody))


def test_dropout_uses_the_channels_that_are_named(case):
    module, params, x = case
    dropped = run_with_dropout(module, params, x, jnp.arange(N))
    assert np.abs(dropped - run(module, params, x)).max() > 1e-4
    # The masks belong to the utterances, wherever they are.
    order = np.array([3, 0, 6, 5, 1, 2, 4])
    moved = run_with_dropout(module, params, x[order], jnp.asarray(order))
    np.testing.assert_allclose(moved, dropped[order], atol=1e-6)


def test_mlp_is_two_linear_layers():
    x = jax.random.normal(jax.random.key(0), (N, L * D))
    module = MLP(WIDTH, HIDDEN)
    params = init(module, x)
    p = jax.tree.map(np.asarray, params["params"])
    hidden = np.maximum(np.asarray(x) @ p["hidden"]["kernel"] + p["hidden"]["bias"], 0)
    expected = hidden @ p["output"]["kernel"] + p["output"]["bias"]
    np.testing.assert_allclose(run(module, params, x), expected, atol=1e-5)


def test_padding_changes_nothing(vectors):
    vectors = np.where(np.arange(L)[:, None] < 13, vectors, 0)  # nobody has more than 13 tokens
    short, long = (StackedLSTM(WIDTH, tokens) for tokens in (13, L))
    x_short, x_long = (padded(vectors, tokens) for tokens in (13, L))
    params = init(short, x_short)
    np.testing.assert_allclose(run(long, params, x_long), run(short, params, x_short), atol=1e-6)
    by_short, by_long = gradients_of(short, params, x_short), gradients_of(long, params, x_long)
    chex.assert_trees_all_close(by_long[0], by_short[0], atol=1e-5)
    assert not np.any(by_long[1][:, 13 * D :])


@pytest.mark.parity
def test_five_layers_equal_torch(vectors):
    torch = pytest.importorskip("torch")
    # Tokens within an utterance that are unknown are steps of the LSTM, too.
    vectors = np.array(vectors)
    vectors[3, 4] = 0
    x = padded(vectors)
    module = StackedLSTM(WIDTH)
    params = init(module, x)
    p = params["params"]
    peer = torch.nn.LSTM(D, WIDTH, num_layers=5, batch_first=True)
    with torch.no_grad():
        for layer in range(5):
            for name, value in (
                ("weight_ih", p[f"layer_{layer + 1}_input_kernel"].T),
                ("weight_hh", p[f"layer_{layer + 1}_hidden_kernel"].T),
                ("bias_ih", p[f"layer_{layer + 1}_bias"]),
                ("bias_hh", np.zeros(4 * WIDTH)),
            ):
                getattr(peer, f"{name}_l{layer}").copy_(torch.from_numpy(np.array(value)))

    ours = run(module, params, x)
    d_params, dx = gradients_of(module, params, x)
    theirs_x = torch.from_numpy(np.array(x).reshape(N, L, D)).requires_grad_()
    theirs = torch.stack(
        # Of the utterance without a known word, torch reads one zero vector.
        [peer(theirs_x[i : i + 1, : max(n, 1)])[1][0][-1, 0] for i, n in enumerate(LENGTHS)]
    )
    np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-5)
    weights = 1 + np.sin(np.arange(N * WIDTH, dtype=np.float32)).reshape(N, WIDTH)
    (theirs * torch.from_numpy(weights)).sum().backward()
    np.testing.assert_allclose(dx.reshape(N, L, D), theirs_x.grad.numpy(), atol=1e-5)
    for layer in range(5):
        for name, theirs_d in (
            ("input_kernel", peer.get_parameter(f"weight_ih_l{layer}").grad.numpy().T),
            ("hidden_kernel", peer.get_parameter(f"weight_hh_l{layer}").grad.numpy().T),
            ("bias", peer.get_parameter(f"bias_ih_l{layer}").grad.numpy()),
        ):
            ours_d = d_params["params"][f"layer_{layer + 1}_{name}"]
            np.testing.assert_allclose(ours_d, theirs_d, atol=1e-5)
