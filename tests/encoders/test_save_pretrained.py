"""An encoder that was saved, fine-tuned or not, is the same one for us and for transformers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from erc_jax.data.dialogue import Dialogue, Utterance
from erc_jax.encoders import model_folder
from erc_jax.encoders.sentence import SentenceEncoder
from erc_jax.encoders.sentence_files import Pooling
from erc_jax.errors import UserError
from tests.tiny import WORDS, write_encoder

TEXTS = ["we won", "", "oh my", "a b c d e f g h i j k l m n o p q r s t u v w x y z", "my z"]
TALK = [Dialogue("d", (Utterance("a", "we won"), Utterance("b", "oh my"), Utterance("a", "")))]
OWN = {
    "bert": {"pad_token_id": 0},
    "roberta": {"pad_token_id": 1, "type_vocab_size": 1},
    "mpnet": {"pad_token_id": 1},
}


@pytest.fixture
def encoder(tiny_model):
    return SentenceEncoder.from_pretrained(str(tiny_model()))


def published(folder, family):
    """Saves a random model of transformers, with a tokenizer and sentence-transformers' files."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    write_encoder(folder)
    sizes = {
        **{"vocab_size": len(WORDS), "hidden_size": 24, "num_hidden_layers": 2},
        **{"num_attention_heads": 3, "intermediate_size": 40, "max_position_embeddings": 70},
    }
    config = transformers.AutoConfig.for_model(family, **sizes, **OWN[family])
    model = transformers.AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)  # with a pooling layer, as most are
    return model.eval()


def with_transformers(folder):
    """The model as transformers loads it, without the pooling layer that hidden states skip."""
    transformers = pytest.importorskip("transformers")
    model, report = transformers.AutoModel.from_pretrained(
        folder, add_pooling_layer=False, output_loading_info=True, dtype="auto"
    )
    assert not any(report.values())  # missing, unexpected, mismatched
    return model.eval()


def assert_same_hidden_states(encoder, model):
    torch = pytest.importorskip("torch")
    sequences = encoder.reader.alone(TEXTS)
    lengths = np.array([len(s.ids) for s in sequences])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(mask.shape, int)
    ids[mask] = np.concatenate([s.ids for s in sequences])
    positions = np.broadcast_to(np.arange(lengths.max()), mask.shape)
    ours = encoder.module.apply({"params": encoder.params}, ids, mask.astype(int), positions)
    # RoBERTa and MPNet tell padding by its number when they count positions.
    theirs_ids = np.where(mask, ids, model.config.pad_token_id)
    with torch.no_grad():
        theirs = model(
            input_ids=torch.tensor(theirs_ids), attention_mask=torch.tensor(mask.astype(int))
        ).last_hidden_state.float().numpy()  # fmt: skip
    assert np.abs(theirs[mask]).max() > 0.1
    assert np.abs(np.asarray(ours, np.float32)[mask] - theirs[mask]).max() < 1e-5


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("family", OWN)
def test_transformers_loads_what_is_saved(tmp_path, family):
    model = published(tmp_path / "published", family)
    encoder = SentenceEncoder.from_pretrained(str(tmp_path / "published"))
    assert_same_hidden_states(encoder, model)
    encoder.save_pretrained(tmp_path / "saved")
    assert_same_hidden_states(encoder, with_transformers(tmp_path / "saved"))

    again = SentenceEncoder.from_pretrained(str(tmp_path / "saved"))
    assert type(again.module) is type(encoder.module)
    np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))

    # Other parameters, as after fine-tuning.
    tuned = jax.tree.map(lambda x: 1.1 * x, encoder.params)
    encoder.save_pretrained(tmp_path / "tuned", tuned)
    again = SentenceEncoder.from_pretrained(str(tmp_path / "tuned"))
    jax.tree.map(np.testing.assert_array_equal, again.params, tuned)
    assert_same_hidden_states(again, with_transformers(tmp_path / "tuned"))
    assert again.sha256 != encoder.sha256


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_pooling_is_kept(encoder, tmp_path, pooling, normalize):
    adapted = encoder.adapted(pooling=pooling, normalize=normalize)
    adapted.save_pretrained(tmp_path / "saved")
    again = SentenceEncoder.from_pretrained(str(tmp_path / "saved"))
    assert again.pooling == adapted.pooling == Pooling(pooling, normalize)
    vectors = again.encode(TEXTS)
    np.testing.assert_array_equal(vectors, adapted.encode(TEXTS))
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1) == normalize
    if (pooling, normalize) != ("mean", True):
        assert np.abs(vectors - encoder.encode(TEXTS)).max() > 0.01


@pytest.mark.parametrize(("context", "max_length"), [("none", 20), ("dialogue", 17)])
def test_context_and_limit_are_kept(encoder, tmp_path, context, max_length):
    adapted = encoder.adapted(context=context, max_length=max_length)
    adapted.save_pretrained(tmp_path / "saved")
    again = SentenceEncoder.from_pretrained(str(tmp_path / "saved"))
    assert (again.context, again.max_length) == (context, max_length)
    np.testing.assert_array_equal(again.encode_dialogues(TALK), adapted.encode_dialogues(TALK))
    np.testing.assert_array_equal(again.encode(TEXTS), adapted.encode(TEXTS))
    alone = encoder.encode([u.text for u in TALK[0].utterances])
    differs = np.abs(again.encode_dialogues(TALK) - alone).max() > 1e-3
    assert differs == (context == "dialogue")
    read = [len(s.ids) for s in again.sequences(TALK)]
    assert read == ([4, 4, 2] if context == "none" else [14])


def test_fingerprints_tell_encoders_apart(encoder):
    """Features are cached under them."""
    others = [
        encoder,
        encoder.adapted(pooling="max"),
        encoder.adapted(normalize=False),
        encoder.adapted(context="dialogue"),
        encoder.adapted(max_length=20),
    ]
    assert len({other.fingerprint for other in others}) == len(others)
    assert encoder.adapted(pooling="max").fingerprint == others[1].fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling": "sum"}, "pooling is 'sum'; expected one of mean, cls, max"),
        ({"context": "all"}, "context is 'all'; expected one of none, dialogue"),
        ({"max_length": 65}, "fine_tuning.max_tokens is 65; expected more than 2 and at most 64"),
        ({"max_length": 2}, "fine_tuning.max_tokens is 2; expected"),
    ],
)
def test_what_an_encoder_cannot_do(encoder, changes, message):
    with pytest.raises(UserError, match=message):
        encoder.adapted(**changes)


def test_lower_case_is_kept(tiny_model, tmp_path):
    SentenceEncoder.from_pretrained(
        str(tiny_model(limits={"do_lower_case": True}))
    ).save_pretrained(tmp_path / "saved")
    limits = json.loads((tmp_path / "saved/sentence_bert_config.json").read_text())
    assert limits == {"max_seq_length": 60, "do_lower_case": True}


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json", "vocab.txt"])
def test_files_for_other_libraries_are_carried_along(tiny_model, tmp_path, file):
    folder = tiny_model()
    (folder / file).write_text("{}")
    SentenceEncoder.from_pretrained(str(folder)).save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / file).read_text() == "{}"
    for published in ("config.json", "tokenizer.json"):
        assert (tmp_path / "saved" / published).read_bytes() == (folder / published).read_bytes()


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


def test_saving_over_an_encoder(encoder, tiny_model, tmp_path):
    encoder.adapted(normalize=False, context="dialogue").save_pretrained(tmp_path / "saved")
    encoder.save_pretrained(tmp_path / "saved")
    encoder.save_pretrained(tmp_path / "fresh")
    assert files_of(tmp_path / "saved") == files_of(tmp_path / "fresh")
    # The folder that it was loaded from is no exception.
    encoder.adapted(pooling="cls").save_pretrained(encoder.name)
    again = SentenceEncoder.from_pretrained(encoder.name)
    assert again.pooling.mode == "cls"
    assert again.sha256 == SentenceEncoder.from_pretrained(str(tmp_path / "fresh")).sha256


@pytest.mark.parametrize("over", [False, True])
def test_half_an_encoder_is_none(encoder, tmp_path, monkeypatch, over):
    """Whichever file it is that cannot be written; also where an encoder lay before."""
    whole = tmp_path / "whole"
    encoder.save_pretrained(whole)
    tuned = jax.tree.map(lambda x: 1.1 * x, encoder.params)
    write = model_folder.write_whole
    n_files = len(files_of(whole))
    for budget in range(n_files):
        folder = tmp_path / str(budget)
        if over:
            encoder.save_pretrained(folder)
        written = []

        def write_some(path, content, written=written, budget=budget):
            if len(written) == budget:
                raise UserError(f"{path}: cannot be written (No space left on device)")
            written.append(path)
            write(path, content)

        with monkeypatch.context() as patched:
            patched.setattr("erc_jax.encoders.model_folder.write_whole", write_some)
            patched.setattr("erc_jax.encoders.weights.write_whole", write_some)
            with pytest.raises(UserError, match="cannot be written"):
                encoder.adapted(pooling="max").save_pretrained(folder, tuned)
        if over and budget == 0:  # nothing is written yet
            assert files_of(folder) == files_of(whole)
            continue
        with pytest.raises(
            UserError, match=r"config\.json: cannot be read|there is no such folder"
        ):
            SentenceEncoder.from_pretrained(str(folder))
        # Saved once more, it is whole.
        encoder.save_pretrained(folder)
        assert files_of(folder) == files_of(whole)


def test_new_weights_never_lie_beside_the_old_config(encoder, tmp_path, monkeypatch):
    """A run can be killed between any two steps."""
    encoder.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    before = weights.read_bytes()

    def removed_before(path):
        assert weights.read_bytes() == before
        raise KeyboardInterrupt

    tuned = jax.tree.map(lambda x: 1.1 * x, encoder.params)
    with monkeypatch.context() as patched:
        patched.setattr("erc_jax.encoders.model_folder.remove", removed_before)
        with pytest.raises(KeyboardInterrupt):
            encoder.save_pretrained(tmp_path, tuned)
    encoder.save_pretrained(tmp_path, tuned)
    assert weights.read_bytes() != before
    assert not list(tmp_path.glob("*.new"))


def test_where_nothing_can_be_written(encoder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/.*cannot be written"):
        encoder.save_pretrained(tmp_path / "file")


def test_bfloat16_is_kept(tiny_model, tmp_path):
    folder = str(tiny_model())
    half = SentenceEncoder.from_pretrained(folder, dtype="bfloat16")
    half.save_pretrained(tmp_path / "saved")
    again = SentenceEncoder.from_pretrained(str(tmp_path / "saved"), dtype="bfloat16")
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(again.params))
    jax.tree.map(np.testing.assert_array_equal, again.params, half.params)
    np.testing.assert_array_equal(again.encode(TEXTS), half.encode(TEXTS))
    whole = (tmp_path / "model/model.safetensors").stat().st_size
    assert (tmp_path / "saved/model.safetensors").stat().st_size < 0.7 * whole
    # What is lost is bfloat16's third decimal place.
    full = SentenceEncoder.from_pretrained(str(tmp_path / "saved"))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(full.params))
    exact = SentenceEncoder.from_pretrained(folder).encode(TEXTS)
    error = np.abs(full.encode(TEXTS) - exact).max()
    assert 0 < error < 0.05


@pytest.mark.parity
def test_transformers_loads_bfloat16(tmp_path):
    published(tmp_path / "published", "bert")
    half = SentenceEncoder.from_pretrained(str(tmp_path / "published"), dtype="bfloat16")
    half.save_pretrained(tmp_path / "saved")
    model = with_transformers(tmp_path / "saved").float()
    assert_same_hidden_states(SentenceEncoder.from_pretrained(str(tmp_path / "saved")), model)
