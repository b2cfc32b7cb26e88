"""Scores of replies against the references of a corpus: BLEU, distinct-n, average length.

All of them count the same tokens: those of mteval-v13a as sacrebleu cuts them, with case.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sacrebleu.metrics.bleu import BLEU

ORDERS = (1, 2, 3, 4)


def text_scores(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """Scores replies, each against one reference.

    Args:
      hypotheses: the N replies; an empty one is a reply of no tokens.
      references: of each reply.

    Returns:
      ``bleu``, corpus BLEU (Papineni et al., 2002) by sacrebleu, whose settings are in
      ``bleu_signature``; ``bleu_1`` to ``bleu_4``, the cumulative BLEU of orders up to 1 to 4, so
      that ``bleu_4`` is ``bleu``. These are from 0 to 100, as sacrebleu's are, and 0 where no reply
      is long enough to have an n-gram. ``distinct_1`` and ``distinct_2`` (Li et al., 2016),
      different n-grams of all replies over all of their n-grams, from 0 to 1.
      ``average_length``, tokens of a reply. Of no replies, every score is 0.

    Raises:
      ValueError: there are not as many references as replies.
    """
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} replies, but {len(references)} references")
    # force: no warning of " ." at the end, for DailyDialog itself is written so.
    bleu = BLEU(tokenize="13a", force=True)
    # sacrebleu does not take an empty corpus; one empty reply scores 0 as well.
    whole = bleu.corpus_score(hypotheses or [""], [references or [""]])
    scores: dict[str, Any] = {"bleu": whole.score}
    for n in ORDERS:
        up_to_n = BLEU.compute_bleu(
            whole.counts[:n],
            whole.totals[:n],
            whole.sys_len,
            whole.ref_len,
            smooth_method=bleu.smooth_method,
            max_ngram_order=n,
        )
        scores[f"bleu_{n}"] = up_to_n.score
    scores["bleu_signature"] = str(bleu.get_signature())

    # rstrip: as BLEU itself does, for the tokenizer joins lines at a hyphen.
    replies = [bleu.tokenizer(hypothesis.rstrip()).split() for hypothesis in hypotheses]
    for n in (1, 2):
        scores[f"distinct_{n}"] = _distinct(replies, n)
    scores["average_length"] = sum(map(len, replies)) / max(len(replies), 1)
    return scores


def _distinct(replies: Sequence[Sequence[str]], n: int) -> float:
    """Different n-grams over all n-grams; none goes over the end of a reply."""
    ngrams = [
        tuple(reply[start : start + n]) for reply in replies for start in range(len(reply) - n + 1)
    ]
    return len(set(ngrams)) / max(len(ngrams), 1)
