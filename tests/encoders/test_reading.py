"""What an encoder reads of an utterance alone, and of one within its dialogue."""

import time

import numpy as np
import pytest

from erc_jax.data.dialogue import Dialogue, Utterance
from erc_jax.encoders.packing import NOBODY
from erc_jax.encoders.reading import Reader
from tests.tiny import WORDS, tiny_tokenizer

CLS, SEP, UNKNOWN = (WORDS.index(word) for word in ("[CLS]", "[SEP]", "[UNK]"))
COLON = UNKNOWN  # the tiny vocabulary has none


def make_reader(max_length=60, lower_case=False):
    tokenizer = tiny_tokenizer()
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return Reader(tokenizer, max_length, lower_case)


def ids_of(*words):
    return [WORDS.index(word) for word in words]


def dialogue(*turns, name="d"):
    """From "speaker: text"."""
    return Dialogue(name, tuple(Utterance(*turn.split(": ", 1)) for turn in turns))


def random_dialogue(lengths, seed=0):
    """Utterances of so many words by the speakers a and b: tokens are the words and three more."""
    random = np.random.default_rng(seed)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    return Dialogue(
        "d",
        tuple(
            Utterance(random.choice(["a", "b"]), " ".join(random.choice(letters, length)))
            for length in lengths
        ),
    )


def windows_of(sequences):
    """Of each sequence the utterances that are encoded there, in order of appearance."""
    return [list(dict.fromkeys(s.owners[s.owners != NOBODY].tolist())) for s in sequences]


# Alone


def test_alone_is_a_text_between_cls_and_sep():
    first, second = make_reader().alone(["we won", "oh my A"])
    assert first.ids.tolist() == [CLS, *ids_of("we", "won"), SEP]
    assert second.ids.tolist() == [CLS, *ids_of("oh", "my", "a"), SEP]
    assert first.owners.tolist() == [0] * 4  # the special tokens too
    assert second.owners.tolist() == [1] * 5
    assert first.ids.dtype == first.owners.dtype == np.int32


def test_alone_is_cut_where_the_limit_is():
    texts = [" ".join("abcdefghij"[:n]) for n in (7, 8, 9, 10)]
    sequences = make_reader(max_length=10).alone(texts)
    assert [len(s.ids) for s in sequences] == [9, 10, 10, 10]
    for sequence in sequences[1:]:
        assert sequence.ids.tolist() == [CLS, *ids_of(*"abcdefgh"), SEP]


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\u200b"])
def test_alone_nothing_is_cls_and_sep(text):
    (sequence,) = make_reader().alone([text])
    assert sequence.ids.tolist() == [CLS, SEP]
    assert sequence.owners.tolist() == [0, 0]


def test_alone_odd_texts_are_read():
    reader = make_reader(max_length=60)
    sequences = reader.alone(["x" * 100_000, "a " * 50_000, "we \ud83d won", "\udc80"])
    assert [len(s.ids) for s in sequences] == [3, 60, 5, 3]
    assert sequences[2].ids.tolist() == [CLS, *ids_of("we"), UNKNOWN, *ids_of("won"), SEP]


def test_no_texts():
    assert make_reader().alone([]) == []
    assert make_reader().in_context([]) == []


def test_lower_case_is_applied_before_the_tokenizer():
    cased = tiny_tokenizer()
    cased.no_padding()
    cased.no_truncation()
    cased.normalizer = None
    kept, lowered = (Reader(cased, 60, lower).alone(["WE won"])[0] for lower in (False, True))
    assert kept.ids.tolist() == [CLS, UNKNOWN, *ids_of("won"), SEP]
    assert lowered.ids.tolist() == [CLS, *ids_of("we", "won"), SEP]


# In context


def test_a_short_dialogue_is_one_sequence():
    talks = [dialogue("a: we won", "b: oh my"), dialogue("c: ")]
    first, second = make_reader().in_context(talks)
    own = [
        [*ids_of("a"), COLON, *ids_of("we", "won")],
        [*ids_of("b"), COLON, *ids_of("oh", "my")],
    ]
    assert first.ids.tolist() == [CLS, *own[0], SEP, *own[1], SEP]
    assert first.owners.tolist() == [NOBODY] + [0] * 5 + [1] * 5
    assert second.ids.tolist() == [CLS, *ids_of("c"), COLON, SEP]
    assert second.owners.tolist() == [NOBODY] + [2] * 3  # numbered on, over all dialogues
    assert first.ids.dtype == first.owners.dtype == np.int32


def test_speakers_names_are_read():
    reader = make_reader()
    (ours,) = reader.in_context([dialogue("a: we won", "b: oh my")])
    (renamed,) = reader.in_context([dialogue("a: we won", "c: oh my")])
    assert (ours.ids != renamed.ids).tolist() == [i == 6 for i in range(11)]


@pytest.mark.parametrize("longest", [3, 10, 40])
@pytest.mark.parametrize("max_length", [9, 32, 61])
def test_windows_of_a_long_dialogue(longest, max_length):
    talk = random_dialogue(np.random.default_rng(longest).integers(0, longest, 200))
    reader = make_reader(max_length)
    sequences = reader.in_context([talk])
    assert len(sequences) > 1
    # Every utterance is encoded once, in order.
    assert np.concatenate(windows_of(sequences)).tolist() == list(range(200))
    assert max(len(s.ids) for s in sequences) <= max_length
    texts = [f"{u.speaker}: {u.text}" for u in talk.utterances]
    alone = [s.ids[1:-1] for s in make_reader(1000).alone(texts)]
    for sequence in sequences:
        assert sequence.ids[0] == CLS
        assert sequence.owners[0] == NOBODY
        for utterance in set(sequence.owners) - {NOBODY}:
            places = np.flatnonzero(sequence.owners == utterance)
            assert (np.diff(places) == 1).all()
            own = [*alone[utterance][: max_length - 2], SEP]
            assert sequence.ids[places].tolist() == own


def test_windows_overlap_on_both_sides():
    talk = random_dialogue([7] * 30)  # 7 words, speaker, colon, [SEP]: 10 tokens each
    sequences = make_reader(max_length=61).in_context([talk])
    assert windows_of(sequences) == [[i, i + 1, i + 2] for i in range(0, 30, 3)]
    for sequence in sequences:
        assert len(sequence.ids) == 61  # six utterances: the window is full
    for number, sequence in enumerate(sequences[1:-1], start=1):
        read = np.flatnonzero(sequence.owners != NOBODY)
        before, after = read[0] - 1, len(sequence.ids) - read[-1] - 1
        assert (before, after) == (20, 10)  # the odd one goes to what was said before
        texts = [f"{u.speaker}: {u.text}" for u in talk.utterances[3 * number - 2 :][:6]]
        pieces = [s.ids[1:] for s in make_reader().alone(texts)]
        assert sequence.ids.tolist() == [CLS, *np.concatenate(pieces)]
    # At the ends all of the context comes from one side.
    assert np.flatnonzero(sequences[0].owners != NOBODY).tolist() == list(range(1, 31))
    assert np.flatnonzero(sequences[-1].owners != NOBODY).tolist() == list(range(31, 61))


def test_a_dialogue_as_long_as_the_limit_is_one_sequence():
    reader = make_reader(max_length=61)
    assert len(reader.in_context([random_dialogue([7] * 6)])) == 1
    assert len(reader.in_context([random_dialogue([7] * 5 + [8])])) > 1


def test_an_utterance_above_the_limit_is_cut():
    talk = dialogue("a: we won", f"b: {'a ' * 50_000}", "a: oh")
    sequences = make_reader(max_length=20).in_context([talk])
    assert windows_of(sequences) == [[0], [1], [2]]
    assert sequences[1].ids.tolist() == [CLS, *ids_of("b"), COLON, *ids_of("a") * 16, SEP]
    assert sequences[1].owners.tolist() == [NOBODY] + [1] * 19
    # It leaves no room in its neighbours' windows; they are read without it.
    assert [len(s.ids) for s in sequences] == [6, 20, 5]


def test_odd_names_and_texts_in_context():
    talk = dialogue("\ud83d: we \udc80", "🎉: ", " : oh", "a\nb: x")
    (sequence,) = make_reader().in_context([talk])
    assert windows_of([sequence]) == [[0, 1, 2, 3]]
    # Two tokens at least: rows have as many places for utterances.
    assert min(np.unique(sequence.owners, return_counts=True)[1][1:]) >= 2


def test_a_dialogue_of_5000_utterances():
    talk = random_dialogue(np.random.default_rng(0).integers(0, 20, 5000))
    started = time.process_time()
    sequences = make_reader(max_length=256).in_context([talk])
    assert time.process_time() - started < 10  # takes a fraction of a second
    assert np.concatenate(windows_of(sequences)).tolist() == list(range(5000))
    # Half of each window is encoded, so not much more than twice the text is read.
    assert sum(len(s.ids) for s in sequences) < 2.5 * sum(
        len(u.text.split()) + 3 for u in talk.utterances
    )
