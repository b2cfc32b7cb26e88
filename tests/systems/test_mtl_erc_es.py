import dataclasses
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from erc_jax.config import base_config, find_config
from erc_jax.data.batching import make_examples
from erc_jax.data.dialogue import Dialogue, Utterance
from erc_jax.data.labels import LabelSpace
from erc_jax.errors import UserError
from erc_jax.steps import first_state, make_optimizers, make_train_step
from erc_jax.systems import make_system
from erc_jax.systems.mtl_erc_es import MtlErcEs
from tests.tiny import moved_parameters

D = 16
LENGTHS = [5, 1, 9, 3, 1, 7, 2, 12]
ALL = np.arange(len(LENGTHS))
TASKS = ("emotion", "sentiment", "shift_global", "shift_speaker")


def system_with(labels, **fields):
    config = base_config()
    config.model.dropout = 0.0
    config.update_from_flattened_dict({key.replace("__", "."): v for key, v in fields.items()})
    return make_system(config, labels)


def examples_of(system, dialogues, width=D, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(sum(len(d.utterances) for d in dialogues), width))
    return make_examples(dialogues, features.astype(np.float32), system.targets(dialogues))


@pytest.fixture(scope="module")
def system(labels):
    return system_with(labels)


@pytest.fixture(scope="module")
def dialogues(random_dialogues):
    return random_dialogues(LENGTHS, unlabelled=0.2)


@pytest.fixture(scope="module")
def examples(system, dialogues):
    return examples_of(system, dialogues)


@pytest.fixture(scope="module")
def params(system, examples):
    return moved_parameters(system.init, examples.batch(ALL))


@pytest.fixture(scope="module")
def predict(system, params):
    """A function from examples and a choice of their dialogues to probabilities, in that order."""
    jitted = jax.jit(system.predict)

    def run(examples, chosen=ALL, n_blocks=1, change=lambda batch: batch):
        batch = change(examples.batch(chosen, n_blocks))
        order = np.argsort(batch.ids[batch.real])
        outputs = jax.device_get(jitted(params, batch))
        return {task: values[batch.real][order] for task, values in outputs.items()}

    return run


def assert_close(found, expected, tolerance=1e-5):
    """Every leaf to a tolerance relative to its largest entry."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= tolerance * max(1e-6, np.abs(b).max())


# The network


def torch_model(torch, p, u, speakers):
    """The paper's model on one dialogue, an equation at a time: task to logits [T, C].

    Args:
      p: our parameters as torch tensors.
      u: [T, D].
      speakers: names, [T].
    """
    functional = torch.nn.functional
    width = u.shape[-1]
    own = [torch.tensor([i for i, s in enumerate(speakers) if s == name])
           for name in dict.fromkeys(speakers)]  # fmt: skip

    def per_sequence(level, run, *streams):
        if level == "global":
            return run(*streams)
        out = torch.zeros(len(speakers), width)
        for rows in own:
            out = out.index_put((rows,), run(*(stream[rows] for stream in streams)))
        return out

    def lstm(level, layer, x):
        q = p[f"lstm_{level}_{layer}"]
        weights = {
            "bias_hh_l0": torch.zeros(2 * width),
            "bias_hh_l0_reverse": torch.zeros(2 * width),
        }
        for direction, suffix in (("forward", "l0"), ("backward", "l0_reverse")):
            weights[f"weight_ih_{suffix}"] = q[f"{direction}_input_kernel"].T
            weights[f"weight_hh_{suffix}"] = q[f"{direction}_hidden_kernel"].T
            weights[f"bias_ih_{suffix}"] = q[f"{direction}_bias"]
        module = torch.nn.LSTM(width, width // 2, bidirectional=True)
        return per_sequence(
            level, lambda s: torch.func.functional_call(module, weights, (s,))[0], x
        )

    def unit(level, number, query, memory):
        q = p[f"shift_{level}_{number}"]

        def norm(x, name):
            return functional.layer_norm(x, (width,), q[name]["scale"], q[name]["bias"])

        def attention(query, memory):
            scores = (query @ q["query"]["kernel"]) @ (memory @ q["key"]["kernel"]).T
            weights = torch.softmax(scores / width**0.5, dim=-1)
            return weights @ (memory @ q["value"]["kernel"])

        x = norm(query + per_sequence(level, attention, query, memory), "norm_attention")
        hidden = torch.relu(x @ q["ffn_in"]["kernel"] + q["ffn_in"]["bias"])
        return norm(x + hidden @ q["ffn_out"]["kernel"] + q["ffn_out"]["bias"], "norm_ffn")

    def difference(level):
        rows, last = [], {}
        for i, speaker in enumerate(speakers):
            before = i - 1 if level == "global" else last.get(speaker, -1)
            rows.append(u[i] - u[before] if before >= 0 else torch.zeros(width))
            last[speaker] = i
        return torch.stack(rows)

    levels = ("global", "speaker")
    first = {level: lstm(level, 1, u) for level in levels}
    second = {level: lstm(level, 2, first[level]) for level in levels}
    inputs = {
        "emotion": [second[level] for level in levels],
        "sentiment": [first[level] for level in levels],
    }
    for level in levels:
        t = difference(level)
        x1 = unit(level, 1, t, t)
        inputs[f"shift_{level}"] = [x1, unit(level, 2, first[level], x1)]
    return {
        task: torch.cat(streams, dim=-1) @ p[f"head_{task}"]["kernel"] + p[f"head_{task}"]["bias"]
        for task, streams in inputs.items()
    }


@pytest.mark.slow
@pytest.mark.parity
def test_the_whole_model_equals_torch(labels, dialogues, params):
    torch = pytest.importorskip("torch")
    system = system_with(
        labels, model__normalize_input=False, weights__sentiment=0.5, weights__shift_global=2.0
    )
    examples = examples_of(system, dialogues)
    batch = examples.batch(ALL, n_blocks=2)

    theirs = jax.tree.map(lambda x: torch.from_numpy(np.array(x)).requires_grad_(), params)
    features = torch.from_numpy(examples.features)
    per_dialogue = [
        torch_model(
            torch,
            theirs,
            features[examples.starts[d] : examples.starts[d + 1]],
            [utterance.speaker for utterance in dialogue.utterances],
        )
        for d, dialogue in enumerate(dialogues)
    ]
    logits = {task: torch.cat([out[task] for out in per_dialogue]) for task in TASKS}
    losses = {
        task: torch.nn.functional.cross_entropy(
            logits[task], torch.from_numpy(examples.labels[task]).long(), ignore_index=-1
        )
        for task in TASKS
    }
    total = sum(
        weight * losses[task] for task, weight in zip(TASKS, (1.0, 0.5, 2.0, 1.0), strict=True)
    )
    total.backward()

    @jax.jit
    def step(params, batch):
        logits = system._logits(params, batch, None)
        return logits, jax.value_and_grad(system.loss, has_aux=True)(params, batch, None)

    ours, ((loss, parts), gradient) = step(params, batch)
    rows = batch.ids[batch.real]
    for task in TASKS:
        expected = logits[task].detach().numpy()[rows]
        np.testing.assert_allclose(np.asarray(ours[task])[batch.real], expected, atol=1e-5)
    assert float(loss) == pytest.approx(total.item(), rel=1e-5)
    for task in TASKS:
        assert float(parts[task]) == pytest.approx(losses[task].item(), rel=1e-5)
    assert_close(gradient, jax.tree.map(lambda x: x.grad.numpy(), theirs), 1e-4)


def test_features_can_be_brought_to_variance_1(labels, examples, params, predict):
    """Of the size that the numbers of an embedding of length 1 have."""
    x = examples.features / 20 + 0.05
    u = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    plain = system_with(labels, model__normalize_input=False)
    batch = dataclasses.replace(examples, features=u).batch(ALL)
    expected = jax.device_get(jax.jit(plain.predict)(params, batch))
    found = predict(dataclasses.replace(examples, features=x))
    assert_close(found, {task: p[batch.real] for task, p in expected.items()})


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("sentiment", [True, False])
def test_a_task_left_out_has_no_parameters(labels, dialogues, sentiment, shift):
    system = system_with(labels, tasks__sentiment=sentiment, tasks__shift=shift)
    batch = examples_of(system, dialogues).batch(ALL, n_blocks=2)
    params = jax.eval_shape(system.init, jax.random.key(0), batch)
    units = {f"lstm_{level}_{layer}" for level in ("global", "speaker") for layer in (1, 2)}
    classes = {"emotion": 4}
    if sentiment:
        classes["sentiment"] = 3
    if shift:
        classes |= {"shift_global": 5, "shift_speaker": 5}
        units |= {f"shift_{level}_{unit}" for level in ("global", "speaker") for unit in (1, 2)}
    assert set(params) == units | {f"head_{task}" for task in classes}
    assert {task.name: len(task.classes) for task in system.tasks} == classes
    assert system.notes == ()
    assert set(batch.labels) == set(classes)
    outputs = jax.eval_shape(system.predict, params, batch)
    for task, n_classes in classes.items():
        assert outputs[task].shape == (*batch.real.shape, n_classes)
        assert outputs[task].dtype == jnp.float32
        assert params[f"head_{task}"]["kernel"].shape == (2 * D, n_classes)
    loss, parts = jax.eval_shape(system.loss, params, batch, jax.random.key(0))
    assert loss.shape == ()
    assert loss.dtype == jnp.float32
    assert set(parts) == set(classes)


def test_without_polarity():
    labels = LabelSpace(("calm", "cross"))
    system = system_with(labels)
    assert [task.name for task in system.tasks] == ["emotion"]
    assert "so sentiment and shift are left out" in system.notes[0]
    # The corpus' own column of sentiments needs no polarity.
    system = system_with(labels, data__sentiment="column")
    assert [task.name for task in system.tasks] == ["emotion", "sentiment"]
    assert "so shift is left out" in system.notes[0]
    quiet = {"tasks__sentiment": False, "tasks__shift": False}
    assert system_with(labels, **quiet).notes == ()


def test_an_odd_width_is_refused(system, dialogues):
    batch = examples_of(system, dialogues, width=15).batch(ALL)
    with pytest.raises(UserError, match="15 wide; Mtl-ERC-ES needs an even d"):
        system.init(jax.random.key(0), batch)


@pytest.mark.slow
def test_the_paper_s_recipe(labels, random_dialogues):
    """Two steps at d = 1024 with MELD's :paper config and random weights."""
    path, _, variant = find_config("meld:paper").partition(":")
    config = runpy.run_path(path)["get_config"](variant)
    assert config.train.learning_rate == 4e-5
    assert config.train.batch_size == 32
    assert config.model.dropout == 0.2
    system = MtlErcEs(config, labels)
    dialogues = random_dialogues([3, 6])
    batch = examples_of(system, dialogues, width=1024).batch(np.arange(2))
    optimizers = make_optimizers(config, system.objectives(), 1)
    params = jax.jit(system.init)(jax.random.key(0), batch)
    assert params["head_emotion"]["kernel"].shape == (2048, 4)
    # Two levels of two layers of 2 x 512; four units of three matrices and a network, with norms.
    in_lstms = 4 * 2 * (1024 * 2048 + 512 * 2048 + 2048)
    in_units = 4 * (5 * 1024**2 + 2 * 1024 + 4 * 1024)
    in_heads = 2048 * (4 + 3 + 5 + 5) + 17
    assert sum(x.size for x in jax.tree.leaves(params)) == in_lstms + in_units + in_heads
    state = first_state(params, optimizers)
    step = make_train_step(system.objectives(), optimizers)
    losses = []
    for _ in range(2):
        state, parts = step(state, batch, np.uint32(0))
        losses.append(jax.device_get(parts))
    assert all(np.isfinite(value) for parts in losses for value in parts.values())
    assert losses[1]["loss"] < losses[0]["loss"]
    assert int(state.step) == 2


# What changes nothing


def test_other_dialogues_and_their_order_change_nothing(examples, predict):
    whole = predict(examples)
    for chosen in (ALL[::-1], np.array([6, 2, 0]), np.array([1])):
        rows = examples.rows(chosen)
        assert_close(predict(examples, chosen), {task: p[rows] for task, p in whole.items()})


@pytest.mark.parametrize("n_blocks", [2, 8])
def test_the_number_of_blocks_changes_nothing(examples, predict, n_blocks):
    assert_close(predict(examples, n_blocks=n_blocks), predict(examples))


def test_names_of_speakers_and_dialogues_change_nothing(system, dialogues, examples, predict):
    names = {"s0": "zoe", "s1": "adam", "s2": "Åsa"}
    renamed = [
        dataclasses.replace(
            dialogue,
            id=f"other {dialogue.id}",
            utterances=[dataclasses.replace(u, speaker=names[u.speaker])
                        for u in dialogue.utterances],
        )
        for dialogue in dialogues
    ]  # fmt: skip
    assert_close(predict(examples_of(system, renamed)), predict(examples))


def padded(batch, n_more=5, slots_more=3, fill=1e6):
    """The batch with more padding, and large numbers in all of it."""

    def pad(x, n, value):
        width = [(0, 0), (0, n)] + [(0, 0)] * (x.ndim - 2)
        return np.pad(x, width, constant_values=value)

    def pad_layout(layout):
        return type(layout)(
            index=pad(layout.index, slots_more, 0),
            inverse=pad(layout.inverse, n_more, 0),
            segment=pad(layout.segment, slots_more, -1),
            mask=pad(layout.mask, n_more, False),
        )

    features = np.where(batch.real[..., None], batch.features, fill)
    return type(batch)(
        features=pad(features, n_more, fill).astype(np.float32),
        real=pad(batch.real, n_more, False),
        ids=pad(batch.ids, n_more, 0),
        previous_global=pad(batch.previous_global, n_more, -1),
        previous_speaker=pad(batch.previous_speaker, n_more, -1),
        speaker_number=pad(batch.speaker_number, n_more, 0),
        dialogue=pad_layout(batch.dialogue),
        speaker=pad_layout(batch.speaker),
        labels={task: pad(labels, n_more, -1) for task, labels in batch.labels.items()},
    )


def test_padding_changes_no_prediction(examples, predict):
    assert_close(predict(examples, n_blocks=2, change=padded), predict(examples, n_blocks=2))


@pytest.mark.slow
def test_padding_changes_no_loss_and_no_gradient(labels, examples, params):
    system = system_with(labels, model__dropout=0.3, model__normalize_input=False)
    step = jax.jit(jax.value_and_grad(system.loss, has_aux=True))
    batch = examples.batch(ALL, n_blocks=2)
    found = step(params, padded(batch, fill=1e6), jax.random.key(1))
    assert_close(found, step(params, padded(batch, fill=0.0), jax.random.key(1)))


@pytest.mark.slow
def test_dropout_is_the_same_on_any_number_of_blocks(labels, examples, params):
    system = system_with(labels, model__dropout=0.3)
    loss = jax.jit(system.loss)
    found = [
        loss(params, examples.batch(ALL, n_blocks), jax.random.key(1)) for n_blocks in (1, 2, 8)
    ]
    for other in found[1:]:
        assert_close(other, found[0])
    another, _ = loss(params, examples.batch(ALL), jax.random.key(2))
    assert abs(float(found[0][0] - another)) > 1e-3


@pytest.mark.slow
def test_a_dialogue_of_5000_utterances(system, random_dialogues, predict):
    examples = examples_of(system, random_dialogues([5000, 3]))
    outputs = predict(examples, np.arange(2))
    for values in outputs.values():
        assert len(values) == 5003
        np.testing.assert_allclose(values.sum(-1), 1, atol=1e-5)
    alone = predict(examples, np.array([1]))
    assert_close(alone, {task: values[5000:] for task, values in outputs.items()})


# What reaches what


@pytest.mark.slow
def test_which_parameters_a_loss_trains(system, examples, params):
    batch = examples.batch(ALL)
    parts = jax.jit(jax.jacrev(lambda p, b: system.loss(p, b, None)[1]))(params, batch)
    firsts = {"lstm_global_1", "lstm_speaker_1"}
    expected = {
        "emotion": {*firsts, "lstm_global_2", "lstm_speaker_2"},
        "sentiment": firsts,
        "shift_global": {"lstm_global_1", "shift_global_1", "shift_global_2"},
        "shift_speaker": {"lstm_speaker_1", "shift_speaker_1", "shift_speaker_2"},
    }
    for task, gradient in parts.items():
        reached = {*expected[task], f"head_{task}"}
        for name, module in gradient.items():
            for leaf in jax.tree.leaves(module):
                assert bool(np.any(leaf)) == (name in reached), (task, name)


def test_a_speaker_s_shift_sees_this_speaker_only(system, dialogues, examples, predict):
    speakers = np.array([u.speaker for dialogue in dialogues for u in dialogue.utterances])
    others = speakers != "s1"
    noise = np.random.default_rng(5).normal(size=examples.features.shape).astype(np.float32)
    moved = dataclasses.replace(examples, features=examples.features + others[:, None] * noise)
    before, after = predict(examples), predict(moved)
    assert_close(after["shift_speaker"][~others], before["shift_speaker"][~others], 1e-6)
    of_others = [i for i, dialogue in enumerate(dialogues) if len(dialogue.utterances) > 3]
    rows = np.intersect1d(examples.rows(of_others), np.flatnonzero(~others))
    for task in ("emotion", "sentiment", "shift_global"):
        changed = np.abs(after[task] - before[task])[rows].max(axis=-1)
        assert (changed > 1e-6).all(), task


# Labels in and out


def dialogue_of(*utterances):
    return Dialogue("x", tuple(Utterance(s, "…", e, sentiment) for s, e, sentiment in utterances))


MIXED = dialogue_of(
    ("A", "joy", "negative"),
    ("B", "anger", None),
    ("A", None, "positive"),
    ("B", "neutral", "neutral"),
    ("A", "joy", "positive"),
    ("C", None, None),
    ("C", "fear", "neutral"),
)


def test_targets_from_polarity(labels):
    targets = system_with(labels).targets([MIXED])
    assert {task: ids.tolist() for task, ids in targets.items()} == {
        "emotion": [1, 0, -1, 2, 1, -1, 3],
        "sentiment": [2, 0, -1, 1, 2, -1, 0],
        # Where either of the two has no label there is none.
        "shift_global": [-1, 0, -1, -1, 3, -1, -1],
        "shift_speaker": [-1, -1, -1, 3, -1, -1, -1],
    }
    assert all(ids.dtype == np.int32 for ids in targets.values())


def test_targets_in_the_paper_s_mode(labels):
    targets = system_with(labels, data__first_shift="strong_negative").targets([MIXED])
    assert targets["shift_global"].tolist() == [0, 0, -1, -1, 3, -1, -1]
    assert targets["shift_speaker"].tolist() == [0, 0, -1, 3, -1, -1, -1]


def test_targets_from_the_column(labels):
    targets = system_with(labels, data__sentiment="column").targets([MIXED])
    assert targets["sentiment"].tolist() == [0, -1, 2, 1, 2, -1, 1]
    # The shift is one of polarity, in either case.
    assert targets["shift_global"].tolist() == [-1, 0, -1, -1, 3, -1, -1]
    unknown = dialogue_of(("A", "joy", "mixed"))
    with pytest.raises(UserError, match="unknown label 'mixed'"):
        system_with(labels, data__sentiment="column").targets([unknown])
    assert "sentiment" not in system_with(
        labels, data__sentiment="column", tasks__sentiment=False
    ).targets([unknown])


def test_an_unknown_way_of_labelling_firsts(labels):
    with pytest.raises(UserError, match=r"data\.first_shift is 'colum'"):
        system_with(labels, data__first_shift="colum").targets([MIXED])


def test_emotions_are_weighed_and_other_tasks_are_not(labels, examples, params):
    counted = dataclasses.replace(labels, counts=tuple(range(1, len(labels.emotions) + 1)))
    batch = examples.batch(ALL)
    plain, weighed = (
        jax.jit(system_with(counted, train__class_weights=kind).loss)(params, batch, None)[1]
        for kind in ("none", "balanced")
    )
    assert abs(plain["emotion"] - weighed["emotion"]) > 1e-3
    for task in set(TASKS) - {"emotion"}:
        assert plain[task] == weighed[task]
    # As scikit-learn's "balanced".
    weights = counted.class_weights("balanced")
    n = len(labels.emotions)
    np.testing.assert_allclose(weights, (n + 1) / 2 / np.arange(1, n + 1), rtol=1e-6)


def test_unlabelled_utterances_count_in_no_loss(system, examples, params, predict):
    _, losses = jax.jit(system.loss)(params, examples.batch(ALL), None)
    probabilities = predict(examples)
    for task in TASKS:
        labels = examples.labels[task]
        labelled = np.flatnonzero(labels >= 0)
        assert 0 < len(labelled) < examples.n_utterances
        right = probabilities[task][labelled, labels[labelled]]
        assert float(losses[task]) == pytest.approx(-np.log(right).mean(), rel=1e-5)


@pytest.mark.parametrize("mode", ["ignore", "strong_negative"])
def test_descriptions(labels, mode):
    system = system_with(labels, data__first_shift=mode)
    n = len(MIXED.utterances)
    one_hot = {
        "emotion": np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0, 1, 2]],
        "sentiment": np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2, 0]],
        "shift_global": np.eye(5, dtype=np.float32)[[0, 1, 2, 3, 4, 0, 1]],
        "shift_speaker": np.eye(5, dtype=np.float32)[[4, 3, 2, 1, 0, 4, 3]],
    }
    described = system.describe(MIXED, one_hot)
    assert len(described) == n
    assert described[3] == {
        "emotion": "fear",
        "probabilities": {"anger": 0.0, "joy": 0.0, "neutral": 0.0, "fear": 1.0},
        "sentiment": "negative",
        "shift": {"global": "positive", "speaker": "negative"},
    }
    firsts = [(d["shift"]["global"] is None, d["shift"]["speaker"] is None) for d in described]
    assert firsts == [
        (True, True), (False, True), (False, False), (False, False), (False, False),
        (False, True), (False, False),
    ]  # fmt: skip
    alone = system_with(labels, tasks__sentiment=False, tasks__shift=False)
    assert set(alone.describe(MIXED, {"emotion": one_hot["emotion"]})[0]) == {
        "emotion",
        "probabilities",
    }


def test_an_unknown_system_is_named(labels):
    with pytest.raises(
        UserError, match=r"'mtl_erc'; expected .*mtl_erc_es, .*\. Did you mean mtl_erc_es"
    ):
        system_with(labels, system="mtl_erc")
