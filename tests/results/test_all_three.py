"""The made-up corpus of three modalities says what it claims, and nothing more."""

import itertools
import runpy
from pathlib import Path

import numpy as np
import pytest

from erc_jax.data.corpora import load_corpus
from erc_jax.data.feature_files import align, load_split

SCRIPT = Path(__file__).parents[2] / "results" / "all_three.py"
MODALITIES = ("text", "audio", "visual")
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("all_three")
    runpy.run_path(str(SCRIPT))["main"](folder)
    return folder


@pytest.fixture(scope="module")
def corpus(output, tmp_path_factory):
    return load_corpus("own", output, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def read(output, corpus):
    """Each split's bits as they can be read, bool [3, N], and whether emotions are odd, bool [N].

    What varies most is the bit; which of its values is 1 is not told.
    """
    axes = {}
    found = {}
    for split in SPLITS:
        dialogues = corpus.splits[split]
        bits = []
        for modality in MODALITIES:
            table = load_split(output / "features" / modality, split)
            features, there = align(table, dialogues, modality)
            assert there.all()
            if split == "train":
                axes[modality] = np.linalg.svd(features, full_matrices=False)[2][0]
            bits.append(features @ axes[modality] > 0)
        odd = np.array([u.emotion == "odd" for d in dialogues for u in d.utterances])
        found[split] = np.array(bits), odd
    return found


def test_the_same_files_every_time(output, tmp_path):
    runpy.run_path(str(SCRIPT))["main"](tmp_path)
    names = [path.relative_to(output) for path in output.rglob("*") if path.is_file()]
    assert len(names) == 3 + 3 * 3
    for name in names:
        assert (output / name).read_bytes() == (tmp_path / name).read_bytes()


def test_conversations_have_several_speakers(corpus):
    assert corpus.labels.emotions == ("even", "odd")
    for dialogues in corpus.splits.values():
        speakers = [len({u.speaker for u in d.utterances}) for d in dialogues]
        assert np.mean(np.array(speakers) > 1) > 0.9


@pytest.mark.parametrize("split", SPLITS)
def test_three_modalities_tell_the_emotion(read, split):
    def parity(split):
        return read[split][0].sum(axis=0) % 2 == 1

    # In train is seen which parity is odd.
    turned = np.mean(parity("train") == read["train"][1]) < 0.5
    assert np.mean((parity(split) ^ turned) == read[split][1]) > 0.995


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("left_out", range(3))
def test_two_modalities_tell_nothing(read, split, left_out):
    bits, odd = read[split]
    two = np.delete(bits, left_out, axis=0)
    for values in itertools.product((False, True), repeat=2):
        chosen = odd[(two == np.array(values)[:, None]).all(axis=0)]
        # Within four standard deviations of a fair coin's.
        assert abs(chosen.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(chosen))
