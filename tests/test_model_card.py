"""The model card: what the hub reads, what people read, and nothing that is not known."""

import re

import pytest
import yaml
from huggingface_hub import ModelCard

from erc_jax import UserError
from erc_jax.data.corpora import CORPORA, corpus_card
from erc_jax.model_card import model_card, write_model_card
from tests.fabricated import change, dialogues, make_run

HOSTILE = "a | b\n---\nlicense: mit\n<img src=x> [x](javascript:y) `z`"
MINILM = {
    "name": "all-MiniLM-L6-v2",
    "sha256": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "width": 384,
}
PARAMETERS = {"parameters": {"trained": 1234567, "frozen": 22713216}}


def parts(text):
    """The YAML in front, and the Markdown behind it."""
    _, front, body = re.split(r"^---$", text, maxsplit=2, flags=re.MULTILINE)
    return yaml.safe_load(front), body


def table_rows(body, heading):
    section = body.split(f"{heading}\n", 1)[1].split("\n#", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [re.split(r"(?<!\\)\|", row)[1:-1] for row in rows]


def test_what_the_hub_reads(tmp_path):
    front, _ = parts(model_card(make_run(tmp_path / "run", facts={"encoder": MINILM})))
    assert front["language"] == ["en"]
    assert front["library_name"] == "erc-jax"
    assert front["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert "license" not in front  # whoever passes the weights on chooses it
    (model,) = front["model-index"]
    (result,) = model["results"]
    assert result["dataset"] == {"name": "meld", "type": "meld", "split": "test"}
    scores = {metric["name"]: metric["value"] for metric in result["metrics"]}
    assert 0 < scores["weighted F1"] <= 1
    assert ModelCard(model_card(tmp_path / "run")).data.model_name == "mtl_erc_es on meld"


def test_what_people_read(tmp_path):
    workdir = make_run(tmp_path / "run", facts=PARAMETERS)
    text = model_card(workdir)
    assert "GPL-3.0" in text
    assert "Wang and Mine" in text
    assert "poria2019meld" in text
    assert 'Recognizer.from_pretrained("run")' in text
    assert "1,234,567" in text
    assert "22,713,216" in text
    assert "2 min 5 s" in text
    assert str(tmp_path) not in text
    assert "None" not in text
    assert not re.search(r"\n{4}", text)


def test_tables_are_whole(tmp_path):
    runs = {0: dialogues(0), 1: dialogues(1)}
    _, body = parts(model_card(make_run(tmp_path / "run", runs)))
    scores = table_rows(body, "## Scores")
    assert [cell.strip() for cell in scores[0]] == ["score", "validation", "test"]
    assert {len(row) for row in scores} == {3}
    classes = table_rows(body, "### Emotions, test")
    assert [row[0].strip() for row in classes[2:]] == ["neutral", "joy", "anger"]
    assert {len(row) for row in classes} == {5}
    assert sum(int(row[4]) for row in classes[2:]) == 12 * 6  # of the split, not of both seeds
    assert "the model in this folder | seed" in body


def test_what_is_not_known_is_left_out(tmp_path):
    workdir = make_run(tmp_path / "run")

    def forget(content):
        for key in ("encoder", "seconds", "devices", "commit", "checkpoints", "selected_on"):
            content["run"].pop(key)
        content["run"]["corpus"] = {"name": "own"}

    change(workdir / "metrics.json", forget)
    front, body = parts(model_card(workdir))
    assert "language" not in front
    assert "base_model" not in front
    assert "## Cost" not in body
    assert "commit" not in body
    assert "not stated" in body  # the licence of conversations of one's own
    assert "None" not in body


def test_an_encoder_of_ones_own_goes_by_its_folders_name(tmp_path):
    encoder = {"name": str(tmp_path / "tuned"), "sha256": "ab" * 32, "width": 8}
    text = model_card(make_run(tmp_path / "run", facts={"encoder": encoder}))
    assert "base\\_model" not in text
    assert "base_model" not in text
    assert "tuned (SHA-256 abababababababab…)" in text
    assert str(tmp_path) not in text


def test_texts_are_taken_for_nothing_but_texts(tmp_path):
    workdir = make_run(tmp_path / "run")

    def rename(content):
        for split in ("validation", "test"):
            classes = content[split]["per_class"]
            content[split]["per_class"] = {
                HOSTILE if name == "joy" else name: of for name, of in classes.items()
            }
        content["run"]["commit"] = content["run"]["system"] = HOSTILE

    change(workdir / "metrics.json", rename)
    front, body = parts(model_card(workdir))
    assert "license" not in front
    assert {len(row) for row in table_rows(body, "### Emotions, test")} == {5}
    assert "<img" not in body.replace("\\<img", "")
    assert "[x](" not in body.replace("\\[x\\](", "")


def test_a_run_that_replies(tmp_path):
    workdir = make_run(tmp_path / "run")

    def replies(content):
        content["run"]["system"] = "response"
        tasks = {"R": {"corpus": "dailydialog", "splits": {"train": 9, "test": 1}}}
        tasks["E6"] = {"corpus": "tec", "splits": {"train": 5, "test": 2}}
        content["run"]["corpus"] = {"name": "dailydialog", "tasks": tasks}
        content["test"] = {"perplexity": 21.5, "bleu": 1.25, "heads": {"E6": {"macro_f1": 0.5}}}
        del content["validation"]

    change(workdir / "metrics.json", replies)
    front, body = parts(model_card(workdir))
    assert "pipeline_tag" not in front
    assert "Ide and Kawahara" in body
    assert "Responder.from_pretrained" in body
    assert "CC BY-NC-SA 4.0" in body
    assert "free for research" in body
    scores = {row[0].strip(): row[1].strip() for row in table_rows(body, "## Scores")}
    assert scores["perplexity"] == "21.50"
    assert scores["E6: macro F1"] == "50.00"


TO_ITS_END = "It reads a conversation to its end"
ALONE = "It reads every utterance by itself"


@pytest.mark.parametrize(
    ("system", "config", "encoder", "said"),
    [
        ("mtl_erc_es", {}, MINILM, TO_ITS_END),
        ("fine_tuning", {"fine_tuning": {"context": "dialogue"}}, MINILM, TO_ITS_END),
        ("fine_tuning", {"fine_tuning": {"context": "none"}}, MINILM, ALONE),
        ("sent_emo_context", ("transformer", "utterances"), MINILM, TO_ITS_END),
        ("sent_emo_context", ("transformer", "dialogue_vector"), MINILM, TO_ITS_END),
        ("sent_emo_context", ("transformer", "none"), MINILM, ALONE),
        # An encoder that was fine-tuned here may read an utterance in its dialogue.
        ("sent_emo_context", ("transformer", "none"), MINILM | {"sha256": "ab" * 32}, None),
        ("sent_emo_context", ("mlp", "utterances"), MINILM | {"sha256": "ab" * 32}, ALONE),
        ("of_a_plugin", {}, MINILM, None),
    ],
)
def test_what_it_reads(tmp_path, system, config, encoder, said):
    if system == "sent_emo_context":
        config = {system: dict(zip(("network", "context"), config, strict=True))}
    facts = {"system": system, "encoder": encoder}
    text = model_card(make_run(tmp_path / "run", facts=facts, config=config))
    assert [claim for claim in (TO_ITS_END, ALONE) if claim in text] == ([said] if said else [])


@pytest.mark.parametrize("text", ["encoder", "features", None])
def test_a_run_on_feature_files_starts_from_its_text_encoder_if_any(tmp_path, text):
    """The encoder's SHA-256 is then that of all files together."""
    described = {
        "encoder": {"extractor": MINILM["name"], "sha256": MINILM["sha256"], "missing": {}},
        "features": {"extractor": "RoBERTa", "version": "1", "width": 9, "missing": {}},
    }
    audio = {"extractor": "openSMILE", "version": "3", "width": 7, "missing": {}}
    modalities = {"audio": audio} | ({"text": described[text]} if text else {})
    name = MINILM["name"] if text == "encoder" else "feature files"
    facts = {
        "system": "fmerl",
        "encoder": {"name": name, "sha256": "cd" * 32, "width": 7},
        "modalities": modalities,
    }
    front, body = parts(model_card(make_run(tmp_path / "run", facts=facts)))
    assert ("It starts from all-MiniLM-L6-v2 (SHA-256 53aa51172d142c89…)" in body) == (
        text == "encoder"
    )
    assert ("It starts from" in body) == ("base_model" in front) == (text == "encoder")
    # Without a text to read, the shown call gives features.
    assert ("features=features" in body) == (text != "encoder")


def test_a_model_from_scratch_starts_from_nothing(tmp_path):
    encoder = {"name": "a model from scratch", "sha256": "ab" * 32, "width": 8}
    facts = {"system": "response", "encoder": encoder}
    for named, said in (("", False), ("facebook/bart-base", True)):
        workdir = make_run(tmp_path / f"run{said}", facts=facts, config={"encoder": named})
        assert ("It starts from" in model_card(workdir)) == said


@pytest.mark.parametrize("name", CORPORA)
def test_every_corpus_says_what_a_card_needs(name):
    card = corpus_card(name)
    assert card["description"]
    if name != "own":
        assert card["license"]
        assert card["language"] == "en"


def test_an_unfinished_run_has_none(tmp_path):
    workdir = make_run(tmp_path / "run")
    (workdir / "metrics.json").unlink()
    with pytest.raises(UserError, match="the run is not finished"):
        write_model_card(workdir)
