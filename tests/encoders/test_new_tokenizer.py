"""A tokenizer of one's own: BART's in kind, the same each time, and transformers' reads alike."""

import json
import os
import subprocess
import sys

import pytest
from tokenizers import Tokenizer

from erc_jax.data.corpora import load_corpus
from erc_jax.encoders.new_tokenizer import SPECIAL_TOKENS, TOKENIZER_CONFIG, train_tokenizer
from erc_jax.errors import UserError

TEXTS = [
    "I lost my keys again, and it's raining.",
    "you lost your keys again ? it's the third time !",
    "The keys are in the kitchen, under the newspaper.",
] * 3
STRANGE = [
    "",
    " ",
    "  two  spaces, a tab\tand\na line ",
    "naïve façade 🙂 \u0085 日本",  # not one of these characters was learned
    "don't they're I'VE",
    "a <mask> and <s> in </s> a text",
    "x" * 500,
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 400)


def test_special_tokens_have_the_numbers_of_bart(tokenizer):
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert SPECIAL_TOKENS == ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    assert tokenizer.encode("").ids == [0, 2]
    tokens = tokenizer.encode("I lost my keys").tokens
    assert (tokens[0], tokens[-1]) == ("<s>", "</s>")
    assert "Ġkeys" in tokens  # learned as one token


@pytest.mark.parametrize("text", [text for text in STRANGE if "<" not in text])
def test_every_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text).ids
    assert (ids[0], ids[-1]) == (0, 2)
    assert 3 not in ids  # <unk>
    assert tokenizer.decode(ids) == text


def test_the_vocabulary_has_the_size_that_was_asked_for(tokenizer):
    texts = [" ".join(chr(97 + a) + chr(97 + b) * 2 for b in range(26)) for a in range(26)] * 2
    assert train_tokenizer(texts, 500).get_vocab_size() == 500
    assert tokenizer.get_vocab_size() < 400  # nothing more comes twice in its texts
    assert train_tokenizer([], 261).get_vocab_size() == 261
    with pytest.raises(UserError, match=r"vocabulary of 260 tokens is too small; .* at least 261"):
        train_tokenizer(TEXTS, 260)


def test_the_same_texts_make_the_same_file(tokenizer):
    assert train_tokenizer(iter(TEXTS), 400).to_str() == tokenizer.to_str()
    # In another process, with other seeds of hashes and another number of threads, too.
    program = (
        "import sys, json; from erc_jax.encoders.new_tokenizer import train_tokenizer\n"
        "sys.stdout.write(train_tokenizer(json.load(sys.stdin), 400).to_str())\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(TEXTS),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == tokenizer.to_str()


@pytest.mark.slow  # transformers takes seconds to import
def test_transformers_reads_alike(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    config = {"model_type": "bart", "vocab_size": tokenizer.get_vocab_size()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert type(theirs).__name__ != "TokenizersBackend"  # it is known as BART's
    assert (theirs.bos_token_id, theirs.pad_token_id, theirs.eos_token_id) == (0, 1, 2)
    assert (theirs.unk_token_id, theirs.mask_token_id) == (3, 4)
    assert len(theirs) == tokenizer.get_vocab_size()
    again = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in [*STRANGE, *TEXTS[:3]]:
        ids = tokenizer.encode(text).ids
        assert theirs(text)["input_ids"] == ids
        assert again.encode(text).ids == ids
        assert theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)


def test_the_sample_is_enough_to_learn_from(tmp_path):
    corpus = load_corpus("sample", cache=tmp_path)
    texts = [u.text for d in corpus.splits["train"] for u in d.utterances]
    tokenizer = train_tokenizer(texts, 512)
    assert tokenizer.get_vocab_size() == 512
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
