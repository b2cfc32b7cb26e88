import logging
import math

import pytest
from sacrebleu.metrics.bleu import BLEU

from erc_jax.text_metrics import text_scores

HYPOTHESES = [
    "I am sorry to hear that .",
    "Yes, I think so!",
    "the the the the",
    "It's a well-known -\n",
    "",
    "I don't know .",
]
REFERENCES = [
    "I am so sorry to hear that .",
    "Yes, I think that is so.",
    "the cat is on the mat",
    "It's a well-known fact.",
    "Of course .",
    "I don't know what to say .",
]


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_bleu_is_sacrebleus_of_each_order(n):
    expected = BLEU(max_ngram_order=n).corpus_score(HYPOTHESES, [REFERENCES]).score
    assert 0 < expected < 100
    assert text_scores(HYPOTHESES, REFERENCES)[f"bleu_{n}"] == pytest.approx(expected, abs=1e-12)


def test_bleu_by_hand():
    """Clipped precisions 5/6, 4/5, 3/4 and 2/3, and a reply that is a token short of 7."""
    scores = text_scores(["the cat sat on a mat"], ["well the cat sat on a rug"])
    assert scores["bleu"] == scores["bleu_4"]
    brevity = math.exp(1 - 7 / 6)
    assert scores["bleu_1"] == pytest.approx(100 * brevity * 5 / 6)
    precisions = 5 / 6 * 4 / 5 * 3 / 4 * 2 / 3
    assert scores["bleu_4"] == pytest.approx(100 * brevity * precisions ** (1 / 4))


def test_the_signature_says_how_bleu_was_computed():
    signature = text_scores(HYPOTHESES, REFERENCES)["bleu_signature"]
    assert signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.")


def test_distinct_counts_ngrams_over_all_replies():
    scores = text_scores(["a b a b", "a b", "B"], [""] * 3)
    assert scores["distinct_1"] == 3 / 7  # a, b and B, for case counts
    assert scores["distinct_2"] == 2 / 4  # a b and b a; none goes from one reply to the next
    assert scores["average_length"] == 7 / 3


def test_punctuation_is_a_token_whether_or_not_a_space_precedes_it():
    scores = text_scores(["Hello, you.", "Hello , you ."], [""] * 2)
    assert scores["distinct_1"] == 4 / 8
    assert scores["average_length"] == 4


def test_one_tokenizer_for_all():
    lengths = BLEU().corpus_score(HYPOTHESES, [REFERENCES]).sys_len
    assert text_scores(HYPOTHESES, REFERENCES)["average_length"] * len(HYPOTHESES) == lengths


@pytest.mark.parametrize("hypotheses", [[], [""], ["", ""]])
def test_nothing_scores_0(hypotheses):
    scores = text_scores(hypotheses, ["Fine ."] * len(hypotheses))
    assert scores.pop("bleu_signature").startswith("nrefs:1|")
    assert set(scores) == {
        *("bleu", "bleu_1", "bleu_2", "bleu_3", "bleu_4"),
        *("distinct_1", "distinct_2", "average_length"),
    }
    assert set(scores.values()) == {0.0}


def test_replies_too_short_for_the_order_score_0():
    scores = text_scores(["a b"], ["a b"])
    assert scores["bleu_2"] == pytest.approx(100)
    assert scores["bleu_3"] == scores["bleu"] == 0
    assert scores["distinct_2"] == 1


def test_a_tokenized_corpus_is_not_warned_about(caplog):
    with caplog.at_level(logging.WARNING, logger="sacrebleu"):
        text_scores(["Fine ."] * 200, ["Good ."] * 200)
    assert not caplog.records


def test_references_are_as_many_as_replies():
    with pytest.raises(ValueError, match="2 replies, but 1 references"):
        text_scores(["a", "b"], ["a"])
