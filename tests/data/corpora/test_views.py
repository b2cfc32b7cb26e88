"""What is made of a corpus that was read: emotions held out, other ratings, their scale."""

import dataclasses
import re

import pytest

from erc_jax.data.annotation import Annotation
from erc_jax.data.corpora import Corpus
from erc_jax.data.dialogue import Dialogue, Utterance
from erc_jax.data.labels import LabelSpace
from erc_jax.errors import UserError

SPLITS = ("train", "validation", "test")
EMOTIONS = ("calm", "happy", "sad", "cross")


def rating(value):
    return {"valence": value, "arousal": value, "dominance": value}


@pytest.fixture
def corpus():
    """Each split has a dialogue of all emotions and one utterance without, rated 1 to 5."""
    splits = {}
    for split in SPLITS:
        utterances = [
            Utterance("A", f"{split} {i}", emotion, vad=rating(1.0 + i))
            for i, emotion in enumerate((*EMOTIONS, None))
        ]
        splits[split] = [Dialogue("d", tuple(utterances), {"vad_scale": [1, 5]})]
    return Corpus("own", splits, LabelSpace(EMOTIONS, "calm"), "0" * 64, False, ("a note",))


def labels_of(corpus, split):
    return [u.emotion for d in corpus.splits[split] for u in d.utterances]


def ratings_of(corpus, split):
    return [u.vad and u.vad["valence"] for d in corpus.splits[split] for u in d.utterances]


@pytest.mark.parametrize("unseen", [("sad",), ("happy", "cross")], ids=str)
def test_what_is_held_out_is_known_to_the_test_split_alone(corpus, unseen):
    held = corpus.holding_out(unseen)
    for split in ("train", "validation"):
        expected = [None if e in unseen else e for e in (*EMOTIONS, None)]
        assert labels_of(held, split) == expected
        # Its ratings would tell about it; those of unlabelled utterances stay.
        assert ratings_of(held, split) == [
            None if e in unseen else 1.0 + i for i, e in enumerate((*EMOTIONS, None))
        ]
        # They stay in their dialogues, as context.
        for before, after in zip(corpus.splits[split], held.splits[split], strict=True):
            assert [u.text for u in after.utterances] == [u.text for u in before.utterances]
            assert after.extra == before.extra
    assert held.splits["test"] == corpus.splits["test"]
    # It is still one of the emotions that can be named.
    assert held.labels == corpus.labels
    assert dataclasses.replace(held, splits=corpus.splits) == corpus


@pytest.mark.parametrize(
    ("unseen", "message"),
    [
        (["sadness"], r"zero_shot\.unseen is 'sadness', .* emotions of own: calm, happy, sad, cr"),
        (["sad", " happy"], "zero_shot.unseen is ' happy'"),
        ([""], "zero_shot.unseen is ''"),
        (["sad", "happy", "cross"], "zero_shot.unseen leaves fewer than two emotions"),
    ],
)
def test_what_cannot_be_held_out(corpus, unseen, message):
    with pytest.raises(UserError, match=message):
        corpus.holding_out(unseen)


def annotation(**ratings):
    return Annotation((0.0, 9.0), ratings, {}, {"annotator": "me", "sha256": "f"}, "1" * 64)


def test_ratings_of_an_annotation_take_the_place_of_the_corpus_own(corpus):
    mine = annotation(train={("d", 2): rating(8.5)}, test={("d", 5): rating(0.0)})
    rated = corpus.rated(mine, "folder")
    assert ratings_of(rated, "train") == [None, 8.5, None, None, None]
    assert ratings_of(rated, "validation") == [None] * 5
    assert ratings_of(rated, "test") == [None] * 4 + [0.0]
    assert rated.vad_scale() == (0.0, 9.0)
    assert corpus.vad_scale() == (1.0, 5.0)
    for split in SPLITS:
        assert labels_of(rated, split) == labels_of(corpus, split)
    # What a run was trained on is told apart, whichever of the two changes.
    others = [
        corpus.rated(dataclasses.replace(mine, sha256="2" * 64), "folder"),
        dataclasses.replace(corpus, sha256="3" * 64).rated(mine, "folder"),
    ]
    assert len({corpus.sha256, rated.sha256, *(other.sha256 for other in others)}) == 4
    assert rated.annotation == {"annotator": "me", "sha256": "f"}
    assert corpus.annotation is None


def test_a_rating_of_what_is_not_there(corpus):
    mine = annotation(validation={("d", 6): rating(1.0)})
    with pytest.raises(UserError, match="folder, validation: utterance 6 of dialogue 'd' is rated"):
        corpus.rated(mine, "folder")


def with_scales(corpus, *scales):
    """The corpus whose splits have these scales; "" leaves it out."""
    splits = {}
    for split, scale in zip(SPLITS, scales, strict=True):
        extra = {} if scale == "" else {"vad_scale": scale}
        splits[split] = [dataclasses.replace(d, extra=extra) for d in corpus.splits[split]]
    return dataclasses.replace(corpus, splits=splits)


def test_the_scale(corpus):
    assert with_scales(corpus, [0, 2.5], [0, 2.5], [0.0, 2.5]).vad_scale() == (0.0, 2.5)
    unrated = {
        split: [
            dataclasses.replace(
                d, utterances=tuple(dataclasses.replace(u, vad=None) for u in d.utterances)
            )
            for d in dialogues
        ]
        for split, dialogues in corpus.splits.items()
    }
    assert dataclasses.replace(corpus, splits=unrated).vad_scale() is None
    # A split without ratings needs no scale, whatever it says.
    splits = {**with_scales(corpus, [1, 5], [1, 5], [1, 5]).splits, "test": unrated["test"]}
    splits["test"] = [dataclasses.replace(d, extra={"vad_scale": [0, 9]}) for d in splits["test"]]
    assert dataclasses.replace(corpus, splits=splits).vad_scale() == (1.0, 5.0)


@pytest.mark.parametrize(
    ("scales", "found"),
    [
        (("", "", ""), "missing"),
        (([1, 5], [1, 5], ""), "[1, 5] or missing"),
        (([1, 5], [0, 9], [1, 5]), "[1, 5] or [0, 9]"),
        ((5, 5, 5), "5"),
        (([1], [1], [1]), "[1]"),
        (([5, 1], [5, 1], [5, 1]), "[5, 1]"),
        (([3, 3], [3, 3], [3, 3]), "[3, 3]"),
        (([0, float("inf")],) * 3, "[0, Infinity]"),
        (([-float("inf"), 0],) * 3, "[-Infinity, 0]"),
        ((["low", "high"],) * 3, '["low", "high"]'),
        (([[1], [5]],) * 3, "[[1], [5]]"),
    ],
    ids=str,
)
def test_ratings_whose_scale_is_not_known(corpus, scales, found):
    message = f"own: the scale of valence, arousal and dominance is {found}; expected one"
    with pytest.raises(UserError, match=re.escape(message)):
        with_scales(corpus, *scales).vad_scale()
