"""The floor under perplexities of replies: a 3-gram model with Kneser-Ney smoothing.

    python results/ngram_perplexity.py DATA --model runs/reply/model

prints its perplexity on DailyDialog's validation responses, per token of the tokenizer.json in the
folder --model, so that it compares with the perplexity of the neural model that reads such tokens:
over each response's tokens, cut as the neural model's are, and its end; the start is given. Of
discounts it shows nltk's default, and the one that serves validation best, which makes the floor as
hard as it can be; besides, the perplexity on responses of dialogues that are not, word for word, in
the training split, and on responses that are not: an n-gram model knows the others by heart.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import compress
from pathlib import Path

from tokenizers import Tokenizer

from erc_jax.data.corpora import load_corpus
from erc_jax.data.pairs import response_pairs
from erc_jax.scoring import seen_in_training

ORDER = 3
START, END = "<s>", "</s>"
MAX_TOKENS = 64  # of a response, start and end included
DISCOUNTS = [i / 100 for i in range(5, 100, 5)]
NLTK_DISCOUNT = 0.1  # of nltk.lm.KneserNeyInterpolated, if it is not given one

Ngram = tuple[str, ...]


class KneserNey:
    """Interpolated Kneser-Ney smoothing with one discount (Kneser & Ney, 1995).

    A token's probability after a context c is

        p(w | c) = max(n(c w) - d, 0) / n(c) + d t(c) / n(c) · p(w | c without its first token)

    where t(c) is the number of different tokens after c. n counts n-grams in the longest context,
    and in a shorter one the different tokens before c w. After a context that never occurred, the
    shorter one's holds. nltk's KneserNeyInterpolated goes through all contexts for each
    probability, which takes hours here. This is the same but in one point: nltk's shortest
    distribution is not discounted, and gives 0 to what never occurred; here the empty context is
    discounted like the others, and the rest goes to all tokens of the vocabulary alike, so that
    every distribution sums to 1 and no token has probability 0.
    """

    def __init__(self, sentences: Sequence[Sequence[str]], vocabulary: int, order: int = ORDER):
        """Args:
        sentences: tokens of each, without start and end.
        vocabulary: how many different tokens there are, seen or not, the end included.
        order: length of the longest n-grams.
        """
        self._vocabulary = vocabulary
        # By length of the context, then by context.
        self._counts: list[dict[Ngram, Counter[str]]] = [defaultdict(Counter) for _ in range(order)]
        for sentence in sentences:
            for *before, word in ngrams(sentence, order):
                self._counts[-1][tuple(before)][word] += 1
        for length in range(order - 1, 0, -1):
            for context, words in self._counts[length].items():
                self._counts[length - 1][context[1:]].update(words.keys())
        self._totals = [
            {context: words.total() for context, words in of_length.items()}
            for of_length in self._counts
        ]

    def probability(self, word: str, context: Ngram, discount: float) -> float:
        """Of a word after the context, at most ``order`` - 1 tokens; above 0."""
        shorter = self.probability(word, context[1:], discount) if context else 1 / self._vocabulary
        words = self._counts[len(context)].get(context)
        if not words:
            return shorter
        seen = max(words[word] - discount, 0.0) + discount * len(words) * shorter
        return seen / self._totals[len(context)][context]

    def perplexity(self, sentences: Sequence[Sequence[str]], discount: float) -> float:
        """Per token, over the sentences' tokens and ends."""
        times = Counter(
            ngram for sentence in sentences for ngram in ngrams(sentence, len(self._counts))
        )
        log_likelihood = sum(
            n * math.log(self.probability(word, tuple(context), discount))
            for (*context, word), n in times.items()
        )
        return math.exp(-log_likelihood / times.total())


def ngrams(sentence: Sequence[str], order: int) -> Iterator[Ngram]:
    """Each token, and the end, with the tokens before it; what is before the first is the start."""
    padded = [START] * (order - 1) + [*sentence, END]
    yield from zip(*(padded[i:] for i in range(order)), strict=False)


def main(data: Path, model: Path) -> None:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    corpus = load_corpus("dailydialog", str(data / "dailydialog"))
    responses, pairs = {}, {}
    for split in ("train", "validation"):
        pairs[split] = response_pairs(corpus.splits[split])
        texts = [pair.response for pair in pairs[split]]
        encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
        responses[split] = [encoding.tokens[: MAX_TOKENS - 2] for encoding in encoded]
    smoothed = KneserNey(responses["train"], tokenizer.get_vocab_size())
    found = {d: smoothed.perplexity(responses["validation"], d) for d in DISCOUNTS}
    best = min(found, key=lambda discount: found[discount])
    print(f"A {ORDER}-gram model, interpolated Kneser-Ney, {tokenizer.get_vocab_size():,} tokens:")
    print("| DailyDialog, validation | responses | tokens | discount | perplexity |")
    print("|---|---|---|---|---|")
    seen = seen_in_training(corpus, "validation")
    known = {tuple(response) for response in responses["train"]}
    new_dialogues = [not seen[pair.dialogue] for pair in pairs["validation"]]
    new_responses = [tuple(response) not in known for response in responses["validation"]]
    for name, kept, discount in (
        ("all, nltk's default", [True] * len(new_responses), NLTK_DISCOUNT),
        ("all", [True] * len(new_responses), best),
        ("of unseen dialogues", new_dialogues, best),
        ("unseen responses", new_responses, best),
    ):
        of = list(compress(responses["validation"], kept))
        tokens = sum(len(response) + 1 for response in of)
        value = smoothed.perplexity(of, discount)
        print(f"| {name} | {len(of):,} | {tokens:,} | {discount} | {value:.2f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with dailydialog/")
    parser.add_argument("--model", type=Path, required=True, help="folder with tokenizer.json")
    arguments = parser.parse_args()
    main(arguments.data, arguments.model)
