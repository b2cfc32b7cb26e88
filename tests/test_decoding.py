"""Generation: against all possible texts of a tiny vocabulary, and against transformers."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from erc_jax import decoding as decoding_module
from erc_jax import next_words
from erc_jax.config import base_config
from erc_jax.decoding import Decoding, generate
from erc_jax.encoders.bart import Bart
from erc_jax.encoders.bart_config import BartConfig, SpecialTokens
from erc_jax.encoders.weights import load_params, weights_files
from erc_jax.errors import UserError

SPECIAL = SpecialTokens(start=2, bos=0, eos=2, pad=1)


@dataclasses.dataclass(frozen=True)
class Sizes:
    max_position_embeddings: int = 16


class Sums(nn.Module):
    """Has Bart's methods; the logits after a text are a sum over its words and their positions.

    Whoever attends to a word of another hypothesis, or to one at another position, gets other
    logits. ``count`` hears of each step.
    """

    n_words: int = 5
    config: Sizes = Sizes()
    count: Callable[[Any], None] | None = None

    def setup(self):
        shape = (self.config.max_position_embeddings, self.n_words, self.n_words)
        self.of_target = self.param("of_target", nn.initializers.normal(2.0), shape)
        self.of_source = self.param("of_source", nn.initializers.normal(2.0), shape[1:])

    def __call__(self):
        return self.of_target, self.of_source

    def encode(self, source, source_mask):
        return jnp.where(source_mask[:, :, None], self.of_source[source], 0.0)

    def cross(self, encoded):
        return encoded.sum(1)

    def blank_caches(self, rows, hypotheses, length):
        return jnp.zeros((rows, length * hypotheses, self.n_words))

    def step(self, tokens, position, caches, cross, source_mask, sees):
        if self.count is not None:
            jax.debug.callback(self.count, position)
        new = self.of_target[position, tokens]
        caches = jax.lax.dynamic_update_slice_in_dim(caches, new, position * tokens.shape[1], 1)
        return cross[:, None] + jnp.einsum("rks,rsv->rkv", sees.astype(float), caches), caches

    def logits(self, states):
        return states


@pytest.fixture(scope="module")
def sums():
    """Module and parameters."""
    module = Sums()
    return module, module.init(jax.random.key(3))["params"]


def run(sums, decoding, n_rows=3, key=None, source=None, mask=None):
    module, params = sums
    if source is None:
        source = jax.random.randint(jax.random.key(1), (n_rows, 4), 0, module.n_words)
    mask = jnp.ones(source.shape, bool) if mask is None else mask
    return source, generate(module, params, source, mask, decoding, SPECIAL, key)


def log_softmax(x):
    x = x - x.max()
    return x - np.log(np.exp(x).sum())


def all_texts(params, source, decoding, n_words):
    """Every text that a decoding allows with its score, the best first."""
    table, of_source = np.asarray(params["of_target"], np.float64), params["of_source"]
    from_source = np.asarray(of_source, np.float64)[np.asarray(source)].sum(0)
    found = []

    def extend(history, log_prob):
        logits = from_source + sum(table[t, word] for t, word in enumerate(history))
        log_probs = log_softmax(logits)
        n, size = decoding.no_repeat_ngram, len(history)
        ngrams = [history[i : i + n] for i in range(size - n + 1)] if n else []
        forced = decoding.forced_first if size == 1 else None
        if size == decoding.max_length - 1 and decoding.forced_last is not None:
            forced = decoding.forced_last
        for word in range(n_words):
            new = log_probs[word]
            if forced is not None:
                if word != forced:
                    continue
                new = 0.0
            elif (n and (*history, word)[-n:] in ngrams) or (
                word == SPECIAL.eos and size < decoding.min_length
            ):
                continue
            text = (*history, word)
            if word == SPECIAL.eos or len(text) == decoding.max_length:
                score = (log_prob + new) / size**decoding.length_penalty
                found.append((score, text[1:]))
            else:
                extend(text, log_prob + new)

    extend((SPECIAL.start,), 0.0)
    return sorted(found, reverse=True)


def texts(generated, row):
    """The texts of a row without padding."""
    lengths = np.asarray(generated.lengths[row])
    return [
        tuple(words[:length].tolist())
        for words, length in zip(np.asarray(generated.tokens[row]), lengths, strict=True)
        if length
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"no_repeat_ngram": 0},
        {"no_repeat_ngram": 1},
        {"no_repeat_ngram": 2, "length_penalty": 2.0},
        {"no_repeat_ngram": 3, "min_length": 3, "length_penalty": 0.0},
        {"no_repeat_ngram": 0, "forced_first": 0, "forced_last": 2},
        {"no_repeat_ngram": 2, "min_length": 5, "forced_last": 2, "length_penalty": -1.0},
    ],
)
def test_with_room_for_all_texts_the_best_are_found(sums, options):
    # Of 5 words, 4 of which go on, there are 341 texts.
    decoding = Decoding(beams=350, max_length=5, **options)
    source, generated = run(sums, decoding)
    for row in range(3):
        expected = all_texts(sums[1], source[row], decoding, 5)
        assert texts(generated, row) == [text for _, text in expected]
        scores = np.asarray(generated.scores[row])
        np.testing.assert_allclose(scores[: len(expected)], [s for s, _ in expected], atol=1e-5)
        assert (scores[len(expected) :] == -np.inf).all()


def test_two_beams_follow_the_two_best(sums):
    """The textbook's beam search, one hypothesis at a time."""
    decoding = Decoding(beams=2, max_length=9, no_repeat_ngram=0, length_penalty=1.0)
    source, generated = run(sums, decoding, n_rows=6)
    table, of_source = (np.asarray(x, np.float64) for x in (sums[1][k] for k in sums[1]))
    table, of_source = (table, of_source) if table.ndim == 3 else (of_source, table)
    for row in range(6):
        running, finished = [(0.0, (SPECIAL.start,))], []
        for size in range(1, 9):
            longer = []
            for log_prob, history in running:
                logits = of_source[np.asarray(source[row])].sum(0)
                logits = logits + sum(table[t, word] for t, word in enumerate(history))
                for word, new in enumerate(log_softmax(logits)):
                    longer.append((log_prob + new, (*history, word)))
            longer = sorted(longer, reverse=True)[:4]
            ends = [h for h in longer if h[1][-1] == SPECIAL.eos or size == 8]
            finished += [(p / size, h[1:]) for p, h in longer[:2] if (p, h) in ends]
            finished = sorted(finished, reverse=True)[:2]
            running = [h for h in longer if h not in ends][:2]
            if len(finished) == 2:
                break
        assert texts(generated, row) == [text for _, text in finished]
        np.testing.assert_allclose(generated.scores[row], [s for s, _ in finished], atol=1e-5)


def test_without_early_stopping_no_finished_text_could_be_better(sums):
    options = {"beams": 3, "max_length": 12, "no_repeat_ngram": 0, "length_penalty": 2.0}
    _, early = run(sums, Decoding(**options), n_rows=20)
    _, late = run(sums, Decoding(**options, early_stopping=False), n_rows=20)
    assert (late.scores >= early.scores - 1e-6).all()
    assert (late.scores > early.scores + 1e-3).any()


def test_greedy_takes_the_likeliest_word(sums):
    decoding = Decoding(beams=1, max_length=7, no_repeat_ngram=2, min_length=3)
    source, generated = run(sums, decoding, n_rows=8)
    table, from_source = np.asarray(sums[1]["of_target"]), np.asarray(sums[1]["of_source"])
    for row in range(8):
        history, log_prob = [SPECIAL.start], 0.0
        while len(history) < 7 and (len(history) == 1 or history[-1] != SPECIAL.eos):
            logits = from_source[np.asarray(source[row])].sum(0)
            logits = logits + sum(table[t, word] for t, word in enumerate(history))
            log_probs = log_softmax(logits)
            for word in np.argsort(-log_probs):
                repeats = (history[-1], word) in itertools.pairwise(history)
                if not repeats and not (word == SPECIAL.eos and len(history) < 3):
                    break
            history.append(int(word))
            log_prob += log_probs[word]
        assert texts(generated, row) == [tuple(history[1:])]
        score = log_prob / (len(history) - 1)
        np.testing.assert_allclose(generated.scores[row, 0], score, atol=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
def test_rows_without_a_source_have_no_text_and_keep_no_loop_alive(sums, beams):
    calls = []
    module = Sums(count=lambda position: calls.append(position))
    # Whatever came before, the end follows.
    params = jax.tree.map(jnp.zeros_like, sums[1])
    params["of_source"] = params["of_source"].at[3, SPECIAL.eos].set(50.0)
    source = jnp.full((3, 4), 3)
    mask = jnp.zeros((3, 4), bool).at[1].set(True)
    decoding = Decoding(beams=beams, max_length=9, no_repeat_ngram=0, early_stopping=False)
    _, generated = run((module, params), decoding, source=source, mask=mask)
    jax.effects_barrier()
    assert texts(generated, 1)[0] == (SPECIAL.eos,)
    # Three beams end with three texts: the second and third have another word first.
    n_steps = 1 if beams == 1 else 2
    assert len(calls) == n_steps
    for row in (0, 2):
        assert texts(generated, row) == []
        assert (generated.tokens[row] == SPECIAL.pad).all()
        assert (generated.scores[row] == -jnp.inf).all()
    _, nothing = run((module, params), decoding, source=source, mask=jnp.zeros((3, 4), bool))
    jax.effects_barrier()
    assert len(calls) == n_steps
    assert (nothing.lengths == 0).all()


@pytest.mark.parametrize(
    "decoding", [Decoding(beams=4), Decoding(beams=1), Decoding(beams=1, sample=True, top_k=3)]
)
def test_padding_changes_nothing(sums, decoding):
    decoding = dataclasses.replace(decoding, max_length=9)
    key = jax.random.key(0)
    source, alone = run(sums, decoding, key=key)
    longer = jnp.pad(source, ((0, 2), (0, 3)), constant_values=1)
    mask = jnp.pad(jnp.ones(source.shape, bool), ((0, 2), (0, 3)))
    _, padded = run(sums, decoding, key=key, source=longer, mask=mask)
    for name in ("tokens", "lengths", "scores"):
        np.testing.assert_allclose(getattr(padded, name)[:3], getattr(alone, name), atol=1e-6)


def test_one_compilation_for_each_shape_and_decoding(sums):
    before = decoding_module._generate._cache_size()
    decoding = Decoding(beams=2, max_length=6)
    for n_rows in (3, 3, 4, 3):
        run(sums, dataclasses.replace(decoding), n_rows=n_rows)
    run((Sums(), sums[1]), decoding)
    assert decoding_module._generate._cache_size() == before + 2


def test_runs_search_as_decoding_does_where_nothing_is_said():
    how = base_config().response
    fields = {name: how[name] for name in dataclasses.asdict(Decoding()) if name in how}
    assert set(fields) == {"beams", "length_penalty", "no_repeat_ngram", "min_length"}
    assert Decoding(**fields) == Decoding()


def test_texts_have_the_forced_ends(sums):
    decoding = Decoding(beams=3, max_length=6, min_length=6, forced_first=4, forced_last=2)
    _, generated = run(sums, decoding)
    assert (generated.tokens[:, :, 0] == 4).all()
    assert (generated.tokens[:, :, 4] == 2).all()


@pytest.mark.parametrize("shape", [(40, 7), (3, 1280), (3, 1000), (2, 5003), (2, 129)])
@pytest.mark.parametrize("count", [1, 5])
def test_largest_of_blocks_are_the_largest(shape, count):
    x = jax.random.normal(jax.random.key(0), (2, *shape))
    x = x.at[0, 0].set(-jnp.inf).at[0, 0, 3:7].set(0.5)  # ties, and too few
    values, places = jax.jit(next_words.largest, static_argnums=1)(x, count)
    expected, at = jax.lax.top_k(x, count)
    np.testing.assert_array_equal(values, expected)
    real = expected > -jnp.inf
    np.testing.assert_array_equal(places[real], at[real])
    assert (places < shape[-1]).all()


# --- Sampling


@pytest.mark.parametrize(
    ("options", "n_kept"),
    [
        ({}, 12),
        ({"temperature": 0.6}, 12),
        ({"top_k": 4}, 4),
        ({"top_p": 0.8}, None),
        ({"top_k": 9, "top_p": 0.9, "temperature": 1.7}, None),
    ],
)
def test_words_are_drawn_with_their_probabilities(options, n_kept):
    module = Sums(n_words=12)
    params = module.init(jax.random.key(5))["params"]
    decoding = Decoding(beams=1, sample=True, max_length=2, no_repeat_ngram=0, **options)
    n_rows = 20_000
    source = jnp.full((n_rows, 1), 3)
    key = jax.random.key(0)
    _, generated = run((module, params), decoding, key=key, source=source)
    logits = params["of_source"][3] + params["of_target"][0, 2]
    log_probs = log_softmax(np.asarray(logits, np.float64))
    probs = np.exp(log_softmax(log_probs / decoding.temperature))
    order = np.argsort(-probs)
    probs[order[decoding.top_k or 12 :]] = 0
    probs /= probs.sum()
    before = np.cumsum(probs[order]) - probs[order]
    probs[order[before >= decoding.top_p]] = 0
    probs /= probs.sum()
    kept = probs > 0
    assert kept.sum() == n_kept or (n_kept is None and 1 < kept.sum() < 12)
    drawn = np.asarray(generated.tokens[:, 0, 0])
    counts = np.bincount(drawn, minlength=12)
    assert counts[~kept].sum() == 0
    assert stats.chisquare(counts[kept], n_rows * probs[kept]).pvalue > 0.01
    # The score is the model's own probability, whatever was filtered.
    np.testing.assert_allclose(generated.scores[:, 0], log_probs[drawn], atol=1e-5)


def test_samples_keep_the_rules():
    module = Sums(n_words=12)
    model = module, module.init(jax.random.key(5))["params"]
    decoding = Decoding(
        beams=1, sample=True, max_length=8, no_repeat_ngram=1, min_length=4, forced_last=2
    )
    _, generated = run(model, decoding, n_rows=200, key=jax.random.key(0))
    for row in range(200):
        (text,) = texts(generated, row)
        words = [word for word in text if word != SPECIAL.eos]
        assert len(words) == len(set(words)) >= 3
        assert text[-1] == SPECIAL.eos


def test_a_key_decides_what_is_drawn(sums):
    decoding = Decoding(beams=1, sample=True, max_length=8)
    first, again, other = (
        run(sums, decoding, n_rows=50, key=jax.random.key(k))[1].tokens for k in (0, 0, 1)
    )
    assert (first == again).all()
    assert (first != other).any()
    with pytest.raises(ValueError, match="key"):
        run(sums, decoding)


# --- Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 0}, "beams is 0; expected at least 1"),
        ({"sample": True}, "beams is 5; expected 1, for words are sampled"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram is -1"),
        ({"max_length": 1}, "max_length is 1; expected at least 2"),
        ({"min_length": 65}, "min_length is 65; expected between 0 and max_length, 64"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0; expected above 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"temperature": 0.0}, "temperature is 0.0; expected above 0"),
        ({"temperature": np.inf}, "temperature is inf; expected above 0"),
        ({"length_penalty": np.nan}, "length_penalty is nan; expected a number"),
    ],
)
def test_impossible_decodings_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Decoding(**options)


def test_texts_longer_than_the_position_tables_are_refused(sums):
    with pytest.raises(UserError, match=r"17 tokens, .* for 16"):
        run(sums, Decoding(max_length=18))
    with pytest.raises(UserError, match=r"20 tokens, .* for 16"):
        run(sums, Decoding(max_length=8), source=jnp.zeros((1, 20), int))


# --- transformers


def torch_bart(**options):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    torch.manual_seed(options.pop("seed", 0))
    config = transformers.BartConfig(
        **{
            # Enough words for blocks, and a block of what is left.
            "vocab_size": 1500,
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "max_position_embeddings": 40,
            "dropout": 0.0,
            "forced_eos_token_id": None,
        }
        | options
    )
    return transformers.BartForConditionalGeneration(config).eval()


def as_ours(model, folder):
    """Module and parameters."""
    model.save_pretrained(folder)
    module = Bart(BartConfig.from_json(model.config.to_dict(), "config.json"))
    return module, load_params(weights_files(folder), module)


def sources(lengths, n_words):
    """Random texts, some padded on the left and some on the right, and their mask."""
    rng = np.random.default_rng(0)
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    mask[1::2] = mask[1::2, ::-1]
    source = np.where(mask, rng.integers(3, n_words, mask.shape), SPECIAL.pad)
    return source.astype(np.int32), mask


def theirs(model, source, mask, decoding):
    """Tokens [R, K, T] without the start token, scores [R, K], least gap of log probability [R].

    The gaps are those between texts that compete, or between words that do in greedy search.
    """
    import torch

    out = model.generate(
        torch.tensor(source).long(),
        attention_mask=torch.tensor(mask).long(),
        do_sample=False,
        num_beams=decoding.beams,
        num_return_sequences=decoding.beams,
        length_penalty=decoding.length_penalty,
        no_repeat_ngram_size=decoding.no_repeat_ngram,
        min_length=decoding.min_length,
        max_length=decoding.max_length,
        early_stopping=decoding.early_stopping,
        forced_bos_token_id=decoding.forced_first,
        forced_eos_token_id=decoding.forced_last,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
    )
    rows, beams = len(source), decoding.beams
    tokens = out.sequences.reshape(rows, beams, -1)[:, :, 1:].numpy()
    length = tokens.shape[-1]
    blank = np.full((rows, beams, decoding.max_length - 1), SPECIAL.pad)
    blank[:, :, :length] = tokens
    norms = (tokens != SPECIAL.pad).sum(-1) ** decoding.length_penalty
    if beams > 1:
        scores = out.sequences_scores.reshape(rows, beams).numpy()
        return blank, scores, (-np.diff(scores) * norms[:, 1:]).min(1)
    # Of greedy search there are only the logits, before and after some words are forbidden.
    chosen = torch.tensor(tokens[:, 0, :, None])
    log_probs = torch.stack(out.logits, 1).log_softmax(-1).gather(-1, chosen)[..., 0].numpy()
    two = torch.stack(out.scores, 1).topk(2).values.numpy()
    counts = tokens[:, 0] != SPECIAL.pad
    forced = two[..., 1] == -np.inf
    scores = np.where(counts & ~forced, log_probs, 0).sum(1)[:, None] / norms
    return blank, scores, np.where(counts, two[..., 0] - two[..., 1], np.inf).min(1)


DECODINGS = {
    "greedy": {"beams": 1, "no_repeat_ngram": 0},
    "greedy, no 3-grams": {"beams": 1},
    "greedy, forced": {"beams": 1, "min_length": 9, "forced_first": 0, "forced_last": 2},
    "5 beams": {"no_repeat_ngram": 0},
    "5 beams, no 3-grams": {},
    "5 beams, long": {"length_penalty": 2.0, "min_length": 9},
    "5 beams, forced": {"forced_first": 0, "forced_last": 2},
    "5 beams, late": {"no_repeat_ngram": 1, "length_penalty": 2.0, "early_stopping": False},
    "3 beams, longest": {"beams": 3, "length_penalty": 0.0, "min_length": 20},
}


@pytest.fixture(params=list(DECODINGS))
def decoding(request):
    return Decoding(max_length=20, **DECODINGS[request.param])


LENGTHS = [9, 5, 1, 7, 4, 9, 6, 8]


@pytest.mark.parity
def test_random_models_generate_what_transformers_generates(decoding, tmp_path):
    n_in_doubt = 0
    for seed, std in ((1, 0.05), (2, 0.15), (3, 0.3)):
        model = torch_bart(seed=seed, init_std=std)
        # So that some texts end early, and some late.
        model.final_logits_bias[0, SPECIAL.eos] = 20 * std
        module, params = as_ours(model, tmp_path / str(seed))
        source, mask = sources(LENGTHS, 1500)
        tokens, scores, gaps = theirs(model, source, mask, decoding)
        ours = generate(module, params, source, mask, decoding, SPECIAL)
        sure = gaps > 1e-4
        n_in_doubt += (~sure).sum()
        np.testing.assert_array_equal(np.asarray(ours.tokens)[sure], tokens[sure])
        np.testing.assert_allclose(ours.scores, scores, atol=1e-4)
    assert n_in_doubt <= 2  # of 24


@pytest.fixture(scope="module")
def overfitted():
    """A model that knows eight pairs by heart, their sources, their mask and the targets."""
    torch = pytest.importorskip("torch")
    model = torch_bart().train()
    source, mask = sources(LENGTHS, 60)
    rng = np.random.default_rng(1)
    target = np.full((8, 14), -100)
    for row, length in enumerate((3, 8, 5, 12, 4, 6, 9, 7)):
        # Few words, so that n-grams come again.
        target[row, : length + 2] = [0, *rng.integers(3, 7, length), 2]
    batch = {
        "input_ids": torch.tensor(source).long(),
        "attention_mask": torch.tensor(mask).long(),
        "labels": torch.tensor(target),
    }
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(300):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    return model.eval(), source, mask, target


@pytest.mark.parity
def test_overfitted_model_generates_what_transformers_generates(decoding, overfitted, tmp_path):
    model, source, mask, target = overfitted
    module, params = as_ours(model, tmp_path)
    tokens, scores, _ = theirs(model, source, mask, decoding)
    ours = generate(module, params, source, mask, decoding, SPECIAL)
    np.testing.assert_array_equal(ours.tokens, tokens)
    np.testing.assert_allclose(ours.scores, scores, atol=1e-4)
    if decoding == Decoding(max_length=20, **DECODINGS["greedy"]):
        for row in range(8):
            assert texts(ours, row) == [tuple(target[row][target[row] >= 0].tolist())]


@pytest.mark.parity
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_forbidden_words_are_those_of_transformers(n):
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers").generation.logits_process
    rng = np.random.default_rng(n)
    history = rng.integers(0, 4, (2, 3, 16)).astype(np.int32)
    logits = rng.normal(size=(2, 3, 6)).astype(np.float32)
    for position in range(15):
        ours = next_words.forbid(
            jnp.array(logits),
            jnp.array(history),
            jnp.int32(position),
            no_repeat_ngram=n,
            min_length=5,
            end=SPECIAL.eos,
        )
        seen = torch.tensor(history.reshape(6, 16)[:, : position + 1]).long()
        expected = torch.tensor(logits.reshape(6, 6))
        expected = processors.NoRepeatNGramLogitsProcessor(n)(seen, expected)
        expected = processors.MinLengthLogitsProcessor(5, [SPECIAL.eos])(seen, expected)
        np.testing.assert_array_equal(ours.reshape(6, 6), expected)


@pytest.mark.parity
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])
def test_nucleus_is_that_of_transformers(top_p, spread):
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers").generation.logits_process
    logits = np.random.default_rng(0).normal(size=(20, 3000)).astype(np.float32) * spread
    logits[:, :5] = -np.inf
    ours = np.asarray(next_words.keep_nucleus(jnp.array(logits), top_p))
    expected = processors.TopPLogitsWarper(top_p)(None, torch.tensor(logits)).numpy()
    # At the nucleus' rim, sums of thousands of float32 differ in their last digits.
    differs = ours != expected
    assert differs.sum() <= 20 * 3000 * 1e-4
    probs = np.exp(logits - logits.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    for row, word in np.argwhere(differs):
        likelier = probs[row, probs[row] > probs[row, word]].sum()
        assert abs(likelier - top_p) < 1e-5


@pytest.mark.parity
@pytest.mark.parametrize("top_k", [1, 7, 50])
def test_top_k_is_that_of_transformers(top_k):
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers").generation.logits_process
    logits = np.random.default_rng(0).normal(size=(20, 3000)).astype(np.float32)
    values, words = next_words.largest(jnp.array(logits)[:, None], top_k)
    expected = processors.TopKLogitsWarper(top_k)(None, torch.tensor(logits)).numpy()
    ours = np.full_like(logits, -np.inf)
    np.put_along_axis(ours, np.asarray(words[:, 0]), np.asarray(values[:, 0]), 1)
    np.testing.assert_array_equal(ours, expected)
