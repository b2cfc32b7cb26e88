import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from erc_jax.data.batching import make_examples
from erc_jax.data.dialogue import MODALITIES, Dialogue, Utterance
from erc_jax.data.modalities import Modalities
from erc_jax.data.packing import pack_sequences
from erc_jax.layers.fusion import Fusion, positions, sinusoids
from tests.tiny import drawn_parameters

WIDTHS = {"text": 10, "audio": 7, "visual": 5}
D, HEADS, FFN = 12, 3, 20
# Ragged, with one to four speakers; the fourth has no embedding of its own.
SPEAKERS_OF = ("ABCABBDA", "A", "BA", "AABBABABABABA", "ABCD")
EMBEDDINGS = 3
LENGTHS = np.array([len(word) for word in SPEAKERS_OF])
N = int(LENGTHS.sum())
ALL = np.arange(len(LENGTHS))


def examples_of(names, missing=0.0, seed=0):
    """Dialogues whose utterances lack some of the modalities."""
    rng = np.random.default_rng(seed)
    dialogues = [
        Dialogue(f"d{i}", tuple(Utterance(speaker, "") for speaker in word))
        for i, word in enumerate(SPEAKERS_OF)
    ]
    present = {name: rng.random(N) >= missing for name in names}
    features = {
        name: rng.normal(size=(N, WIDTHS[name])).astype(np.float32) * present[name][:, None]
        for name in names
    }
    return make_examples(dialogues, Modalities(features, present), {})


def fusion_of(names, **fields):
    how = {"width": D, "heads": HEADS, "ffn": FFN, "speakers": EMBEDDINGS, "dropout": 0.0}
    return Fusion(tuple(names), **(how | fields))


def block_of(examples, chosen=ALL):
    return jax.tree.map(lambda x: x[0], examples.batch(chosen))


def with_modality(examples, name, features=None, present=None):
    """The same examples, but for a modality."""
    there = examples.features
    new = Modalities(
        {**there.features, name: there.features[name] if features is None else features},
        {**there.present, name: there.present[name] if present is None else present},
    )
    return dataclasses.replace(examples, features=new)


class Case:
    """A fusion with parameters."""

    def __init__(self, names, **fields):
        self.names = names
        self.fusion = fusion_of(names, **fields)
        self.examples = examples_of(names, missing=0.4 if len(names) > 1 else 0.2)
        block = block_of(self.examples)
        self.params = drawn_parameters(self.fusion.init, block.features, block)
        self.apply = jax.jit(self.fusion.apply)

    def __call__(self, examples, chosen=ALL):
        """H float32 [N, D] of the split's utterances; NaN where a dialogue was not chosen."""
        block = block_of(examples, chosen)
        outputs = np.asarray(self.apply(self.params, block.features, block))
        chex.assert_shape(outputs, (*block.real.shape, self.fusion.width))
        assert outputs.dtype == np.float32
        assert np.isfinite(outputs).all()
        found = np.full((N, self.fusion.width), np.nan, np.float32)
        found[examples.rows(chosen)[block.ids[block.real]]] = outputs[block.real]
        return found


@pytest.fixture(scope="module", params=[("text",), ("audio", "visual"), MODALITIES], ids=len)
def case(request):
    return Case(request.param)


@pytest.fixture(scope="module")
def three():
    return Case(MODALITIES)


# The definition, a dialogue at a time, in float64 and with padding.


def dense(p, x):
    return x @ p["kernel"] + p.get("bias", 0.0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x, axis):
    x = np.exp(x - x.max(axis=axis, keepdims=True))
    return x / x.sum(axis=axis, keepdims=True)


def encoder(p, target, source, visible):
    """One of the nine: [T, D] of the target, which sees the visible ones of the source."""

    def heads(name, x):
        return dense(p[name], x).reshape(len(x), HEADS, -1).swapaxes(0, 1)

    attended = np.zeros_like(target)
    if visible.any():
        q, k, v = heads("query", target), heads("key", source), heads("value", source)
        scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
        weights = softmax(np.where(visible, scores, -np.inf), axis=-1)
        attended = (weights @ v).swapaxes(0, 1).reshape(target.shape)
    x = target + dense(p["output"], attended)
    centred = x - x.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    normed = normed * p["norm_ffn"]["scale"] + p["norm_ffn"]["bias"]
    hidden = dense(p["ffn_in"], normed)
    hidden *= 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    return x + dense(p["ffn_out"], hidden)


def by_hand(case, examples, dialogue, padding=3):
    """H [T, D] of one dialogue, with rows of padding that hold anything but nobody sees."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), case.params["params"])
    rows = examples.rows(np.array([dialogue]))
    length = len(rows)
    rng = np.random.default_rng(0)

    def padded(x, fill):
        return np.concatenate([x, fill])

    place = np.arange(length + padding)
    rates = 10_000.0 ** (-np.arange(0, D, 2) / D)
    added = np.zeros((length + padding, D))
    added[:, 0::2], added[:, 1::2] = np.sin(np.outer(place, rates)), np.cos(np.outer(place, rates))
    if case.fusion.speakers:
        number = padded(examples.speaker_number[rows], np.zeros(padding, int))
        added += p["speaker"]["embedding"][np.minimum(number, case.fusion.speakers - 1)]
    present, streams = {}, {}
    for name in case.names:
        features = examples.features.features[name][rows].astype(np.float64)
        features = padded(features, rng.normal(size=(padding, features.shape[1])))
        present[name] = padded(examples.features.present[name][rows], np.zeros(padding, bool))
        streams[name] = dense(p[f"input_{name}"], features) + added
    fused = []
    for target in case.names:
        outputs = []
        for source in case.names:
            pair = f"{source}_to_{target}"
            x = encoder(p[pair], streams[target], streams[source], present[source])
            gate = dense(p[f"gate_{pair}"], x) if case.fusion.learned_gates else x
            outputs.append(sigmoid(gate) * x)
        fused.append(dense(p[f"reduce_{target}"], np.concatenate(outputs, axis=-1)))
    h = np.zeros((length + padding, D))
    for i in range(length):
        there = [m for m, name in enumerate(case.names) if present[name][i]]
        if len(case.names) == 1 and there:
            h[i] = fused[0][i]
        elif there:
            own = np.stack([fused[m][i] for m in there])
            h[i] = (softmax(dense(p["gate"], own), axis=0) * own).sum(axis=0)
    return h[:length]


def assert_by_hand(case, examples):
    found = case(examples)
    for dialogue in ALL:
        expected = by_hand(case, examples, dialogue)
        rows = examples.rows(np.array([dialogue]))
        np.testing.assert_allclose(found[rows], expected, atol=1e-5)
    assert np.abs(found).max() > 0.5


def test_packed_encoders_equal_separate_padded_ones(case):
    assert_by_hand(case, case.examples)
    assert_by_hand(case, examples_of(case.names))  # nothing is missing


@pytest.mark.parametrize("fields", [{"learned_gates": False}, {"speakers": 0}], ids=str)
def test_other_forms_equal_separate_padded_ones(fields):
    other = Case(("text", "visual"), **fields)
    assert_by_hand(other, other.examples)
    names = set(other.params["params"])
    assert ("speaker" in names) == ("speakers" not in fields)
    assert ("gate_text_to_visual" in names) == ("learned_gates" not in fields)


def test_each_pair_of_modalities_has_an_encoder(case):
    names, params = case.names, case.params["params"]
    pairs = {f"{source}_to_{target}" for source in names for target in names}
    expected = pairs | {f"gate_{pair}" for pair in pairs} | {"speaker"}
    expected |= {f"{part}_{name}" for part in ("input", "reduce") for name in names}
    assert set(params) == expected | ({"gate"} if len(names) > 1 else set())
    assert len(pairs) == len(names) ** 2
    for name in names:
        chex.assert_shape(params[f"input_{name}"]["kernel"], (WIDTHS[name], D))
        chex.assert_shape(params[f"reduce_{name}"]["kernel"], (len(names) * D, D))
    # As the backbone's authors have it.
    without_bias = {name for name in params if name.startswith(("input", "gate"))}
    assert {name for name in params if set(params[name]) == {"kernel"}} == without_bias


# What changes nothing, and what does


def test_no_dialogue_influences_another(case):
    before = case(case.examples)
    for dialogue in ALL:
        changed = case.examples
        rows = changed.rows(np.array([dialogue]))
        for name in case.names:
            features = changed.features.features[name].copy()
            there = rows[changed.features.present[name][rows]]
            features[there] += 3 * np.random.default_rng(2).normal(size=features[there].shape)
            changed = with_modality(changed, name, features)
        after = case(changed)
        others = np.setdiff1d(np.arange(N), rows)
        np.testing.assert_array_equal(after[others], before[others])
        heard = np.any([case.examples.features.present[name][rows] for name in case.names], axis=0)
        assert (np.abs(after - before)[rows[heard]].max(axis=1) > 1e-3).all()


@pytest.mark.parametrize("chosen", [ALL[::-1], np.array([2, 0]), np.array([1])], ids=str)
def test_order_and_company_change_nothing(case, chosen):
    """Nor does padding, of which each choice has another amount."""
    whole, found = case(case.examples), case(case.examples, chosen)
    rows = case.examples.rows(chosen)
    np.testing.assert_allclose(found[rows], whole[rows], atol=1e-5)
    assert np.isnan(np.delete(found, rows, axis=0)).all()


def test_padding_holds_nothing(case):
    """Rows that hold no utterance may hold anything."""
    block = block_of(case.examples)
    assert not block.real.all()
    before = np.asarray(case.apply(case.params, block.features, block))

    def spoilt(x):
        return np.where(block.real[:, None], x, 7.0).astype(np.float32)

    features = {name: spoilt(x) for name, x in block.features.features.items()}
    spoilt_inputs = Modalities(features, block.features.present)
    after = np.asarray(case.apply(case.params, spoilt_inputs, block))
    np.testing.assert_array_equal(after[block.real], before[block.real])


def test_the_order_of_turns_is_seen(three):
    """Attention alone would not tell it."""
    complete = examples_of(MODALITIES)
    rows = complete.rows(np.array([2]))  # two turns, which change places
    order = np.arange(N)
    order[rows] = rows[::-1]
    complete = dataclasses.replace(complete, speaker_number=np.zeros(N, np.int32))
    turned = dataclasses.replace(
        complete, features=jax.tree.map(lambda x: x[order], complete.features)
    )
    before, after = three(complete), three(turned)
    assert (np.abs(after[order] - before)[rows].max(axis=1) > 1e-3).all()
    others = np.setdiff1d(np.arange(N), rows)
    np.testing.assert_array_equal(after[others], before[others])


def test_speakers_beyond_the_embeddings_share_the_last(three):
    """Who speaks is seen; names are not, as numbers are by appearance."""
    assert three.examples.speaker_number.max() == EMBEDDINGS
    clipped = dataclasses.replace(
        three.examples, speaker_number=np.minimum(three.examples.speaker_number, EMBEDDINGS - 1)
    )
    before = three(three.examples)
    np.testing.assert_array_equal(three(clipped), before)
    one = dataclasses.replace(three.examples, speaker_number=np.zeros(N, np.int32))
    alone = three.examples.rows(np.array([1]))
    heard = np.any(list(three.examples.features.present.values()), axis=0)
    changed = np.abs(three(one) - before).max(axis=1) > 1e-3
    assert not changed[alone].any()
    assert changed[heard & ~np.isin(np.arange(N), alone)].all()


# What is missing


def test_what_is_not_there_is_not_looked_at(three):
    """Features of a missing modality may be anything, to the utterance itself and to others."""
    before = three(three.examples)
    for name in MODALITIES:
        missing = ~three.examples.features.present[name]
        assert missing.any()
        features = np.where(missing[:, None], 1e4, three.examples.features.features[name])
        after = three(with_modality(three.examples, name, features.astype(np.float32)))
        np.testing.assert_array_equal(after, before)


def test_a_dialogue_without_audio(three):
    complete = examples_of(MODALITIES)
    rows = complete.rows(np.array([3]))
    present = np.ones(N, bool)
    present[rows] = False
    without = with_modality(complete, "audio", present=present)
    assert_by_hand(three, without)
    before, after = three(complete), three(without)
    others = np.setdiff1d(np.arange(N), rows)
    np.testing.assert_array_equal(after[others], before[others])
    assert (np.abs(after - before)[rows].max(axis=1) > 1e-3).all()


def test_nothing_is_there(case):
    """Vectors are 0, and the gradient is finite."""
    nothing = case.examples
    for name in case.names:
        nothing = with_modality(nothing, name, present=np.zeros(N, bool))
    np.testing.assert_array_equal(case(nothing), 0)
    block = block_of(nothing)

    def total(params):
        return jnp.sum(case.fusion.apply(params, block.features, block) ** 2)

    chex.assert_tree_all_finite(jax.jit(jax.grad(total))(case.params))


# Training


def test_the_gradient_reaches_every_part(case):
    block = block_of(case.examples)
    weights = np.random.default_rng(0).normal(size=(len(block.real), D))

    @jax.jit
    def gradient(params):
        def total(params):
            h = case.fusion.apply(params, block.features, block)
            return jnp.sum(jnp.where(block.real[:, None], weights * h, 0.0))

        return jax.grad(total)(params)

    for path, leaf in jax.tree.leaves_with_path(gradient(case.params)):
        names = [key.key for key in path]
        assert np.isfinite(leaf).all(), names
        if names[-2:] == ["key", "bias"]:  # a softmax does not see it
            assert np.abs(leaf).max() < 1e-3
        else:
            assert np.abs(leaf).max() > 1e-3, names


@pytest.mark.slow
def test_dropout_belongs_to_utterances():
    """Not to their places in arrays: blocks of devices drop what one block drops."""
    names = ("text", "visual")
    fusion, examples = fusion_of(names, dropout=0.4), examples_of(names)
    block = block_of(examples)
    params = drawn_parameters(fusion.init, block.features, block)

    @jax.jit
    def run(batch, key):
        return jax.vmap(lambda b: fusion.apply(params, b.features, b, key))(batch)

    def vectors(n_blocks, key):
        batch = examples.batch(ALL, n_blocks)
        found = np.zeros((N, D), np.float32)
        found[batch.ids[batch.real]] = np.asarray(run(batch, key))[batch.real]
        return found

    one = vectors(1, jax.random.key(3))
    np.testing.assert_allclose(vectors(2, jax.random.key(3)), one, atol=1e-5)
    other = vectors(1, jax.random.key(4))
    assert (np.abs(other - one).max(axis=1) > 1e-2).all()
    plain = vectors(1, None)
    assert (np.abs(plain - one).max(axis=1) > 1e-2).all()


# Places


def test_positions_count_within_dialogues():
    lengths = [3, 7, 1, 2, 6]
    layout = pack_sequences(np.repeat(np.arange(5), lengths), n_padded=24)
    assert layout.index.shape[1] < 5  # several share a row
    found = np.asarray(positions(layout))
    assert found.dtype == np.int32
    assert found[:19].tolist() == [place for n in lengths for place in range(n)]


@pytest.mark.parametrize("width", [6, 7])
def test_sinusoids(width):
    found = np.asarray(sinusoids(50, width))
    chex.assert_shape(found, (50, width))
    for place in (0, 1, 49):
        for channel in range(width):
            angle = place / 10_000 ** (2 * (channel // 2) / width)
            expected = np.cos(angle) if channel % 2 else np.sin(angle)
            assert found[place, channel] == pytest.approx(expected, abs=1e-5)
