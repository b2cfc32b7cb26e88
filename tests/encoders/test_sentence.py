import csv
import json
import os

import jax
import numpy as np
import pytest

from erc_jax.encoders import hub
from erc_jax.encoders.sentence import SentenceEncoder, _embed
from erc_jax.errors import UserError

SENTENCES = [
    "",
    " ",
    "?",
    "Oh. My. God.",
    "Fine.",
    "also I was the point person on my company’s transition from the KL-5 to GR-6 system.",
    "You must've had your hands full.",
    "We won!!! 🎉🎉",
    "Ça va? Не знаю. 你好，世界 こんにちは",
    "unbelievablysupercalifragilisticexpialidocious" * 5,
    "e\u0301 versus \u00e9, non\u00a0breaking, tab\there, new\nline, zero\u200bwidth",
    "No no no no no no no no no no no no no no no no no no no no no no no no no no no no no no",
    "x" * 100_000,
    "a well known story, told " * 60,
    "half a pair: \ud83d",
    "[CLS] [SEP] [MASK] are words of the vocabulary",
]


@pytest.fixture
def encoder(tiny_model):
    folder = tiny_model(max_position_embeddings=200, limits={"max_seq_length": 150})
    return SentenceEncoder.from_pretrained(str(folder))


def random_sentences(n, longest, seed=0):
    random = np.random.default_rng(seed)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    return [" ".join(random.choice(letters, random.integers(0, longest))) for _ in range(n)]


def test_packed_equals_one_by_one_in_order(encoder):
    sentences = random_sentences(100, 170)
    together = encoder.encode(sentences)
    assert together.shape == (100, encoder.width)
    assert together.dtype == np.float32
    alone = np.concatenate([encoder.encode([sentence]) for sentence in sentences])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_a_corpus_and_requests_compile_three_shapes_at_most(encoder):
    _embed.clear_cache()
    for sentences in (random_sentences(300, 70), random_sentences(400, 70), ["we won"], ["oh"] * 9):
        encoder.encode(sentences)
    assert _embed._cache_size() == 3
    # A corpus without long sentences needs one, and other weights of the same shapes none.
    _embed.clear_cache()
    encoder.encode(random_sentences(300, 40))
    changed = jax.tree.map(lambda leaf: leaf + 0.01, encoder.params)
    encoder.adapted(params=changed).encode(random_sentences(300, 40))
    assert _embed._cache_size() == 1


def test_long_sentences_are_cut_off_where_the_model_says(tiny_model):
    encoder = SentenceEncoder.from_pretrained(str(tiny_model(limits={"max_seq_length": 10})))
    assert encoder.max_length == 10
    first, same, other = encoder.encode(
        ["a b c d e f g h i j k", "a b c d e f g h", "a b c d e f g"]
    )
    np.testing.assert_allclose(first, same, atol=1e-6)
    assert np.abs(first - other).max() > 1e-3
    # More positions than the model has cannot be asked for.
    beyond = SentenceEncoder.from_pretrained(str(tiny_model("b", limits={"max_seq_length": 999})))
    assert beyond.max_length == 64
    assert np.isfinite(beyond.encode(["a " * 200])).all()


def test_pooling_follows_the_published_files(tiny_model):
    text = "we won oh my a b c"
    mean = SentenceEncoder.from_pretrained(str(tiny_model()))
    raw = SentenceEncoder.from_pretrained(str(tiny_model("raw", normalize=False)))
    first = SentenceEncoder.from_pretrained(str(tiny_model("cls", pooling="cls_token")))
    vector = raw.encode([text])
    np.testing.assert_allclose(mean.encode([text]), vector / np.linalg.norm(vector), atol=1e-6)
    assert np.abs(first.encode([text]) - mean.encode([text])).max() > 0.01
    assert mean.sha256 == raw.sha256 == first.sha256
    assert len({mean.fingerprint, raw.fingerprint, first.fingerprint}) == 3


def test_without_modules_json_the_mean_is_taken_and_said(tiny_model, caplog):
    folder = tiny_model(normalize=False)
    want = SentenceEncoder.from_pretrained(str(folder)).encode(["we won"])
    (folder / "modules.json").unlink()
    got = SentenceEncoder.from_pretrained(str(folder)).encode(["we won"])
    np.testing.assert_array_equal(got, want)
    assert "modules.json: not found; taking the mean" in caplog.text


def test_lower_case_where_the_model_says(tiny_model):
    folder = tiny_model(limits={"do_lower_case": True})
    tokenizer = (folder / "tokenizer.json").read_text()
    cased = tokenizer.replace('"lowercase":true', '"lowercase":false')
    cased = cased.replace('"lowercase": true', '"lowercase": false')
    assert cased != tokenizer
    (folder / "tokenizer.json").write_text(cased)
    lower = SentenceEncoder.from_pretrained(str(folder))
    np.testing.assert_allclose(*lower.encode(["WE WON", "we won"]), atol=1e-6)
    (folder / "sentence_bert_config.json").write_text("{}")
    kept = SentenceEncoder.from_pretrained(str(folder))
    assert np.abs(np.subtract(*kept.encode(["WE WON", "we won"]))).max() > 1e-3


def test_progress_ends_at_the_total(encoder):
    calls = []
    encoder.encode(
        random_sentences(500, 30), progress=lambda done, total: calls.append((done, total))
    )
    done = [call[0] for call in calls]
    assert len(calls) > 3
    assert done == sorted(set(done))
    assert calls[-1] == (500, 500)
    assert {total for _, total in calls} == {500}


def test_no_sentences(encoder):
    assert encoder.encode([]).shape == (0, encoder.width)


def test_one_text_instead_of_a_list(encoder):
    with pytest.raises(UserError, match="expects a list of sentences, found one text: 'we won'"):
        encoder.encode("we won")


def real_folder(name):
    """The folder of installed weights; a test that needs others is skipped, and says so."""
    try:
        return hub.find_model(name)[0]
    except UserError:
        pytest.skip(f"needs the real weights of {name}: see docs/systems.md")


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "all-mpnet-base-v2"])
def test_real_weights_give_pytorchs_embeddings_and_are_saved_whole(name, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = real_folder(name)
    sentences = list(SENTENCES)
    if "ERC_JAX_DATA" in os.environ:
        with open(f"{os.environ['ERC_JAX_DATA']}/meld/dev_sent_emo.csv", encoding="utf-8") as file:
            sentences += [row["Utterance"] for row in csv.DictReader(file)][:200]
    encoder = SentenceEncoder.from_pretrained(name)
    ours = encoder.encode(sentences)
    encoder.save_pretrained(tmp_path)

    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    saved_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    saved = transformers.AutoModel.from_pretrained(tmp_path).eval()
    theirs = []
    for sentence in sentences:
        sentence = sentence.encode("utf-8", "replace").decode()
        length = {"truncation": True, "max_length": encoder.max_length, "return_tensors": "pt"}
        ids = tokenizer([sentence], padding=False, **length)["input_ids"]
        assert (
            saved_tokenizer([sentence], padding=False, **length)["input_ids"].tolist()
            == ids.tolist()
        )
        with torch.no_grad():
            hidden = model(ids).last_hidden_state
            assert torch.equal(hidden, saved(ids).last_hidden_state)
        theirs.append(torch.nn.functional.normalize(hidden.mean(1))[0].numpy())
    cosine = (ours * np.array(theirs)).sum(1)
    assert cosine.min() > 0.99999
    assert np.abs(ours - theirs).max() < 1e-5


@pytest.mark.slow
def test_real_minilm_is_the_published_one():
    real_folder("all-MiniLM-L6-v2")
    encoder = SentenceEncoder.from_pretrained("all-MiniLM-L6-v2")
    assert (encoder.name, encoder.width, encoder.max_length) == ("all-MiniLM-L6-v2", 384, 256)
    near, far = (
        encoder.encode(["That is wonderful!", "How great!", "The train is late."])[1:]
        @ (encoder.encode(["That is wonderful!"])[0])
    )
    assert near > far + 0.2


def test_newer_layouts_of_the_published_files(tiny_model):
    """sentence-transformers 6 names pooling by a word and keeps the length with the tokenizer."""
    folder = tiny_model()
    old = SentenceEncoder.from_pretrained(str(folder))
    kinds = ("base.modules.transformer.Transformer", "x.modules.pooling.Pooling", "y.Normalize")
    modules = [
        {"type": f"sentence_transformers.{kind}", "path": path}
        for kind, path in zip(kinds, ("", "1_Pooling", "2_Normalize"), strict=True)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    pooling = {"embedding_dimension": 24, "pooling_mode": "mean", "include_prompt": True}
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text('{"transformer_task": "feature-extraction"}')
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 60}')
    new = SentenceEncoder.from_pretrained(str(folder))
    assert (new.pooling, new.max_length) == (old.pooling, old.max_length)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1e30}')
    assert SentenceEncoder.from_pretrained(str(folder)).max_length == 64
