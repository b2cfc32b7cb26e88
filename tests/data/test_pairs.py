"""Pairs of texts: every pair comes back at its place, in batches of one task and few shapes."""

import collections
import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from erc_jax.data.batching import training_order
from erc_jax.data.corpora import load_corpus
from erc_jax.data.dialogue import Dialogue, Utterance
from erc_jax.data.pairs import GENERATION, NO_ITEM, PAD, WIDTHS, TextExamples, response_pairs
from erc_jax.errors import UserError
from erc_jax.predictor import Predictor
from erc_jax.sharding import make_mesh

MAX_TOKENS = 64


def tokenize(texts, max_tokens):
    """<s>, a token for each word of a text (words are numbers), </s>."""
    words = [[int(word) for word in text.split()][: max_tokens - 2] for text in texts]
    return [np.array([0, *of_text, 2], np.int32) for of_text in words]


def random_dialogues(lengths, seed, most_words=70):
    """Dialogues of given numbers of utterances; a text is of up to so many words, mostly few."""
    random = np.random.default_rng(seed)

    def text():
        count = int(np.clip(random.lognormal(2.3, 0.8), 1, most_words))
        return " ".join(map(str, random.integers(3, 1000, count)))

    return [
        Dialogue(f"d{n}", tuple(Utterance("A", text()) for _ in range(length)))
        for n, length in enumerate(lengths)
    ]


DIALOGUES = random_dialogues([3, 1, 7, 2, 30], seed=0)
TWEETS = random_dialogues([1] * 45, seed=1)
REVIEWS = random_dialogues([1, 2] * 10, seed=2, most_words=10)
TWEET_LABELS = np.random.default_rng(3).integers(0, 6, 45).astype(np.int32)
REVIEW_LABELS = np.random.default_rng(4).integers(-1, 2, 30).astype(np.int32)
N_PAIRS = 2 + 0 + 6 + 1 + 29


def make_parts():
    return [
        TextExamples.of_pairs(DIALOGUES, tokenize, MAX_TOKENS),
        TextExamples.of_labelled("E6", TWEETS, TWEET_LABELS, tokenize, MAX_TOKENS),
        TextExamples.of_labelled("E2", REVIEWS, REVIEW_LABELS, tokenize, MAX_TOKENS),
    ]


@pytest.fixture(scope="module", autouse=True)
def any_number_is_many():
    """So that widths are chosen as of a large corpus."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("erc_jax.data.pairs.FEW", 0)
        yield


@pytest.fixture(scope="module")
def parts():
    return make_parts()


@pytest.fixture(scope="module")
def examples(parts):
    return TextExamples.joined(parts)


def texts_in_order():
    """(source, target) of every item."""
    pairs = [(p.utterance, p.response) for p in response_pairs(DIALOGUES)]
    alone = [u.text for d in [*TWEETS, *REVIEWS] for u in d.utterances]
    return pairs + [(text, text) for text in alone]


def test_response_pairs():
    dialogues = [
        Dialogue("a", tuple(Utterance("A", text) for text in ("1", "2", "3"))),
        Dialogue("b", (Utterance("A", "4"),)),
        Dialogue("c", tuple(Utterance("B", text) for text in ("5", "5"))),
    ]
    assert response_pairs(dialogues) == [("1", "2", 0), ("2", "3", 0), ("5", "5", 2)]
    assert response_pairs([]) == []


def test_what_a_split_says_of_itself(examples):
    assert examples.tasks == (GENERATION, "E6", "E2")
    assert examples.n_items == examples.n_utterances == N_PAIRS + 45 + 30
    assert examples.n_dialogues == 5 + 45 + 20
    assert examples.dialogue_of.tolist() == [
        *[0] * 2, *[2] * 6, 3, *[4] * 29,
        *range(5, 50),
        *np.repeat(np.arange(50, 70), [1, 2] * 10),
    ]  # fmt: skip
    assert set(examples.labels) == {"E6", "E2"}
    expected = np.full(N_PAIRS + 75, -1)
    expected[N_PAIRS : N_PAIRS + 45] = TWEET_LABELS
    np.testing.assert_array_equal(examples.labels["E6"], expected)
    assert examples.labels["E6"].dtype == np.int32
    np.testing.assert_array_equal(examples.labels["E2"][-30:], REVIEW_LABELS)
    assert (examples.labels["E2"][:-30] == -1).all()


def test_of_task_is_the_part_again(examples, parts):
    for part in parts:
        (task,) = part.tasks
        again = examples.of_task(task)
        assert again.tasks == (task,)
        assert (again.n_items, again.n_dialogues) == (part.n_items, part.n_dialogues)
        np.testing.assert_array_equal(again.dialogue_of, part.dialogue_of)
        assert set(again.labels) == set(part.labels)
        items = np.arange(part.n_items)
        one, other = again.batch(items), part.batch(items)
        jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("n_blocks", [1, 4])
@pytest.mark.parametrize("batch_size", [1, 6, 64])
def test_every_pair_is_at_its_place_with_its_label(examples, n_blocks, batch_size):
    expected = texts_in_order()
    seen = []
    for items in training_order(examples, batch_size, seed=0, epoch=0):
        batch = examples.batch(items, n_blocks)
        assert batch.real.shape == (n_blocks, -(-len(items) // n_blocks))
        assert sorted(batch.ids[batch.real]) == list(range(batch.real.sum()))
        # As Predictor puts its outputs back.
        pairs = examples.rows(items)[batch.ids[batch.real]]
        seen += pairs.tolist()
        for words, mask, side in (
            (batch.source, batch.source_mask, 0),
            (batch.target, batch.target_mask, 1),
        ):
            assert words.dtype == np.int32
            assert (words[~mask] == PAD).all()
            assert not mask[~batch.real].any()
            for pair, tokens, there in zip(pairs, words[batch.real], mask[batch.real], strict=True):
                assert tokens[there].tolist() == tokenize([expected[pair][side]], 64)[0].tolist()
                assert there[: there.sum()].all()
        assert set(batch.labels) == {batch.task} - {GENERATION}
        for task, labels in batch.labels.items():
            assert labels.dtype == np.int32
            np.testing.assert_array_equal(labels[batch.real], examples.labels[task][pairs])
            assert (labels[~batch.real] == -1).all()
    assert sorted(seen) == list(range(examples.n_items))


def test_a_token_has_the_same_number_in_any_block(examples):
    """Dropout's masks belong to these numbers."""
    items = np.array([30, 2, 17, 5, 8, NO_ITEM, NO_ITEM])
    for side in ("source", "target"):
        numbered = []
        for n_blocks in (1, 3):
            batch = examples.batch(items, n_blocks)
            mask = getattr(batch, side + "_mask")
            numbers = getattr(batch, side + "_tokens")
            assert (numbers[~mask] == 0).all()
            assert numbers.dtype == np.int32
            numbered.append(sorted(zip(numbers[mask], getattr(batch, side)[mask], strict=True)))
        assert numbered[0] == numbered[1]
        assert [number for number, _ in numbered[0]] == list(range(len(numbered[0])))
        texts = [texts_in_order()[i][side == "target"] for i in items if i != NO_ITEM]
        assert [word for _, word in numbered[0]] == np.concatenate(tokenize(texts, 64)).tolist()


def test_blocks_are_filled_alike(examples):
    items = np.array([*range(10), *[NO_ITEM] * 6])
    assert examples.batch(items, 8).real.sum(axis=1).tolist() == [2, 2, 1, 1, 1, 1, 1, 1]
    few = examples.batch(np.array([3]), 8)
    assert few.source.shape[:2] == (8, 1)
    assert few.real.sum() == 1


def test_a_batch_is_of_one_task_and_one_shape(examples):
    shapes = collections.defaultdict(set)
    for items in training_order(examples, 8, seed=1, epoch=2):
        batch = examples.batch(items)
        widths = batch.source.shape[2], batch.target.shape[2]
        shapes[batch.task, widths].add(len(items))
        assert set(widths) <= set(WIDTHS)
        assert (items[batch.real.sum() :] == NO_ITEM).all()  # only the end is filled up
        for mask, width in zip((batch.source_mask, batch.target_mask), widths, strict=True):
            below = max([0, *(w for w in WIDTHS if w < width)])
            assert (mask.sum(axis=2)[batch.real] > below).all()  # none would fit a narrower row
    assert all(len(heights) == 1 for heights in shapes.values())
    assert {task for task, _ in shapes} == {"R", "E6", "E2"}
    assert all(s == t for task, (s, t) in shapes if task != GENERATION)


def test_unanswered_pairs_have_a_shape_per_source_width(examples):
    pairs = examples.of_task(GENERATION)
    alone = pairs.unanswered()
    shapes = set()
    for items in alone.batches(4, np.random.default_rng(0)):
        here, there = alone.batch(items), pairs.batch(items)
        np.testing.assert_array_equal(here.source, there.source)
        np.testing.assert_array_equal(here.ids, there.ids)
        assert not here.target_mask.any()
        shapes.add((here.source.shape[-1], here.target.shape[-1]))
    assert len(shapes) == len(set(pairs._source_width)) > 1


def test_few_pairs_of_a_width_make_the_next_power_of_two(parts):
    """So that talks of many lengths compile seldom."""
    few = TextExamples.of_pairs(random_dialogues([6], 0, most_words=5), tokenize, MAX_TOKENS)
    (items,) = few.batches(64, np.random.default_rng(0))
    assert sorted(items) == [NO_ITEM] * 3 + [0, 1, 2, 3, 4]
    (items,) = few.batches(6, np.random.default_rng(0))  # but never more than was asked for
    assert len(items) == 6


def test_the_order_is_a_function_of_seed_and_epoch(examples):
    def order(examples, seed, epoch):
        return [items.tolist() for items in training_order(examples, 8, seed, epoch)]

    first = order(examples, 0, 0)
    assert first == order(TextExamples.joined(make_parts()), 0, 0)
    assert first != order(examples, 0, 1)
    assert first != order(examples, 1, 0)
    # Items are dealt out anew, not only the batches.
    batches = [{frozenset(items) for items in order(examples, 0, epoch)} for epoch in (0, 1)]
    assert batches[0] != batches[1]
    assert len(first) == len(order(examples, 0, 1))


def test_tasks_are_mixed():
    """A task's batches are spread over the epoch in proportion to their number."""
    parts = [
        TextExamples.of_labelled(
            task, random_dialogues([1] * n, n), np.zeros(n, np.int32), tokenize, MAX_TOKENS
        )
        for task, n in (("many", 1600), ("few", 400))
    ]
    joined = TextExamples.joined(parts)
    order = [joined.batch(items).task for items in training_order(joined, 4, 0, 0)]
    first, second = (collections.Counter(h) for h in np.split(np.array(order[: 2 * 250]), 2))
    for half in (first, second):
        assert 150 < half["many"] < 250
        assert 25 < half["few"] < 75


def test_predictor_puts_outputs_back(examples):
    """What a function gives for a batch comes back in the split's order, whatever the devices."""

    def first_words(params, batch):
        del params
        assert batch.labels == {}
        return {"words": batch.source[..., 1:3] + 1000 * batch.target[..., 1:3]}

    mesh = make_mesh()
    assert mesh.size > 1
    part = examples.of_task(GENERATION)
    outputs = Predictor(SimpleNamespace(dtype="float32"), mesh, batch_size=16).run(
        first_words, {}, part
    )
    expected = [
        source[1:3] + 1000 * target[1:3]
        for source, target in zip(
            *(tokenize(side, 64) for side in zip(*texts_in_order()[:N_PAIRS], strict=True)),
            strict=True,
        )
    ]
    np.testing.assert_array_equal(outputs["words"], expected)


def test_a_step_compiles_once_per_task_and_widths(examples):
    traced = []

    @jax.jit
    def step(batch):
        traced.append((batch.task, batch.source.shape, batch.target.shape))
        return batch.source.sum()

    shapes = set()
    for epoch in range(2):
        for items in training_order(examples, 8, 0, epoch):
            batch = examples.batch(items)
            step(batch)
            shapes.add((batch.task, batch.source.shape, batch.target.shape))
    assert len(traced) == len(set(traced)) == len(shapes)


def test_a_text_is_read_once():
    """Most utterances are an answer and answered."""
    read = []

    def noting(texts, max_tokens):
        read.extend(texts)
        return tokenize(texts, max_tokens)

    TextExamples.of_pairs(DIALOGUES, noting, MAX_TOKENS)
    assert len(read) == len(set(read))
    assert set(read) == {u.text for d in DIALOGUES for u in d.utterances if len(d.utterances) > 1}


@pytest.mark.parametrize(
    ("max_tokens", "widths"), [(10, {10}), (20, {12, 20}), (50, {12, 20, 32, 50})]
)
def test_widths_are_capped(max_tokens, widths):
    dialogues = random_dialogues([200], seed=0)
    examples = TextExamples.of_pairs(dialogues, tokenize, max_tokens)
    found = set()
    for items in examples.batches(8, np.random.default_rng(0)):
        batch = examples.batch(items)
        found |= {batch.source.shape[2], batch.target.shape[2]}
    assert found == widths


def test_few_pairs_have_one_width(monkeypatch):
    """For a compilation costs more than their padding."""
    monkeypatch.setattr("erc_jax.data.pairs.FEW", 4000)
    examples = TextExamples.of_pairs(random_dialogues([200], seed=0), tokenize, 50)
    batches = examples.batches(8, np.random.default_rng(0))
    assert {examples.batch(items).source.shape[2] for items in batches} == {50}


def test_what_is_refused(parts):
    with pytest.raises(UserError, match=r"none of the 2 dialogues has two utterances"):
        TextExamples.of_pairs(random_dialogues([1, 1], 0), tokenize, MAX_TOKENS)
    empty = [*DIALOGUES, Dialogue("x7", (Utterance("A", "5"), Utterance("B", " \n")))]
    with pytest.raises(UserError, match=r"dialogue x7, utterance 2: the text is empty"):
        TextExamples.of_pairs(empty, tokenize, MAX_TOKENS)
    with pytest.raises(UserError, match=r"dialogue x7, utterance 2: the text is empty"):
        TextExamples.of_labelled("E6", empty, np.zeros(45, np.int32), tokenize, MAX_TOKENS)
    # Mistakes of ours.
    with pytest.raises(ValueError, match="a task comes twice: R, R"):
        TextExamples.joined([parts[0], parts[0]])
    with pytest.raises(ValueError, match="3 labels of 45 utterances"):
        TextExamples.of_labelled("E6", TWEETS, np.zeros(3, np.int32), tokenize, MAX_TOKENS)
    with pytest.raises(ValueError, match="at most 16 are allowed"):
        TextExamples.of_pairs(DIALOGUES, lambda texts, _: tokenize(texts, 64), 16)
    with pytest.raises(ValueError, match="unpack"):
        TextExamples.joined(parts).batch(np.array([0, N_PAIRS]))


def test_arrays_are_those_of_the_loop(examples):
    """The loop puts a batch on devices by its first axis, and takes its labels away to predict."""
    batch = examples.batch(np.array([N_PAIRS, N_PAIRS + 1, N_PAIRS + 2]), n_blocks=2)
    assert {array.shape[0] for array in jax.tree.leaves(batch)} == {2}
    assert dataclasses.replace(batch, labels={}).task == "E6"


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("ERC_JAX_DATA"), reason="needs the real corpora, ERC_JAX_DATA"
)
def test_real_pairs(tmp_path):
    source = Path(os.environ["ERC_JAX_DATA"], "dailydialog")
    corpus = load_corpus("dailydialog", source, cache=tmp_path)
    counts = {split: len(response_pairs(dialogues)) for split, dialogues in corpus.splits.items()}
    assert counts == {"train": 76052, "validation": 7069, "test": 6740}
