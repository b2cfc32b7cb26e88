"""Generating texts with an encoder-decoder: beam search, greedy search and sampling.

Each is one compiled loop, in which caches stay where they were written. A hypothesis that goes on
from another one's words does not copy that one's cache: a table of ancestors says in which slot
each of its words was read, and becomes the mask of its attention.

Beam and greedy search choose what transformers' ``generate`` chooses, word for word.

Shapes: R rows, each a source text; K hypotheses of a row; L source tokens; T generated tokens;
V words of the vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from erc_jax.encoders.bart import Bart
from erc_jax.encoders.bart_config import SpecialTokens
from erc_jax.errors import UserError
from erc_jax.next_words import draw, forbid, largest

# Tokens [R, K], their position, caches and ancestors [R, K, T], to logits [R, K, V] and caches.
Read = Callable[[jax.Array, jax.Array, Any, jax.Array], tuple[jax.Array, Any]]
# Logits [R, K, V] to logits and numbers of chosen words, [R, K, C].
Choose = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How texts are generated; the names and meanings of transformers' ``generate``.

    Attributes:
      beams: hypotheses that a row's search follows; 1 is greedy search, or sampling.
      length_penalty: a hypothesis' score is its log probability, divided by its length to this
        power.
      no_repeat_ngram: no sequence of so many tokens occurs twice in a text; 0 is no such rule.
      min_length: tokens that a text has at least, the start token counted and the end not.
      max_length: tokens that a text has at most, start and end counted.
      early_stopping: a row's search ends with its K-th finished hypothesis; otherwise not before
        the best running one scores lower than all of them.
      sample: draw each word instead of searching.
      top_k: draw among so many likeliest words; 0 is all.
      top_p: draw among the likeliest words that together have this probability (the nucleus).
      temperature: logits are divided by it before words are drawn.
      forced_first: token that every text begins with (``forced_bos_token_id``).
      forced_last: token that a text of ``max_length`` ends with (``forced_eos_token_id``).
    """

    beams: int = 5
    length_penalty: float = 1.0
    no_repeat_ngram: int = 3
    min_length: int = 0
    max_length: int = 64
    early_stopping: bool = True
    sample: bool = False
    top_k: int = 0
    top_p: float = 1.0
    temperature: float = 1.0
    forced_first: int | None = None
    forced_last: int | None = None

    def __post_init__(self) -> None:
        for name, good, expected in (
            ("beams", self.beams >= 1, "at least 1"),
            ("beams", self.beams == 1 or not self.sample, "1, for words are sampled"),
            ("no_repeat_ngram", self.no_repeat_ngram >= 0, "at least 0"),
            ("max_length", self.max_length >= 2, "at least 2: the start token and one more"),
            (
                "min_length",
                0 <= self.min_length <= self.max_length,
                f"between 0 and max_length, {self.max_length}",
            ),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("temperature", 0 < self.temperature < math.inf, "above 0"),
            ("length_penalty", math.isfinite(self.length_penalty), "a number"),
        ):
            if not good:
                raise UserError(f"decoding: {name} is {getattr(self, name)}; expected {expected}")

    @property
    def new_tokens(self) -> int:
        """T: tokens that a text has at most, without the start token."""
        return self.max_length - 1


@struct.dataclass
class Generated:
    """Texts for each source, the best first; of beam search, K of them, otherwise one.

    Where there is no text, its length is 0 and its score -inf: in rows without a source, and in
    those with fewer than K possible texts.

    Attributes:
      tokens: int32 [R, K, T], without the start token, with the end token, then padding.
      lengths: int32 [R, K], the end token counted.
      scores: float32 [R, K], the sum of the words' log probabilities, divided by length to the
        power of the length penalty; forced words have probability 1.
    """

    tokens: jax.Array
    lengths: jax.Array
    scores: jax.Array


def generate(
    module: Bart,
    params: Any,
    source: jax.Array,
    source_mask: jax.Array,
    decoding: Decoding,
    special: SpecialTokens,
    key: jax.Array | None = None,
    places: jax.Array | None = None,
) -> Generated:
    """Texts that answer source texts. Compiles once per shape of source and decoding.

    Args:
      module: the encoder-decoder.
      params: of the module.
      source: int32 [R, L].
      source_mask: bool [R, L], True at tokens; a row without any is no source.
      decoding: how to generate.
      special: numbers of the start, end and padding tokens.
      key: PRNG key of sampling; a row's draws depend on it and the row's place only.
      places: int32 [R], the rows' places among all texts, where these are more; else 0, 1, 2, …

    Raises:
      UserError: the model has fewer positions than a source or a text has tokens.
    """
    longest = module.config.max_position_embeddings
    for what, length in (("source has", source.shape[1]), ("text can have", decoding.new_tokens)):
        if length > longest:
            raise UserError(
                f"a {what} {length} tokens, but the model has positions for {longest}; "
                "shorten sources, or lower the decoding's max_length"
            )
    keys = None
    if decoding.sample:
        if key is None:
            raise ValueError("sampling needs a key")
        places = jnp.arange(len(source)) if places is None else places
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
    return _generate(module, decoding, special, params, source, source_mask, keys)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _generate(
    module: Bart,
    decoding: Decoding,
    special: SpecialTokens,
    params: Any,
    source: jax.Array,
    source_mask: jax.Array,
    keys: jax.Array | None,
) -> Generated:
    apply: Any = functools.partial(module.apply, {"params": params})
    cross = apply(apply(source, source_mask, method="encode"), method="cross")
    rows, beams = source.shape[0], decoding.beams
    caches = apply(rows, beams, decoding.new_tokens, method="blank_caches")
    slots = jnp.arange(beams)

    def read(
        tokens: jax.Array, position: jax.Array, caches: Any, ancestors: jax.Array
    ) -> tuple[jax.Array, Any]:
        written = jnp.arange(decoding.new_tokens) <= position
        sees = (ancestors[..., None] == slots) & written[:, None]
        sees = sees.reshape(rows, beams, -1)
        states, caches = apply(tokens, position, caches, cross, source_mask, sees, method="step")
        return apply(states, method="logits"), caches

    is_real = source_mask.any(1)
    if beams > 1:
        return _search(read, caches, is_real, decoding, special)
    return _walk(read, caches, is_real, decoding, special, keys)


class _Search(NamedTuple):
    """Where a beam search stands.

    Attributes:
      position: int32 [], of the tokens that are read next.
      caches: of the module.
      ancestors: int32 [R, K, T], the slot in which each word of a running hypothesis was read.
      history: int32 [R, K, T + 1], the running hypotheses, from the start token on.
      log_probs: float32 [R, K], of the running hypotheses.
      finished: the best hypotheses that have ended.
      is_open: bool [R], False where nothing can be finished any more.
    """

    position: jax.Array
    caches: Any
    ancestors: jax.Array
    history: jax.Array
    log_probs: jax.Array
    finished: Generated
    is_open: jax.Array


def _search(
    read: Read,
    caches: Any,
    is_real: jax.Array,
    decoding: Decoding,
    special: SpecialTokens,
) -> Generated:
    """Beam search."""
    rows, beams, length = is_real.shape[0], decoding.beams, decoding.new_tokens
    penalties = _length_penalties(decoding)
    slots = jnp.arange(beams, dtype=jnp.int32)

    def is_running(state: _Search) -> jax.Array:
        return (state.position < length) & state.is_open.any()

    def step(state: _Search) -> _Search:
        position, finished = state.position, state.finished
        tokens = state.history[:, :, position]
        ancestors = state.ancestors.at[:, :, position].set(slots)
        logits, caches = read(tokens, position, state.caches, ancestors)

        # Each hypothesis could end next, so twice as many continuations as beams leave enough.
        width = 2 * beams
        choose = functools.partial(largest, count=min(width, logits.shape[-1]))
        log_probs, words = _continuations(
            logits, state.history, position, choose, decoding, special
        )
        log_probs = (state.log_probs[:, :, None] + log_probs).reshape(rows, -1)
        log_probs, chosen = jax.lax.top_k(log_probs, width)
        parents = chosen // words.shape[-1]
        words = _pick(words.reshape(rows, -1), chosen)
        history = _pick(state.history, parents).at[:, :, position + 1].set(words)
        ends = (words == special.eos) | (position + 1 == length)

        running, kept = jax.lax.top_k(jnp.where(ends, -jnp.inf, log_probs), beams)
        # Only the best K continuations may end their texts; the others are there to go on with.
        scores = log_probs[:, :beams] / penalties[position]
        ends = ends[:, :beams] & (scores > -jnp.inf) & state.is_open[:, None]
        ended = Generated(
            tokens=history[:, :beams, 1:],
            lengths=jnp.where(ends, position + 1, 0),
            scores=jnp.where(ends, scores, -jnp.inf),
        )
        both = jax.tree.map(lambda *x: jnp.concatenate(x, 1), finished, ended)
        best = jax.lax.top_k(both.scores, beams)[1]
        finished = jax.tree.map(lambda x: _pick(x, best), both)
        best_score = running[:, 0] / penalties[position]
        is_open = state.is_open & (best_score > finished.scores.min(1))
        if decoding.early_stopping:
            is_open &= (finished.lengths == 0).any(1)
        return _Search(
            position + 1,
            caches,
            _pick(ancestors, _pick(parents, kept)),
            _pick(history, kept),
            running,
            finished,
            is_open,
        )

    history = _blank_history(rows, decoding, special)
    none = jnp.full((rows, beams), -jnp.inf)
    start = _Search(
        position=jnp.int32(0),
        caches=caches,
        ancestors=jnp.zeros((rows, beams, length), jnp.int32),
        history=history,
        # All hypotheses are one at the start.
        log_probs=none.at[:, 0].set(0.0),
        finished=Generated(history[:, :, 1:], jnp.zeros((rows, beams), jnp.int32), none),
        is_open=is_real,
    )
    return jax.lax.while_loop(is_running, step, start).finished


class _Walk(NamedTuple):
    """Where greedy search or sampling stands; see ``_Search``.

    Attributes:
      position: int32 [].
      caches: of the module.
      history: int32 [R, 1, T + 1].
      lengths: int32 [R, 1], words so far.
      log_probs: float32 [R, 1].
      is_open: bool [R, 1], False where the end has come.
    """

    position: jax.Array
    caches: Any
    history: jax.Array
    lengths: jax.Array
    log_probs: jax.Array
    is_open: jax.Array


def _walk(
    read: Read,
    caches: Any,
    is_real: jax.Array,
    decoding: Decoding,
    special: SpecialTokens,
    keys: jax.Array | None,
) -> Generated:
    """Greedy search or, with keys [R], sampling: one hypothesis a row."""
    rows, length = is_real.shape[0], decoding.new_tokens
    ancestors = jnp.zeros((rows, 1, length), jnp.int32)

    def is_running(state: _Walk) -> jax.Array:
        return (state.position < length) & state.is_open.any()

    def step(state: _Walk) -> _Walk:
        position, is_open = state.position, state.is_open
        logits, caches = read(state.history[:, :, position], position, state.caches, ancestors)
        choose: Choose = functools.partial(largest, count=1)
        if keys is not None:
            choose = functools.partial(
                draw,
                keys=jax.vmap(jax.random.fold_in, (0, None))(keys, position),
                top_k=decoding.top_k,
                top_p=decoding.top_p,
                temperature=decoding.temperature,
            )
        log_probs, words = _continuations(
            logits, state.history, position, choose, decoding, special
        )
        words = jnp.where(is_open, words[:, :, 0], special.pad)
        return _Walk(
            position + 1,
            caches,
            state.history.at[:, :, position + 1].set(words),
            state.lengths + is_open,
            state.log_probs + jnp.where(is_open, log_probs[:, :, 0], 0.0),
            is_open & (words != special.eos),
        )

    start = _Walk(
        position=jnp.int32(0),
        caches=caches,
        history=_blank_history(rows, decoding, special),
        lengths=jnp.zeros((rows, 1), jnp.int32),
        log_probs=jnp.zeros((rows, 1), jnp.float32),
        is_open=is_real[:, None],
    )
    end = jax.lax.while_loop(is_running, step, start)
    scores = end.log_probs / _length_penalties(decoding)[end.lengths - 1]
    scores = jnp.where(end.lengths > 0, scores, -jnp.inf)
    return Generated(end.history[:, :, 1:], end.lengths, scores)


def _continuations(
    logits: jax.Array,
    history: jax.Array,
    position: jax.Array,
    choose: Choose,
    decoding: Decoding,
    special: SpecialTokens,
) -> tuple[jax.Array, jax.Array]:
    """Chosen next words.

    Args:
      logits: float32 [R, K, V], after each hypothesis.
      history: int32 [R, K, T + 1], the hypotheses, from the start token on.
      position: int32 [], of the hypotheses' latest word.
      choose: takes logits, -inf where a word must not follow.
      decoding: which words must.
      special: number of the end token.

    Returns:
      Log probabilities and numbers of the words, float32 and int32, [R, K, ·].
    """
    # Of all words: those that must not follow keep their share, as in transformers.
    totals = jax.nn.logsumexp(logits, -1, keepdims=True)
    # Both are read before the logits are overwritten, which saves a copy of them.
    logits, totals = jax.lax.optimization_barrier((logits, totals))
    logits = forbid(
        logits,
        history,
        position,
        no_repeat_ngram=decoding.no_repeat_ngram,
        min_length=decoding.min_length,
        end=special.eos,
    )
    chosen, words = choose(logits)
    log_probs = chosen - totals
    for token, where in (
        (decoding.forced_first, 0),
        (decoding.forced_last, decoding.new_tokens - 1),
    ):
        if token is not None:
            only = jnp.where(jnp.arange(words.shape[-1]) == 0, 0.0, -jnp.inf)
            log_probs = jnp.where(position == where, only, log_probs)
            words = jnp.where(position == where, token, words)
    return log_probs, words


def _length_penalties(decoding: Decoding) -> jax.Array:
    """float32 [T], by which a hypothesis of 1, 2, … words is divided."""
    return jnp.asarray(np.arange(1.0, decoding.max_length) ** decoding.length_penalty, jnp.float32)


def _blank_history(rows: int, decoding: Decoding, special: SpecialTokens) -> jax.Array:
    """int32 [R, K, T + 1]: the start token, then padding."""
    blank = jnp.full((rows, decoding.beams, decoding.max_length), special.pad, jnp.int32)
    return blank.at[:, :, 0].set(special.start)


def _pick(x: jax.Array, places: jax.Array) -> jax.Array:
    """Entries of the second axis: [R, K, …] at int [R, C] is [R, C, …]."""
    return jnp.take_along_axis(x, places.reshape(*places.shape, *[1] * (x.ndim - 2)), 1)
