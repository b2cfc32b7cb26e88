import os
from pathlib import Path

import pytest

from erc_jax.errors import UserError
from erc_jax.lexicon import load_lexicon

NORMS = """\
,Word,V.Mean.Sum,V.SD.Sum,A.Mean.Sum,D.Mean.Sum
1,happy,8.5,1,6,7.25
2,cry,2,1,4.5,3
3,hope,7,1,5,6
4,hop,5,1,5,5
5,miss,3,1,4,3
6,box,5,1,3,5
7,hate,2,1,6,4
8,hat,5.5,1,3,5
9,AIDS,1.5,1,5,2
10,aids,4.5,1,4,5
11,TV,6,1,4,5
12,die,1.75,1,5,2
13,great,7.5,1,5,6
14,safe,7,1,3,6
15,bee,5,1,5,5
16,thing,5,1,3,5
17,put,5,1,3,5
18,open,6,1,4,6
19,terrible,2,1,5,3
20,mother,7.5,1,4.5,6
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "norms.csv"
    path.write_text(NORMS)
    return path


@pytest.fixture
def lexicon(path):
    return load_lexicon(path)


def test_a_rating_is_the_mean_over_known_words(lexicon):
    rating = lexicon.rate("I am happy, Mother; qwerty hope.")
    assert (rating.words, rating.known) == (6, 3)
    assert rating.vad == {
        "valence": round((8.5 + 7.5 + 7) / 3, 4),
        "arousal": round((6 + 4.5 + 5) / 3, 4),
        "dominance": round((7.25 + 6 + 6) / 3, 4),
    }


@pytest.mark.parametrize("text", ["", "Umm, qwerty!", "?!", "123", "not never don't"])
def test_without_a_known_word_there_is_no_rating(lexicon, text):
    rating = lexicon.rate(text)
    assert rating.vad is None
    assert rating.known == 0


@pytest.mark.parametrize(
    ("word", "form_of"),
    [
        ("HAPPY", "happy"),
        ("happily", "happy"),
        ("happiest", "happy"),
        ("happier", "happy"),
        ("cried", "cry"),
        ("cries", "cry"),
        ("crying", "cry"),
        ("hoping", "hope"),
        ("hoped", "hope"),
        ("hopping", "hop"),
        ("hopes", "hope"),
        ("hops", "hop"),
        ("missed", "miss"),
        ("misses", "miss"),
        ("boxes", "box"),
        ("hates", "hate"),
        ("hated", "hate"),
        ("hats", "hat"),
        ("dying", "die"),
        ("died", "die"),
        ("greatest", "great"),
        ("safely", "safe"),
        ("putting", "put"),
        ("opened", "open"),
        ("terribly", "terrible"),
        ("mother's", "mother"),
        ("tv", "TV"),
        ("Aids", "aids"),
        ("things", "thing"),
    ],
)
def test_inflected_words_are_known(lexicon, word, form_of):
    assert lexicon.find(word) == lexicon.find(form_of) is not None


@pytest.mark.parametrize("word", ["being", "this", "ping", "hater", "went", "s", "ed", "unhappy"])
def test_what_only_looks_inflected_is_unknown(lexicon, word):
    assert lexicon.find(word) is None


def test_words_that_differ_by_case(lexicon):
    assert lexicon.find("AIDS")[0] == 1.5
    assert lexicon.find("aids")[0] == 4.5


@pytest.mark.parametrize(
    "text",
    [
        "not happy",
        "I'm not very very happy",
        "I don't feel happy",
        "I don’t feel happy",
        "I don ' t feel happy",
        "I don ’ t feel happy",
        "I do n't feel happy",
        "I DON'T feel happy",
        "I don\x92t feel happy",
        "nobody is HAPPY",
        "hardly happy",
        "I cannot be happy",
        "never not happy",  # two negators are one
        "yes, not happy",
    ],
)
def test_negation_reflects_valence_alone(lexicon, text):
    assert lexicon.rate(text).vad == {"valence": 1.5, "arousal": 6.0, "dominance": 7.25}


@pytest.mark.parametrize(
    "text",
    [
        "No, I am happy",
        "No! Happy",
        "not so very very happy",  # four words before it
        "happy not",
        "not rich but happy",
        "Why not -- happy",
        "I note happy",
        "not\nhappy",
    ],
)
def test_negators_that_deny_something_else(lexicon, text):
    assert lexicon.rate(text).vad["valence"] == 8.5


def test_negated_and_other_words_mix(lexicon):
    assert lexicon.rate("not terrible. I cry").vad["valence"] == (8 + 2) / 2


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ("21,sad,0.99,1,5,5", r"csv:22: expected a number from 1 to 9 as V.Mean.Sum, found '0.99'"),
        ("21,sad,5,1,9.1,5", r"csv:22: .* as A.Mean.Sum, found '9.1'"),
        ("21,sad,5,1,5,NaN", r"csv:22: .* as D.Mean.Sum, found 'NaN'"),
        ("21,sad,5,1,5,", r"csv:22: .* as D.Mean.Sum, found ''"),
        ("21,sad,5", "csv:22: the row does not have 6 fields; is the file cut off"),
        ("21,happy,5,1,5,5", "csv:22: 'happy' is there twice; remove one"),
        ("21,,5,1,5,5", 'csv:22: "Word" is empty'),
    ],
)
def test_mistakes_in_norms(path, added, message):
    path.write_text(NORMS + added + "\n")
    with pytest.raises(UserError, match=message):
        load_lexicon(path)


def test_what_are_no_norms(path, tmp_path):
    path.write_text("Word,V.Mean.Sum,A.Mean.Sum\n")
    with pytest.raises(UserError, match=r"csv:1: columns D.Mean.Sum are missing"):
        load_lexicon(path)
    path.write_text(NORMS.splitlines()[0])
    with pytest.raises(UserError, match=r"no words in the file; the norms are Ratings_Warriner"):
        load_lexicon(path)
    with pytest.raises(UserError, match=r"--lexicon .*: there is no such file; the norms are"):
        load_lexicon(tmp_path / "none.csv")


def test_the_published_norms():
    if "ERC_JAX_DATA" not in os.environ:
        pytest.skip("ERC_JAX_DATA is not set")
    path = Path(os.environ["ERC_JAX_DATA"]) / "vad" / "Ratings_Warriner_et_al.csv"
    lexicon = load_lexicon(path)
    assert lexicon.find("aardvark") == (6.26, 2.41, 4.27)
    assert lexicon.rate("I am not happy").vad == {
        "valence": 1.53, "arousal": 6.05, "dominance": 7.21,
    }  # fmt: skip
    joy, grief = lexicon.rate("I love this wonderful party!"), lexicon.rate("He died, I'm crying.")
    assert joy.vad["valence"] > 7 > 3 > grief.vad["valence"]
    assert len(lexicon.sha256) == 64
