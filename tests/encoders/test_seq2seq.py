"""A model that writes texts: from wherever it comes, and as transformers finds it again."""

import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from erc_jax.encoders.bart import EMBEDDING_STD
from erc_jax.encoders.bart_config import SpecialTokens
from erc_jax.encoders.new_tokenizer import train_tokenizer
from erc_jax.encoders.seq2seq import Seq2Seq
from erc_jax.errors import UserError

TEXTS = ["We won!", "Oh my, did we?", "I lost my keys again.", "", "naïve 🙂"]
SIZES = {"width": 24, "layers": 1, "heads": 3, "ffn": 40, "max_tokens": 20}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 3, 300)


@pytest.fixture(scope="module")
def new(tokenizer):
    """A model from scratch."""
    return Seq2Seq.from_scratch(tokenizer, **SIZES)


@pytest.fixture
def folder(new, tmp_path):
    new.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def change(file, **fields):
    """Sets fields of a JSON file, or takes them out where they are None."""
    record = json.loads(file.read_text()) if file.exists() else {}
    record = {name: value for name, value in {**record, **fields}.items() if value is not None}
    file.write_text(json.dumps(record))


def error_of(place, **options) -> str:
    with pytest.raises(UserError) as error:
        Seq2Seq.from_pretrained(str(place), **options)
    return str(error.value)


def logits(model, params=None):
    """Of what a model makes of its own tokens, float32 [5, T, V], and which are real."""
    ids = model.tokenize(TEXTS, 20)
    mask = np.arange(max(map(len, ids))) < np.array([len(i) for i in ids])[:, None]
    words = np.full(mask.shape, model.special.pad)
    words[mask] = np.concatenate(ids)
    variables = {"params": model.params if params is None else params}
    states = model.module.apply(variables, words, mask, words, mask)
    return np.asarray(model.module.apply(variables, states, method="logits")), words, mask


def assert_transformers_agrees(model, place, atol=1e-5):
    """Transformers loads a folder without complaint, and computes what the model does."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs, report = transformers.BartForConditionalGeneration.from_pretrained(
        place, output_loading_info=True
    )
    assert not any(report.values())  # missing, unexpected, mismatched
    assert theirs.config.architectures == ["BartForConditionalGeneration"]
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    ours, words, mask = logits(model)
    assert their_tokenizer(TEXTS)["input_ids"] == [i.tolist() for i in model.tokenize(TEXTS, 20)]
    assert their_tokenizer.pad_token_id == model.special.pad
    words, attention = torch.tensor(words), torch.tensor(mask.astype(int))
    with torch.no_grad():
        expected = (
            theirs.float()
            .eval()(
                input_ids=words,
                attention_mask=attention,
                decoder_input_ids=words,
                decoder_attention_mask=attention,
            )
            .logits.numpy()
        )
    assert np.abs(expected).max() > 0.05
    assert np.abs(ours - expected)[mask].max() < atol


# From scratch.


def test_a_new_model_is_a_function_of_its_arguments(new, tokenizer):
    again = Seq2Seq.from_scratch(tokenizer, **SIZES)
    chex.assert_trees_all_equal(again.params, new.params)
    assert (again.sha256, again.fingerprint) == (new.sha256, new.fingerprint)
    other = Seq2Seq.from_scratch(tokenizer, **SIZES, seed=1)
    assert other.sha256 != new.sha256
    table, other_table = (np.asarray(m.params["shared"]["embedding"]) for m in (new, other))
    assert np.abs(table - other_table).max() > 0.01
    assert table.std() == pytest.approx(EMBEDDING_STD, rel=0.1)
    assert Seq2Seq.from_scratch(tokenizer, **SIZES | {"ffn": 41}).sha256 != new.sha256
    assert Seq2Seq.from_scratch(train_tokenizer([], 261), **SIZES).sha256 != new.sha256


def test_a_new_model_reads_its_source(tokenizer):
    """What hardly depends on the source when training begins learns to do without it."""
    model = Seq2Seq.from_scratch(tokenizer, **SIZES | {"width": 240, "ffn": 960})
    source = jax.random.randint(jax.random.key(0), (8, 12), 4, tokenizer.get_vocab_size())
    target, seen = jnp.broadcast_to(source[:1], source.shape), jnp.ones(source.shape, bool)
    states = model.module.apply({"params": model.params}, source, seen, target, seen)
    # Of the first word, before which the decoder has read the same everywhere.
    first = np.asarray(states[:, 0])
    assert first.std(0).mean() > 0.1 * np.sqrt(np.square(first).mean())


def test_what_a_new_model_is(new, tokenizer):
    assert new.special == SpecialTokens(start=2, bos=0, eos=2, pad=1)
    assert (new.width, new.longest, new.folder) == (24, 21, None)
    assert (new.forced_first, new.forced_last) == (None, 2)
    assert new.module.config.vocab_size == tokenizer.get_vocab_size()


def test_sizes_that_do_not_fit(tokenizer):
    with pytest.raises(UserError, match="d_model 25 is not a multiple of encoder_attention_heads"):
        Seq2Seq.from_scratch(tokenizer, **SIZES | {"width": 25})


# Texts and tokens.


def test_tokens_of_texts(new):
    ids = new.tokenize([*TEXTS, "x" * 100], 20)
    assert all(i.dtype == np.int32 for i in ids)
    assert [new.decode(i) for i in ids] == [*TEXTS, "x" * 18]
    assert all((i[0], i[-1]) == (0, 2) for i in ids)
    assert ids[3].tolist() == [0, 2]
    assert len(ids[-1]) == 20
    assert new.tokenize([], 20) == []
    (cut,) = new.tokenize(["x" * 100], 3)
    assert cut[[0, -1]].tolist() == [0, 2]
    assert new.decode([2, *ids[0], 1, 1]) == "We won!"


def test_nothing_that_a_user_writes_is_a_special_token(new):
    text = "we </s> won <s> <pad> <mask>"
    (ids,) = new.tokenize([text], 20)
    assert not set(ids[1:-1]) & set(range(5))
    assert new.decode(new.tokenize([text], 21)[0]) == text[: len(new.decode(ids)) + 1]
    (half,) = new.tokenize(["\ud83d"], 20)  # of a pair of surrogates, as JSON can hold it
    assert half.tolist() == new.tokenize(["?"], 20)[0].tolist()


@pytest.mark.parametrize("max_tokens", [0, 2, 22])
def test_limits_that_the_model_does_not_have(new, max_tokens):
    with pytest.raises(UserError, match=rf"^{max_tokens} tokens .* at least 3, and at most 21"):
        new.tokenize(TEXTS, max_tokens)


# Saved and loaded again.


def files_of(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_what_is_saved_is_loaded_again(new, folder, tmp_path):
    again = Seq2Seq.from_pretrained(str(folder))
    chex.assert_trees_all_equal(again.params, new.params)
    assert again.module == new.module
    assert again.folder == folder
    assert again.tokenizer.to_str() == new.tokenizer.to_str()
    assert (again.forced_first, again.forced_last) == (None, 2)
    np.testing.assert_array_equal(logits(again)[0], logits(new)[0])
    again.save_pretrained(tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(folder)
    tuned = jax.tree.map(lambda x: 1.1 * x + 0.01, new.params)
    again.save_pretrained(folder, tuned)  # over itself
    chex.assert_trees_all_equal(Seq2Seq.from_pretrained(str(folder)).params, tuned)


@pytest.mark.parity
def test_transformers_loads_what_is_saved(new, folder):
    tuned = jax.tree.map(lambda x: x + 0.01, new.params)
    new.save_pretrained(folder, tuned)
    assert_transformers_agrees(Seq2Seq.from_pretrained(str(folder)), folder)


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["BartForConditionalGeneration", "BartModel"])
def test_what_transformers_saves_is_loaded_and_saved_again(folder, tmp_path, kind):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {
        **{"vocab_size": 320, "d_model": 12, "scale_embedding": True, "num_hidden_layers": 1},
        **{"encoder_attention_heads": 2, "encoder_ffn_dim": 10, "decoder_attention_heads": 3},
        **{"decoder_ffn_dim": 20, "max_position_embeddings": 30, "decoder_layers": 2},
    }
    theirs = getattr(transformers, kind)(transformers.BartConfig(**sizes))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    place = tmp_path / "theirs"
    theirs.save_pretrained(place)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(place)
    if kind == "BartForConditionalGeneration":
        change(place / "generation_config.json", forced_bos_token_id=0, num_beams=4)
    ours = Seq2Seq.from_pretrained(str(place))
    first = 0 if kind == "BartForConditionalGeneration" else None
    assert (ours.forced_first, ours.forced_last) == (first, 2)
    ours.save_pretrained(tmp_path / "ours")
    assert_transformers_agrees(ours, tmp_path / "ours")
    kept = set(files_of(tmp_path / "ours"))
    assert kept == set(files_of(place))  # generation_config.json if there was one


@pytest.mark.parity
def test_bfloat16_is_kept(new, folder, tmp_path):
    half = Seq2Seq.from_pretrained(str(folder), dtype="bfloat16")
    assert half.module.dtype == half.module.param_dtype == jnp.bfloat16
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(half.params))
    half.save_pretrained(tmp_path / "half")
    again = Seq2Seq.from_pretrained(str(tmp_path / "half"), dtype="bfloat16")
    chex.assert_trees_all_equal(again.params, half.params)
    np.testing.assert_array_equal(logits(again)[0], logits(half)[0])
    # In float32, its rounded weights compute what they do for transformers.
    full = Seq2Seq.from_pretrained(str(tmp_path / "half"))
    assert_transformers_agrees(full, tmp_path / "half")
    assert 0 < np.abs(logits(full)[0] - logits(new)[0]).max() < 0.05


@pytest.mark.parametrize("n_written", range(4))
def test_half_a_model_is_none(new, folder, monkeypatch, n_written):
    whole = files_of(folder)
    written = []

    def write_some(path, content):
        if len(written) == n_written:
            raise UserError(f"{path}: cannot be written (No space left on device)")
        written.append(path)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    tuned = jax.tree.map(lambda x: 1.1 * x, new.params)
    with monkeypatch.context() as patched:
        patched.setattr("erc_jax.encoders.model_folder.write_whole", write_some)
        patched.setattr("erc_jax.encoders.weights.write_whole", write_some)
        with pytest.raises(UserError, match="cannot be written"):
            new.save_pretrained(folder, tuned)
    if n_written == 0:
        assert files_of(folder) == whole
    else:
        assert "config.json: cannot be read" in error_of(folder)
    new.save_pretrained(folder)
    assert files_of(folder) == whole


def test_where_nothing_can_be_written(new, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/.*cannot be written"):
        new.save_pretrained(tmp_path / "file")


# Where models are found.


def test_the_workdir_of_a_run_is_its_model(folder, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(folder, work / "model")
    (work / "config.json").write_text('{"system": "response"}')
    assert Seq2Seq.from_pretrained(str(work)).folder == work / "model"
    (work / "model/config.json").unlink()
    message = error_of(work)
    assert f"{work}: a workdir without a fine-tuned model" in message
    assert "name the model itself" in message


def test_the_hubs_cache_is_used_when_it_is_complete(folder, tmp_path):
    repository = tmp_path / "hub/models--facebook--bart-base"
    commit = "c" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(commit)
    shutil.copytree(folder, repository / "snapshots" / commit)
    # Nobody asked for the file that it may have.
    message = error_of("bart-base")
    assert "facebook/bart-base: the model is not on this machine" in message
    assert "generation_config.json, model.safetensors) into a folder" in message
    (repository / ".no_exist" / commit).mkdir(parents=True)
    (repository / ".no_exist" / commit / "generation_config.json").touch()
    model = Seq2Seq.from_pretrained("bart-base")
    assert (model.name, model.width) == ("bart-base", 24)


# What does not belong together.


def test_the_fingerprint_is_of_all_that_decides(folder):
    def fingerprint(**options):
        return Seq2Seq.from_pretrained(str(folder), **options).fingerprint

    found = [fingerprint(), fingerprint(dtype="bfloat16")]
    assert fingerprint() == found[0]
    change(folder / "generation_config.json", forced_bos_token_id=0)
    found.append(fingerprint())
    change(folder / "config.json", activation_function="relu")
    found.append(fingerprint())
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + "\n")
    found.append(fingerprint())
    tensors = load_file(folder / "model.safetensors")
    tensors["final_logits_bias"][0, 7] += 1
    save_file(tensors, folder / "model.safetensors")
    found.append(fingerprint())
    assert len(set(found)) == len(found)


def test_a_trained_model_gets_its_own_weights_only(folder):
    right = Seq2Seq.from_pretrained(str(folder)).sha256
    assert Seq2Seq.from_pretrained(str(folder), sha256=right).sha256 == right
    message = error_of(folder, sha256="0" * 64)
    assert right in message
    assert "0" * 64 in message


def test_an_unknown_type(folder):
    assert "dtype is 'float16'; expected 'float32'" in error_of(folder, dtype="float16")


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("config.json", {"model_type": "bert"}, "model_type is 'bert'; expected 'bart'"),
        ("config.json", {"d_model": None}, "expected int as 'd_model', found None"),
        # The table has more rows than the config says, or the tokenizer more words than both.
        ("config.json", {"vocab_size": 400}, "by config.json; take both from one model"),
        ("config.json", {"bos_token_id": 4}, r"puts texts between the tokens \[0, 2\]; expected "),
        (
            "generation_config.json",
            {"decoder_start_token_id": 0},
            "decoder_start_token_id is 0, but 2 by config.json; take both files from one model",
        ),
        ("generation_config.json", {"eos_token_id": [2, 3]}, r"eos_token_id is \[2, 3\], but 2"),
        ("generation_config.json", {"forced_bos_token_id": 999}, "forced_bos_token_id is 999; exp"),
        ("config.json", {"forced_eos_token_id": "x"}, "forced_eos_token_id is 'x'; expected"),
        ("tokenizer.json", {"model": None}, "tokenizer.json: not a tokenizer"),
    ],
)
def test_files_that_do_not_belong_together(folder, file, fields, message):
    change(folder / file, **fields)
    with pytest.raises(UserError, match=message):
        Seq2Seq.from_pretrained(str(folder))


def test_a_generation_config_that_agrees(folder):
    change(folder / "generation_config.json", eos_token_id=[2], pad_token_id=1, max_length=9)
    assert Seq2Seq.from_pretrained(str(folder)).special.eos == 2


def test_a_tokenizer_with_more_words_than_the_table(folder, tokenizer, tmp_path):
    words = tokenizer.get_vocab_size()
    larger = train_tokenizer([*TEXTS * 3, *["keys keychain keyring"] * 9], 400)
    assert larger.get_vocab_size() > words
    larger.save(str(folder / "tokenizer.json"))
    message = error_of(folder)
    assert f"has {larger.get_vocab_size()} words, but the weights have {words} rows" in message
    assert "take the tokenizer from where the weights are from" in message


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("tokenizer.json", "tokenizer.json: not found; fetch it from where the weights are from."),
        ("model.safetensors", "expected model.safetensors, found config.json, tokenizer.json"),
        ("config.json", "config.json: cannot be read"),
    ],
)
def test_a_missing_file(folder, missing, message):
    (folder / missing).unlink()
    assert message in error_of(folder)


def test_a_folder_without_a_generation_config_or_the_tokenizers_is_enough(folder):
    (folder / "tokenizer_config.json").unlink()
    assert sorted(files_of(folder)) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert Seq2Seq.from_pretrained(str(folder)).width == 24
