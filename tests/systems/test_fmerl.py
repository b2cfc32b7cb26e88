import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from erc_jax import metrics
from erc_jax.config import base_config
from erc_jax.data.batching import make_examples
from erc_jax.data.dialogue import MODALITIES, VAD
from erc_jax.data.labels import LabelSpace
from erc_jax.data.modalities import Modalities
from erc_jax.errors import UserError
from erc_jax.losses import contrast
from erc_jax.predictor import Predictor
from erc_jax.sharding import make_mesh
from erc_jax.steps import first_state, make_optimizers, make_train_step
from erc_jax.systems import REFERENCE, make_system
from erc_jax.workdir import labels_from_json, labels_to_json
from tests.tiny import drawn_parameters

WIDTHS = {"text": 12, "audio": 7, "visual": 5}
LENGTHS = [5, 1, 9, 3, 1, 7, 2]
ALL = np.arange(len(LENGTHS))
N = sum(LENGTHS)
SCALE = (1.0, 5.0)
E = 10  # width of the descriptions' vectors
SMALL = {
    "system": "fmerl",
    "model__dropout": 0.0,
    "fmerl__width": 16,
    "fmerl__heads": 4,
    "fmerl__ffn": 12,
    "fmerl__speakers": 2,
    "fmerl__temperature": 0.5,
}


class Phrases:
    """In place of a text encoder: a phrase's vector is drawn by its letters."""

    def __init__(self, width=E):
        self.width = width
        self.asked = []

    def encode(self, phrases, normalize):
        assert normalize
        self.asked.append(tuple(phrases))
        vectors = [np.random.default_rng(list(p.encode())).normal(size=self.width) for p in phrases]
        unit = np.stack(vectors) / np.linalg.norm(vectors, axis=-1, keepdims=True)
        return unit.astype(np.float32)


def phrases_of(emotions):
    return {emotion: f"how {emotion} feels" for emotion in emotions}


@pytest.fixture(scope="module")
def space(labels):
    """The four emotions with descriptions, and the scale of ratings."""
    return dataclasses.replace(labels, descriptions=phrases_of(labels.emotions), vad_scale=SCALE)


def system_with(space, encoder=None, **fields):
    config = base_config()
    config.update_from_flattened_dict(
        {key.replace("__", "."): value for key, value in (SMALL | fields).items()}
    )
    return make_system(config, space, encoder or Phrases())


def rated(dialogues, seed=0, missing=0.3):
    """Ratings by chance; some utterances have none or not all, some ratings are off the scale."""
    rng = np.random.default_rng(seed)

    def rating():
        values = rng.uniform(*SCALE, 3).round(2)
        values[rng.random(3) < 0.1] = SCALE[1] + 0.5
        some = dict(zip(VAD, values.tolist(), strict=True))
        if rng.random() < 0.1:
            del some["arousal"]
        return some

    return [
        dataclasses.replace(
            dialogue,
            utterances=tuple(
                dataclasses.replace(u, vad=None if rng.random() < missing else rating())
                for u in dialogue.utterances
            ),
        )
        for dialogue in dialogues
    ]


def examples_of(system, dialogues, names=("text",), missing=0.0, seed=0):
    rng = np.random.default_rng(seed)
    n = sum(len(d.utterances) for d in dialogues)
    present = {name: rng.random(n) >= missing for name in names}
    features = {
        name: rng.normal(size=(n, WIDTHS[name])).astype(np.float32) * present[name][:, None]
        for name in names
    }
    return make_examples(dialogues, Modalities(features, present), system.targets(dialogues))


@pytest.fixture(scope="module")
def dialogues(random_dialogues):
    """Three speakers, of whom two have an embedding."""
    return rated(random_dialogues(LENGTHS, unlabelled=0.2))


class Case:
    """A system with examples and parameters."""

    def __init__(self, space, dialogues, names=("text", "audio"), missing=0.3, **fields):
        self.system = system_with(space, fmerl__modalities=tuple(names), **fields)
        self.examples = examples_of(self.system, dialogues, names, missing)
        self.params = drawn_parameters(self.system.init, self.examples.batch(ALL))
        self._predict = jax.jit(self.system.predict)
        self._step = jax.jit(jax.value_and_grad(self.system.loss, has_aux=True))

    def predict(self, examples=None, chosen=ALL, n_blocks=1):
        """What is predicted of the utterances of the chosen dialogues, in that order."""
        batch = (examples or self.examples).batch(chosen, n_blocks)
        order = np.argsort(batch.ids[batch.real])
        outputs = jax.device_get(self._predict(self.params, batch))
        return {name: values[batch.real][order] for name, values in outputs.items()}

    def step(self, examples=None, n_blocks=1, key=None):
        """Loss, its parts, and the gradient."""
        key = jax.random.key(0) if key is None else key
        batch = (examples or self.examples).batch(ALL, n_blocks)
        (value, parts), gradient = jax.device_get(self._step(self.params, batch, key))
        return float(value), {name: float(part) for name, part in parts.items()}, gradient


@pytest.fixture(scope="module")
def case(space, dialogues):
    return Case(space, dialogues)


def change(examples, name, features=None, present=None):
    """The same examples, but for a modality."""
    there = examples.features
    new = Modalities(
        {**there.features, name: there.features[name] if features is None else features},
        {**there.present, name: there.present[name] if present is None else present},
    )
    return dataclasses.replace(examples, features=new)


def relabelled(examples, **labels):
    return dataclasses.replace(examples, labels={**examples.labels, **labels})


def largest(tree):
    return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


# Sizes


@pytest.mark.parametrize("names", [("visual",), ("audio", "text"), MODALITIES], ids=len)
def test_shapes(space, dialogues, names):
    system = system_with(space, fmerl__modalities=names)
    batch = examples_of(system, dialogues, names).batch(ALL, n_blocks=2)
    params = jax.eval_shape(system.init, jax.random.key(0), batch)
    assert set(params) == {"fusion", "projection", *VAD}
    encoders = [name for name in params["fusion"] if "_to_" in name and "gate" not in name]
    assert len(encoders) == len(names) ** 2
    outputs = jax.eval_shape(system.predict, params, batch)
    assert set(outputs) == {"emotion", "similarity", "vad"}
    for name, width in (("emotion", 4), ("similarity", 4), ("vad", 3)):
        chex.assert_shape(outputs[name], (*batch.real.shape, width))
        assert outputs[name].dtype == jnp.float32
    chex.assert_shape(batch.labels["vad"], (*batch.real.shape, 3))
    loss, parts = jax.eval_shape(system.loss, params, batch, jax.random.key(0))
    chex.assert_shape([loss, *parts.values()], ())
    assert set(parts) == {"contrast", "negatives", *VAD}


@pytest.mark.parametrize(("layers", "millions"), [(2, 85.94), (1, 82.79)])
def test_the_papers_parameters(space, dialogues, layers, millions):
    """With IEMOCAP's features; the paper says 83 million."""
    system = system_with(
        space,
        Phrases(1024),
        fmerl__modalities=MODALITIES,
        fmerl__width=1024,
        fmerl__ffn=1024,
        fmerl__heads=8,
        fmerl__speakers=0,
        fmerl__vad__hidden_layers=layers,
    )
    widths = {"text": 1024, "audio": 1582, "visual": 342}
    blank = Modalities(
        {name: np.zeros((1, width), np.float32) for name, width in widths.items()},
        {name: np.ones(1, bool) for name in widths},
    )
    examples = make_examples(dialogues[1:2], blank, {})
    params = jax.eval_shape(system.init, jax.random.key(0), examples.batch(ALL[:1]))
    assert "projection" not in params  # vectors are as wide as the descriptions'
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == pytest.approx(millions * 1e6, rel=1e-3)


# What it computes


def test_outputs_are_those_of_the_equations(space, case):
    """From H on, in numpy: equations 2, 4 and 8."""
    system, p, examples = case.system, case.params, case.examples
    block = jax.tree.map(lambda x: x[0], examples.batch(ALL))
    text = block.features.features["text"]
    normed = (text - text.mean(-1, keepdims=True)) / np.sqrt(text.var(-1, keepdims=True) + 1e-5)
    inputs = Modalities({**block.features.features, "text": normed}, block.features.present)
    fusion = system._model.fusion
    h = np.asarray(jax.jit(fusion.apply)({"params": p["fusion"]}, inputs, block))[:N]
    found = case.predict()

    f = h @ p["projection"]["kernel"]
    vectors = Phrases().encode([space.descriptions[e] for e in space.emotions], normalize=True)
    vectors -= vectors.mean(axis=0)
    heard = np.any([x[:N] for x in block.features.present.values()], axis=0)
    assert not heard.all()  # f is 0 there, and so are the cosines
    lengths = np.linalg.norm(f, axis=-1)[:, None] * np.linalg.norm(vectors, axis=-1)
    cosines = np.where(heard[:, None], f @ vectors.T / np.where(lengths > 0, lengths, 1), 0)
    np.testing.assert_allclose(found["similarity"], cosines, atol=1e-5)
    exps = np.exp(cosines / 0.5)
    np.testing.assert_allclose(found["emotion"], exps / exps.sum(-1, keepdims=True), atol=1e-5)
    assert np.abs(found["similarity"]).max() > 0.5

    for number, dimension in enumerate(VAD):
        x = h
        for layer in ("hidden_1", "hidden_2", "output"):
            x = x @ p[dimension][layer]["kernel"] + p[dimension][layer]["bias"]
            x = 1 / (1 + np.exp(-x)) if layer == "output" else np.maximum(x, 0)
        np.testing.assert_allclose(found["vad"][:, number], x[:, 0], atol=1e-5)


def test_the_loss_is_that_of_the_equations(case):
    """Equations 3, 9 and 10, from what is predicted."""
    outputs, labels = case.predict(), case.examples.labels
    value, parts, _ = case.step()
    l1, l2 = contrast(jnp.asarray(outputs["similarity"]), labels["emotion"], 0.5)
    expected = {"contrast": float(l1), "negatives": float(l2)}
    for number, dimension in enumerate(VAD):
        target = labels["vad"][:, number]
        known = target >= 0
        assert 0 < known.sum() < N
        errors = outputs["vad"][known, number] - target[known]
        expected[dimension] = np.mean(errors**2)
    assert parts == pytest.approx(expected, rel=1e-5)
    total = sum(expected[d] for d in VAD) + expected["contrast"] + 0.5 * expected["negatives"]
    assert value == pytest.approx(total, rel=1e-5)
    assert min(expected.values()) > 0.01


def test_what_is_described(case, dialogues):
    outputs = case.predict()
    here = slice(5, 6)
    (found,) = case.system.describe(dialogues[1], {k: v[here] for k, v in outputs.items()})
    emotions = case.system.tasks[0].classes
    assert set(found) == {"emotion", "probabilities", "similarity", "vad"}
    assert found["similarity"] == dict(
        zip(emotions, outputs["similarity"][5].tolist(), strict=True)
    )
    assert found["emotion"] == max(found["similarity"], key=found["similarity"].get)
    assert sum(found["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
    # On the scale of the ratings.
    expected = 1 + 4 * outputs["vad"][5].astype(np.float64)
    assert found["vad"] == pytest.approx(dict(zip(VAD, expected, strict=True)))


# What changes nothing


@pytest.mark.parametrize("n_blocks", [1, 4])
@pytest.mark.parametrize("chosen", [ALL, ALL[::-1], np.array([3, 0])], ids=str)
def test_packing_changes_nothing(case, chosen, n_blocks):
    """Not the order of dialogues, their company, padding, or blocks."""
    whole = case.predict()
    found = case.predict(chosen=chosen, n_blocks=n_blocks)
    rows = case.examples.rows(chosen)
    for name, values in whole.items():
        np.testing.assert_allclose(found[name], values[rows], atol=1e-5)


def test_blocks_change_neither_loss_nor_gradient(case):
    value, parts, gradient = case.step()
    other = case.step(n_blocks=4)
    assert other[0] == pytest.approx(value, rel=1e-5)
    assert other[1] == pytest.approx(parts, rel=1e-5)
    chex.assert_trees_all_close(other[2], gradient, atol=1e-5)


def test_no_dialogue_influences_another(case):
    before = case.predict()
    rows = case.examples.rows(np.array([2]))
    changed = case.examples
    for name in changed.features.features:
        features = changed.features.features[name].copy()
        features[rows] += np.random.default_rng(5).normal(size=features[rows].shape)
        changed = change(changed, name, features.astype(np.float32))
    after = case.predict(changed)
    others = np.setdiff1d(np.arange(N), rows)
    for name, values in before.items():
        np.testing.assert_array_equal(after[name][others], values[others])
        assert np.abs(after[name] - values)[rows].max() > 1e-2


def test_names_of_speakers_change_nothing(case, dialogues):
    names = {"s0": "zoe", "s1": "adam", "s2": "Åsa"}
    renamed = [
        dataclasses.replace(
            d, utterances=[dataclasses.replace(u, speaker=names[u.speaker]) for u in d.utterances]
        )
        for d in dialogues
    ]
    features = case.examples.features
    other = make_examples(renamed, features, case.examples.labels)
    chex.assert_trees_all_equal(case.predict(other), case.predict())
    # Who speaks is heard, and there are more of them than embeddings.
    assert case.examples.speaker_number.max() == 2
    alone = [
        dataclasses.replace(
            d, utterances=[dataclasses.replace(u, speaker="s0") for u in d.utterances]
        )
        for d in dialogues
    ]
    other = make_examples(alone, features, case.examples.labels)
    assert np.abs(case.predict(other)["similarity"] - case.predict()["similarity"]).max() > 1e-2


# What is missing


def test_a_missing_modality_is_not_looked_at(case):
    before = case.predict(), case.step()
    missing = ~case.examples.features.present["audio"]
    assert 0 < missing.sum() < N
    features = np.where(missing[:, None], 1e3, case.examples.features.features["audio"])
    other = change(case.examples, "audio", features.astype(np.float32))
    chex.assert_trees_all_equal((case.predict(other), case.step(other)), before)


def test_utterances_without_anything(case):
    """Outputs, loss and gradient are finite, and no emotion is more likely than another."""
    nothing = case.examples
    for name in nothing.features.present:
        nothing = change(nothing, name, present=np.zeros(N, bool))
    outputs = case.predict(nothing)
    chex.assert_tree_all_finite(outputs)
    np.testing.assert_array_equal(outputs["similarity"], 0)
    np.testing.assert_allclose(outputs["emotion"], 0.25, atol=1e-6)
    chex.assert_tree_all_finite(case.step(nothing))


def test_ratings_that_are_not_there(space, dialogues):
    """No rating, and none on the scale, is -1; the others are brought to [0, 1]."""
    system = system_with(space)
    found = system.targets(dialogues)["vad"]
    assert found.dtype == np.float32
    chex.assert_shape(found, (N, 3))
    off = without = 0
    utterances = [u for d in dialogues for u in d.utterances]
    for row, utterance in zip(found, utterances, strict=True):
        for value, dimension in zip(row, VAD, strict=True):
            rating = (utterance.vad or {}).get(dimension)
            if rating is None or rating > 5:
                off += rating is not None
                without += rating is None and utterance.vad is not None
                assert value == -1
            else:
                assert value == pytest.approx((rating - 1) / 4)
    assert min(off, without) > 0
    assert (np.array(found) == -1).all(axis=1).any()


def test_unrated_utterances_change_no_loss_and_no_gradient(case):
    """What is unrated counts nowhere: its own net learns the same if the others are left out."""
    labels = case.examples.labels
    value, parts, gradient = case.step()
    vad = labels["vad"]
    # Each dimension by itself: valence is taken away, and the others learn the same.
    without = vad.copy()
    without[:, 0] = -1
    value_, parts_, gradient_ = case.step(relabelled(case.examples, vad=without))
    assert parts_.pop("valence") == 0.0
    assert largest(gradient_["valence"]) == 0.0
    assert parts_.items() <= parts.items()
    assert value_ == pytest.approx(value - parts["valence"], rel=1e-5)
    for dimension in ("arousal", "dominance"):
        chex.assert_trees_all_equal(gradient_[dimension], gradient[dimension])
        assert largest(gradient[dimension]) > 1e-3
    # An utterance without rating or label may say anything: its loss is not counted.
    none = np.full_like(vad, -1), np.full(N, -1, np.int32)
    alone = none[0].copy(), none[1].copy()
    at = int(np.flatnonzero((vad >= 0).all(axis=1) & (labels["emotion"] >= 0))[0])
    alone[0][at], alone[1][at] = vad[at], labels["emotion"][at]
    _, parts, _ = case.step(relabelled(case.examples, vad=alone[0], emotion=alone[1]))
    predicted = case.predict()["vad"][at]
    for number, dimension in enumerate(VAD):
        error = float(predicted[number] - vad[at, number]) ** 2
        assert parts[dimension] == pytest.approx(error, rel=1e-4)
    value, _, gradient = case.step(relabelled(case.examples, vad=none[0], emotion=none[1]))
    assert value == 0.0
    assert largest(gradient) == 0.0


def test_emotions_that_the_batch_lacks_take_no_part(case):
    """A batch of one emotion has no negatives: there is nothing to tell apart."""
    emotion = np.where(case.examples.labels["emotion"] >= 0, 2, -1).astype(np.int32)
    _, parts, _ = case.step(relabelled(case.examples, emotion=emotion))
    assert parts["contrast"] == pytest.approx(0, abs=1e-6)
    assert parts["negatives"] == 0.0


# Gradients


def test_the_gradient_reaches_every_part(case):
    _, _, gradient = case.step()
    assert set(gradient) == {"fusion", "projection", *VAD}
    for path, leaf in jax.tree.leaves_with_path(gradient):
        names = [key.key for key in path]
        assert np.isfinite(leaf).all(), names
        if names[-2:] != ["key", "bias"]:  # a softmax does not see it
            assert np.abs(leaf).max() > 1e-6, names


def test_descriptions_stay_as_they_are(case):
    """They are constants: no parameter, and no step moves them."""
    config = base_config()
    config.train.learning_rate = 0.01
    before = case.system._emotion_vectors.copy()
    system = case.system
    optimizers = make_optimizers(config, system.objectives(), 4)
    state = first_state(jax.tree.map(jnp.asarray, case.params), optimizers)
    step = make_train_step(system.objectives(), optimizers)
    losses = []
    for _ in range(4):
        state, parts = step(state, case.examples.batch(ALL), np.uint32(0))
        losses.append(float(parts["loss"]))
    assert losses[-1] < losses[0] - 0.1
    np.testing.assert_array_equal(system._emotion_vectors, before)
    shapes = {leaf.shape for leaf in jax.tree.leaves(state.params)}
    assert before.shape not in shapes
    # As the system computes with them, they are of length 1.
    np.testing.assert_allclose(np.linalg.norm(before, axis=-1), 1, atol=1e-6)


@pytest.mark.slow
def test_dropout_is_drawn_by_the_key(space, dialogues):
    case = Case(space, dialogues, names=("text",), model__dropout=0.4)
    value, *_ = case.step()
    assert case.step(n_blocks=2)[0] == pytest.approx(value, rel=1e-5)
    assert abs(case.step(key=jax.random.key(1))[0] - value) > 1e-3


# The ablations of Table 3, and other switches


def parts_with(space, dialogues, **fields):
    """Loss and parts under a config, with the parameters that it needs; text alone."""
    system = system_with(space, **fields)
    examples = examples_of(system, dialogues)
    whole = drawn_parameters(system_with(space).init, examples.batch(ALL))
    shapes = jax.eval_shape(system.init, jax.random.key(0), examples.batch(ALL))
    params = {name: whole[name] for name in shapes}
    chex.assert_trees_all_equal_shapes(params, shapes)
    value, parts = jax.jit(system.loss)(params, examples.batch(ALL), jax.random.key(0))
    return float(value), {name: float(part) for name, part in parts.items()}


@pytest.fixture(scope="module")
def whole(space, dialogues):
    return parts_with(space, dialogues)


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_without_triple_loss(space, dialogues, whole, weight):
    """The negatives' part still is shown, but weighs otherwise; 0 leaves it out."""
    value, parts = parts_with(space, dialogues, fmerl__lambda_negative=weight)
    assert parts == pytest.approx(whole[1])
    assert value == pytest.approx(whole[0] + (weight - 0.5) * parts["negatives"], rel=1e-5)
    assert parts["negatives"] > 0.1


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_the_weight_of_the_triple_loss(space, dialogues, whole, weight):
    value, parts = parts_with(space, dialogues, fmerl__lambda_triple=weight)
    triple = parts["contrast"] + 0.5 * parts["negatives"]
    assert value == pytest.approx(whole[0] + (weight - 1) * triple, rel=1e-5)


@pytest.mark.parametrize("left_out", [*VAD, "all"])
def test_without_a_dimension(space, dialogues, whole, left_out):
    """Its net is not there; what else there is is as before."""
    dimensions = tuple(d for d in VAD if left_out not in (d, "all"))
    value, parts = parts_with(space, dialogues, fmerl__vad__dimensions=dimensions)
    assert set(parts) == {"contrast", "negatives", *dimensions}
    assert parts == pytest.approx({name: whole[1][name] for name in parts})
    gone = sum(whole[1][d] for d in VAD if d not in dimensions)
    assert value == pytest.approx(whole[0] - gone, rel=1e-5)
    system = system_with(space, fmerl__vad__dimensions=dimensions)
    assert system.notes == ()
    assert ("vad" in system.targets(dialogues)) == bool(dimensions)
    batch = examples_of(system, dialogues).batch(ALL)
    params = jax.eval_shape(system.init, jax.random.key(0), batch)
    assert set(params) == {"fusion", "projection", *dimensions}
    outputs = jax.eval_shape(system.predict, params, batch)
    if dimensions:
        chex.assert_shape(outputs["vad"], (*batch.real.shape, 2))
    else:
        assert set(outputs) == {"emotion", "similarity"}


def test_dimensions_are_told_apart_whatever_their_order(space, dialogues, whole):
    """Of some of them, in another order, each meets its own ratings."""
    order = ("dominance", "valence")
    _, parts = parts_with(space, dialogues, fmerl__vad__dimensions=order)
    assert parts == pytest.approx({name: whole[1][name] for name in parts})
    system = system_with(space, fmerl__vad__dimensions=order)
    ratings = np.array([[0.25, 1.0]], np.float32)
    even = np.full((1, 4), 0.25, np.float32)
    (found,) = system.describe(dialogues[1], {"emotion": even, "similarity": even, "vad": ratings})
    assert found["vad"] == {"dominance": 2.0, "valence": 5.0}


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_hidden_layers_of_the_nets(space, dialogues, layers):
    system = system_with(space, fmerl__vad__hidden_layers=layers)
    batch = examples_of(system, dialogues).batch(ALL)
    params = jax.eval_shape(system.init, jax.random.key(0), batch)
    for dimension in VAD:
        hidden = {f"hidden_{number}" for number in range(1, layers + 1)}
        assert set(params[dimension]) == {*hidden, "output"}
        for name in hidden:
            chex.assert_shape(params[dimension][name]["kernel"], (16, 16))
        chex.assert_shape(params[dimension]["output"]["kernel"], (16, 1))


def test_without_fine_grained_enhancement(space):
    """The bare names are embedded; or, which is ours, names and phrases."""
    some = {e: p for e, p in space.descriptions.items() if e != "joy"}
    for described in (space.descriptions, some):
        phrases = tuple(described.get(e, e) for e in space.emotions)
        # An emotion that nothing describes is known by its name in any case.
        named = tuple(
            f"{e}: {p}" if p != e else e for e, p in zip(space.emotions, phrases, strict=True)
        )
        for form, expected in (
            ("phrase", phrases),
            ("name", space.emotions),
            ("named_phrase", named),
        ):
            encoder = Phrases()
            labels = dataclasses.replace(space, descriptions=described)
            system_with(labels, encoder, fmerl__descriptions=form)
            assert set(encoder.asked) == {expected}


def test_both_readings_of_negatives(space, dialogues, whole):
    value, parts = parts_with(space, dialogues, fmerl__negatives="in_batch")
    assert parts["contrast"] > whole[1]["contrast"] + 0.5  # many more negatives
    for name in ("negatives", *VAD):
        assert parts[name] == pytest.approx(whole[1][name])
    assert value == pytest.approx(whole[0] + parts["contrast"] - whole[1]["contrast"], rel=1e-5)


def test_temperature(space, dialogues, case, whole):
    _, parts = parts_with(space, dialogues, fmerl__temperature=0.1)
    assert abs(parts["contrast"] - whole[1]["contrast"]) > 0.1
    assert parts["negatives"] == pytest.approx(whole[1]["negatives"])
    cold = system_with(space, fmerl__modalities=("text", "audio"), fmerl__temperature=0.1)
    batch = case.examples.batch(ALL)
    found = jax.device_get(jax.jit(cold.predict)(case.params, batch))
    before = case.predict()
    np.testing.assert_allclose(found["similarity"][batch.real], before["similarity"], atol=1e-6)
    odds = np.exp(before["similarity"] / 0.1)
    np.testing.assert_allclose(
        found["emotion"][batch.real], odds / odds.sum(-1, keepdims=True), rtol=1e-4, atol=1e-6
    )


def test_descriptions_without_what_they_share(space):
    plain = Phrases().encode([space.descriptions[e] for e in space.emotions], normalize=True)
    found = system_with(space, fmerl__centred=False)._emotion_vectors
    np.testing.assert_allclose(found, plain, atol=1e-6)
    centred = plain - plain.mean(axis=0)
    found = system_with(space)._emotion_vectors
    np.testing.assert_allclose(
        found, centred / np.linalg.norm(centred, axis=-1, keepdims=True), atol=1e-6
    )


def test_what_is_held_out_has_no_share_in_that(space):
    """Whatever describes the unseen emotion, the others' vectors are the same."""
    others = {**space.descriptions, "joy": "quite another phrase"}
    found = [
        system_with(dataclasses.replace(space, descriptions=d), zero_shot__unseen="joy")
        for d in (space.descriptions, others)
    ]
    vectors = [system._emotion_vectors for system in found]
    joy = space.emotions.index("joy")
    same = np.abs(vectors[1] - vectors[0]).max(axis=-1) < 1e-6
    assert same.tolist() == [i != joy for i in range(4)]
    plain = Phrases().encode([space.descriptions[e] for e in space.emotions], normalize=True)
    centred = plain - np.delete(plain, joy, axis=0).mean(axis=0)
    centred /= np.linalg.norm(centred, axis=-1, keepdims=True)
    np.testing.assert_allclose(vectors[0], centred, atol=1e-6)


def test_without_ratings(labels, dialogues):
    """VAD is left out, which is said."""
    bare = dataclasses.replace(labels, descriptions=phrases_of(labels.emotions))
    system = system_with(bare)
    assert "No utterance is rated" in system.notes[0]
    assert "--mode annotate" in system.notes[0]
    batch = examples_of(system, dialogues).batch(ALL)
    assert set(jax.eval_shape(system.init, jax.random.key(0), batch)) == {"fusion", "projection"}
    assert set(batch.labels) == {"emotion"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fmerl__heads": 5}, "fmerl.heads is 5, which does not divide fmerl.width, 16"),
        ({"fmerl__modalities": ()}, "fmerl.modalities is empty; expected some of text, audio, v"),
        ({"train__class_weights": "balanced"}, "train.class_weights is for classifiers"),
    ],
    ids=lambda x: min(x) if isinstance(x, dict) else "",
)
def test_fields_that_do_not_fit(space, fields, message):
    with pytest.raises(UserError, match=message):
        system_with(space, **fields)


class Deaf(Phrases):
    """To whom all words are the same."""

    def encode(self, phrases, normalize):
        return super().encode(["unknown"] * len(phrases), normalize)


@pytest.mark.filterwarnings("error")
def test_descriptions_that_tell_nothing(space):
    """Without what they share, nothing is left to compare with."""
    with pytest.raises(UserError, match="anger, joy, neutral, fear are embedded alike"):
        system_with(space, Deaf())
    one = {**space.descriptions, "fear": space.descriptions["joy"]}
    with pytest.raises(UserError, match="descriptions of joy, fear are embedded alike"):
        system_with(dataclasses.replace(space, descriptions=one))


# Other emotions


def test_other_emotions_are_named(space, case):
    """Trained ones among them are as similar as they were, and the system itself stays."""
    before = case.predict()
    new = LabelSpace(
        ("relief", "joy", "envy"),
        descriptions=phrases_of(("relief", "envy")) | {"joy": space.descriptions["joy"]},
        vad_scale=SCALE,
    )
    other = case.system.with_emotions(new)
    assert [(task.name, task.classes) for task in other.tasks] == [("emotion", new.emotions)]
    batch = case.examples.batch(ALL)
    found = jax.device_get(jax.jit(other.predict)(case.params, batch))
    found = {name: values[batch.real] for name, values in found.items()}
    chex.assert_shape(found["emotion"], (N, 3))
    joy = space.emotions.index("joy")
    np.testing.assert_allclose(found["similarity"][:, 1], before["similarity"][:, joy], atol=1e-6)
    np.testing.assert_array_equal(found["vad"], before["vad"])
    described = other.describe(None, {name: values[:1] for name, values in found.items()})
    assert set(described[0]["similarity"]) == set(described[0]["probabilities"]) == {*new.emotions}
    assert 1 <= described[0]["vad"]["valence"] <= 5
    assert case.system.tasks[0].classes == space.emotions
    chex.assert_trees_all_equal(case.predict(), before)


def test_labels_are_kept_with_a_checkpoint(space):
    import json

    for labels in (space, LabelSpace(("a", "b"))):
        assert labels_from_json(json.loads(json.dumps(labels_to_json(labels)))) == labels


# Scores


def runner(system):
    return Predictor(system, make_mesh(jax.devices()[:1]), 8).run


def test_agreement_is_on_the_scale(case):
    outputs = case.predict()
    scores = case.system.further_scores(case.params, runner(case.system), case.examples)
    assert set(scores) == {"vad"}
    for number, dimension in enumerate(VAD):
        target = case.examples.labels["vad"][:, number]
        known = target >= 0
        expected = metrics.agreement(1 + 4 * target[known], 1 + 4 * outputs["vad"][known, number])
        assert scores["vad"][dimension] == pytest.approx(expected, abs=1e-5)
        assert expected["mse"] > 0.1
    # A dimension without ratings has no score.
    vad = case.examples.labels["vad"].copy()
    vad[:, 1] = -1
    some = relabelled(case.examples, vad=vad)
    found = case.system.further_scores(case.params, runner(case.system), some)
    assert set(found["vad"]) == {"valence", "dominance"}
    none = relabelled(case.examples, vad=np.full_like(vad, -1))
    assert case.system.further_scores(case.params, runner(case.system), none) == {}


def test_zero_shot_scores_where_the_unseen_is(space, dialogues, case):
    system = system_with(space, fmerl__modalities=("text", "audio"), zero_shot__unseen="fear,joy")
    scores = system.further_scores(case.params, runner(system), case.examples)
    predicted = runner(system)(system.predict, case.params, case.examples)["emotion"].argmax(-1)
    counts = metrics.confusion(case.examples.labels["emotion"], predicted, 4)
    assert scores["zero_shot"] == metrics.zero_shot(counts, [3, 1])
    emotion = case.examples.labels["emotion"]
    seen = relabelled(case.examples, emotion=np.where(np.isin(emotion, [1, 3]), -1, emotion))
    assert set(system.further_scores(case.params, runner(system), seen)) == {"vad"}


# The lead of trained emotions, where others are held out


def fitted(space, case, **fields):
    """A system that does not know fear, with its reference, and what it predicts."""
    system = system_with(
        space, fmerl__modalities=("text", "audio"), zero_shot__unseen="fear", **fields
    )
    assert system.has_reference
    run = runner(system)
    params = system.fit_reference(case.params, run, None, case.examples)
    return system, params, run(system.predict, params, case.examples)


@pytest.mark.parametrize("give_up", [0.2, 0.5, 0.95])
def test_so_much_of_trained_emotions_is_given_up(space, case, give_up):
    """Of those utterances that get the right one, if only trained ones are asked for."""
    system, params, found = fitted(space, case, zero_shot__give_up=give_up)
    cosines, labels = found["similarity"], case.examples.labels["emotion"]
    plain = runner(system)(system.predict, case.params, case.examples)
    np.testing.assert_array_equal(cosines, plain["similarity"])
    right = cosines[:, :3].argmax(-1) == labels
    n = right.sum()
    assert n >= 5

    def lost(lead):
        return np.sum(cosines[right, 3] > cosines[right][:, :3].max(-1) - lead)

    lead = float(params[REFERENCE]["lead"])
    assert lost(lead) <= give_up * n < lost(lead + 2e-5)
    # The others are lowered by it, and probabilities are of what is left.
    odds = np.exp((cosines - lead * (np.arange(4) < 3)) / 0.5)
    np.testing.assert_allclose(found["emotion"], odds / odds.sum(-1, keepdims=True), atol=1e-5)


def test_without_a_right_answer_there_is_no_lead(space, case):
    system, *_ = fitted(space, case)
    bare = relabelled(case.examples, emotion=np.full(N, -1, np.int32))
    params = system.fit_reference(case.params, runner(system), None, bare)
    assert float(params[REFERENCE]["lead"]) == 0.0


def test_the_lead_is_taken_from_trained_emotions_alone(space, case):
    """Whichever are named: one that training never saw keeps its cosine."""
    system, params, _ = fitted(space, case, zero_shot__give_up=0.9)
    lead = float(params[REFERENCE]["lead"])
    assert lead > 0.05
    names = ("envy", "joy", "fear")
    other = system.with_emotions(LabelSpace(names, descriptions=phrases_of(names)))
    found = runner(other)(other.predict, params, case.examples)
    odds = np.exp((found["similarity"] - lead * np.array([0, 1, 0])) / 0.5)
    np.testing.assert_allclose(found["emotion"], odds / odds.sum(-1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize(
    "fields", [{}, {"zero_shot__unseen": "fear", "zero_shot__give_up": 0.0}], ids=str
)
def test_no_lead_is_taken(space, fields):
    assert not system_with(space, **fields).has_reference
