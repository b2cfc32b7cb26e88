"""The sample corpus is what its README says: labelled, balanced enough, and split without leaks."""

import collections
import importlib.resources
import itertools

import pytest

from erc_jax.data.dialogue import load_dialogues
from erc_jax.data.labels import SHIFTS, LabelSpace, previous_utterances, shift_ids

FOLDER = importlib.resources.files("erc_jax.data") / "sample"
SPLITS = ("train", "validation", "test")
LABELS = LabelSpace(
    emotions=("neutral", "joy", "surprise", "anger", "sadness", "fear", "disgust"),
    neutral="neutral",
    polarity={
        "neutral": "neutral",
        "surprise": "neutral",
        "joy": "positive",
        "anger": "negative",
        "sadness": "negative",
        "fear": "negative",
        "disgust": "negative",
    },
)


def load(name):
    return load_dialogues(str(FOLDER / f"{name}.jsonl"))


def emotion_counts(dialogues):
    return collections.Counter(u.emotion for d in dialogues for u in d.utterances)


@pytest.mark.parametrize("split", SPLITS)
def test_every_utterance_has_one_of_the_seven_emotions(split):
    counts = emotion_counts(load(split))
    assert set(counts) == set(LABELS.emotions)
    assert min(counts.values()) >= 12


@pytest.mark.parametrize("split", SPLITS)
def test_dialogues_are_conversations_of_two_to_four_speakers(split):
    for dialogue in load(split):
        assert 2 <= len({u.speaker for u in dialogue.utterances}) <= 4, dialogue.id
        assert 3 <= len(dialogue.utterances) <= 12, dialogue.id


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("level", ["dialogue", "speaker"])
def test_every_emotion_shift_occurs(split, level):
    seen = set()
    for dialogue in load(split):
        in_dialogue, of_speaker = previous_utterances([u.speaker for u in dialogue.utterances])
        previous = in_dialogue if level == "dialogue" else of_speaker
        seen.update(shift_ids(LABELS.polarity_ids(dialogue), previous, "ignore").tolist())
    assert seen >= set(range(len(SHIFTS)))


def test_splits_share_no_dialogue_and_no_long_utterance():
    ids, dialogues, utterances = {}, {}, {}
    for split in SPLITS:
        loaded = load(split)
        ids[split] = {d.id for d in loaded}
        dialogues[split] = {tuple(u.text.casefold() for u in d.utterances) for d in loaded}
        utterances[split] = {text for d in dialogues[split] for text in d if len(text) > 20}
        assert len(ids[split]) == len(dialogues[split]) == len(loaded)
    for a, b in itertools.combinations(SPLITS, 2):
        assert not ids[a] & ids[b]
        assert not dialogues[a] & dialogues[b]
        assert not utterances[a] & utterances[b]


def test_talk_is_unlabelled():
    dialogues = load("talk")
    assert [len({u.speaker for u in d.utterances}) for d in dialogues] == [3, 2]
    assert emotion_counts(dialogues).keys() == {None}


def test_readme_table_counts_the_files():
    lines = (FOLDER / "README.md").read_text(encoding="utf-8").splitlines()
    table = [[cell.strip() for cell in x.strip("|").split("|")] for x in lines if x.startswith("|")]
    assert table[0] == ["split", "dialogues", "utterances", *LABELS.emotions]

    corpus = {split: load(split) for split in SPLITS}
    corpus["all"] = [d for dialogues in corpus.values() for d in dialogues]
    expected = []
    for name, dialogues in corpus.items():
        counts = emotion_counts(dialogues)
        numbers = [len(dialogues), counts.total(), *(counts[e] for e in LABELS.emotions)]
        expected.append([name, *map(str, numbers)])
    assert table[2:] == expected
