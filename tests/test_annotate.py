"""Annotation, against a lexicon of a few words and a small server."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from erc_jax import annotate as annotating
from erc_jax.annotate import annotate, read_description, read_score
from erc_jax.config import base_config
from erc_jax.data.annotation import annotated, load_annotation
from erc_jax.data.corpora import load_corpus
from erc_jax.data.descriptions import known_descriptions
from erc_jax.errors import UserError
from tests.chat_server import completion, serving

KEY = "sk-very-secret-123"
PHRASE = "Arousal: Low arousal, Valence: Positive valence, Dominance: Low dominance"
NORMS = "Word,V.Mean.Sum,A.Mean.Sum,D.Mean.Sum\nhappy,8.5,6,7\nrain,5,3,4\nlose,2,5,3\n"
TEXTS = {  # dialogue to text and emotion, of each split
    "train": {
        "d1": [("I am happy!", "joy"), ("It is raining.", "calm"), ("Umm.", None)],
        "d2": [("I am happy!", "zeal"), ("  ", "calm")],
    },
    "validation": {"d1": [("We lost,\n\nnot happy", "calm")]},
    "test": {"t1": [("So happy 3 times", "joy"), ("{curly} – ärger", "calm")]},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("annotating")
    for split, dialogues in TEXTS.items():
        lines = [
            {
                "id": identifier,
                "utterances": [
                    {"speaker": "AB"[i % 2], "text": text, "emotion": emotion}
                    for i, (text, emotion) in enumerate(turns)
                ],
            }
            for identifier, turns in dialogues.items()
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = base_config()
    config.data.name = "own"
    config.data.source = str(folder)
    return config


@pytest.fixture
def lexicon(tmp_path):
    path = tmp_path / "norms.csv"
    path.write_text(NORMS)
    return path


def prompt_of(request):
    (message,) = request["messages"]
    return message["content"]


def correct(request):
    """A score that depends on dimension and text, or a description."""
    prompt = prompt_of(request)
    if prompt.startswith("Use a brief phrase"):
        return completion(PHRASE)
    base = {"valence": 1, "arousal": 2, "dominance": 3}[re.search(r"of (\w+) from", prompt)[1]]
    return completion(f"{base + 0.5 * ('happy' in prompt)}")


@pytest.fixture
def ask(server, config, tmp_path):
    """Annotates into tmp_path/out, as fast as it goes."""

    def run(**arguments):
        defaults = {"annotator": "llm", "endpoint": server.url, "model": "tiny", "timeout": 5.0}
        defaults |= {"requests_per_minute": 1e6, "back_off": 0.001}
        annotate(config, tmp_path / "out", **{**defaults, **arguments})

    return run


def vad(valence, arousal, dominance):
    return {"valence": valence, "arousal": arousal, "dominance": dominance}


def test_with_a_lexicon(config, lexicon, tmp_path, capsys):
    annotate(config, tmp_path / "out", annotator="lexicon", lexicon=lexicon)
    found = load_annotation(tmp_path / "out")
    assert found.scale == (1.0, 9.0)
    assert found.ratings == {
        "train": {("d1", 1): vad(8.5, 6, 7), ("d1", 2): vad(5, 3, 4), ("d2", 1): vad(8.5, 6, 7)},
        "validation": {("d1", 1): vad(1.5, 6, 7)},  # "lost" is irregular, hence unknown
        "test": {("t1", 1): vad(8.5, 6, 7)},
    }
    known = known_descriptions()
    assert found.descriptions == {"joy": known["joy"], "calm": known["calm"]}
    facts = found.facts
    assert (facts["annotator"], facts["lexicon"]["file"]) == ("lexicon", "norms.csv")
    assert len(facts["lexicon"]["sha256"]) == len(facts["corpus"]["sha256"]) == 64
    assert facts["coverage"]["train"] == {"utterances": 5, "rated": 3}
    assert (facts["words"], facts["known_words"]) == (19, 5)
    shown = capsys.readouterr().out
    assert "own: 8 utterances, 3 emotions" in shown
    assert "5 of 19 words are known (26.3%)" in shown
    assert "train: 3 of 5 utterances are rated (60.0%)" in shown
    assert "without a description: zeal; see --descriptions" in shown
    lines = (tmp_path / "out" / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["annotator"] for line in lines] == ["lexicon"] * 3


def test_ratings_belong_to_the_corpus(config, lexicon, tmp_path):
    annotate(config, tmp_path / "out", annotator="lexicon", lexicon=lexicon)
    found = load_annotation(tmp_path / "out")
    corpus = load_corpus("own", config.data.source)
    assert found.facts["corpus"]["sha256"] == corpus.sha256
    (dialogue,) = annotated(
        corpus.splits["test"], found.ratings["test"], found.scale, "out/test.jsonl"
    )
    assert [utterance.vad for utterance in dialogue.utterances] == [vad(8.5, 6, 7), None]
    with pytest.raises(UserError, match="is rated, but not there"):
        annotated(corpus.splits["test"], found.ratings["train"], found.scale, "out/train.jsonl")


def test_with_a_chat_model(server, ask, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    ask()
    out = tmp_path / "out"
    found = load_annotation(out)
    assert found.scale == (0.0, 5.0)
    happy, other = vad(1.5, 2.5, 3.5), vad(1, 2, 3)
    assert found.ratings == {
        "train": {
            ("d1", 1): happy, ("d1", 2): other, ("d1", 3): other, ("d2", 1): happy,
        },
        "validation": {("d1", 1): happy},
        "test": {("t1", 1): happy, ("t1", 2): other},
    }  # fmt: skip
    assert found.descriptions == dict.fromkeys(("joy", "calm", "zeal"), PHRASE)
    origin = json.loads((out / "descriptions.json").read_text())["joy"]["origin"]
    assert origin == "tiny, asked with FMERL's prompt"
    facts = found.facts
    assert (facts["annotator"], facts["model"]) == ("llm", "tiny")
    assert (facts["endpoint"], facts["answered_by"]) == (server.url, ["tiny-2026"])
    assert (facts["answers"], facts["malformed"]) == (3 + 6 * 3, 0)
    assert facts["coverage"]["train"] == {"utterances": 5, "rated": 4}
    line = json.loads((out / "test.jsonl").read_text().splitlines()[0])
    assert line == {"dialogue": "t1", "utterance": 1, **happy, "annotator": "llm:tiny"}

    # Two utterances with the same text are one question, and one without text is none.
    assert len(server.requests) == 21
    prompts = {prompt_of(request) for request in server.requests}
    assert len(prompts) == 21
    assert (
        "In the field of emotion recognition, score this utterance in the dimension of arousal "
        "from 0 to 5. The utterance is : We lost, not happy. Hence, the score is:"
    ) in prompts
    assert (
        "Use a brief phrase to describe the level of an emotion of joy in the dimension of "
        "arousal, valence and dominance."
    ) in prompts
    assert any("{curly} – ärger" in prompt for prompt in prompts)
    for request in server.requests:
        assert (request["model"], request["temperature"]) == ("tiny", 0)
        assert request["max_tokens"] == annotating.MAX_TOKENS
    assert server.headers[0][1]["Authorization"] == f"Bearer {KEY}"
    written = [path.read_text() for path in out.iterdir()]
    assert KEY not in "".join([*written, *capsys.readouterr()])


def test_nothing_is_asked_twice(server, ask, tmp_path):
    ask()
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    server.requests.clear()
    ask()
    assert server.requests == []
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def test_the_limit_of_an_answer_may_be_left_to_the_server(server, ask):
    ask(max_tokens=0)
    assert all("max_tokens" not in request for request in server.requests)


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("3", 3.0),
        ("3.5", 3.5),
        (" 0.\n", 0.0),
        ("5", 5.0),
        ("**4**", 4.0),
        ("Score: 4.25.", 4.25),
        ("4/5", 4.0),
        ("4 / 5", 4.0),
        ("I would say 2 out of 5.", 2.0),
        ("On a scale from 0 to 5, it is a 2.", 2.0),
        ("On the 0-5 scale: 2", 2.0),
        ("5/5", 5.0),
        ("4. The utterance is joyful, so the score is 4.0", 4.0),
        ("GPT4 says 3", 3.0),
    ],
)
def test_scores_that_can_be_read(answer, score):
    assert read_score(answer) == score


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("", "no number"),
        ("three", "no number"),
        ("As an AI, I cannot score this.", "no number"),
        ("from 0 to 5", "no number"),
        ("80%", "no number"),
        ("the 3rd", "no number"),
        ("1.2.3", "no number"),
        ("nan", "no number"),
        ("6", "not from 0 to 5"),
        ("5.01", "not from 0 to 5"),
        ("-1", "not from 0 to 5"),
        ("−1", "not from 0 to 5"),
        ("7/10", "several numbers"),
        ("3-4", "several numbers"),
        ("3 to 4", "several numbers"),
        ("3,5", "several numbers"),
        ("between 2 and 3", "several numbers"),
        ("Valence: 4, arousal: 2", "several numbers"),
        ("4/5.5", "several numbers"),
    ],
)
def test_scores_that_cannot_be_read(answer, problem):
    with pytest.raises(ValueError, match=f"^{problem}$"):
        read_score(answer)


def test_descriptions_speak_of_all_dimensions():
    assert read_description(f"\n{PHRASE.replace(', ', ',  ')}\n") == PHRASE
    with pytest.raises(ValueError, match=r"^no dominance$"):
        read_description("Arousal: High, Valence: Low")
    with pytest.raises(ValueError, match=r"^no valence$"):
        read_description("I cannot help with that.")


def test_nonsense_is_left_out_and_kept_to_be_read(server, ask, tmp_path, capsys):
    def nonsense(request):
        prompt = prompt_of(request)
        if "raining" in prompt and "of arousal" in prompt:
            return completion("between 2 and 3")
        if "Umm" in prompt:
            return completion(None)
        return completion("no idea") if "emotion of zeal" in prompt else correct(request)

    server.reply = nonsense
    ask()
    found = load_annotation(tmp_path / "out")
    assert found.ratings["train"].keys() == {("d1", 1), ("d2", 1)}
    assert found.descriptions.keys() == {"joy", "calm"}
    assert found.facts["malformed"] == 5
    lines = (tmp_path / "out" / "malformed.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert {"emotion": "zeal", "problem": "no valence", "answer": "no idea"} in records
    assert {
        "split": "train", "dialogue": "d1", "utterance": 2, "dimension": "arousal",
        "problem": "several numbers", "answer": "between 2 and 3",
    } in records  # fmt: skip
    assert sum(record["answer"] == "" for record in records) == 3
    shown = capsys.readouterr().out
    assert 'Note: 5 answers cannot be read and are left out, the first (no valence): "no' in shown
    assert "without a description: zeal" in shown
    server.requests.clear()
    ask()  # an answer that cannot be read is an answer
    assert server.requests == []


def test_a_model_that_never_answers_with_numbers(server, ask, tmp_path):
    server.reply = lambda request: completion("Happy to help!")
    with pytest.raises(UserError, match="no utterance could be rated"):
        ask()
    assert not (tmp_path / "out" / "annotation.json").exists()
    assert len((tmp_path / "out" / "malformed.jsonl").read_text().splitlines()) == 21


def test_an_endpoint_that_dies_and_comes_back(server, ask, tmp_path):
    server.reply = lambda request: correct(request) if len(server.requests) <= 8 else None
    with pytest.raises(UserError, match=r"8 of 21 answers are kept in .*answers.jsonl; the same"):
        ask()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["answers.jsonl"]
    answered = {prompt_of(request) for request in server.requests[:8]}
    server.requests.clear()
    server.reply = correct
    ask()
    assert len(server.requests) == 13
    assert answered.isdisjoint(prompt_of(request) for request in server.requests)
    assert load_annotation(tmp_path / "out").facts["coverage"]["test"]["rated"] == 2


CHILD = """
import json, sys
from pathlib import Path
from erc_jax.annotate import annotate
from erc_jax.config import base_config

source, output, endpoint = sys.argv[1:]
config = base_config()
config.data.name, config.data.source = "own", source
annotate(config, Path(output), annotator="llm", endpoint=endpoint, model="tiny",
         requests_per_minute=1e6, concurrency=3)
"""


@pytest.mark.slow
def test_kill_9_and_again(server, ask, config, tmp_path, one_device_env):
    go_on = threading.Event()

    def hang_after_ten(request):
        if len(server.requests) <= 10:
            return correct(request)
        go_on.wait(60)
        return None

    server.reply = hang_after_ten
    path = tmp_path / "out" / "answers.jsonl"
    arguments = [config.data.source, str(tmp_path / "out"), server.url]
    child = subprocess.Popen([sys.executable, "-c", CHILD, *arguments], env=one_device_env)
    try:
        deadline = time.monotonic() + 120
        while not (path.exists() and path.read_bytes().count(b"\n") >= 10):
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        go_on.set()
    kept = path.read_bytes()
    assert kept.count(b"\n") == 10
    with path.open("ab") as file:
        file.write(b'{"split": "train", "dialogue": "d1", "utt')  # as a kill may leave it

    answered = {prompt_of(request) for request in server.requests[:10]}
    with serving(correct) as second:  # the first one may still hear what the child had sent
        ask(endpoint=second.url)
        assert len(second.requests) == 11
        assert answered.isdisjoint(prompt_of(request) for request in second.requests)
        assert path.read_bytes().startswith(kept)
        found = load_annotation(tmp_path / "out")
        assert sum(len(ratings) for ratings in found.ratings.values()) == 7
        ask(endpoint=second.url)  # what came after the half line is whole
        assert len(second.requests) == 11


def test_a_dry_run_asks_nothing(server, ask, tmp_path, capsys):
    ask(dry_run=True, requests_per_minute=6)
    assert server.requests == []
    assert not (tmp_path / "out").exists()
    shown = capsys.readouterr().out
    assert "24 questions, 21 of them different; 0 answers are in" in shown
    assert "21 requests, at 6 a minute at least 3 min 30 s. The first prompts:" in shown
    assert "emotion of calm in the dimension of arousal, valence and dominance." in shown
    for dimension in ("valence", "arousal", "dominance"):
        start = f"score this utterance in the dimension of {dimension} from 0 to 5."
        assert f"{start} The utterance is : I am happy!. Hence, the score is:" in shown

    server.reply = lambda request: correct(request) if len(server.requests) <= 8 else (400, {}, "")
    with pytest.raises(UserError):
        ask(concurrency=1)
    ask(dry_run=True)
    shown = capsys.readouterr().out
    assert "8 answers are in" in shown
    assert "\n13 requests, " in shown


def test_folders_keep_what_they_hold(server, ask, config, lexicon, tmp_path):
    ask()
    with pytest.raises(UserError, match=r'annotator is "llm" there and "lexicon" here; choose an'):
        annotate(config, tmp_path / "out", annotator="lexicon", lexicon=lexicon)
    with pytest.raises(UserError, match='model is "tiny" there and "other" here'):
        ask(model="other")
    annotate(config, tmp_path / "norms", annotator="lexicon", lexicon=lexicon)
    annotate(config, tmp_path / "norms", annotator="lexicon", lexicon=lexicon)
    lexicon.write_text(NORMS.replace("8.5", "8.4"))
    with pytest.raises(UserError, match="holds another annotation: lexicon is"):
        annotate(config, tmp_path / "norms", annotator="lexicon", lexicon=lexicon)
    assert len(server.requests) == 21


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"annotator": "lexicon"}, "--annotator lexicon needs --lexicon: a CSV file"),
        ({"annotator": "lexicon", "lexicon": Path("no.csv"), "dry_run": True}, "asks nobody"),
        ({"annotator": "lexicon", "lexicon": Path("no.csv")}, "--lexicon no.csv: there is no such"),
        ({"annotator": "gut"}, "--annotator is 'gut'; expected lexicon or llm"),
        ({"annotator": "llm", "model": "x"}, "--annotator llm needs --endpoint and --model, for"),
        ({"annotator": "llm", "endpoint": "http://x/v1"}, "needs --endpoint and --model"),
        ({"annotator": "llm", "endpoint": "x", "model": "x"}, "--endpoint: expected an address"),
    ],
)
def test_what_is_missing(config, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        annotate(config, tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_dialogues_need_ids_of_their_own(config, lexicon, tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for split in TEXTS:
        turns = [{"speaker": "A", "text": "happy", "emotion": emotion} for emotion in "ab"]
        line = json.dumps({"id": "d", "utterances": turns}) + "\n"
        (folder / f"{split}.jsonl").write_text(line + line)
    config = config.copy_and_resolve_references()
    config.data.source = str(folder)
    with pytest.raises(UserError, match="two dialogues of a split have the id 'd'"):
        annotate(config, tmp_path / "out", annotator="lexicon", lexicon=lexicon)


@pytest.mark.slow
def test_the_published_norms_on_meld(tmp_path):
    if "ERC_JAX_DATA" not in os.environ:
        pytest.skip("ERC_JAX_DATA is not set")
    data = Path(os.environ["ERC_JAX_DATA"])
    config = base_config()
    config.data.name, config.data.source = "meld", str(data / "meld")
    lexicon = data / "vad" / "Ratings_Warriner_et_al.csv"
    annotate(config, tmp_path / "out", annotator="lexicon", lexicon=lexicon)
    found = load_annotation(tmp_path / "out")
    assert found.facts["coverage"] == {
        "train": {"utterances": 9989, "rated": 8064},
        "validation": {"utterances": 1109, "rated": 876},
        "test": {"utterances": 2610, "rated": 2125},
    }
    assert len(set(found.descriptions.values())) == 7
    corpus = load_corpus("meld", data / "meld")
    valence = {"joy": [], "sadness": [], "disgust": []}
    for dialogue in annotated(corpus.splits["train"], found.ratings["train"], found.scale, "x"):
        for utterance in dialogue.utterances:
            if utterance.vad and utterance.emotion in valence:
                valence[utterance.emotion].append(utterance.vad["valence"])
    joy, sadness, disgust = (sum(values) / len(values) for values in valence.values())
    assert joy > sadness > disgust
