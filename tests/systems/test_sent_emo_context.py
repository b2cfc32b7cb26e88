import dataclasses
import functools
import json
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from erc_jax import metrics
from erc_jax.config import base_config
from erc_jax.data.batching import make_examples
from erc_jax.data.dialogue import load_dialogues
from erc_jax.data.labels import LabelSpace
from erc_jax.errors import UserError
from erc_jax.evaluate import evaluate_file, evaluate_split
from erc_jax.experiment import prepare
from erc_jax.layers.transformer import TransformerLayer
from erc_jax.losses import batch_class_weights
from erc_jax.predict import Recognizer
from erc_jax.predictor import Predictor
from erc_jax.sharding import make_mesh, over_blocks, replicated
from erc_jax.steps import first_state, make_optimizers, make_train_step
from erc_jax.systems import HEAD, REFERENCE, make_system
from erc_jax.systems.sent_emo_context import PRIOR_POWERS, WAYS, WINDOW
from erc_jax.train import Trainer, train
from erc_jax.triplets import SCORES as VERIFIED
from erc_jax.triplets import verification_with_chance
from erc_jax.workdir import load_run
from tests.tiny import QUESTION, SCORES, WORDS, moved_parameters, tiny_config

D = 16
LENGTHS = [5, 1, 17, 3, 1, 7, 2, 31]
ALL = np.arange(len(LENGTHS))
N = sum(LENGTHS)
FORMS = ("utterances", "dialogue_vector")
EMOTION = HEAD + "emotion"
SMALL = {
    "system": "sent_emo_context",
    "sent_emo_context__heads": 4,
    "sent_emo_context__ffn": 32,
    "sent_emo_context__width": 12,
    "sent_emo_context__neighbours": 5,
    "sent_emo_context__memory": 8,
}


def config_with(**fields):
    config = base_config()
    fields = {"model__dropout": 0.0} | SMALL | fields
    config.update_from_flattened_dict({key.replace("__", "."): v for key, v in fields.items()})
    return config


def system_with(labels, **fields):
    return make_system(config_with(**fields), labels)


def form_of(labels, form, **fields):
    return system_with(labels, sent_emo_context__context=form, **fields)


def examples_of(system, dialogues, seed=0, features=None):
    if features is None:
        n = sum(len(d.utterances) for d in dialogues)
        features = np.random.default_rng(seed).normal(size=(n, D)).astype(np.float32)
    return make_examples(dialogues, features, system.targets(dialogues), system.window)


def runner(system):
    return Predictor(system, make_mesh(jax.devices()[:1]), 8).run


def largest(tree):
    return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def dialogues(random_dialogues):
    return random_dialogues(LENGTHS, unlabelled=0.2)


@pytest.fixture(scope="module", params=FORMS)
def contextual(request, labels, dialogues):
    """A system of each form, its examples, parameters, and jitted vectors [N, D] of a batch."""
    system = form_of(labels, request.param)
    examples = examples_of(system, dialogues)
    params = moved_parameters(system.init, examples.batch(ALL[:1]))
    jitted = jax.jit(system.embed)

    def vectors(examples, chosen=ALL, n_blocks=1):
        """In the order of the split's utterances; NaN where a dialogue was not chosen."""
        batch = examples.batch(chosen, n_blocks)
        found = np.full((examples.n_utterances, D), np.nan, np.float32)
        outputs = np.asarray(jitted(params, batch)["vectors"])
        found[examples.rows(chosen)[batch.ids[batch.real]]] = outputs[batch.real]
        return found

    return system, examples, params, vectors


# Context


def test_no_dialogue_influences_another(contextual):
    system, examples, _, vectors = contextual
    before = vectors(examples)
    assert before.shape == (N, D)
    for dialogue in (1, 2, 7):
        features = examples.features.copy()
        first = examples.starts[dialogue]
        features[first] += 5 * np.random.default_rng(1).normal(size=D)
        after = vectors(dataclasses.replace(examples, features=features))
        # Its own utterances see the change, a dialogue vector's only in the same window.
        own = np.arange(first, examples.starts[dialogue + 1])
        seen = own[: system.window]
        assert (np.abs(after[seen] - before[seen]).max(axis=1) > 1e-4).all()
        others = np.setdiff1d(np.arange(N), seen)
        np.testing.assert_array_equal(after[others], before[others])


def test_packing_changes_nothing(contextual):
    """Not padding, nor the order of the dialogues, nor who else is in the batch, nor blocks."""
    _, examples, _, vectors = contextual
    whole = vectors(examples)
    assert np.isfinite(whole).all()
    np.testing.assert_allclose(vectors(examples, ALL[::-1]), whole, atol=1e-5)
    np.testing.assert_allclose(vectors(examples, ALL, 8), whole, atol=1e-5)
    alone = vectors(examples, np.array([2]))
    here = examples.dialogue_of == 2
    np.testing.assert_allclose(alone[here], whole[here], atol=1e-5)
    assert np.isnan(alone[~here]).all()


def test_dialogue_vectors_are_windows_of_15_through_one_layer(labels, dialogues):
    """The definition, a window at a time."""
    system = form_of(labels, "dialogue_vector", model__normalize_input=False)
    assert system.window == WINDOW == 15
    examples = examples_of(system, dialogues)
    params = moved_parameters(system.init, examples.batch(ALL[:1]))
    found = runner(system)(system.embed, params, examples)["vectors"]
    layer = TransformerLayer(4, 32)
    for start, end in zip(examples.starts[:-1], examples.starts[1:], strict=True):
        for first in range(start, end, 15):
            n = min(15, end - first)
            window = np.zeros((15, D), np.float32)
            window[:n] = examples.features[first : first + n]
            expected = layer.apply(
                {"params": params["context"]["layer"]},
                window.reshape(1, -1),
                None,
                lambda x: x,
                lambda x: x,
            )
            np.testing.assert_allclose(
                found[first : first + n], expected.reshape(15, D)[:n], atol=1e-5
            )


@pytest.mark.parametrize("reach", [0, 2])
def test_distances_tell_the_order_of_turns(labels, random_dialogues, reach):
    """Without them, a dialogue in another order has the same vectors in that order."""
    system = system_with(labels, sent_emo_context__reach=reach)
    examples = examples_of(system, random_dialogues([6, 4]))
    params = moved_parameters(system.init, examples.batch(ALL[:1]))
    order = np.array([0, 3, 1, 2, 5, 4, 6, 7, 8, 9])
    turned = dataclasses.replace(examples, features=examples.features[order])
    run = runner(system)
    before, after = (run(system.embed, params, e)["vectors"] for e in (examples, turned))
    same = np.abs(after - before[order]).max(axis=1) < 1e-5
    assert same[6:].all()  # the other dialogue
    assert same[:6].any() == same.all() == (not reach)


@pytest.mark.parametrize("identity", [True, False])
def test_the_context_may_start_as_the_identity(labels, dialogues, identity):
    """The classifier, pre-trained on the features themselves, then sees what it knows."""
    system = form_of(labels, "utterances", sent_emo_context__starts_as_identity=identity)
    examples = examples_of(system, dialogues[:3])
    params = system.init(jax.random.key(0), examples.batch(ALL[:1]))
    found = runner(system)(system.embed, params, examples)["vectors"]
    same = np.abs(found - jax.nn.standardize(examples.features)).max(axis=1) < 1e-3
    assert same.all() if identity else not same.any()


@pytest.mark.parametrize("form", [*FORMS, "none"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_anchors_vectors_are_those_among_all(labels, dialogues, form, dropout):
    rates = {"model__dropout": dropout, "sent_emo_context__input_dropout": dropout}
    system = form_of(labels, form, **rates)
    examples = examples_of(system, dialogues)
    params = moved_parameters(system.init, examples.batch(ALL[:1]))
    batch = system.training_examples(examples).batch(np.array([0, 3, 9, 9, 30, 60]), 2)
    key = jax.random.key(5) if dropout else None
    vectors = jax.jit(system._vectors)
    found = vectors(params, batch.utterances, batch.anchors, key)
    whole = vectors(params, batch.utterances, None, key)
    there = batch.labels["emotion"] >= 0
    assert there.any()
    expected = np.take_along_axis(np.asarray(whole), batch.anchors[..., None], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # Dropout is drawn by the key.
    key = jax.random.key(6) if dropout else None
    other = vectors(params, batch.utterances, batch.anchors, key)
    assert (np.abs(other - found).max() > 0.1) == bool(dropout)


def test_dialogue_vectors_have_the_paper_s_parameters(random_dialogues):
    """159 million, with MiniLM's vectors of 384, 24 heads, an inner width of 2048, 7 emotions."""
    system = form_of(
        LabelSpace(tuple("abcdefg"), "a"),
        "dialogue_vector",
        sent_emo_context__heads=24,
        sent_emo_context__ffn=2048,
    )
    batch = make_examples(
        random_dialogues([1]), np.zeros((1, 384), np.float32), {}, system.window
    ).batch(ALL[:1])
    shapes = jax.eval_shape(system.init, jax.random.key(0), batch)
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
    assert count == pytest.approx(158.53e6, rel=1e-3)


def test_heads_that_do_not_divide(labels, dialogues):
    system = system_with(labels, sent_emo_context__heads=5)
    with pytest.raises(UserError, match=r"heads is 5, which does not divide .* vectors, 16"):
        system.init(jax.random.key(0), examples_of(system, dialogues).batch(ALL))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sent_emo_context__pretraining_epochs": 100}, "none is left to train the context"),
        (
            {
                "sent_emo_context__network": "mlp",
                "sent_emo_context__triplet__learning_rate": 0.0,
            },
            "mlp learns from triplets alone",
        ),
        ({"train__batch_size": 1024}, "give .*strategy=batch_hard"),
    ],
)
def test_what_cannot_be_trained_is_told_at_once(labels, fields, message):
    with pytest.raises(UserError, match=message):
        system_with(labels, **fields)


# Losses


def drawn(system, examples, size=24, seed=0):
    """The first training batch's utterance numbers, and the anchors' examples."""
    anchors = system.training_examples(examples)
    return anchors, anchors.batches(size, np.random.default_rng(seed))[0]


@functools.cache
def compiled(loss):
    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def gradients(loss, params, batch, key=None):
    key = jax.random.key(0) if key is None else key
    (value, parts), gradient = compiled(loss)(params, batch, key)
    return float(value), parts, gradient


def test_both_losses_reach_the_encoder(contextual):
    system, examples, params, _ = contextual
    anchors, items = drawn(system, examples)
    batch = anchors.batch(items, 2)
    for loss, others in ((system.loss, True), (system.triplets, False)):
        value, _, gradient = gradients(loss, params, batch)
        assert value > 0.1
        assert set(gradient) == {"context", "classifier", EMOTION}
        without = ()
        if system.window:  # the softmax over one vector is 1, whatever query and key are
            without = ("query", "key")
        for name, module in gradient["context"]["layer"].items():
            if name in without:
                assert largest(module) == 0
            else:  # a bias may move all vectors alike
                weights = [leaf for leaf in jax.tree.leaves(module) if leaf.ndim > 1]
                if name.startswith("norm"):
                    weights = module["scale"]
                assert largest(weights) > 1e-5, name
        for name in ("classifier", EMOTION):
            assert (largest(gradient[name]) > 1e-4) if others else largest(gradient[name]) == 0
    # Pre-training looks at the sentence embeddings themselves.
    value, _, gradient = gradients(system.pretraining, params, batch)
    assert value > 0.1
    assert largest(gradient["context"]) == 0
    assert largest(gradient["classifier"]) > 1e-4


def test_the_losses_are_those_of_the_anchors(contextual):
    """Cross-entropy by hand from the probabilities, triplets from the vectors."""
    system, examples, params, vectors = contextual
    anchors, items = drawn(system, examples)
    batch = anchors.batch(items, 2)
    distinct = np.unique(items)
    classes = examples.labels["emotion"][distinct]
    logits = np.asarray(jax.jit(system._logits)(params, vectors(examples)[None]))[0]
    log_p = np.asarray(jax.nn.log_softmax(logits))[distinct, classes]
    weights = np.asarray(batch_class_weights(classes, 4))[classes]
    found, parts, _ = gradients(system.loss, params, batch)
    assert set(parts) == {"cross_entropy"}
    assert found == pytest.approx(-np.average(log_p, weights=weights), rel=1e-4)

    points = vectors(examples)[distinct].astype(np.float64)
    distance = np.linalg.norm(points[:, None] - points, axis=-1)
    same = classes[:, None] == classes
    terms = [
        max(distance[a, p] - distance[a, n] + 1, 0)
        for a in range(len(classes))
        for p in np.flatnonzero(same[a])
        for n in np.flatnonzero(~same[a])
        if p != a
    ]
    found, parts, _ = gradients(system.triplets, params, batch)
    assert set(parts) == {"triplet"}
    assert found == pytest.approx(np.mean(terms), rel=1e-4)


@pytest.mark.parametrize("case", ["one class", "all alone", "none", "one utterance", "equal"])
def test_batches_at_the_edges(contextual, case):
    """Nothing to learn from, and no NaN."""
    system, examples, params, _ = contextual
    anchors, items = drawn(system, examples)
    batch = anchors.batch(items, 2)
    change = {
        "one class": lambda of: np.where(of >= 0, 2, of),
        # The first anchors of the blocks, one of each class.
        "all alone": lambda of: np.pad(
            [[0, 1], [2, 3]], ((0, 0), (0, of.shape[1] - 2)), constant_values=-1
        ),
        "none": lambda of: np.full_like(of, -1),
        "one utterance": lambda of: np.where(np.arange(of.size).reshape(of.shape) < 1, of, -1),
        "equal": lambda of: of,
    }[case]
    labels = change(batch.labels["emotion"]).astype(np.int32)
    batch = dataclasses.replace(batch, labels={**batch.labels, "emotion": labels})
    if case == "equal":  # all vectors are zero
        params = jax.tree.map(jnp.zeros_like, params)
    for loss in (system.pretraining, system.loss, system.triplets):
        value, _, gradient = gradients(loss, params, batch)
        assert np.isfinite(value)
        chex.assert_tree_all_finite(gradient)
        # At one point, all triplets are wrong by the margin.
        learnable = case == "equal" if loss == system.triplets else case != "none"
        assert (value > 0) == learnable


def test_class_weights_of_batch_or_corpus(labels, dialogues):
    losses = {}
    for name, fields in {
        "batch": {},
        "corpus": {"sent_emo_context__batch_weights": False, "train__class_weights": "balanced"},
        "none": {"sent_emo_context__batch_weights": False},
    }.items():
        system = form_of(labels.counted(dialogues), "none", **fields)
        examples = examples_of(system, dialogues)
        params = moved_parameters(system.init, examples.batch(ALL[:1]))
        labelled = np.flatnonzero(examples.labels["emotion"] >= 0)
        batch = system.training_examples(examples).batch(labelled)
        losses[name] = float(jax.jit(system.loss)(params, batch, jax.random.key(0))[0])
    # The batch is the whole corpus.
    assert losses["batch"] == pytest.approx(losses["corpus"], rel=1e-5)
    assert abs(losses["batch"] - losses["none"]) > 1e-4


# Updates


@pytest.mark.slow
def test_a_step_is_an_update_per_objective_in_turn(labels, dialogues):
    """SGD on the cross-entropy, then AdamW on the triplet loss where that has left the encoder."""
    rate, other_rate, decay = 0.05, 0.01, 0.3
    config = config_with(
        model__dropout=0.3,
        train__optimizer="sgd",
        train__learning_rate=rate,
        sent_emo_context__pretraining_epochs=0,
        sent_emo_context__triplet__learning_rate=other_rate,
        sent_emo_context__triplet__weight_decay=decay,
    )
    system = make_system(config, labels)
    examples = examples_of(system, dialogues)
    anchors, items = drawn(system, examples)
    batch = anchors.batch(items)
    params = moved_parameters(system.init, examples.batch(ALL[:1]))
    objectives = system.objectives()
    assert [objective.loss for objective in objectives] == [system.loss, system.triplets]
    optimizers = make_optimizers(config, objectives, 10)
    step = make_train_step(objectives, optimizers)
    state = first_state(jax.tree.map(jnp.array, params), optimizers)

    sgd = optax.sgd(rate, momentum=0.9)

    def decayed(tree):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: not path[-1].key.endswith(("bias", "scale")), tree
        )

    adam = optax.adamw(other_rate, weight_decay=decay, mask=decayed)
    of_sgd, of_adam = sgd.init(params), adam.init(params["context"])
    for number in range(2):
        key = jax.random.fold_in(jax.random.key(7), number)
        first, _, gradient = gradients(system.loss, params, batch, key)
        updates, of_sgd = sgd.update(gradient, of_sgd, params)
        params = optax.apply_updates(params, updates)
        second, _, gradient = gradients(system.triplets, params, batch, key)
        updates, of_adam = adam.update(gradient["context"], of_adam, params["context"])
        params = {**params, "context": optax.apply_updates(params["context"], updates)}

        state, shown = step(state, batch, np.uint32(7))
        assert set(shown) == {"loss", "loss_cross_entropy", "loss_triplet"}
        assert float(shown["loss"]) == pytest.approx(first + second, rel=1e-4)
        assert float(shown["loss_triplet"]) == pytest.approx(second, rel=1e-4)
        # The triplet loss' weight decay does not act on the classifier.
        for name in ("classifier", EMOTION):
            chex.assert_trees_all_close(state.params[name], params[name], atol=1e-5)
        expected, found = (
            traverse_util.flatten_dict(tree["context"]["layer"], sep=".")
            for tree in (params, state.params)
        )
        for name, leaf in expected.items():
            # Adam divides by the gradient's size: where that is rounding, as where all vectors
            # move alike, so is the direction.
            if name not in ("key.bias", "norm_ffn.bias"):
                np.testing.assert_allclose(found[name], leaf, atol=2e-4, err_msg=name)
        params = jax.tree.map(jnp.array, state.params)
    assert int(state.step) == 2


def test_pre_training_changes_the_classifier_alone(labels, dialogues):
    """Not even weight decay acts on the encoder."""
    config = config_with(
        train__epochs=3,
        train__learning_rate=0.05,
        train__weight_decay=0.1,
        sent_emo_context__pretraining_epochs=1,
    )
    system = make_system(config, labels)
    examples = examples_of(system, dialogues)
    anchors, items = drawn(system, examples)
    objectives = system.objectives()
    assert [o.epochs for o in objectives] == [(0, 1), (1, None), (1, None)]
    optimizers = make_optimizers(config, objectives, 1)
    params = jax.tree.map(np.array, moved_parameters(system.init, examples.batch(ALL[:1])))
    step = make_train_step(objectives, optimizers)
    state = first_state(jax.tree.map(jnp.array, params), optimizers)
    state, shown = step(state, anchors.batch(items), np.uint32(0), (0,))
    assert set(shown) == {"loss", "loss_cross_entropy"}
    chex.assert_trees_all_equal(state.params["context"], params["context"])
    for name in ("classifier", EMOTION):
        assert largest(jax.tree.map(np.subtract, state.params[name], params[name])) > 0.01
    # The triplet loss' decay, in turn, leaves the classifier alone.
    state = first_state(jax.tree.map(jnp.array, params), optimizers)
    state, shown = step(state, anchors.batch(items), np.uint32(0), (2,))
    assert set(shown) == {"loss", "loss_triplet"}
    for name in ("classifier", EMOTION):
        chex.assert_trees_all_equal(state.params[name], params[name])
    assert largest(jax.tree.map(np.subtract, state.params["context"], params["context"])) > 1e-6


@pytest.mark.parametrize(
    ("fields", "losses"),
    [
        ({}, ["pretraining", "loss", "triplets"]),
        ({"sent_emo_context__pretraining_epochs": 0}, ["loss", "triplets"]),
        ({"sent_emo_context__triplet__learning_rate": 0.0}, ["pretraining", "loss"]),
        ({"sent_emo_context__context": "none"}, ["loss"]),
        ({"sent_emo_context__network": "mlp"}, ["triplets"]),
        ({"sent_emo_context__network": "lstm"}, ["triplets"]),
    ],
)
def test_what_each_kind_of_run_minimises(labels, fields, losses):
    objectives = system_with(labels, **fields).objectives()
    assert [objective.loss.__name__ for objective in objectives] == losses
    for objective in objectives:
        assert (objective.changes.get("optimizer") == "adam") == (
            objective.loss.__name__ == "triplets"
        )


@pytest.mark.slow
def test_one_device_and_eight_give_the_same_loss_and_gradient(contextual, labels):
    """With dropout, whose masks belong to utterances."""
    plain, examples, params, _ = contextual
    form = "dialogue_vector" if plain.window else "utterances"
    system = form_of(labels, form, model__dropout=0.3)
    anchors, items = drawn(system, examples)

    def both(params, batch, key):
        losses = [loss(params, batch, key) for loss in (system.loss, system.triplets)]
        return sum(loss for loss, _ in losses), losses[0][1] | losses[1][1]

    found = []
    for n_devices in (1, 8):
        mesh = make_mesh(jax.devices()[:n_devices])
        batch = jax.device_put(anchors.batch(items, n_devices), over_blocks(mesh))
        found.append(gradients(both, jax.device_put(params, replicated(mesh)), batch))
    (_, one, gradient), (_, eight, other) = found
    assert set(one) == {"cross_entropy", "triplet"}
    for name, value in one.items():
        assert float(value) == pytest.approx(float(eight[name]), rel=1e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1, largest(gradient)))


# Classification in the learned space


@pytest.fixture(scope="module")
def space(labels, random_dialogues):
    """A system whose vectors are the features themselves: examples of three splits with labels."""
    system = form_of(labels, "none", model__normalize_input=False)

    def examples(features, of):
        """Of dialogues of four utterances each."""
        dialogues = random_dialogues([4] * (len(of) // 4))
        targets = dict.fromkeys(("emotion", *WAYS), np.asarray(of, np.int32))
        return make_examples(dialogues, np.asarray(features, np.float32), targets)

    blank = examples(np.zeros((4, D)), [0] * 4)
    params = moved_parameters(system.init, blank.batch(ALL[:1]))
    return system, params, examples, runner(system)


def random_split(examples, seed, n=200):
    """Overlapping clusters, one of them with most of the utterances, and some without a label."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(4, n, p=(0.6, 0.25, 0.1, 0.05))
    features = rng.normal(size=(n, D)) + 3 * np.eye(4, D)[labels]
    return examples(features, np.where(rng.random(n) < 0.1, -1, labels))


def without_prior(params):
    none = jax.tree.map(jnp.zeros_like, params[REFERENCE]["log_prior"])
    return {**params, REFERENCE: {**params[REFERENCE], "log_prior": none}}


def test_the_reference_is_read_off_the_training_split(space):
    system, params, examples, run = space
    train_split, selection = random_split(examples, 0), random_split(examples, 1)
    fitted = system.fit_reference(params, run, train_split, selection)
    reference = fitted[REFERENCE]
    assert REFERENCE not in params
    chex.assert_trees_all_equal({k: v for k, v in fitted.items() if k != REFERENCE}, params)
    vectors, labels = train_split.features, train_split.labels["emotion"]
    for c, centroid in enumerate(reference["centroids"]):
        np.testing.assert_allclose(centroid, vectors[labels == c].mean(axis=0), atol=1e-5)
    # Of each class as many as are to be remembered, where there are so many; each once.
    memory_labels = np.asarray(reference["memory_labels"])
    counts = np.bincount(labels[labels >= 0], minlength=4)
    assert np.bincount(memory_labels).tolist() == np.minimum(counts, 8).tolist()
    places = [np.flatnonzero((vectors == row).all(axis=1)) for row in reference["memory"]]
    places = np.concatenate(places)
    assert len(set(places)) == len(memory_labels)
    assert np.array_equal(labels[places], memory_labels)
    # The same again.
    again = system.fit_reference(params, run, train_split, selection)
    chex.assert_trees_all_equal(again[REFERENCE], reference)


def test_probabilities_are_those_of_the_definition(space):
    """Distances to centroids, votes of neighbours that weigh less in larger classes, one by one."""
    system, params, examples, run = space
    train_split, selection = random_split(examples, 0), random_split(examples, 1)
    fitted = system.fit_reference(params, run, train_split, selection)
    outputs = run(system.predict, fitted, selection)
    reference = jax.tree.map(np.asarray, fitted[REFERENCE])
    assert set(outputs) == {"emotion", *WAYS}
    chosen = WAYS[reference["chosen"]]
    assert np.array_equal(outputs["emotion"], outputs[chosen])
    for values in outputs.values():
        assert values.shape == (200, 4)
        np.testing.assert_allclose(values.sum(-1), 1, atol=1e-5)

    def softmax(logits):
        p = np.exp(logits - logits.max())
        return p / p.sum()

    kept = np.bincount(reference["memory_labels"], minlength=4)
    for place in range(0, 200, 9):
        vector = selection.features[place].astype(np.float64)
        distance = np.linalg.norm(vector - reference["centroids"], axis=-1)
        expected = softmax(-distance + reference["log_prior"]["centroid"])
        np.testing.assert_allclose(outputs["centroid"][place], expected, atol=1e-5)
        nearest = np.argsort(np.linalg.norm(vector - reference["memory"], axis=-1))[:5]
        votes = np.zeros(4)
        for neighbour in reference["memory_labels"][nearest]:
            votes[neighbour] += 1 / kept[neighbour]
        share = votes / votes.sum()
        expected = softmax(np.log(share + 0.01 / 4) + reference["log_prior"]["knn"])
        np.testing.assert_allclose(outputs["knn"][place], expected, atol=1e-5)
    logits = np.asarray(system._logits(params, selection.features[None]))[0]
    expected = np.stack([softmax(row + reference["log_prior"]["head"]) for row in logits])
    np.testing.assert_allclose(outputs["head"], expected, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("power", PRIOR_POWERS)
def test_validation_chooses_the_way_and_the_power_of_the_prior(space, way, power):
    """Whatever the validation split's labels follow is found, and then predicts them."""
    system, params, examples, run = space
    train_split, selection = random_split(examples, 0), random_split(examples, 1)
    labels = train_split.labels["emotion"]
    counts = np.bincount(labels[labels >= 0], minlength=4) + 1
    log_prior = np.log(counts / counts.sum())
    fitted = system.fit_reference(params, run, train_split, selection)
    plain = run(system.predict, without_prior(fitted), selection)

    def with_power(power):
        return (np.log(plain[way] + 1e-30) + power * log_prior).argmax(-1)

    follows = with_power(power)
    assert len(set(follows)) > 1
    targets = dict.fromkeys(("emotion", *WAYS), np.where(np.arange(200) % 9, follows, -1))
    selection = dataclasses.replace(selection, labels=targets)
    fitted = system.fit_reference(params, run, train_split, selection)
    reference = fitted[REFERENCE]
    assert WAYS[reference["chosen"]] == way
    known = targets["emotion"] >= 0
    # Of powers that do as well, the largest.
    taken = max(p for p in PRIOR_POWERS if np.array_equal(with_power(p)[known], follows[known]))
    np.testing.assert_allclose(reference["log_prior"][way], taken * log_prior, rtol=1e-5)
    found = run(system.predict, fitted, selection)["emotion"].argmax(-1)
    assert np.array_equal(found[known], follows[known])


def test_neighbours_win_where_a_class_has_two_places(space):
    """Both classes' centroids are in the middle."""
    system, params, examples, run = space
    corners = 9 * np.array([[1, 1], [-1, -1], [1, -1], [-1, 1]])
    rng = np.random.default_rng(0)

    def split():
        place = rng.permutation(np.arange(40) % 4)
        features = 0.1 * rng.normal(size=(40, D))
        features[:, :2] += corners[place]
        return examples(features, place // 2)

    params = {**params, EMOTION: jax.tree.map(jnp.zeros_like, params[EMOTION])}
    fitted = system.fit_reference(params, run, split(), split())
    assert WAYS[fitted[REFERENCE]["chosen"]] == "knn"
    test = split()
    found = run(system.predict, fitted, test)
    assert np.array_equal(found["emotion"].argmax(-1), test.labels["emotion"])
    assert not np.array_equal(found["centroid"].argmax(-1), test.labels["emotion"])
    scores = system.further_scores(fitted, run, test)
    assert scores["classifier"] == "knn"


@pytest.mark.parametrize("case", ["one example", "no example", "all equal", "one class"])
def test_references_at_the_edges(space, case):
    system, params, examples, run = space
    split = random_split(examples, 0)
    labels, features = split.labels["emotion"].copy(), split.features
    third = np.flatnonzero(labels == 3)
    if case == "one example":
        labels[third[1:]] = -1
    elif case == "no example":
        labels[third] = -1
    elif case == "all equal":
        features = np.ones_like(features)
    else:
        labels[labels >= 0] = 1
    split = examples(features, labels)
    fitted = system.fit_reference(params, run, split, split)
    outputs = run(system.predict, fitted, split)
    for values in outputs.values():
        assert np.isfinite(values).all()
        np.testing.assert_allclose(values.sum(-1), 1, atol=1e-5)
    if case == "one example":
        centroid = fitted[REFERENCE]["centroids"][3]
        np.testing.assert_allclose(centroid, features[third[0]], atol=1e-6)
        plain = run(system.predict, without_prior(fitted), split)
        assert all(plain[way][third[0]].argmax() == 3 for way in ("centroid", "knn"))
    elif case == "no example":
        assert outputs["centroid"][:, 3].max() == 0
        assert outputs["knn"].argmax(-1).max() < 3
    elif case == "one class":
        assert (outputs["centroid"].argmax(-1) == 1).all()
        assert (outputs["knn"].argmax(-1) == 1).all()
    classes = system.tasks[0].classes
    verified = verification_with_chance(features, features, labels, classes, None)
    assert np.isfinite(list(verified["chance"]["untrained"].values())).all()


def test_support_of_a_few_examples_names_new_emotions(space):
    system, params, examples, run = space
    split = random_split(examples, 0)
    fitted = system.fit_reference(params, run, split, split)
    before = run(system.predict, fitted, split)
    new = LabelSpace(("bored", "curious", "proud"))
    features = 5 * np.eye(4, D)[[0, 1, 0, 3]]
    support = make_examples_of(features, [0, 1, -1, 2])
    other, others = system.with_support(fitted, run, support, new)
    assert [(task.name, task.classes) for task in other.tasks] == [("emotion", new.emotions)]
    outputs = runner(other)(other.predict, others, split)
    assert set(outputs) == {"emotion"}
    distance = np.linalg.norm(split.features[:, None] - features[[0, 1, 3]], axis=-1)
    expected = np.exp(-distance) / np.exp(-distance).sum(-1, keepdims=True)
    np.testing.assert_allclose(outputs["emotion"], expected, atol=1e-5)
    described = other.describe(None, {"emotion": outputs["emotion"][:1]})
    assert set(described[0]["probabilities"]) == set(new.emotions)
    # The run's own emotions are as before.
    after = run(system.predict, fitted, split)
    assert system.tasks[0].classes != new.emotions
    chex.assert_trees_all_equal(after, before)


def make_examples_of(features, labels):
    from erc_jax.data.dialogue import Dialogue, Utterance

    dialogue = Dialogue("support", tuple(Utterance("A", str(i)) for i in range(len(labels))))
    targets = {"emotion": np.asarray(labels, np.int32)}
    return make_examples([dialogue], np.asarray(features, np.float32), targets)


# Whole runs

FIELDS = SMALL | {
    "model__dropout": 0.1,
    "train__learning_rate": 0.003,
    "train__epochs": 6,
    "train__batch_size": 8,
    "train__select_metric": "mcc",
    "sent_emo_context__triplet__learning_rate": 0.001,
}


def read(workdir):
    return json.loads((workdir / "metrics.json").read_text())


def without_run(content):
    return {key: value for key, value in content.items() if key != "run"}


def log_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses_of(workdir, name="loss"):
    return [record[name] for record in log_of(workdir) if name in record]


def assert_blocks(block, ways=WAYS, learned=True):
    """A split's block, with one of each way, and the verification of a learned space."""
    further = {"classifier", "triplet_verification"} if learned else {"classifier"}
    assert set(block) == {*SCORES, *ways, *further}
    assert block["classifier"] in ways
    for way in ways:
        assert set(block[way]) == SCORES
        assert np.sum(block[way]["confusion"]) == 32
    assert block[block["classifier"]] == {name: block[name] for name in SCORES}
    if not learned:
        return
    verified = block["triplet_verification"]
    assert set(verified) == {*VERIFIED, "chance"}
    assert set(verified["chance"]) == {"untrained", "shuffled_labels"}
    for chance in verified["chance"].values():
        assert set(chance) == set(VERIFIED)


@pytest.mark.slow
def test_a_run_learns_and_leaves_what_is_documented(run):
    _, workdir, content = run
    losses = losses_of(workdir, "loss_cross_entropy")
    assert losses[-1] < losses[0] - 0.3
    triplet = losses_of(workdir, "loss_triplet")
    assert triplet[-1] < triplet[0]
    assert content["test"]["accuracy"] > 0.6
    assert set(content) == {"validation", "test", "run"}
    for split in ("validation", "test"):
        assert_blocks(content[split])
    assert content["validation"]["classifier"] == content["test"]["classifier"]
    best = max(content["validation"][way]["mcc"] for way in WAYS)
    assert content["validation"]["mcc"] == best
    (chosen,) = content["run"]["checkpoints"]
    assert chosen["best_score"] == best
    verified = content["test"]["triplet_verification"]
    assert verified["macro_f1"] > verified["chance"]["shuffled_labels"]["macro_f1"] + 0.2
    found = {path.name.partition(".out.")[0] for path in workdir.iterdir()}
    assert found == {
        *("config.json", "metrics.jsonl", "events", "checkpoints", "metrics.json", "model_card.md"),
        *("predictions_validation.jsonl", "predictions_test.jsonl", "early_validation.jsonl"),
        "reference.safetensors",
    }


@pytest.mark.slow
def test_objectives_switch_after_pre_training(run):
    config, workdir, _ = run
    trainer = Trainer(config, prepare(config))
    assert [trainer.active(epoch) for epoch in range(3)] == [(0,), (1, 2), (1, 2)]
    assert trainer.steps_per_epoch == 4
    for record in log_of(workdir):
        if "loss" in record:
            # A line is of three steps at most, and ends with the epoch.
            assert ("loss_triplet" in record) == (record["step"] > 4)


@pytest.mark.slow
def test_a_workdir_predicts_what_was_written(copied):
    config, workdir, content = copied
    recognizer = Recognizer.from_pretrained(workdir)
    written = load_dialogues(workdir / "predictions_test.jsonl")
    asked = load_dialogues(f"{config.data.source}/test.jsonl")
    for expected, found in zip(written, recognizer.predict(asked), strict=True):
        for there, here in zip(expected.utterances, found["utterances"], strict=True):
            assert here["emotion"] == there.emotion
            assert here["gold"] == there.extra["gold"]
            assert here["probabilities"] == pytest.approx(there.extra["probabilities"], abs=1e-5)
    answer = recognizer.predict(QUESTION)["utterances"]
    assert [u["emotion"] for u in answer] == ["happy", "sad"]
    assert set(answer[0]) == {"speaker", "text", "emotion", "probabilities"}
    # Scored again, in two ways, with the same result.
    assert evaluate_split(workdir, "test", {})["test"] == content["test"]
    scores = evaluate_file(workdir, Path(config.data.source, "test.jsonl"), None)
    assert scores["test.jsonl"].items() <= content["test"].items()


@pytest.mark.slow
def test_support_at_prediction(run, place):
    """With a trained encoder, three new names are told apart from one example each."""
    loaded = load_run(run[1])
    new = LabelSpace(("bored", "proud", "sorry"))
    predictor = Predictor(loaded.system, make_mesh())
    texts = ["a b c x", "we won y", "oh my z"]
    features = loaded.encoder.encode(texts)
    support = make_examples_of(features, [0, 1, 2])
    system, params = loaded.system.with_support(loaded.params, predictor.run, support, new)
    answer = Recognizer(system, params, loaded.encoder).predict(
        {"utterances": [{"speaker": "A", "text": text} for text in reversed(texts)]}
    )
    assert [u["emotion"] for u in answer["utterances"]] == ["sorry", "proud", "bored"]


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_end(run, tmp_path, train_and_kill):
    """Killed in pre-training, and again after it."""
    config, finished, content = run
    workdir = tmp_path / "run"
    assert train_and_kill(config, workdir, saves=1) == [1, 2]
    assert train_and_kill(config, workdir, saves=4) == [2, 3, 4, 5, 6]
    assert without_run(train(config, workdir)) == without_run(content)
    name = "reference.safetensors"
    assert (workdir / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.slow
def test_a_reference_that_does_not_belong(copied):
    config, workdir, content = copied
    file = workdir / "reference.safetensors"
    whole = file.read_bytes()
    place = whole.index(b'"params":"') + len(b'"params":"')
    other = (
        whole[:place] + (b"1" if whole[place : place + 1] == b"0" else b"0") + whole[place + 1 :]
    )
    file.write_bytes(other)
    with pytest.raises(UserError, match="belongs to other weights"):
        Recognizer.from_pretrained(workdir)
    file.unlink()
    with pytest.raises(UserError, match="is missing; is the run finished"):
        Recognizer.from_pretrained(workdir)
    for damaged in (whole[:-40], whole[:20], b""):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"reference\.safetensors: damaged"):
            Recognizer.from_pretrained(workdir)
    # The same command as before makes it anew.
    assert without_run(train(config, workdir)) == without_run(content)
    assert file.read_bytes() == whole


@pytest.mark.slow
def test_seeds_are_averaged_and_the_best_predicts(seeds):
    workdir, content = seeds
    assert read(workdir) == json.loads(json.dumps(content))
    for split in ("validation", "test"):
        block, of_seeds = content[split], [of_seed[split] for of_seed in content["seeds"]]
        for of_seed in of_seeds:
            assert_blocks(of_seed)
        for name in (*WAYS, None):
            found, alone = (block, of_seeds) if name is None else (
                block[name], [of_seed[name] for of_seed in of_seeds]
            )  # fmt: skip
            values = [scores["mcc"] for scores in alone]
            assert found["mcc"] == pytest.approx(np.mean(values))
            assert found["std"]["mcc"] == pytest.approx(np.std(values, ddof=1))
        verified = block["triplet_verification"]
        values = [of_seed["triplet_verification"]["mcc"] for of_seed in of_seeds]
        assert verified["mcc"] == pytest.approx(np.mean(values))
        assert verified["std"]["mcc"] == pytest.approx(np.std(values, ddof=1))
        assert set(verified["chance"]["untrained"]) == {*VERIFIED, "std"}
        assert set(block["classifier"].split(", ")) == {s["classifier"] for s in of_seeds}
    scores = [of_seed["validation"]["mcc"] for of_seed in content["seeds"]]
    best = workdir / "seeds" / str(np.argmax(scores))
    answers = [Recognizer.from_pretrained(w).predict(QUESTION) for w in (workdir, best)]
    assert answers[0] == answers[1]


@pytest.mark.slow
def test_scores_without_dialogues_that_were_seen_in_training(place, tmp_path):
    corpus = tmp_path / "corpus"
    config = tiny_config(place, **FIELDS | {"train__epochs": 2})
    shutil.copytree(config.data.source, corpus)
    lines = {s: (corpus / f"{s}.jsonl").read_text().splitlines() for s in ("train", "test")}
    (corpus / "test.jsonl").write_text("\n".join([*lines["train"][3:5], *lines["test"]]) + "\n")
    config.data.source = str(corpus)
    content = train(config, tmp_path / "run")
    assert "without_seen" not in content["validation"]
    block = content["test"]["without_seen"]
    assert block.pop("dialogues") == 8
    # The predictions tell the same.
    names = ("calm", "happy", "sad")
    confusion = np.zeros((3, 3), int)
    for dialogue in load_dialogues(tmp_path / "run/predictions_test.jsonl")[2:]:
        for utterance in dialogue.utterances:
            gold = utterance.extra["gold"]["emotion"]
            confusion[names.index(gold), names.index(utterance.emotion)] += 1
    assert block == metrics.block(confusion, names, "calm")
    assert np.sum(content["test"]["confusion"]) == 40


@pytest.fixture(scope="module")
def word_vectors(tmp_path_factory):
    """A file of word vectors for the words of the tiny corpus."""
    file = tmp_path_factory.mktemp("words") / "vectors.txt"
    rng = np.random.default_rng(0)
    file.write_text(
        "".join(f"{w} {' '.join(f'{x:.4f}' for x in rng.normal(size=6))}\n" for w in WORDS[4:])
    )
    return file


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mlp", "lstm"])
def test_isolated_networks_learn_from_triplets(place, tmp_path, word_vectors, network):
    fields = FIELDS | {
        "encoder": str(word_vectors),
        "sent_emo_context__network": network,
        "sent_emo_context__triplet__learning_rate": 0.01,
        "train__epochs": 10,
    }
    content = train(tiny_config(place, **fields), tmp_path / "run")
    losses = losses_of(tmp_path / "run", "loss_triplet")
    assert losses[-1] < 0.5 * losses[0]
    assert content["test"]["accuracy"] > 0.6
    assert not losses_of(tmp_path / "run", "loss_cross_entropy")
    for split in ("validation", "test"):
        assert_blocks(content[split], WAYS[1:])
    answer = Recognizer.from_pretrained(tmp_path / "run").predict(QUESTION)["utterances"]
    assert [u["emotion"] for u in answer] == ["happy", "sad"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"sent_emo_context__context": "none"},
        {
            "sent_emo_context__context": "dialogue_vector",
            "sent_emo_context__triplet__strategy": "batch_hard",
            "train__accumulate": 2,
        },
        {
            "sent_emo_context__triplet__strategy": "semi_hard",
            "train__optimizer": "sgd",
            "train__learning_rate": 0.03,
            "train__decay": "cosine",
            "train__clip_norm": 1.0,
            "train__warmup_steps": 2,
        },
    ],
    ids=["none", "dialogue_vector accumulated", "sgd"],
)
def test_what_it_offers_trains(place, tmp_path, fields):
    config = tiny_config(place, **FIELDS | fields)
    content = train(config, tmp_path / "run")
    losses = losses_of(tmp_path / "run", "loss_cross_entropy")
    assert losses[-1] < losses[0]
    assert content["test"]["accuracy"] > 0.6
    learned = fields.get("sent_emo_context__context") != "none"
    for split in ("validation", "test"):
        assert_blocks(content[split], learned=learned)
    answer = Recognizer.from_pretrained(tmp_path / "run").predict(QUESTION)["utterances"]
    assert len(answer) == 2


def test_triplets_leave_alone_what_distances_do_not_see(place):
    """All vectors moved alike: the gradient would be rounding errors, of which Adam makes steps."""
    experiment = prepare(tiny_config(place, **FIELDS))
    system = experiment.system
    batch = system.training_examples(experiment.examples["train"]).batch(np.arange(8))
    params = moved_parameters(system.init, batch.utterances)

    @jax.jit
    def loss(params, batch):
        return system.triplets(params, batch, jax.random.key(0))[0]

    gradient = jax.grad(loss)(params, batch)
    norm = gradient["context"]["layer"]["norm_ffn"]
    assert not norm["bias"].any()
    assert norm["scale"].any()
