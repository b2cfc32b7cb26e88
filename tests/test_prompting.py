"""Prompting, against a small server in a thread of its own."""

import functools
import json
import time
from collections import Counter
from email.utils import formatdate

import numpy as np
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef, precision_score, recall_score

from erc_jax import chat, metrics, prompting
from erc_jax.answers import AnswerFile, ask_all
from erc_jax.config import base_config, save_config
from erc_jax.data.corpora.dailydialog import DailyDialog
from erc_jax.data.dialogue import Dialogue, Utterance, load_dialogues
from erc_jax.data.labels import LabelSpace
from erc_jax.errors import UserError
from erc_jax.prompting import EmotionNames, evaluate_chat_model, make_prompt, score
from tests.chat_server import completion

KEY = "sk-very-secret-123"
SAID = {"calm": "it is raining", "happy": "we won", "sad": "he left"}
GOLD = (("calm", "happy"), ("sad", "sad"), ("calm",), ("happy", "calm"), ("sad", "calm", "happy"))
DAILYDIALOG = LabelSpace(DailyDialog.EMOTIONS, DailyDialog.NEUTRAL)

FIGURE_2A = """Here is a dialog :

- Hello , Miao Li , Where are you going ?
- Hello , I am going to the store to buy some fruit .
- Oh , Would you do me a favor ?
- Yes ?
- Please mail this letter for me on your way to the store .
- Sure . Do you want it to be registered ?
- Yes , I think so . There are some pictures in it . It would be a great pity if they were lost .
- Yes , I will be glad to mail your letter .
- Thanks .
- you are welcome .

Regarding its conversational context, give me the appropriate emotion to describe this \
utterance : "Yes , I think so . There are some pictures in it . It would be a great pity if they \
were lost ." , using only one of the following labels: happiness, sadness, anger, surprise, \
fear, disgust, no emotion. Predicted label :"""


def asked_for(request):
    """The utterance that a prompt asks about."""
    prompt = request["messages"][0]["content"]
    return prompt.split('this utterance : "')[1].split('" , using only')[0]


def correct(request):
    """What a perfect model answers, in its own words."""
    text = asked_for(request)
    emotion = next(emotion for emotion, said in SAID.items() if text.startswith(said))
    return completion(f"The label is **{emotion.upper()}**." if emotion != "calm" else "No emotion")


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    """Five dialogues of ten utterances, no two of them alike."""
    folder = tmp_path_factory.mktemp("prompting")
    for split in ("train", "validation", "test"):
        lines = [
            {
                "id": f"{split}{row}",
                "utterances": [
                    {"speaker": "AB"[turn % 2], "text": f"{SAID[e]} {split} {row}.{turn}"}
                    | {"emotion": e}
                    for turn, e in enumerate(emotions)
                ],
            }
            for row, emotions in enumerate(GOLD)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = base_config()
    config.data.name = "own"
    config.data.source = str(folder)
    config.data.neutral = "calm"
    return config


@pytest.fixture
def evaluate(server, config, tmp_path):
    """Runs the whole in tmp_path/run, as fast as it goes."""

    def run(**arguments):
        defaults = {"endpoint": server.url, "model": "tiny", "back_off": 0.001}
        defaults |= {"requests_per_minute": 1e6, "timeout": 5.0}
        return evaluate_chat_model(config, tmp_path / "run", **{**defaults, **arguments})

    return run


def written(folder):
    return {path.name: path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_the_prompt_is_that_of_figure_2():
    texts = [line[2:] for line in FIGURE_2A.splitlines() if line.startswith("- ")]
    turns = tuple(Utterance("AB"[i % 2], text) for i, text in enumerate(texts))
    names = EmotionNames(DAILYDIALOG).listed
    assert make_prompt(Dialogue("58", turns), 6, names) == FIGURE_2A


def test_a_line_break_is_no_turn():
    dialogue = Dialogue("d", (Utterance("A", "Oh!\n- no  "), Utterance("B", "Yes.")))
    assert make_prompt(dialogue, 0, ["joy"]).startswith(
        "Here is a dialog :\n\n- Oh! - no\n- Yes.\n"
    )


def test_names_follow_the_figure_then_the_corpus():
    labels = LabelSpace(("neutral", "zeal", "joy", "surprise", "sadness"), "neutral")
    names = EmotionNames(labels)
    assert names.listed == ("sadness", "surprise", "zeal", "joy", "no emotion")
    assert EmotionNames(LabelSpace(("joy", "fear"))).listed == ("fear", "joy")


@pytest.mark.parametrize(
    ("answer", "emotion"),
    [
        ("happiness", "happiness"),
        (" Happiness.\n", "happiness"),
        ("SADNESS, or rather anger", "sadness"),
        ("_surprise_", "surprise"),
        ("**Fear**", "fear"),
        ("It is not anger but fear", "anger"),  # the first one named, as the paper counts
        ("'No emotion'", "no emotion"),
        ("no\n emotion", "no emotion"),
        ("happy", None),
        ("unhappiness", None),
        ("happinesses", None),
        ("fearful", None),
        ("neutral", None),  # the prompt does not offer it
        ("emotion: none", None),
        ("", None),
        ("I cannot tell.", None),
    ],
)
def test_the_first_emotion_named_counts(answer, emotion):
    assert EmotionNames(DAILYDIALOG).first_in(answer) == emotion


def test_the_neutral_emotion_has_two_names():
    names = EmotionNames(LabelSpace(("neutral", "joy"), "neutral"))
    assert names.first_in("Neutral, no joy") == names.first_in("no emotion") == "neutral"


def test_without_a_neutral_emotion_there_is_no_name_for_it():
    assert EmotionNames(LabelSpace(("calm", "joy"))).first_in("no emotion") is None


def test_of_names_that_begin_alike_the_longer_one_counts():
    names = EmotionNames(LabelSpace(("joy", "joy of life (c++)")))
    assert names.first_in("joy of life (C++)!") == "joy of life (c++)"
    assert names.first_in("joy of nothing") == "joy"


@pytest.mark.parametrize(
    "labels",
    [LabelSpace(("Joy", "joy")), LabelSpace(("calm", "no emotion", "joy"), "calm")],
)
def test_names_that_answers_cannot_tell_apart(labels):
    with pytest.raises(UserError, match="cannot be told apart"):
        EmotionNames(labels)


def test_scores_are_scikit_learns_with_missing_predictions():
    random = np.random.default_rng(0)
    targets, predictions = random.integers(0, 4, 300), random.integers(-1, 4, 300)
    labels = LabelSpace(("a", "b", "c", "d"), "c")
    block = score(targets, predictions, labels)

    def sklearn(function, classes=(0, 1, 2, 3), **arguments):
        return pytest.approx(function(targets, predictions, labels=classes, **arguments))

    assert block["accuracy"] == pytest.approx((targets == predictions).mean())
    assert block["mcc"] == pytest.approx(matthews_corrcoef(targets, predictions))
    for average in ("micro", "macro"):
        assert block[f"{average}_f1"] == sklearn(f1_score, average=average)
        rest = sklearn(f1_score, (0, 1, 3), average=average)
        assert block[f"{average}_f1_no_neutral"] == rest
    assert block["weighted_f1"] == sklearn(f1_score, average="weighted")
    for name, function in (("precision", precision_score), ("recall", recall_score)):
        values = [block["per_class"][emotion][name] for emotion in labels.emotions]
        assert values == sklearn(function, average=None)
    missing = Counter(targets[predictions == -1].tolist())
    for i, emotion in enumerate(labels.emotions):
        assert block["per_class"][emotion]["unparsable"] == missing[i]
        assert block["per_class"][emotion]["support"] == sum(block["confusion"][i]) + missing[i]
    assert (block["unparsable"], block["items"]) == (sum(missing.values()), 300)
    assert list(block["per_class"]) == list(labels.emotions)


@pytest.mark.parametrize("neutral", ["c", None])
def test_scores_are_the_usual_ones_when_all_answers_can_be_read(neutral):
    random = np.random.default_rng(0)
    targets, predictions = random.integers(0, 3, (2, 100))
    block = score(targets, predictions, LabelSpace(("a", "b", "c"), neutral))
    usual = metrics.block(metrics.confusion(targets, predictions, 3), ("a", "b", "c"), neutral)
    assert block.keys() - usual.keys() == {"unparsable", "items"}
    for name, value in usual.items():
        if isinstance(value, float):
            assert block[name] == pytest.approx(value)


def test_scores_when_no_answer_can_be_read():
    block = score(np.array([0, 1]), np.array([-1, -1]), LabelSpace(("a", "b"), "a"))
    assert block["accuracy"] == block["mcc"] == block["micro_f1"] == block["macro_f1"] == 0.0


def test_a_run_on_last_utterances(server, evaluate, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    content = evaluate(endpoint=server.url.replace("//", "//me:my-password@") + "/?token=hidden")
    block = content["test"]
    assert (block["items"], block["unparsable"], block["accuracy"]) == (5, 0, 1.0)

    assert len(server.requests) == 5
    assert {asked_for(request) for request in server.requests} == {
        "we won test 0.1", "he left test 1.1", "it is raining test 2.0",
        "it is raining test 3.1", "we won test 4.2",
    }  # fmt: skip
    for request in server.requests:
        assert (request["model"], request["temperature"]) == ("tiny", 0)
        assert request["max_tokens"] == prompting.MAX_TOKENS
    assert server.headers[0][0] == "/v1/chat/completions?token=hidden"
    assert server.headers[0][1]["Authorization"].startswith("Basic ")

    run = content["run"]
    assert (run["model"], run["endpoint"], run["utterances"]) == ("tiny", server.url, "last")
    assert run["answered_by"] == ["tiny-2026"]
    assert run["corpus"]["name"] == "own"
    assert len(run["corpus"]["sha256"]) == 64
    files = written(tmp_path / "run")
    assert files.keys() == {
        "config.json", "answers.jsonl", "metrics.json", "predictions_test.jsonl",
    }  # fmt: skip
    assert json.loads(files["metrics.json"]) == content
    for text in (*files.values(), "".join(capsys.readouterr())):
        assert KEY not in text
        assert "my-password" not in text
        assert "hidden" not in text


def test_the_key_is_sent(server, evaluate, monkeypatch):
    evaluate()
    assert "Authorization" not in server.headers[-1][1]
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    evaluate(split="validation")
    assert server.headers[-1][1]["Authorization"] == f"Bearer {KEY}"


def test_predictions_of_a_run(server, evaluate, tmp_path):
    server.reply = lambda request: completion(
        "none of them" if "test 0.1" in asked_for(request) else "It is SAD."
    )
    content = evaluate()
    assert content["test"]["unparsable"] == 1
    first, second, *_ = records = load_dialogues(tmp_path / "run" / "predictions_test.jsonl")
    assert [record.id for record in records] == [f"test{row}" for row in range(5)]
    asked, unasked = first.utterances[1], first.utterances[0]
    assert (asked.emotion, asked.extra["answer"]) == (None, "none of them")
    assert asked.extra["gold"] == {"emotion": "happy"}
    assert unasked.emotion is None
    assert unasked.extra == {"gold": {"emotion": "calm"}}  # not asked: no answer
    assert (second.utterances[1].emotion, second.utterances[1].extra["answer"]) == (
        "sad",
        "It is SAD.",
    )


def test_nonsense_is_a_miss_and_no_false_positive(server, evaluate):
    server.reply = lambda request: (
        completion("As a language model, 42!") if "2.0" in asked_for(request) else correct(request)
    )
    block = evaluate()["test"]
    assert (block["unparsable"], block["accuracy"]) == (1, 0.8)
    assert block["per_class"]["calm"] == {
        "precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2, "unparsable": 1,
    }  # fmt: skip
    for emotion in ("happy", "sad"):
        assert block["per_class"][emotion]["f1"] == 1.0


def test_all_utterances(server, evaluate, config, tmp_path):
    content = evaluate(utterances="all")
    assert (content["test"]["items"], content["test"]["accuracy"]) == (10, 1.0)
    assert len(server.requests) == 10
    with pytest.raises(UserError, match=r"prompting.utterances is 'all' there and 'last' here"):
        evaluate()
    assert len(server.requests) == 10


def test_unlabelled_utterances_are_not_asked_for():
    turns = (Utterance("A", "a", "joy"), Utterance("B", "b"))
    names = EmotionNames(LabelSpace(("joy", "fear")))
    assert prompting.make_items([Dialogue("d", turns)], names, "tiny", "last") == []
    (item,) = prompting.make_items([Dialogue("d", turns)], names, "tiny", "all")
    assert item.position == 0


def test_equal_prompts_are_asked_once(server, tmp_path):
    turns = (Utterance("A", "we won", "happy"), Utterance("B", "we won", "calm"))
    labels = LabelSpace(("calm", "happy"), "calm")
    items = prompting.make_items([Dialogue("d", turns)], EmotionNames(labels), "tiny", "all")
    questions = [item.question for item in items]
    assert questions[0].key == questions[1].key
    client = chat.ChatClient(server.url, requests_per_minute=1e6, timeout=5.0)
    file = AnswerFile(tmp_path / "answers.jsonl")
    ask_all(client, questions, file, 2)
    client.close()
    assert len(server.requests) == 1
    record = json.loads(file.path.read_text())
    assert (record["dialogue"], record["utterance"], record["sha256"]) == ("d", 1, questions[0].key)


def test_splits_share_a_workdir_and_other_runs_do_not(server, evaluate, config, tmp_path):
    evaluate()
    assert evaluate(split="validation").keys() == {"test", "validation", "run"}
    assert len(server.requests) == 10
    with pytest.raises(UserError, match=r"prompting.model is 'tiny' there and 'other' here"):
        evaluate(model="other")
    save_config(config, tmp_path / "run")  # as training leaves it
    with pytest.raises(UserError, match="holds a run of another config"):
        evaluate()


def test_time_outs_are_repeated(server, evaluate, capsys):
    def slow_at_first(request):
        if len(server.requests) == 1:
            time.sleep(0.4)
        return correct(request)

    server.reply = slow_at_first
    assert evaluate(timeout=0.15, concurrency=1)["test"]["accuracy"] == 1.0
    assert "no answer within 0.15 s; once more in" in capsys.readouterr().out


def test_an_endpoint_that_dies_and_comes_back(server, evaluate, tmp_path):
    server.reply = lambda request: correct(request) if len(server.requests) <= 6 else None
    with pytest.raises(UserError) as told:
        evaluate(utterances="all")
    message = str(told.value)
    assert message.startswith(f"{server.url}: the connection failed (")
    assert "(6 attempts). 6 of 10 answers are kept in" in message
    assert message.endswith("the same command goes on with the others.")
    assert not (tmp_path / "run" / "metrics.json").exists()

    answered = {asked_for(request) for request in server.requests[:6]}
    server.requests.clear()
    server.reply = correct
    assert evaluate(utterances="all")["test"]["accuracy"] == 1.0
    assert len(server.requests) == 4
    assert answered.isdisjoint(asked_for(request) for request in server.requests)
    evaluate(utterances="all")
    assert len(server.requests) == 4


def test_what_is_under_way_when_a_run_ends_is_kept(server, evaluate, tmp_path):
    def refuse_the_fifth(request):
        return (400, {}, "no") if len(server.requests) == 5 else correct(request)

    server.reply = refuse_the_fifth
    with pytest.raises(UserError, match="refuses with status 400: no") as told:
        evaluate(utterances="all", concurrency=10)
    lines = (tmp_path / "run" / "answers.jsonl").read_text().splitlines()
    assert f"{len(lines)} of 10 answers are kept" in str(told.value)
    assert len(lines) == len(server.requests) - 1


def test_nobody_is_there(server, evaluate):
    with pytest.raises(UserError, match=r"the connection failed .*0 of 5 answers are kept"):
        evaluate(endpoint="http://127.0.0.1:9/v1")


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_honoured(server, evaluate, as_date):
    def busy_at_first(request):
        if len(server.requests) == 1:
            # Dates have whole seconds: of two, more than one is left.
            value = formatdate(time.time() + 2, usegmt=True) if as_date else "1"
            return 429, {"Retry-After": value}, '{"error": {"message": "slow down"}}'
        return correct(request)

    server.reply = busy_at_first
    assert evaluate(concurrency=1)["test"]["accuracy"] == 1.0
    assert len(server.requests) == 6
    assert server.times[1] - server.times[0] > 0.9


def test_a_wait_of_hours_ends_the_run(server, evaluate):
    server.reply = lambda request: (429, {"Retry-After": "7200"}, '{"error": "quota is used up"}')
    with pytest.raises(UserError, match=r"quota is used up .to be repeated in 2 h 0 min.* 0 of 5"):
        evaluate(concurrency=1)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_servers_in_trouble_are_asked_again_a_few_times(server, evaluate, status):
    server.reply = lambda request: (status, {}, "")
    with pytest.raises(UserError, match=rf"status {status}: .* \(6 attempts\)"):
        evaluate(concurrency=1)
    assert len(server.requests) == chat.ATTEMPTS


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, f'{{"error": {{"message": "Bad {KEY}."}}}}', "401: Bad …. The key comes from"),
        (403, '{"detail": "not you"}', "403: not you. The key comes from"),
        (404, '{"error": "no model tiny"}', "404: no model tiny. Is --model a name"),
        (400, '{"message": "bad"}', "400: bad. 0 of 5"),
        (400, '{"detail": [{"msg": "bad"}]}', "400: .*detail.*bad"),
        (301, "", "301: Moved Permanently"),
        (404, "<html>" + "x" * 5000, r"404: <html>x{294}…\. Is --model"),
    ],
)  # fmt: skip
def test_refusals_end_the_run_at_once(server, evaluate, monkeypatch, status, body, message):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.reply = lambda request: (status, {}, body)
    with pytest.raises(UserError, match=f"refuses with status {message}") as told:
        evaluate(concurrency=1)
    assert len(server.requests) == 1
    assert KEY not in str(told.value)


def test_a_missing_key_is_said_to_be_missing(server, evaluate):
    server.reply = lambda request: (401, {}, "who are you?")
    with pytest.raises(UserError, match=r"who are you.*OPENAI_API_KEY; it is not set"):
        evaluate(concurrency=1)


@pytest.mark.parametrize(
    "body",
    [
        "<html>welcome</html>",
        "[]",
        "{}",
        '{"choices": []}',
        '{"choices": [{"message": {}}]}',
        '{"choices": [{"message": {"content": ["joy"]}}]}',
        '{"error": {"message": "out of memory"}}',
    ],
)
def test_answers_that_are_no_completions(server, evaluate, body):
    server.reply = lambda request: (200, {}, body)
    shown = "out of memory" if "memory" in body else body.replace("[", r"\[")
    with pytest.raises(UserError, match=f"not a chat completion: {shown}.*6 attempts.* 0 of 5"):
        evaluate(concurrency=1)
    assert len(server.requests) == chat.ATTEMPTS


def test_silence_is_an_answer_that_names_nothing(server, evaluate):
    server.reply = lambda request: completion(None)
    assert evaluate()["test"]["unparsable"] == 5


def test_an_answer_cut_within_an_emoji(server, evaluate, tmp_path):
    server.reply = lambda request: completion("happy \ud83d")
    evaluate()
    assert '"answer": "happy ?"' in (tmp_path / "run" / "answers.jsonl").read_text()
    evaluate()
    assert len(server.requests) == 5


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line[:40],
        lambda line: b"\0\xff\n",
        lambda _: b"3\n",
        lambda line: json.dumps(json.loads(line) | {"answer": 3}).encode() + b"\n",
    ],
)
def test_a_damaged_line_is_asked_again(server, evaluate, tmp_path, capsys, damage):
    evaluate()
    path = tmp_path / "run" / "answers.jsonl"
    *lines, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines) + damage(last))
    assert evaluate()["test"]["accuracy"] == 1.0
    assert len(server.requests) == 6
    assert f"{path}:5 is not a whole answer" in capsys.readouterr().out
    evaluate()  # what was appended after the damage is whole
    assert len(server.requests) == 6


def test_no_faster_than_allowed(server, evaluate):
    started = time.monotonic()
    evaluate(requests_per_minute=300, concurrency=5)
    assert time.monotonic() - started > 4 * 60 / 300  # between five requests


@pytest.mark.parametrize("endpoint", ["localhost:8000/v1", "ftp://x/v1", "http://", "http://[", ""])
def test_what_is_no_address(evaluate, endpoint):
    with pytest.raises(UserError, match="--endpoint: expected an address"):
        evaluate(endpoint=endpoint)


def test_what_is_no_key(evaluate, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\r\nHost: x")
    with pytest.raises(UserError, match="OPENAI_API_KEY holds characters") as told:
        evaluate()
    assert "secret" not in str(told.value)


@pytest.fixture
def prompt(command):
    """Runs ``python -m erc_jax.prompting``."""
    return functools.partial(command, main=prompting.main)


def test_the_command(server, prompt, config, tmp_path, capsys):
    server.reply = lambda request: completion("sad")
    arguments = [
        "--config=quickstart", "--config.data.name=own", "--config.data.neutral=calm",
        f"--config.data.source={config.data.source}", f"--workdir={tmp_path / 'run'}",
        f"--endpoint={server.url}", "--model=tiny", "--split=validation", "--utterances=all",
        "--requests_per_minute=60000", "--concurrency=2", "--timeout=5",
    ]  # fmt: skip
    assert prompt(*arguments) is None
    shown = capsys.readouterr().out
    assert "own: 10 utterances of 5 dialogues of validation" in shown
    assert "answers 10/10, " in shown
    assert "validation  emotion  0.3000" in shown
    assert "0 of 10 answers name no emotion; they are misses." in shown
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"predictions_validation.jsonl"}

    server.http.server_close()  # finished: nobody is asked
    assert prompt(*arguments) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "--config is missing"),
        ("--config quickstart", "--workdir is missing"),
        ("--config quickstart --workdir x", "--endpoint is missing"),
        ("--config quickstart --workdir x --endpoint http://x", "--model is missing"),
        ("--config quickstart --workdir x --endpoint http://x --model m y", "unexpected arguments"),
        (
            "--config quickstart --workdir x --endpoint http://x --model m --mode predict",
            "--mode is for python -m erc_jax.main",
        ),
        ("--config quickstart --concurrency 0", "flag --concurrency=0"),
        ("--config quickstart --utterances some", "flag --utterances=some"),
    ],
)
def test_a_mistake_is_told_in_one_line(prompt, arguments, message):
    assert prompt(*arguments.split()).startswith(f"Error: {message}")
