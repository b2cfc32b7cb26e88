"""Fine-tuning an encoder: what its loss sees, what changes nothing, and what a run leaves."""

import dataclasses
import json
import shutil

import chex
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from erc_jax.config import base_config
from erc_jax.data.dialogue import Dialogue, Utterance, load_dialogues
from erc_jax.data.tokens import TokenExamples
from erc_jax.encoders.sentence import SentenceEncoder
from erc_jax.errors import UserError
from erc_jax.evaluate import evaluate_file, evaluate_split
from erc_jax.experiment import load_encoder
from erc_jax.predict import Recognizer
from erc_jax.steps import first_state, make_optimizers, make_train_step
from erc_jax.systems import make_system
from erc_jax.train import train
from erc_jax.workdir import load_run
from tests.tiny import EMOTION_ONLY, QUESTION, SCORES, WORDS, tiny_config, write_encoder

LENGTHS = [4, 1, 3, 2, 5, 1]
HEAD = "head_emotion"
DROPPING = {"model__dropout": 0.3, "fine_tuning__attention_dropout": 0.2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random encoder's."""
    return write_encoder(tmp_path_factory.mktemp("encoder") / "model", hidden_size=16)


@pytest.fixture(scope="module")
def dialogues(labels):
    return make_dialogues(LENGTHS, labels.emotions)


def make_dialogues(lengths, emotions, seed=0, unlabelled=0.3):
    random = np.random.default_rng(seed)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    return [
        Dialogue(
            f"d{number}",
            tuple(
                Utterance(
                    str(random.choice(["a", "b"])),
                    " ".join(random.choice(letters, random.integers(1, 7))),
                    None if random.random() < unlabelled else str(random.choice(emotions)),
                )
                for _ in range(length)
            ),
        )
        for number, length in enumerate(lengths)
    ]


@pytest.fixture(scope="module")
def setting(folder, labels):
    """A function from config fields to a system, its encoder, and a function to its examples."""

    def make(counted=None, **fields):
        config = base_config()
        config.update_from_flattened_dict(
            {"system": "fine_tuning", "encoder": str(folder), "model.dropout": 0.0}
            | {key.replace("__", "."): value for key, value in fields.items()}
        )
        encoder = load_encoder(config)
        system = make_system(config, labels.counted(counted) if counted else labels, encoder)

        def examples_of(dialogues):
            return TokenExamples(encoder.sequences(dialogues), dialogues, system.targets(dialogues))

        return config, system, encoder, examples_of

    return make


@pytest.fixture(scope="module", params=["none", "dialogue"])
def both(request, setting):
    """The system in either context, its examples, and its parameters away from the initial ones."""
    _, system, _, examples_of = setting(fine_tuning__context=request.param)
    return request.param, system, examples_of, fresh_params(system)


def fresh_params(system):
    params = system.init(jax.random.key(0), None)
    head = params[HEAD]
    return {**params, HEAD: {**head, "bias": head["bias"] + jnp.linspace(-0.3, 0.3, 4)}}


@pytest.fixture(scope="module")
def predict(both):
    """A function from examples and a choice of their sequences to probabilities, by utterance."""
    _, system, _, params = both
    jitted = jax.jit(system.predict)

    def run(examples, items=None, n_blocks=1, change=lambda batch: batch):
        items = np.arange(examples.n_items) if items is None else items
        batch = examples.batch(items, n_blocks)
        outputs = np.asarray(jitted(params, change(batch))["emotion"])
        assert outputs.shape == (*batch.real.shape, 4)
        utterances = examples.rows(items)[batch.ids[batch.real]]
        found = np.full((examples.n_utterances, 4), np.nan, np.float32)
        found[utterances] = outputs[batch.real]
        return found

    return run


@pytest.fixture(scope="module")
def dropping(setting):
    """Loss and gradient with dropout, in context; jitted."""
    _, system, _, examples_of = setting(fine_tuning__context="dialogue", **DROPPING)
    return jax.jit(jax.value_and_grad(system.loss, has_aux=True)), examples_of, system


def reworded(dialogues, number, text):
    """The dialogues with other words in utterance ``number``, counted over all of them."""
    out = []
    for dialogue in dialogues:
        utterances = list(dialogue.utterances)
        if 0 <= number < len(utterances):
            utterances[number] = dataclasses.replace(utterances[number], text=text)
        number -= len(utterances)
        out.append(dataclasses.replace(dialogue, utterances=tuple(utterances)))
    return out


def close(found, expected, tolerance=2e-5):
    """Every leaf to a tolerance relative to the largest entry of all."""
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(expected))
    chex.assert_trees_all_close(found, expected, atol=tolerance * largest, rtol=0)


# Shapes


def test_shapes(both, dialogues):
    context, system, examples_of, params = both
    examples = examples_of(dialogues)
    assert examples.n_items == (len(LENGTHS) if context == "dialogue" else sum(LENGTHS))
    batch = examples.batch(np.arange(examples.n_items), n_blocks=2)
    g, r, w = batch.words.shape
    chex.assert_shape(list(jax.tree.leaves([batch.real, batch.ids, batch.labels])), (2, r * w // 2))
    outputs = jax.eval_shape(system.predict, params, batch)
    assert list(outputs) == [task.name for task in system.tasks] == ["emotion"]
    chex.assert_shape(outputs["emotion"], (g, r * w // 2, 4))
    assert outputs["emotion"].dtype == jnp.float32
    loss, parts = jax.eval_shape(system.loss, params, batch, jax.random.key(0))
    chex.assert_shape(loss, ())
    assert (loss.dtype, parts) == (jnp.float32, {})
    chex.assert_shape(params[HEAD]["kernel"], (16, 4))
    assert set(params) == {"encoder", HEAD}


def test_it_starts_from_the_published_weights(setting):
    _, system, encoder, _ = setting()
    for _ in range(2):  # a step donates what it gets: the encoder's own arrays must not be in it
        params = system.init(jax.random.key(0), None)
        chex.assert_trees_all_equal(params["encoder"], encoder.params)
        chex.assert_trees_all_equal(system.trained_encoder(params), encoder.params)
        jax.tree.map(lambda x: x.delete(), params)
    heads = [system.init(jax.random.key(seed), None)[HEAD]["kernel"] for seed in (0, 1)]
    assert np.abs(heads[0] - heads[1]).max() > 0.01


def test_it_needs_an_encoder(labels):
    config = base_config()
    config.system = "fine_tuning"
    with pytest.raises(ValueError, match="needs an encoder"):
        make_system(config, labels)


# What changes no prediction


def test_order_blocks_and_company_change_nothing(both, dialogues, predict):
    _, _, examples_of, _ = both
    examples = examples_of(dialogues)
    whole = predict(examples)
    np.testing.assert_allclose(whole.sum(-1), 1, atol=1e-5)
    assert whole.std(0).max() > 0.01  # not all utterances are alike
    backwards = np.arange(examples.n_items)[::-1]
    np.testing.assert_allclose(predict(examples, backwards), whole, atol=1e-5)
    np.testing.assert_allclose(predict(examples, n_blocks=4), whole, atol=1e-5)
    some = predict(examples, np.array([4, 1, 2]))
    chosen = examples.rows(np.array([4, 1, 2]))
    np.testing.assert_allclose(some[chosen], whole[chosen], atol=1e-5)
    assert np.isnan(some).sum() == 4 * (len(whole) - len(chosen))
    # Dialogues in another order.
    permuted = predict(examples_of(dialogues[::-1]))
    places = np.split(np.arange(sum(LENGTHS)), np.cumsum(LENGTHS)[:-1])
    np.testing.assert_allclose(permuted, whole[np.concatenate(places[::-1])], atol=1e-5)


def garbage(batch):
    """The batch with other things in all of its padding."""
    random = np.random.default_rng(0)
    padding = batch.segments == 0
    assert padding.sum() > 10

    def fill(x, high):
        return np.where(padding, random.integers(0, high, x.shape), x).astype(np.int32)

    return batch.replace(
        words=fill(batch.words, len(WORDS)),
        positions=fill(batch.positions, 64),
        tokens=fill(batch.tokens, 10_000),
        ids=np.where(batch.real, batch.ids, 7).astype(np.int32),
    )


def test_padding_changes_no_prediction(both, dialogues, predict):
    examples = both[2](dialogues)
    changed = predict(examples, n_blocks=4, change=garbage)
    np.testing.assert_allclose(changed, predict(examples, n_blocks=4), atol=1e-6)


def test_what_an_utterance_sees(both, dialogues, predict):
    """Itself; in context, its dialogue too; never another dialogue in its row."""
    context, _, examples_of, _ = both
    examples = examples_of(dialogues)
    batch = examples.batch(np.arange(examples.n_items))
    dialogues_of_row = [
        {int(examples.dialogue_of[examples.rows(np.arange(examples.n_items))[i]]) for i in row}
        for row in np.split(batch.ids[0], batch.words.shape[1])
    ]
    assert any(len(found) > 1 for found in dialogues_of_row)
    before = predict(examples)
    starts = np.cumsum([0, *LENGTHS])
    for number in (1, 4, 9, 15):
        of = examples.dialogue_of[number]
        text = dialogues[of].utterances[number - starts[of]].text
        # As many words, so that every sequence stays where it is.
        other = reworded(dialogues, number, " ".join(["oh"] * len(text.split())))
        moved = np.abs(predict(examples_of(other)) - before).max(-1)
        expected = examples.dialogue_of == of
        if context == "none":
            expected = np.arange(sum(LENGTHS)) == number
        assert (moved[expected] > 1e-5).all()
        assert (moved[~expected] < 1e-6).all()


def test_who_speaks_is_seen_in_context_only(both, dialogues, predict):
    context, _, examples_of, _ = both
    renamed = [
        dataclasses.replace(
            d, utterances=tuple(dataclasses.replace(u, speaker="z") for u in d.utterances)
        )
        for d in dialogues
    ]
    moved = np.abs(predict(examples_of(renamed)) - predict(examples_of(dialogues))).max(-1)
    assert (moved > 1e-5).all() == (context == "dialogue")
    assert (moved == 0).all() == (context == "none")


def test_long_dialogues_are_predicted_whole(both, labels, predict):
    """In context they are read in windows; batches may hold some of them only."""
    context, _, examples_of, _ = both
    talk = make_dialogues([40], labels.emotions, seed=3)
    examples = examples_of(talk)
    assert examples.n_items == 40 if context == "none" else 5 < examples.n_items < 40
    whole = predict(examples)
    assert np.isfinite(whole).all()
    half = np.arange(examples.n_items)[::2]
    some = predict(examples, half)
    np.testing.assert_allclose(some[examples.rows(half)], whole[examples.rows(half)], atol=1e-5)


# The loss


@pytest.mark.slow
def test_blocks_and_padding_change_no_loss_and_no_gradient(dropping, dialogues):
    """With dropout: its masks belong to tokens and utterances, not to their places."""
    step, examples_of, system = dropping
    examples = examples_of(dialogues)
    items = np.array([5, 0, 3, 1, 4, 2])
    params, key = fresh_params(system), jax.random.key(1)
    one = step(params, examples.batch(items), key)
    close(step(params, examples.batch(items, n_blocks=4), key), one)
    close(step(params, garbage(examples.batch(items)), key), one)
    (another, _), _ = step(params, examples.batch(items), jax.random.key(2))
    assert abs(float(one[0][0] - another)) > 1e-3


@pytest.mark.slow
def test_layers_can_be_scanned_and_computed_again(setting, dropping, dialogues):
    step, examples_of, plain = dropping
    batch = examples_of(dialogues).batch(np.arange(len(LENGTHS)))
    params, key = fresh_params(plain), jax.random.key(1)
    expected = step(params, batch, key)
    for scan, remat in ((True, True), (False, True)):
        _, system, _, _ = setting(
            fine_tuning__context="dialogue",
            fine_tuning__scan_layers=scan,
            fine_tuning__remat=remat,
            **DROPPING,
        )
        ours = fresh_params(system)
        loss, gradient = jax.jit(jax.value_and_grad(system.loss, has_aux=True))(ours, batch, key)
        gradient["encoder"] = system.trained_encoder(gradient)
        close((loss, gradient), expected)
        chex.assert_trees_all_equal(system.trained_encoder(ours), params["encoder"])


@pytest.mark.slow
def test_bfloat16_computes_nearly_the_same(setting, dropping, dialogues):
    step, examples_of, plain = dropping
    batch = examples_of(dialogues).batch(np.arange(len(LENGTHS)))
    _, system, _, _ = setting(
        fine_tuning__context="dialogue", fine_tuning__dtype="bfloat16", **DROPPING
    )
    params, key = fresh_params(system), jax.random.key(1)
    chex.assert_trees_all_equal_dtypes(params, fresh_params(plain))  # the weights stay float32
    (loss, _), gradient = jax.jit(jax.value_and_grad(system.loss, has_aux=True))(params, batch, key)
    (exact, _), exact_gradient = step(params, batch, key)
    assert loss.dtype == jnp.float32
    assert 0 < abs(float(loss - exact)) < 0.03
    chex.assert_trees_all_equal_shapes_and_dtypes(gradient, exact_gradient)
    ours, theirs = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)])
        for g in (gradient, exact_gradient)
    )
    assert ours @ theirs > 0.99 * np.linalg.norm(ours) * np.linalg.norm(theirs)


@pytest.fixture(scope="module")
def alone(setting):
    """The system that reads utterances alone, without dropout; its loss and gradient, jitted."""
    _, system, _, examples_of = setting()
    params = fresh_params(system)
    step = jax.jit(jax.value_and_grad(system.loss, has_aux=True))
    return lambda batch: step(params, batch, None), examples_of, params


@pytest.mark.slow
def test_the_gradient_reaches_every_parameter_that_matters(alone, dialogues):
    step, examples_of, _ = alone
    examples = examples_of(dialogues)
    batch = examples.batch(np.arange(examples.n_items))
    _, gradient = step(batch)
    tables = {name: x.pop("embedding") for name, x in gradient["encoder"].items() if "_emb" in name}
    largest = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        name = jax.tree_util.keystr(path)
        if "self.key" in name and "bias" in name:  # softmax does not see it
            assert np.abs(leaf).max() < 1e-6 * largest
            continue
        largest = max(largest, np.abs(leaf).max())
        assert np.abs(leaf).max() > 1e-5, name
        assert (np.abs(leaf) > 0).mean() > 0.9, name
    # Of the tables, the rows that are read for an utterance with a label.
    labelled = np.isin(
        examples.rows(np.arange(examples.n_items)),
        np.flatnonzero(examples.labels["emotion"] >= 0),
    )
    lengths = np.array([len(u.text.split()) + 2 for d in dialogues for u in d.utterances])
    real = batch.segments > 0
    of_labelled = np.repeat(labelled, lengths)[batch.tokens[real]]
    for name, ids in (
        ("embeddings.word_embeddings", batch.words[real]),
        ("embeddings.position_embeddings", batch.positions[real]),
        ("embeddings.token_type_embeddings", np.zeros(real.sum(), int)),
    ):
        reached = np.flatnonzero(np.abs(tables.pop(name)).max(-1) > 0)
        assert reached.tolist() == np.unique(ids[of_labelled]).tolist()
    assert not tables


def test_unlabelled_utterances_count_nowhere(alone, dialogues):
    step, examples_of, params = alone
    examples = examples_of(dialogues)
    everything = np.arange(examples.n_items)
    unlabelled = np.flatnonzero(examples.labels["emotion"] < 0)
    assert 2 < len(unlabelled) < len(everything) - 2
    (loss, _), gradient = step(examples.batch(everything))
    texts = [u.text for d in dialogues for u in d.utterances]
    other = dialogues
    for number in unlabelled:
        other = reworded(other, number, " ".join(["oh"] * len(texts[number].split())))
    (same, _), same_gradient = step(examples_of(other).batch(everything))
    assert float(same) == pytest.approx(float(loss), rel=1e-6)
    close(same_gradient, gradient, 1e-6)
    # Where nothing is labelled there is nothing to learn, and nothing breaks.
    blank = examples.batch(everything)
    blank = blank.replace(labels={"emotion": np.full_like(blank.ids, -1)})
    (nothing, _), no_gradient = step(blank)
    assert float(nothing) == 0
    chex.assert_trees_all_equal(no_gradient, jax.tree.map(jnp.zeros_like, params))


def test_class_weights(setting, alone, dialogues):
    """Those of scikit-learn, in the mean of torch."""
    _, system, _, examples_of = setting(counted=dialogues, train__class_weights="balanced")
    examples = examples_of(dialogues)
    batch = examples.batch(np.arange(examples.n_items))
    params = fresh_params(system)
    found, _ = jax.jit(system.loss)(params, batch, None)
    probabilities = np.asarray(jax.jit(system.predict)(params, batch)["emotion"])
    labels = batch.labels["emotion"]
    probabilities, labels = probabilities[labels >= 0], labels[labels >= 0]
    compute = pytest.importorskip("sklearn.utils.class_weight").compute_class_weight
    weights = compute("balanced", classes=np.arange(4), y=labels)
    assert weights.max() > 1.2 * weights.min()
    losses = -np.log(probabilities[np.arange(len(labels)), labels])
    assert float(found) == pytest.approx(np.average(losses, weights=weights[labels]), rel=1e-5)
    (plain, _), _ = alone[0](batch)
    assert float(plain) == pytest.approx(losses.mean(), rel=1e-5)
    assert abs(float(plain - found)) > 1e-3


# Updates


@pytest.mark.slow
def test_accumulated_halves_are_one_whole(setting, labels):
    talk = make_dialogues([2, 3, 3, 4], labels.emotions, unlabelled=0)
    updated = {}
    for accumulate in (1, 2):
        config, system, _, examples_of = setting(
            train__accumulate=accumulate, train__learning_rate=0.01, train__weight_decay=0.1
        )
        examples = examples_of(talk)
        optimizers = make_optimizers(config, system.objectives(), 1)
        step = make_train_step(system.objectives(), optimizers)
        params = fresh_params(system)
        state = first_state(params, optimizers)
        for items in np.split(np.arange(12), accumulate):
            before = jax.tree.map(np.asarray, state.params)
            state, _ = step(state, examples.batch(items), np.uint32(0))
            if items[-1] < 11:  # nothing moves before the last
                chex.assert_trees_all_equal(state.params, before)
        updated[accumulate] = state.params
    whole, halves = updated[1], updated[2]
    for path, leaf in jax.tree_util.tree_leaves_with_path(whole["encoder"]):
        *names, last = (part.key for part in path)
        other = halves["encoder"]
        for name in (*names, last):
            other = other[name]
        # Adam divides by the gradient's size: where that is rounding, so is the direction.
        if not (names[-1].endswith("self.key") and last == "bias"):
            assert np.median(np.abs(np.asarray(leaf - other))) < 1e-6
    start = fresh_params(system)
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(whole[HEAD][name], halves[HEAD][name], atol=1e-5)
        assert np.abs(whole[HEAD][name] - start[HEAD][name]).max() > 5e-3


@pytest.mark.slow
@pytest.mark.parity
def test_a_step_is_pytorchs(setting, alone, folder, dialogues):
    """BertModel, mean pooling, a linear layer and torch.optim.AdamW."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    rate, decay = 1e-3, 0.1
    config, system, encoder, examples_of = setting(
        train__learning_rate=rate, train__weight_decay=decay
    )
    examples = examples_of(dialogues)
    optimizers = make_optimizers(config, system.objectives(), 1)
    params = fresh_params(system)
    before = jax.tree.map(np.asarray, params)
    batch = examples.batch(np.arange(examples.n_items))
    gradient = jax.tree.map(np.asarray, alone[0](batch)[1])
    state = first_state(params, optimizers)
    state, losses = make_train_step(system.objectives(), optimizers)(state, batch, np.uint32(0))

    model = transformers.BertModel.from_pretrained(
        folder, add_pooling_layer=False, hidden_dropout_prob=0, attention_probs_dropout_prob=0
    ).train()
    head = torch.nn.Linear(16, 4)
    with torch.no_grad():
        head.weight.copy_(torch.tensor(before[HEAD]["kernel"].T))
        head.bias.copy_(torch.tensor(before[HEAD]["bias"]))
    named = [*model.named_parameters(), *head.named_parameters()]
    plain = [name.endswith("bias") or "LayerNorm" in name for name, _ in named]
    groups = [
        {"params": [p for (_, p), x in zip(named, plain, strict=True) if x], "weight_decay": 0.0},
        {"params": [p for (_, p), x in zip(named, plain, strict=True) if not x]},
    ]
    adam = torch.optim.AdamW(groups, lr=rate, weight_decay=decay, eps=1e-8)
    sequences = encoder.sequences(dialogues)
    lengths = np.array([len(s.ids) for s in sequences])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(mask.shape, int)
    ids[mask] = np.concatenate([s.ids for s in sequences])
    weight = torch.tensor(mask.astype(np.float32))
    hidden = model(input_ids=torch.tensor(ids), attention_mask=weight).last_hidden_state
    pooled = (hidden * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)
    loss = torch.nn.functional.cross_entropy(
        head(pooled), torch.tensor(examples.labels["emotion"]).long(), ignore_index=-1
    )
    loss.backward()
    adam.step()

    assert float(losses["loss"]) == pytest.approx(loss.item(), abs=1e-5)
    theirs = dict(model.named_parameters())
    trees = (state.params, before, gradient)
    ours, *others = (flax.traverse_util.flatten_dict(tree["encoder"]) for tree in trees)
    count = 0
    for path, value in ours.items():
        turn = np.transpose if path[-1] == "kernel" else np.asarray
        new, old, slope = (turn(x) for x in (value, *(other[path] for other in others)))
        name = ".".join((*path[:-1], "bias" if path[-1] == "bias" else "weight"))
        parameter = theirs[name]
        reference = parameter.grad.numpy()
        assert np.abs(slope - reference).max() < 1e-5 * max(1, np.abs(reference).max()), name
        # Adam's first step is the gradient's sign; where the gradient is rounding, so is the sign.
        sure = np.abs(reference) > 1e-4
        difference = np.abs(new - parameter.detach().numpy())
        assert difference[sure].max(initial=0) < 1e-5, name
        count += sure.sum()
        if "word_embeddings" in name:  # rows that are not read only decay
            unread = ~reference.any(1)
            assert unread.any()
            np.testing.assert_allclose(new[unread], old[unread] * (1 - rate * decay), 1e-5)
    assert count > 0.5 * sum(p.numel() for p in model.parameters())
    updated = state.params[HEAD]
    np.testing.assert_allclose(updated["kernel"].T, head.weight.detach(), atol=1e-5)
    np.testing.assert_allclose(updated["bias"], head.bias.detach(), atol=1e-5)


# Whole runs

FIELDS = {
    "system": "fine_tuning",
    "train__learning_rate": 0.01,
    "train__epochs": 10,
    "train__batch_size": 4,
    "train__decay": "linear",
    "fine_tuning__context": "dialogue",
    "model__dropout": 0.1,
}


def read(workdir):
    return json.loads((workdir / "metrics.json").read_text())


def without_run(content):
    return {key: value for key, value in content.items() if key != "run"}


def losses_of(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


def files_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_a_run_learns_and_leaves_what_is_documented(run):
    config, workdir, content = run
    losses = losses_of(workdir)
    assert losses[-1] < losses[0] - 0.3
    assert content["test"]["accuracy"] > 0.6
    assert set(content) == {"validation", "test", "run"}
    for split in ("validation", "test"):
        assert set(content[split]) == SCORES
        assert np.sum(content[split]["confusion"]) == 32
    facts = content["run"]
    assert (facts["system"], facts["encoder"]["name"]) == ("fine_tuning", config.encoder)
    found = {path.name.partition(".out.")[0] for path in workdir.iterdir()}
    assert found == {
        *("config.json", "metrics.jsonl", "events", "checkpoints", "metrics.json", "model_card.md"),
        "encoder",
        *("predictions_validation.jsonl", "predictions_test.jsonl", "early_validation.jsonl"),
    }


@pytest.mark.slow
def test_the_workdir_is_the_best_checkpoints_encoder(run):
    config, workdir, _ = run
    encoder = SentenceEncoder.from_pretrained(str(workdir))
    assert (encoder.context, encoder.pooling.normalize) == ("dialogue", False)
    loaded = load_run(workdir)
    chex.assert_trees_all_equal(encoder.params, loaded.params["encoder"])
    published = SentenceEncoder.from_pretrained(config.encoder)
    assert encoder.sha256 != published.sha256
    # Its vectors under the head are what the system predicted.
    dialogues = load_dialogues(f"{config.data.source}/test.jsonl")
    vectors = encoder.encode_dialogues(dialogues)
    head = loaded.params[HEAD]
    expected = jax.nn.softmax(vectors @ head["kernel"] + head["bias"])
    predicted = load_dialogues(workdir / "predictions_test.jsonl")
    names = loaded.system.tasks[0].classes
    found = [
        [u.extra["probabilities"][name] for name in names] for d in predicted for u in d.utterances
    ]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_the_workdir_predicts_without_the_published_encoder(run, place, tmp_path):
    _, workdir, content = run
    shutil.copytree(workdir, tmp_path / "moved")
    record = Recognizer.from_pretrained(tmp_path / "moved").predict(QUESTION)
    assert [u["emotion"] for u in record["utterances"]] == ["happy", "sad"]
    for utterance in record["utterances"]:
        assert set(utterance) == {"speaker", "text", "emotion", "probabilities"}
        assert sum(utterance["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    scores = evaluate_file(tmp_path / "moved", place / "corpus/test.jsonl", None)
    assert scores == {"test.jsonl": content["test"]}


@pytest.mark.slow
def test_a_split_is_scored_again_with_the_same_result(run, tmp_path):
    _, workdir, content = run
    shutil.copytree(workdir, tmp_path / "run")
    before = files_of(tmp_path / "run/encoder")
    assert evaluate_split(tmp_path / "run", "test", {})["test"] == content["test"]
    name = "predictions_test.jsonl"
    assert (tmp_path / "run" / name).read_bytes() == (workdir / name).read_bytes()
    assert files_of(tmp_path / "run/encoder") == before


@pytest.mark.slow
def test_an_unfinished_run_is_no_encoder_and_goes_on_to_the_same_end(run, tmp_path, train_and_kill):
    config, finished, content = run
    workdir = tmp_path / "run"
    steps = train_and_kill(config, workdir, saves=1)
    assert steps == [1, 2]  # it goes on within the first epoch
    message = "a workdir without a fine-tuned encoder .*its run is not finished"
    for ask in (SentenceEncoder.from_pretrained, Recognizer.from_pretrained):
        with pytest.raises(UserError, match=message):
            ask(str(workdir))
    assert without_run(train(config, workdir)) == without_run(content)
    assert files_of(workdir / "encoder") == files_of(finished / "encoder")
    # The finished command once more.
    assert without_run(train(config, workdir)) == without_run(content)
    assert files_of(workdir / "encoder") == files_of(finished / "encoder")


@pytest.mark.slow
def test_of_several_seeds_the_best_is_the_encoder(seeds):
    workdir, content = seeds
    assert read(workdir) == json.loads(json.dumps(content))
    scores = [of_seed["validation"]["weighted_f1"] for of_seed in content["seeds"]]
    best = int(np.argmax(scores))
    best, other = (files_of(workdir / f"seeds/{seed}/encoder") for seed in (best, 1 - best))
    assert files_of(workdir / "encoder") == best != other
    assert Recognizer.from_pretrained(workdir).predict(QUESTION)["utterances"]


@pytest.mark.slow
def test_mtl_erc_es_reads_its_features(place, run, tmp_path):
    config = tiny_config(place, **EMOTION_ONLY, encoder=str(run[1]))
    content = train(config, tmp_path / "run")
    assert content["test"]["accuracy"] > 0.6
    tuned = SentenceEncoder.from_pretrained(str(run[1]))
    assert content["run"]["encoder"] == {
        "name": str(run[1]), "sha256": tuned.sha256, "width": tuned.width
    }  # fmt: skip
    record = Recognizer.from_pretrained(tmp_path / "run").predict(QUESTION)
    assert [u["emotion"] for u in record["utterances"]] == ["happy", "sad"]
    with pytest.raises(UserError, match="a workdir without a fine-tuned encoder"):
        SentenceEncoder.from_pretrained(str(tmp_path / "run"))


@pytest.mark.slow
def test_what_fine_tuning_offers_trains(place, tmp_path):
    """Alone, accumulated, weighted, scanned, in bfloat16: the encoder's layout is as published."""
    config = tiny_config(
        place,
        **FIELDS
        | {
            "fine_tuning__context": "none",
            "fine_tuning__pooling": "cls",
            "fine_tuning__max_tokens": 12,
            "fine_tuning__dtype": "bfloat16",
            "fine_tuning__scan_layers": True,
            "fine_tuning__remat": True,
            "train__accumulate": 2,
            "train__class_weights": "balanced",
            "train__epochs": 2,
            "train__batch_size": 8,
        },
    )
    content = train(config, tmp_path / "run")
    losses = losses_of(tmp_path / "run")
    assert losses[-1] < losses[0]
    encoder = SentenceEncoder.from_pretrained(str(tmp_path / "run"))
    assert (encoder.context, encoder.pooling.mode, encoder.max_length) == ("none", "cls", 12)
    assert not encoder.module.scan_layers
    scores = evaluate_file(tmp_path / "run", place / "corpus/test.jsonl", None)
    assert scores["test.jsonl"] == content["test"]
