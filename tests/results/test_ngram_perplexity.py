"""The 3-gram model is nltk's, but for its shortest context, and a proper distribution."""

import math
import runpy
from pathlib import Path

import numpy as np
import pytest
from nltk.lm import Vocabulary
from nltk.lm.models import InterpolatedLanguageModel
from nltk.lm.smoothing import KneserNey as NltkKneserNey
from nltk.util import everygrams
from tokenizers import Tokenizer, models, pre_tokenizers, processors

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "results" / "ngram_perplexity.py"))
KneserNey, ngrams = SCRIPT["KneserNey"], SCRIPT["ngrams"]

WORDS = [*"abcdefgh"]
NEVER = [*"xyz"]  # in the vocabulary, but in no sentence
VOCABULARY = [*WORDS, *NEVER, "</s>"]


def sentences(n=60, seed=0):
    """Of any length from 0, some words far more frequent than others."""
    rng = np.random.default_rng(seed)
    shares = 0.5 ** np.arange(len(WORDS))
    shares /= shares.sum()
    return [[*rng.choice(WORDS, rng.integers(8), p=shares)] for _ in range(n)]


class DiscountedToTheEnd(NltkKneserNey):
    """nltk's, with the one change that the script tells of."""

    def unigram_score(self, word):
        times, total = self._continuation_counts(word)
        rest = self.discount * len(self.counts.unigrams) / total
        return max(times - self.discount, 0.0) / total + rest / len(VOCABULARY)


def of_nltk(train, discount, order):
    model = InterpolatedLanguageModel(
        DiscountedToTheEnd,
        order,
        vocabulary=Vocabulary(VOCABULARY),
        params={"discount": discount, "order": order},
    )
    padded = [["<s>"] * (order - 1) + [*s, "</s>"] for s in train]
    # The start is given: no n-gram ends in it.
    grams = [[g for g in everygrams(s, max_len=order) if g[-1] != "<s>"] for s in padded]
    model.counts.update(grams)
    return model


@pytest.mark.parametrize("discount", [0.1, 0.5, 0.75, 0.95])
@pytest.mark.parametrize("order", [2, 3, 4])
def test_equals_nltk(discount, order):
    train = sentences()
    ours, theirs = KneserNey(train, len(VOCABULARY), order), of_nltk(train, discount, order)
    heldout = [*sentences(30, seed=1), ["x", "a", "y", "y"]]
    seen = {gram for sentence in train for gram in ngrams(sentence, order)}
    asked = {gram for sentence in heldout for gram in ngrams(sentence, order)}
    assert asked & seen
    assert asked - seen
    for *context, word in asked:
        expected = theirs.unmasked_score(word, tuple(context))
        assert ours.probability(word, tuple(context), discount) == pytest.approx(expected, 1e-12)


@pytest.mark.parametrize("discount", [0.05, 0.75])
@pytest.mark.parametrize(
    "context",
    [("<s>", "<s>"), ("<s>", "a"), ("a", "b"), ("h", "h"), ("x", "a"), ("x", "y"), ("a",), ()],
)
def test_every_distribution_is_proper(context, discount):
    model = KneserNey(sentences(), len(VOCABULARY))
    probabilities = [model.probability(word, context, discount) for word in VOCABULARY]
    assert sum(probabilities) == pytest.approx(1, abs=1e-12)
    assert min(probabilities) > 0


def test_a_case_by_hand():
    """Of "a b" and "a": d = 1/2, a vocabulary of a, b, the end and one more."""
    model = KneserNey([["a", "b"], ["a"]], 4)
    # Different tokens before a, b and the end: the start; a; a and b. In all 4.
    empty = {"a": 0.5 / 4, "b": 0.5 / 4, "</s>": 1.5 / 4, "c": 0}
    for word, discounted in empty.items():
        assert model.probability(word, (), 0.5) == discounted + 0.5 * 3 / 4 / 4
    # After a: b and the end, each after one token, the start.
    after_a = 0.5 / 2 + 0.5 * 2 / 2 * model.probability("b", (), 0.5)
    assert model.probability("b", ("a",), 0.5) == after_a
    # After the start and a: b and the end, once each.
    assert model.probability("b", ("<s>", "a"), 0.5) == 0.5 / 2 + 0.5 * 2 / 2 * after_a
    assert model.probability("b", ("c", "a"), 0.5) == after_a


def test_perplexity_counts_the_end_and_not_the_start():
    model = KneserNey(sentences(), len(VOCABULARY))
    likelihood = 1.0
    for word, context in [("a", ("<s>", "<s>")), ("x", ("<s>", "a")), ("</s>", ("a", "x"))]:
        likelihood *= model.probability(word, context, 0.6)
    assert model.perplexity([["a", "x"]] * 3, 0.6) == pytest.approx(likelihood ** (-1 / 3))


def test_every_token_and_the_end_has_a_context():
    assert [*ngrams("ab", 3)] == [("<s>", "<s>", "a"), ("<s>", "a", "b"), ("a", "b", "</s>")]
    assert [*ngrams("", 3)] == [("<s>", "<s>", "</s>")]


@pytest.fixture
def data(tmp_path):
    """A folder with dailydialog/, one of whose validation responses is too long."""
    dialogues = {
        "train": ["Hi . __eou__ I see you . __eou__ You see me ? __eou__"] * 2,
        "validation": [f"See ? __eou__ I see . __eou__ {'you . ' * 40}__eou__"],
        "test": ["I . __eou__"],
    }
    for split, lines in dialogues.items():
        folder = tmp_path / "data" / "dailydialog" / split
        folder.mkdir(parents=True)
        (folder / f"dialogues_{split}.txt").write_text("".join(f"{line}\n" for line in lines))
        emotions = [" ".join("0" * line.count("__eou__")) for line in lines]
        (folder / f"dialogues_emotion_{split}.txt").write_text("".join(f"{e}\n" for e in emotions))
    return tmp_path / "data"


@pytest.fixture
def model(tmp_path):
    """A folder with a tokenizer that knows a few words."""
    words = ["<unk>", "<s>", "</s>", ".", "you", "I", "see", "never"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # What a model's file may ask for, but must not be scored.
    made.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", None, [("<s>", 1), ("</s>", 2)]
    )
    made.enable_truncation(3)
    made.enable_padding(length=9, pad_token="never")
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_the_script_says_the_perplexity_of_dailydialogs_responses(data, model, capsys):
    SCRIPT["main"](data, model)
    train = [["I", "see", "you", "."], ["<unk>", "see", "<unk>", "<unk>"]] * 2
    heldout = [["I", "see", "."], ["you", "."] * 31]
    smoothed = KneserNey(train, 8)
    best = min((smoothed.perplexity(heldout, d / 100), d / 100) for d in range(5, 100, 5))
    assert math.isfinite(best[0])
    header, *_, default, tuned, dialogues, responses = capsys.readouterr().out.splitlines()
    assert "8 tokens" in header
    of_nltk = smoothed.perplexity(heldout, 0.1)
    assert default == f"| all, nltk's default | 2 | 67 | 0.1 | {of_nltk:.2f} |"
    assert tuned == f"| all | 2 | 67 | {best[1]} | {best[0]:.2f} |"
    # Neither dialogue and neither response occurs in training.
    assert dialogues == f"| of unseen dialogues | 2 | 67 | {best[1]} | {best[0]:.2f} |"
    assert responses == f"| unseen responses | 2 | 67 | {best[1]} | {best[0]:.2f} |"
