import jax
import jax.numpy as jnp
import numpy as np
import pytest

from erc_jax.layers.dropout import Dropout, PairDropout

KEY = jax.random.key(7)
RATE = 0.3


def kept(ids, key=KEY, rate=RATE, widths=(64,)):
    """Which channels of which utterances are kept, bool [N, width] for each array of a pass."""
    drop = Dropout(key, jnp.asarray(ids), rate, sum(widths))
    return [np.asarray(drop(jnp.ones((len(ids), width)))) > 0 for width in widths]


def kept_pairs(ids, key=KEY, rate=RATE, calls=1):
    """Which weights are kept, bool [R, T, T] for each array of a pass."""
    drop = PairDropout(key, jnp.asarray(ids), rate, calls)
    ones = jnp.ones((len(ids), 1, ids.shape[-1], ids.shape[-1]))
    return [np.asarray(drop(ones))[:, 0] > 0 for _ in range(calls)]


def assert_uncorrelated(a, b):
    """Correlation of two masks of n entries: of standard deviation 1 / sqrt(n) if independent."""
    a, b = a.ravel().astype(float), b.ravel().astype(float)
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(len(a))


def test_evaluation_changes_nothing():
    x = jax.random.normal(KEY, (5, 8))
    weights = jax.random.normal(KEY, (2, 1, 4, 4))
    for key, rate in ((None, 0.5), (KEY, 0.0)):
        assert Dropout(key, jnp.arange(5), rate, 8)(x) is x
        assert PairDropout(key, jnp.zeros((2, 4), jnp.int32), rate, 1)(weights) is weights


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_rate_and_expectation(rate):
    x = jnp.full((200, 500), 2.0)
    y = np.asarray(Dropout(KEY, jnp.arange(200), rate, 500)(x))
    deviation = np.sqrt(rate * (1 - rate) / y.size)
    assert abs((y == 0).mean() - rate) < 4 * deviation
    assert len(np.unique(y)) == 2
    assert y.max() == pytest.approx(2 / (1 - rate), rel=1e-3)  # rates are multiples of 2**-16
    assert y.mean() == pytest.approx(2, abs=4 * 2 * deviation / (1 - rate))
    ids = jnp.arange(120).reshape(3, 40)
    weights = np.asarray(PairDropout(KEY, ids, rate, 1)(jnp.full((3, 1, 40, 40), 2.0)))
    assert abs((weights == 0).mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / weights.size)
    assert weights.max() == y.max()


def test_keeps_the_type():
    x = jnp.ones((4, 8), jnp.bfloat16)
    assert Dropout(KEY, jnp.arange(4), RATE, 8)(x).dtype == jnp.bfloat16


def test_a_mask_belongs_to_an_utterance():
    (straight,) = kept(np.arange(20))
    order = np.random.default_rng(0).permutation(20)[:13]
    (moved,) = kept(order)
    assert np.array_equal(moved, straight[order])
    (padded,) = kept(np.concatenate([order, np.zeros(9, int)]))
    assert np.array_equal(padded[:13], moved)
    blocks = jax.vmap(lambda ids: Dropout(KEY, ids, RATE, 64)(jnp.ones((10, 64))))(
        jnp.arange(20).reshape(2, 10)
    )
    assert np.array_equal(np.asarray(blocks).reshape(20, 64) > 0, straight)


def test_a_mask_of_attention_belongs_to_query_and_key():
    ids = np.arange(24).reshape(3, 8)
    (straight,) = kept_pairs(ids)
    of_pair = {
        (ids[r, q], ids[r, k]): straight[r, q, k]
        for r in range(3)
        for q in range(8)
        for k in range(8)
    }
    order = np.random.default_rng(0).permutation(8)
    # Other rows, other slots, more slots: the same mask wherever the same two utterances meet.
    moved = np.concatenate([ids[[2, 0]][:, order], np.zeros((2, 3), int)], axis=1)
    (found,) = kept_pairs(moved)
    for r in range(2):
        for q in range(8):
            for k in range(8):
                assert found[r, q, k] == of_pair[moved[r, q], moved[r, k]]
    assert not np.array_equal(straight, straight.swapaxes(1, 2)), "the pair has a direction"


def test_masks_of_a_pass_are_independent():
    first, second = kept(np.arange(300), widths=(64, 64))
    assert_uncorrelated(first, second)
    assert_uncorrelated(first[:, 1:], first[:, :-1])  # channels
    assert_uncorrelated(first[1:], first[:-1])  # utterances
    assert_uncorrelated(first, kept(np.arange(300), jax.random.key(8))[0])  # steps

    ids = np.arange(120).reshape(3, 40)
    first, second = kept_pairs(ids, calls=2)
    assert_uncorrelated(first, second)
    assert_uncorrelated(first[:, 1:], first[:, :-1])  # queries
    assert_uncorrelated(first[..., 1:], first[..., :-1])  # keys
    upper = np.triu_indices(40, 1)
    assert_uncorrelated(first[:, *upper], first.swapaxes(1, 2)[:, *upper])


def test_attention_s_masks_are_independent_of_the_channels():
    """Even under one key; the model gives each its own."""
    ids = np.arange(64)
    (channels,) = kept(ids)
    (pairs,) = kept_pairs(ids[None])
    assert_uncorrelated(channels, pairs[0])


def test_heads_are_drawn_as_calls_are():
    ids = jnp.arange(12).reshape(2, 6)
    together = np.asarray(PairDropout(KEY, ids, RATE, 3)(jnp.ones((2, 3, 6, 6)))) > 0
    one_by_one = kept_pairs(ids, calls=3)
    np.testing.assert_array_equal(together, np.stack(one_by_one, axis=1))


def test_attention_over_others_than_the_queries():
    ids, over = jnp.arange(60).reshape(2, 30), jnp.arange(90).reshape(2, 45) % 45
    drop = PairDropout(KEY, ids, RATE, 1, over)
    mask = np.asarray(drop(jnp.ones((2, 1, 30, 45))))[:, 0] > 0
    assert abs(mask.mean() - (1 - RATE)) < 4 * np.sqrt(RATE * (1 - RATE) / mask.size)
    assert_uncorrelated(mask[0], mask[1])  # the same keys, other queries
    fewer = PairDropout(KEY, ids[:, 10:], RATE, 1, over[:, ::-1][:, :7])
    found = np.asarray(fewer(jnp.ones((2, 1, 20, 7))))[:, 0] > 0
    np.testing.assert_array_equal(found, mask[:, 10:, ::-1][..., :7])


def test_parts_are_what_uses_one_after_another_would_be():
    ids = jnp.arange(12).reshape(2, 6)
    x, weights = jnp.ones((2, 6, 8)), jnp.ones((2, 2, 6, 6))
    for make, ones in (
        (lambda: Dropout(KEY, ids, RATE, 24), x),
        (lambda: PairDropout(KEY, ids, RATE, 6), weights),
    ):
        drop = make()
        whole = [drop(ones) for _ in range(3)]
        width = ones.shape[-1] if ones is x else ones.shape[1]
        first, second = make().split([width, 2 * width])
        # Within a function that JAX transforms, too.
        parts = jax.checkpoint(lambda x, a, b: [a(x), b(x), b(x)])(ones, first, second)
        np.testing.assert_array_equal(parts, whole)
        assert (np.asarray(whole) == 0).any()
    # A token's mask is the same, however the tokens lie.
    flat = Dropout(KEY, ids.reshape(-1), RATE, 8)(x.reshape(12, 8))
    np.testing.assert_array_equal(Dropout(KEY, ids, RATE, 8)(x).reshape(12, 8), flat)
    (nothing,) = Dropout(None, ids, RATE, 8).split([8])
    assert nothing(x) is x
