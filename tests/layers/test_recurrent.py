import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from erc_jax.data.packing import pack_sequences
from erc_jax.layers.recurrent import PackedBiLSTM, gather_rows, lstm, scatter_back

LENGTHS = [5, 1, 9, 3, 3, 7]
N = sum(LENGTHS)
PADDED = 32
D, H = 6, 4


def sequences(level):
    """Sequence numbers of N utterances: dialogues one after another, or speakers in turn."""
    if level == "dialogue":
        return np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    return np.random.default_rng(3).permutation(sequences("dialogue"))


def features(n=PADDED, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(1).normal(size=(n, D)), dtype)


def parameters():
    layout = pack_sequences(sequences("dialogue"), n_padded=PADDED)
    return PackedBiLSTM(H).init(jax.random.key(0), features(), layout)


def plain(params, x, sequence_of):
    """The same layer, one sequence at a time, differentiated by JAX."""
    p = params["params"]
    out = jnp.zeros((len(x), 2 * H))
    for sequence in np.unique(sequence_of):
        rows = np.flatnonzero(sequence_of == sequence)
        for direction in ("forward", "backward"):

            def step(state, x_t, direction=direction):
                h, c = state
                z = (
                    x_t @ p[f"{direction}_input_kernel"]
                    + h @ p[f"{direction}_hidden_kernel"]
                    + p[f"{direction}_bias"]
                )
                i, f, g, o = jnp.split(z, 4)
                c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
                h = jax.nn.sigmoid(o) * jnp.tanh(c)
                return (h, c), h

            start = (jnp.zeros(H), jnp.zeros(H))
            _, h = jax.lax.scan(step, start, x[rows], reverse=direction == "backward")
            columns = slice(0, H) if direction == "forward" else slice(H, 2 * H)
            out = out.at[rows, columns].set(h)
    return out


def assert_close(actual, expected, tolerance=1e-5):
    """Every leaf to a tolerance relative to its largest entry."""
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, e = np.asarray(a), np.asarray(e)
        assert a.shape == e.shape
        assert np.abs(a - e).max() <= tolerance * max(1e-3, np.abs(e).max())


def weighted(run):
    """A loss in which every real output counts differently."""
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(N, 2 * H)), jnp.float32)
    return lambda params, x: (run(params, x)[:N] * weights).sum()


@pytest.mark.parametrize(("level", "n_slots"), [("dialogue", 9), ("dialogue", 32), ("speaker", 12)])
def test_equals_a_plain_lstm(level, n_slots):
    params, x = parameters(), features()
    layout = pack_sequences(sequences(level), n_padded=PADDED, n_slots=n_slots)

    def packed(params, x):
        return PackedBiLSTM(H).apply(params, x, layout)

    def expected(params, x):
        return plain(params, x, sequences(level))

    assert_close(jax.jit(packed)(params, x)[:N], jax.jit(expected)(params, x)[:N])
    gradients, expected_gradients = (
        jax.jit(jax.grad(weighted(run), argnums=(0, 1)))(params, x) for run in (packed, expected)
    )
    assert_close(gradients, expected_gradients)
    assert not np.any(gradients[1][N:])


@pytest.mark.parametrize("reverse", [False, True])
def test_derivative_is_that_of_finite_differences(reverse):
    rng = np.random.default_rng(0)
    layout = pack_sequences(np.array([0, 0, 1, 0, 1, 2]), n_padded=7, n_slots=5, n_rows=3)
    with jax.enable_x64(True):
        projected, kernel = (jnp.asarray(rng.normal(size=s)) for s in ((7, 8), (2, 8)))
        check_grads(
            lambda p, k: lstm(p, k, layout, reverse), (projected, kernel), order=1, modes=["rev"]
        )


def torch_lstm(torch, params, width):
    p = params["params"]
    module = torch.nn.LSTM(width, H, bidirectional=True)
    with torch.no_grad():
        for direction, suffix in (("forward", "l0"), ("backward", "l0_reverse")):
            for name, value in (
                ("weight_ih", p[f"{direction}_input_kernel"].T),
                ("weight_hh", p[f"{direction}_hidden_kernel"].T),
                ("bias_ih", p[f"{direction}_bias"]),
                ("bias_hh", np.zeros(4 * H)),
            ):
                getattr(module, f"{name}_{suffix}").copy_(torch.from_numpy(np.array(value)))
    return module


@pytest.mark.parity
@pytest.mark.parametrize("level", ["dialogue", "speaker"])
def test_two_layers_equal_torch(level):
    torch = pytest.importorskip("torch")
    sequence_of = sequences(level)
    layout = pack_sequences(sequence_of, n_padded=PADDED)
    x = features()
    layer = PackedBiLSTM(H)
    first = layer.init(jax.random.key(0), x, layout)
    second = layer.init(jax.random.key(1), layer.apply(first, x, layout), layout)

    def ours(params, x):
        return layer.apply(params[1], layer.apply(params[0], x, layout), layout)

    lstms = [torch_lstm(torch, first, D), torch_lstm(torch, second, 2 * H)]
    theirs_x = torch.from_numpy(np.array(x)).requires_grad_()
    theirs = torch.zeros(PADDED, 2 * H)
    for sequence in np.unique(sequence_of):
        rows = torch.from_numpy(np.flatnonzero(sequence_of == sequence))
        states = theirs_x[rows]
        for module in lstms:
            states = module(states)[0]
        theirs = theirs.index_put((rows,), states)
    assert np.abs(ours((first, second), x)[:N] - theirs.detach().numpy()[:N]).max() < 1e-5

    dparams, dx = jax.jit(jax.grad(weighted(ours), argnums=(0, 1)))((first, second), x)
    weights = np.random.default_rng(2).normal(size=(N, 2 * H)).astype(np.float32)
    (theirs[:N] * torch.from_numpy(weights)).sum().backward()
    assert_close(dx, theirs_x.grad.numpy())
    for ours_d, module in zip(dparams, lstms, strict=True):
        d = ours_d["params"]
        for direction, suffix in (("forward", "l0"), ("backward", "l0_reverse")):
            grad = {
                name: getattr(module, f"{name}_{suffix}").grad.numpy()
                for name in ("weight_ih", "weight_hh", "bias_ih")
            }
            assert_close(d[f"{direction}_input_kernel"], grad["weight_ih"].T)
            assert_close(d[f"{direction}_hidden_kernel"], grad["weight_hh"].T)
            assert_close(d[f"{direction}_bias"], grad["bias_ih"])


@pytest.mark.parametrize("sizes", [(23 + 5, 9, 5), (64, 24, 4), (40, 64, 2)])
def test_padding_and_place_change_nothing(sizes):
    n_padded, n_slots, n_rows = sizes
    params, sequence_of = parameters(), sequences("speaker")

    def run(x, layout):
        def loss(params, x):
            return weighted(lambda p, x: PackedBiLSTM(H).apply(p, x, layout))(params, x)

        return PackedBiLSTM(H).apply(params, x, layout)[:N], jax.grad(loss)(params, x)

    expected = run(features(), pack_sequences(sequence_of, n_padded=PADDED))
    # What stands in the padded utterances must not matter either, as long as it is finite.
    x = jnp.full((n_padded, D), 1e6).at[:N].set(features()[:N])
    layout = pack_sequences(sequence_of, n_padded=n_padded, n_slots=n_slots, n_rows=n_rows)
    assert_close(run(x, layout), expected, 2e-6)


def test_order_of_sequences_changes_nothing():
    params, sequence_of, x = parameters(), sequences("speaker"), features()
    # A permutation that keeps the order within every sequence.
    order = np.argsort(np.array([4, 2, 0, 5, 1, 3])[sequence_of], kind="stable")
    straight = PackedBiLSTM(H).apply(params, x, pack_sequences(sequence_of, n_padded=PADDED))
    moved = PackedBiLSTM(H).apply(
        params, x.at[:N].set(x[order]), pack_sequences(sequence_of[order], n_padded=PADDED)
    )
    assert_close(moved[:N], straight[order], 2e-6)


def test_no_sequence_sees_another():
    params, sequence_of, x = parameters(), sequences("speaker"), features()
    layout = pack_sequences(sequence_of, n_padded=PADDED)
    before = PackedBiLSTM(H).apply(params, x, layout)
    other = sequence_of != 2
    after = PackedBiLSTM(H).apply(params, x.at[:N].add(other[:, None] * 9.0), layout)
    assert np.array_equal(before[:N][~other], after[:N][~other])
    assert not np.allclose(before[:N][other], after[:N][other])


def test_gathers_are_each_other_s_transpose_and_leave_gaps_zero():
    layout = pack_sequences(sequences("speaker"), n_padded=PADDED)
    x = features() + 10
    slots = gather_rows(x, layout)
    assert not np.any(slots[layout.segment < 0])
    assert np.array_equal(scatter_back(slots, layout), x * layout.mask[:, None])

    def by_hand(x):
        return jnp.where(layout.segment[..., None] >= 0, x[layout.index], 0)

    d_slots = jnp.asarray(np.random.default_rng(5).normal(size=slots.shape), jnp.float32)
    (dx,) = jax.vjp(lambda x: gather_rows(x, layout), x)[1](d_slots)
    assert np.array_equal(dx, jax.vjp(by_hand, x)[1](d_slots)[0])
    (dy,) = jax.vjp(lambda y: scatter_back(y, layout), slots)[1](x)
    assert np.array_equal(dy, slots)
    # No scatter-add hides in the derivative.
    derivative = jax.jit(jax.grad(lambda x: (gather_rows(x, layout) ** 2).sum())).lower(x)
    assert "stablehlo.gather" in derivative.as_text()
    assert "stablehlo.scatter" not in derivative.as_text()


def test_vmap_equals_a_loop():
    params = parameters()
    layouts = [
        pack_sequences(sequences(level), n_padded=PADDED, n_slots=12, n_rows=4)
        for level in ("dialogue", "speaker")
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layouts)
    x = jnp.stack([features(), -features()])

    def run(params, x, layout):
        return PackedBiLSTM(H).apply(params, x, layout)

    def many(params, x):
        return jax.vmap(run, in_axes=(None, 0, 0))(params, x, stacked)

    def loop(params, x):
        return jnp.stack([run(params, xs, layout) for xs, layout in zip(x, layouts, strict=True)])

    assert_close(many(params, x), loop(params, x), 1e-6)
    gradients = [jax.jit(jax.grad(lambda p, x, f=f: (f(p, x) ** 2).sum(), argnums=(0, 1)))
                 for f in (many, loop)]  # fmt: skip
    assert_close(gradients[0](params, x), gradients[1](params, x), 2e-6)


def test_bfloat16_keeps_a_float32_state():
    layout = pack_sequences(sequences("dialogue"), n_padded=PADDED)
    exact = PackedBiLSTM(H).apply(parameters(), features(), layout)
    rough = PackedBiLSTM(H).apply(parameters(), features(dtype=jnp.bfloat16), layout)
    assert rough.dtype == jnp.bfloat16
    assert_close(rough.astype(jnp.float32), exact, 0.03)
    # A thousand steps of 0.001 each reach 1; a state of bfloat16 would stop growing at 0.25.
    steps = jnp.broadcast_to(jnp.array([20.0, 20.0, 0.001, 20.0]), (1000, 4))
    layout = pack_sequences(np.zeros(1000), n_padded=1000)
    h = lstm(steps.astype(jnp.bfloat16), jnp.zeros((1, 4), jnp.bfloat16), layout, False)
    assert h.dtype == jnp.bfloat16
    assert abs(float(h[-1, 0]) - np.tanh(1.0)) < 0.01
