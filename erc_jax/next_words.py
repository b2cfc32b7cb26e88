"""Which words can come next in a text, given their logits: the likeliest, or some drawn at random.

Shapes: R rows, K hypotheses of a row, T generated tokens, V words of the vocabulary.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

# Words among which one maximum is taken first; see ``largest``.
BLOCK = 128


def forbid(
    logits: jax.Array,
    history: jax.Array,
    position: jax.Array,
    *,
    no_repeat_ngram: int,
    min_length: int,
    end: int,
) -> jax.Array:
    """Logits, -inf where a word would repeat an n-gram or end the text too early.

    Args:
      logits: float32 [R, K, V], after each hypothesis.
      history: int32 [R, K, T + 1], the hypotheses, from the start token on.
      position: int32 [], of the hypotheses' latest word.
      no_repeat_ngram: no sequence of so many tokens occurs twice; 0 is no such rule.
      min_length: tokens that a text has at least, the start token counted and the end not.
      end: number of the end token.
    """
    rows, beams, n_words = logits.shape
    n = no_repeat_ngram
    forbidden = []  # numbers of words, [R, K, ·]; n_words is none
    if 0 < n < history.shape[-1]:
        # The words after each earlier occurrence of the latest n - 1. In windows of n words:
        windows = history.shape[-1] - n + 1
        latest = jax.lax.dynamic_slice_in_dim(history, position + 2 - n, n - 1, axis=-1)
        repeats = jnp.arange(windows) + n - 1 <= position
        for i in range(n - 1):
            repeats &= history[:, :, i : i + windows] == latest[:, :, i, None]
        forbidden.append(jnp.where(repeats, history[:, :, n - 1 :], n_words))
    if min_length > 1:
        too_early = position + 1 < min_length
        forbidden.append(jnp.full((rows, beams, 1), jnp.where(too_early, end, n_words)))
    if not forbidden:
        return logits
    at = jnp.arange(rows)[:, None, None], jnp.arange(beams)[:, None]
    return logits.at[*at, jnp.concatenate(forbidden, -1)].set(-jnp.inf, mode="drop")


def largest(x: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The largest values, in order, and their places in the last axis.

    They lie in the blocks whose maxima are largest: one fast pass finds these, and the slow
    search of ``top_k`` sees a twentieth of the values.

    Args:
      x: float32 [R, K, V].
      count: how many.

    Returns:
      float32 and int32 [R, K, count].
    """
    n_words = x.shape[-1]
    whole = n_words // BLOCK * BLOCK
    if whole < count * BLOCK:
        return jax.lax.top_k(x, count)
    maxima = x[..., :whole].reshape(*x.shape[:-1], -1, BLOCK).max(-1)
    if whole < n_words:
        rest = x[..., whole:].max(-1, keepdims=True)
        maxima = jnp.concatenate([maxima, rest], -1)
    blocks = jax.lax.top_k(maxima, count)[1]
    places = blocks[..., None] * BLOCK + jnp.arange(BLOCK)
    places = places.reshape(*x.shape[:-1], -1)
    values = jnp.take_along_axis(x, places, -1, mode="fill", fill_value=-jnp.inf)
    values, chosen = jax.lax.top_k(values, count)
    return values, jnp.take_along_axis(places, chosen, -1)


def draw(
    logits: jax.Array, keys: jax.Array, *, top_k: int, top_p: float, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """One word for each row, drawn at random.

    Args:
      logits: float32 [R, 1, V].
      keys: PRNG keys, [R].
      top_k: draw among so many likeliest words; 0 is all.
      top_p: draw among the likeliest words that together have this probability.
      temperature: logits are divided by it.

    Returns:
      The words' logits and numbers, float32 and int32 [R, 1, 1].
    """
    words = None
    if 0 < top_k < logits.shape[-1]:
        logits, words = largest(logits, top_k)
    odds = logits / temperature
    if top_p < 1:
        odds = keep_nucleus(odds, top_p)
    drawn = jax.vmap(jax.random.categorical)(keys, odds)[:, :, None]
    chosen = jnp.take_along_axis(logits, drawn, -1)
    return chosen, drawn if words is None else jnp.take_along_axis(words, drawn, -1)


def keep_nucleus(logits: jax.Array, top_p: float) -> jax.Array:
    """Logits, -inf outside the fewest likeliest words that reach a probability (the nucleus).

    Holtzman et al., The Curious Case of Neural Text Degeneration, 2020, section 3.1.

    Args:
      logits: float32 [..., V].
      top_p: the probability, in (0, 1).
    """
    # A word belongs if all likelier ones together have less. The least probability of such a word
    # is found by halving an interval, which is far faster than sorting the vocabulary on a CPU.
    # Non-negative floats are in the order of their bits, so this ends at neighbouring numbers.
    probs = nn.softmax(logits)
    bits = jax.lax.bitcast_convert_type(probs, jnp.int32)

    def halve(_: int, interval: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = interval  # too low, not too low
        middle = low + (high - low) // 2
        likelier = jnp.where(bits > middle, probs, 0.0).sum(-1, keepdims=True)
        enough = likelier < top_p
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    low = jnp.full_like(bits[..., :1], -1)
    _, least = jax.lax.fori_loop(0, 31, halve, (low, bits.max(-1, keepdims=True)))
    return jnp.where(bits >= least, logits, -jnp.inf)
