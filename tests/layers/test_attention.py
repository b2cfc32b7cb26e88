import jax
import jax.numpy as jnp
import numpy as np
import pytest

from erc_jax.data.packing import pack_sequences
from erc_jax.layers.attention import ShiftUnit, sequence_attention
from erc_jax.layers.dropout import Dropout, PairDropout
from tests.tiny import moved_parameters

LENGTHS = [5, 1, 9, 3, 1, 7]
N = sum(LENGTHS)
PADDED = 32
D = 8


def nothing(x):
    return x


def sequences(level):
    """Sequence numbers of N utterances: dialogues one after another, or speakers in turn."""
    if level == "dialogue":
        return np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    return np.random.default_rng(3).permutation(sequences("dialogue"))


def streams(count, n=PADDED):
    """Random arrays [n, D]; the first N rows do not depend on n."""
    rng = np.random.default_rng(1)
    real = rng.normal(size=(count, N, D)).astype(np.float32)
    return [jnp.zeros((n, D)).at[:N].set(x) for x in real]


def torch_attention(torch, query, key, value):
    """One sequence, [T, D] each."""
    scores = query @ key.T / query.shape[-1] ** 0.5
    return torch.softmax(scores, dim=-1) @ value


def torch_shift_unit(torch, p, query, memory):
    """Equations 9 and 10 for one sequence, [T, D]; p as the Flax module has it."""
    functional = torch.nn.functional

    def norm(x, q):
        return functional.layer_norm(x, x.shape[-1:], q["scale"], q["bias"], eps=1e-5)

    projected = (s @ p[name]["kernel"] for name, s in
                 (("query", query), ("key", memory), ("value", memory)))  # fmt: skip
    x = norm(query + torch_attention(torch, *projected), p["norm_attention"])
    hidden = torch.relu(x @ p["ffn_in"]["kernel"] + p["ffn_in"]["bias"])
    return norm(x + hidden @ p["ffn_out"]["kernel"] + p["ffn_out"]["bias"], p["norm_ffn"])


def test_equals_attention_by_hand():
    query, key, value = streams(3)
    sequence_of = sequences("speaker")
    layout = pack_sequences(sequence_of, n_padded=PADDED)
    found = np.asarray(sequence_attention(query, key, value, layout, nothing))
    for i in range(N):
        own = np.flatnonzero(sequence_of == sequence_of[i])
        scores = np.asarray(key)[own] @ np.asarray(query)[i] / np.sqrt(D)
        weights = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(found[i], weights @ np.asarray(value)[own], atol=1e-5)
    assert not found[N:].any()


@pytest.mark.parity
@pytest.mark.parametrize(("level", "n_slots"), [("dialogue", 9), ("speaker", 24)])
def test_shift_unit_equals_torch(level, n_slots):
    torch = pytest.importorskip("torch")
    query, memory = streams(2)
    sequence_of = sequences(level)
    layout = pack_sequences(sequence_of, n_padded=PADDED, n_slots=n_slots)
    unit = ShiftUnit()
    params = moved_parameters(unit.init, query, memory, layout, nothing, nothing)
    weights = np.random.default_rng(2).normal(size=(N, D)).astype(np.float32)

    def ours(params, query, memory):
        out = unit.apply(params, query, memory, layout, nothing, nothing)
        return (out[:N] * weights).sum(), out

    def leaf(x):
        return torch.from_numpy(np.array(x)).requires_grad_()

    theirs_params = jax.tree.map(leaf, params["params"])
    theirs_query, theirs_memory = leaf(query), leaf(memory)
    theirs = torch.zeros(N, D)
    for sequence in np.unique(sequence_of):
        rows = torch.from_numpy(np.flatnonzero(sequence_of == sequence))
        out = torch_shift_unit(torch, theirs_params, theirs_query[rows], theirs_memory[rows])
        theirs = theirs.index_put((rows,), out)
    (theirs * torch.from_numpy(weights)).sum().backward()

    gradient = jax.jit(jax.grad(ours, argnums=(0, 1, 2), has_aux=True))
    gradients, out = gradient(params, query, memory)
    np.testing.assert_allclose(out[:N], theirs.detach().numpy(), atol=1e-5)
    expected = jax.tree.map(lambda t: t.grad.numpy(), theirs_params)
    for found, wanted in zip(
        jax.tree.leaves((gradients[0]["params"], *gradients[1:])),
        jax.tree.leaves((expected, theirs_query.grad.numpy(), theirs_memory.grad.numpy())),
        strict=True,
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def test_no_sequence_sees_another():
    query, memory = streams(2)
    sequence_of = sequences("speaker")
    layout = pack_sequences(sequence_of, n_padded=PADDED)
    params = moved_parameters(ShiftUnit().init, query, memory, layout, nothing, nothing)

    @jax.jit
    def run(query, memory):
        return ShiftUnit().apply(params, query, memory, layout, nothing, nothing)

    before = np.asarray(run(query, memory))[:N]
    for sequence in range(len(LENGTHS)):
        other = sequence_of != sequence
        noise = np.zeros((PADDED, 1), np.float32)
        noise[:N][other] = 1e3
        after = np.asarray(run(query + noise, memory - noise))[:N]
        assert np.array_equal(before[~other], after[~other])
        assert not np.allclose(before[other], after[other])


def test_every_utterance_of_a_sequence_is_seen():
    query, memory = streams(2)
    sequence_of = sequences("speaker")
    layout = pack_sequences(sequence_of, n_padded=PADDED)

    @jax.jit
    def run(key):
        return sequence_attention(query, key, memory, layout, nothing)

    for i in range(N):
        difference = run(memory.at[i].add(1.0)) - run(memory)
        changed = np.abs(np.asarray(difference))[:N].max(axis=-1) > 1e-6
        # Alone in its sequence an utterance has the weight 1, whatever its key.
        alone = (sequence_of == sequence_of[i]).sum() == 1
        assert np.array_equal(changed, (sequence_of == sequence_of[i]) & (not alone))


def test_padding_changes_nothing():
    sequence_of = sequences("speaker")
    layout = pack_sequences(sequence_of, n_padded=PADDED)
    query, memory = streams(2)
    params = moved_parameters(ShiftUnit().init, query, memory, layout, nothing, nothing)

    def run(layout, query, memory):
        def loss(params):
            out = ShiftUnit().apply(params, query, memory, layout, nothing, nothing)
            return (out[:N] ** 3).sum(), out[:N]

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    gradient, out = run(layout, query, memory)
    larger = pack_sequences(sequence_of, n_padded=48, n_slots=24, n_rows=5)
    padded = [jnp.full((48, D), 1e6).at[:N].set(x[:N]) for x in (query, memory)]
    padded_gradient, padded_out = run(larger, *padded)
    np.testing.assert_allclose(padded_out, out, atol=1e-5)
    for a, b in zip(jax.tree.leaves(padded_gradient), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_no_utterances_at_all():
    layout = pack_sequences(np.zeros(0, int), n_padded=8)
    zeros = jnp.zeros((8, D))
    params = moved_parameters(ShiftUnit().init, zeros, zeros, layout, nothing, nothing)

    def loss(params, x):
        return (ShiftUnit().apply(params, x, x, layout, nothing, nothing) ** 2).sum()

    for leaf in jax.tree.leaves(jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, zeros)):
        assert np.isfinite(leaf).all()
    assert not sequence_attention(zeros, zeros, zeros, layout, nothing).any()


def test_dropout_reaches_weights_and_hidden_layer():
    query, memory = streams(2)
    layout = pack_sequences(sequences("dialogue"), n_padded=PADDED)
    params = moved_parameters(ShiftUnit().init, query, memory, layout, nothing, nothing)
    ids = jnp.arange(PADDED)

    def run(drop=nothing, drop_weights=nothing):
        return ShiftUnit().apply(params, query, memory, layout, drop, drop_weights)

    def drop():
        return Dropout(jax.random.key(2), ids, 0.5, D)

    def drop_weights():
        return PairDropout(jax.random.key(3), ids[layout.index].T, 0.5, 1)

    plain = run()
    assert not np.allclose(run(drop=drop()), plain)
    assert not np.allclose(run(drop_weights=drop_weights()), plain)
    assert np.array_equal(run(drop(), drop_weights()), run(drop(), drop_weights()))
