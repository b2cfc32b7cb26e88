import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from erc_jax import metrics
from erc_jax.errors import UserError
from erc_jax.finished import Conversation, Turn, read_run
from erc_jax.published import published
from erc_jax.report import write_report
from erc_jax.report_scores import class_parts, paper_rows
from erc_jax.report_utterances import calibration, most_confident_mistakes
from tests.fabricated import (
    CONFIG,
    change,
    dialogues,
    make_run,
    utterance,
    write,
    write_lines,
)

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=y>"


def page(workdir):
    return write_report(workdir).read_text()


class Reader(HTMLParser):
    """Tags, attributes and texts of a page; checks that tags are closed."""

    VOID = ("meta", "br", "img", "link", "input")

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_a_page_of_one_file(tmp_path):
    text = page(make_run(tmp_path / "run"))
    reader = Reader(text)
    assert tmp_path / "run" / "report.html" == write_report(tmp_path / "run")
    assert not {"script", "link", "img", "iframe", "object"} & set(reader.tags)
    fetched = [value for name, value in reader.attributes if name in ("src", "href")]
    assert fetched == []
    assert "url(" not in text
    assert "@import" not in text
    for heading in (
        *("What was run", "Scores", "Beside the paper", "Emotions, test", "Learning curves"),
        *("Calibration", "Dialogues", "The most confident mistakes", "Cost"),
    ):
        assert re.search(rf"<h[23]>{heading}</h", text), heading
    assert "Valence, arousal" not in text
    assert "2 min 5 s" in text
    assert "321" in text
    # A picture has a name and a description.
    assert reader.tags.count("svg") == reader.tags.count("desc") > 3


def test_what_it_takes_of_metrics(tmp_path):
    """A score, a count, a fact: what the file says is what the page shows."""
    workdir = make_run(tmp_path / "run")
    before = page(workdir)

    def other(content):
        content["test"]["weighted_f1"] = 0.123456
        content["test"]["confusion"][0][1] = 98765
        content["test"]["per_class"]["joy"]["recall"] = 0.4242
        content["run"]["commit"] = "feedface"
        content["run"]["seconds"] = 7322.0
        content["run"]["parameters"] = {"trained": 1234567, "frozen": 89}

    shown = ("12.35", "98,765", "42.4", "feedface", "2 h 2 min", "1,234,567 trained, 89 frozen")
    assert not any(figure in before for figure in shown)
    change(workdir / "metrics.json", other)
    after = page(workdir)
    for figure in shown:
        assert figure in after, figure
    assert "66.50" in after  # the paper's, Table 4
    assert "Wang and Mine (2023), Table 4" in after


def test_what_it_takes_of_predictions_and_log(tmp_path):
    workdir = make_run(tmp_path / "run")
    before = page(workdir)
    (workdir / "metrics.jsonl").unlink()
    assert "Learning curves" in before
    assert "Learning curves" not in page(workdir)
    records = [
        {"id": "a", "utterances": [utterance("joy", "anger", 0.97, "The confident one.")]},
        {"id": "b", "utterances": [utterance("joy", "joy", 0.9, "A right one.")]},
    ]
    write_lines(workdir / "predictions_test.jsonl", records)
    after = page(workdir)
    assert "The confident one." in after
    assert "97%" in after
    assert "Dialogue a, turn 1" in after


def test_calibration():
    def turn(p, right):
        named = {"joy": p, "anger": 1 - p}
        return Turn("Ann", "Hi", "joy" if right else "anger", "joy", named, {}, {})

    turns = [
        turn(0.95, True),
        turn(0.95, True),
        turn(0.95, False),
        turn(1.0, True),
        turn(0.61, False),
    ]
    found = calibration([Conversation("d", turns)])
    # Bin 9: mean confidence 0.9625, right 0.75, 4 of 5; bin 6: 0.61 and 0, 1 of 5.
    assert found["error"] == pytest.approx(0.8 * (0.9625 - 0.75) + 0.2 * 0.61)
    assert found["accuracy"] == pytest.approx(0.6)
    assert found["count"] == 5
    assert calibration([Conversation("d", [Turn("A", "x", "joy", "joy", {}, {}, {})])]) is None


def test_mistakes_come_with_their_neighbours():
    def turn(text, true, p):
        return Turn("Ann", text, true, "joy", {"joy": p, "anger": 1 - p}, {}, {})

    turns = [
        *(turn("0", "joy", 0.9), turn("1", "joy", 0.9), turn("2", "joy", 0.9)),
        *(turn("3", "anger", 0.7), turn("4", "anger", 0.8), turn("5", None, 0.99)),
    ]
    first, second = most_confident_mistakes([Conversation("d", turns)])
    assert (first["number"], second["number"]) == (5, 4)
    assert [t.text for _, t in first["turns"]] == ["2", "3", "4", "5"]
    assert [number for number, _ in second["turns"]] == [2, 3, 4, 5]
    many = [Conversation(str(i), turns) for i in range(30)]
    assert len(most_confident_mistakes(many)) == 20


def test_texts_are_no_markup(tmp_path):
    """An utterance, a speaker, a label, an id, a corpus: whatever they hold, it is text."""
    records = json.loads(json.dumps(dialogues()).replace('"joy"', json.dumps(HOSTILE)))
    for record in records:
        record["id"] = HOSTILE
        for said in record["utterances"]:
            said["text"] = said["speaker"] = HOSTILE
    workdir = make_run(tmp_path / "run")
    for split in ("validation", "test"):
        write_lines(workdir / f"predictions_{split}.jsonl", records)

    def hostile_label(content):
        content["run"]["corpus"]["name"] = content["run"]["commit"] = HOSTILE
        for split in ("validation", "test"):
            per_class = content[split]["per_class"]
            content[split]["per_class"] = {
                HOSTILE if name == "joy" else name: of for name, of in per_class.items()
            }

    change(workdir / "metrics.json", hostile_label)
    reader = Reader(page(workdir))
    assert not {"script", "img"} & set(reader.tags)
    assert not any(name.startswith("on") for name, _ in reader.attributes)
    texts = "".join(reader.texts)
    assert texts.count(HOSTILE) > 30
    assert "Content-Security-Policy" in [value for _, value in reader.attributes]


def test_several_seeds(tmp_path):
    runs = {3: dialogues(1, 0.5), 4: dialogues(2, 0.9)}
    workdir = make_run(tmp_path / "run", runs)
    run = read_run(workdir)
    assert run.predicting == 4
    assert run.folders[3] == workdir / "seeds" / "3"

    def with_spread(content):
        content["test"]["std"] = {"weighted_f1": 0.0123}
        content["test"]["interval"] = {"weighted_f1": [0.111, 0.222]}

    change(workdir / "metrics.json", with_spread)
    text = page(workdir)
    assert "± 1.23" in text
    assert "[11.10, 22.20]" in text
    assert "seed 4" in text
    assert "sum over 2 seeds" in text
    assert text.count('class="other"') == 2  # the other seed's loss and scores


def test_shifts_ratings_and_held_out_emotions(tmp_path):
    records = dialogues()
    for record in records:
        record["vad_scale"] = [1, 5]
        for number, said in enumerate(record["utterances"]):
            said["vad"] = {"valence": 2.5 + number / 10, "arousal": 3.0, "dominance": 3.5}
            said["gold"]["vad"] = {
                "valence": 9.0 if number else 2.0,
                "arousal": 2.0,
            }  # 9: off scale
    workdir = make_run(tmp_path / "run", {0: records}, facts={"system": "fmerl"})

    def more(content):
        shift = {"weighted_f1": 0.3333, "per_class": {"none": {}, "strong_negative": {}}}
        content["test"]["shift_global"] = shift | {"confusion": [[4321, 0], [1, 5]]}
        content["test"]["vad"] = {"valence": {"ccc": 0.456, "std": {"ccc": 0.01}}}
        content["test"]["zero_shot"] = {"harmonic_mean": 0.5151}

    change(workdir / "metrics.json", more)
    text = page(workdir)
    for figure in ("4,321", "strong negative", "0.456 ± 0.010", "51.51", "33.33"):
        assert figure in text, figure
    assert "<title>valence and arousal</title>" in text
    assert "valence (1 to 5)" in text
    dominance = text[text.index("<title>valence and dominance</title>") :]
    assert 'class="cross' not in dominance[: dominance.index("</svg>")]  # nothing is rated so


def test_a_run_that_replies(tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    head = {"accuracy": 0.5, "macro_f1": 0.4321, "confusion": [[3, 1], [2, 2]]}
    head["per_class"] = {
        name: {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 4} for name in ("joy", "fear")
    }
    block = {"perplexity": 21.987, "bleu": 1.25, "distinct_1": 0.0432, "heads": {"E6": head}}
    facts = {
        "system": "response",
        "corpus": {"name": "dailydialog+tec", "tasks": ["R", "E6"]},
        "seeds": [0],
        "selected_on": "validation perplexity",
    }
    write(workdir / "config.json", {"system": "response", "response": {"tasks": "R+E6"}})
    write(workdir / "metrics.json", {"validation": block, "test": block, "run": facts})
    said = {"utterances": [{"speaker": "A", "text": "I lost my keys."}], "reference": "Where?"}
    replies = [{"id": f"d:{n}", **said, "reply": f"Reply {n}"} for n in range(100)]
    write_lines(workdir / "predictions_test.jsonl", replies)
    write_lines(
        workdir / "metrics.jsonl",
        [{"step": 5, "epoch": e, "validation": {"perplexity": 30.0 - e}} for e in (1, 2)],
    )
    text = page(workdir)
    Reader(text)
    for part in ("21.99", "1.25", "4.32", "43.21", "Head E6", "I lost my keys.", "20 of 100 pairs"):
        assert part in text, part
    # Beside the paper's: shares in percent, as it has them, and what it says nothing of.
    beside = {name: row for name, *row in paper_rows(read_run(workdir))}
    assert beside["distinct-1"] == ["4.32", "5.93", "Ide and Kawahara (2021), Table 2"]
    assert beside["E6: macro F1"] == ["43.21", "56.53", "Ide and Kawahara (2021), Table 4"]
    assert beside["BLEU"][:2] == ["1.25", "32.29"]
    assert "cannot be compared" in beside["BLEU"][2]
    assert "Beside the paper" in text
    assert "Reply 95" in text
    assert "Reply 96" not in text
    assert "validation perplexity" in text
    assert "confident mistakes" not in text
    (workdir / "predictions_test.jsonl").unlink()
    assert "predictions_test.jsonl is missing" in page(workdir)
    # One that only classifies has none, whatever is done.
    for split in ("validation", "test"):
        change(workdir / "metrics.json", lambda content, split=split: heads_alone(content[split]))
    assert "missing" not in page(workdir)


def heads_alone(block):
    for score in ("perplexity", "bleu", "distinct_1"):
        del block[score]


def test_classes_of_heads_have_their_spread(tmp_path):
    """Scores that a system says itself have it beside each, not in a tree of their own."""
    counts = [[[3, 1], [2, 2]], [[4, 0], [1, 3]]]
    of_seeds = [{"heads": {"E6": metrics.block(m, ("joy", "fear"), None)}} for m in counts]
    workdir = make_run(tmp_path / "run", {0: dialogues(0), 1: dialogues(1)})
    change(
        workdir / "metrics.json",
        lambda content: content["test"].update(metrics.over_seeds(of_seeds)),
    )
    *_, head = class_parts(read_run(workdir), "test")
    # Recall of joy: 3 of 4 and 4 of 4.
    assert head["rows"][0] == ("joy", "70.0 ± 14.1", "87.5 ± 17.7", "77.8 ± 15.7", "4")


def test_utterances_are_counted_once_whatever_the_seeds(tmp_path):
    one = read_run(make_run(tmp_path / "one", {0: dialogues(1)}))
    three = read_run(make_run(tmp_path / "three", {seed: dialogues(seed) for seed in (1, 2, 3)}))
    found = [[row[-1] for row in class_parts(run, "test")[0]["rows"]] for run in (one, three)]
    assert found[0] == found[1]
    assert sum(map(int, found[0])) == 12 * 6


def test_answers_of_a_chat_model(tmp_path):
    """No probabilities, no seeds, and some utterances were not asked about."""
    said = {"speaker": "A", "text": "Hm.", "gold": {"emotion": "joy"}}
    answered = {**said, "emotion": "joy", "answer": "Joy!"}
    missed = {**said, "emotion": None, "answer": "Who knows"}
    workdir = make_run(tmp_path / "run", splits=("test",))
    write_lines(
        workdir / "predictions_test.jsonl", [{"id": "d", "utterances": [said, missed, answered]}]
    )
    change(
        workdir / "metrics.json",
        lambda content: content.update(
            run={"system": "prompting", "corpus": {"name": "meld"}, "model": "M-7b"}
        ),
    )
    (workdir / "metrics.jsonl").unlink()
    text = page(workdir)
    Reader(text)
    assert "M-7b" in text
    assert "1 of 1 right" in text
    assert "Calibration" not in text


def test_missing_parts(tmp_path):
    workdir = make_run(tmp_path / "run", splits=("test",))
    (workdir / "predictions_test.jsonl").unlink()
    text = page(workdir)
    Reader(text)
    assert "predictions_test.jsonl is missing" in text
    assert "Calibration" not in text
    assert "Learning curves" in text
    # A run that was killed left half a line: it is left out.
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "lo')
    assert "Learning curves" in page(workdir)


def test_few_utterances(tmp_path):
    """Nothing is labelled, a single epoch, one emotion."""
    records = [{"id": "d", "utterances": [utterance(None, "joy")]}]
    workdir = make_run(tmp_path / "run", {0: records})
    write_lines(
        workdir / "metrics.jsonl", [{"step": 1, "epoch": 1, "validation": {"weighted_f1": 0.0}}]
    )
    Reader(page(workdir))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda w: (w / "config.json").unlink(), "not a workdir"),
        (lambda w: (w / "metrics.json").unlink(), "the run is not finished"),
        (lambda w: (w / "metrics.json").write_text("{"), r"metrics\.json: not a JSON object"),
        (lambda w: (w / "metrics.json").write_text("[]"), r"metrics\.json: damaged"),
        (lambda w: (w / "metrics.json").write_text("{}"), r"metrics\.json: damaged \(KeyError"),
        (
            lambda w: change(w / "metrics.json", lambda c: c["test"].update(confusion=[[1]])),
            r"metrics\.json: damaged",
        ),
        (lambda w: spoil(w, "}\n"), r"predictions_test\.jsonl:13: not a JSON object"),
        (lambda w: spoil(w, '{"id": "x"}\n'), r"predictions_test\.jsonl:13: damaged"),
        (
            lambda w: spoil(w, json.dumps({"id": 1, "utterances": [utterance("joy", "envy")]})),
            r"predictions_test\.jsonl:13: damaged \(ValueError: emotion 'envy'",
        ),
    ],
)
def test_damaged_files(tmp_path, damage, message):
    workdir = make_run(tmp_path / "run")
    damage(workdir)
    with pytest.raises(UserError, match=message):
        write_report(workdir)
    assert not (workdir / "report.html").exists()


def of_run(**changes):
    return lambda w: change(w / "metrics.json", lambda c: c["run"].update(changes))


def of_corpus(**changes):
    return lambda w: change(w / "metrics.json", lambda c: c["run"]["corpus"].update(changes))


def of_turn(function):
    """Changes the second utterance of the predictions of test."""

    def damage(workdir):
        records = dialogues()
        for record in records:
            for said in record["utterances"]:
                said["vad"] = {"valence": 2.0, "arousal": 3.0}
        function(records[0]["utterances"][1])
        write_lines(workdir / "predictions_test.jsonl", records)

    return damage


def of_log(**record):
    return lambda w: write_lines(w / "metrics.jsonl", [{"step": 1, **record}])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (of_run(corpus={}), r"metrics\.json: damaged"),
        (of_run(corpus=None), r"metrics\.json: damaged"),
        (of_corpus(name=None), r"metrics\.json: damaged .*no name"),
        (of_corpus(neutral="bliss"), r"metrics\.json: damaged .*'bliss' is none of the classes"),
        (of_turn(lambda u: u["probabilities"].update(joy=math.nan)), "predictions_test.jsonl:1"),
        (of_turn(lambda u: u["probabilities"].update(joy=-0.5)), "predictions_test.jsonl:1"),
        (of_turn(lambda u: u["vad"].pop("arousal")), r"predictions_test\.jsonl:1.* of valence;"),
        (of_turn(lambda u: u["vad"].update(arousal=math.nan)), "predictions_test.jsonl:1"),
        (of_log(loss=math.nan), r"metrics\.jsonl:1: damaged .*loss is nan"),
        (of_log(loss="low"), r"metrics\.jsonl:1: damaged"),
        (of_log(epoch=1, validation={"weighted_f1": "good"}), r"metrics\.jsonl: damaged"),
    ],
)
def test_damaged_values(tmp_path, damage, message):
    workdir = make_run(tmp_path / "run")
    damage(workdir)
    with pytest.raises(UserError, match=message):
        write_report(workdir)


def test_a_perplexity_that_is_infinite_at_first(tmp_path):
    workdir = make_run(tmp_path / "run", facts={"selected_on": "validation perplexity"})
    scores = [{"step": e, "epoch": e, "validation": {"perplexity": math.inf}} for e in (1, 2)]
    write_lines(workdir / "metrics.jsonl", scores)
    assert "Learning curves" not in page(workdir)


def spoil(workdir, line):
    with (workdir / "predictions_test.jsonl").open("a") as file:
        file.write(line)


def test_the_papers_figures_are_of_the_same_thing():
    found = {(f.metric, f.value) for f in published("mtl_erc_es", "meld", CONFIG)}
    assert found == {("weighted_f1", 66.50)}
    ablated = {"tasks": {"shift": False, "sentiment": True}}
    found = {(f.metric, f.value) for f in published("mtl_erc_es", "iemocap", ablated)}
    assert found == {("weighted_f1", 68.05)}
    assert published("mtl_erc_es", "meld", ablated) == []
    direct = {
        "sent_emo_context": {"network": "transformer", "context": "none"},
        "data": {"leave_out_neutral": False},
    }
    found = [f.printed for f in published("sent_emo_context", "dailydialog", direct)]
    assert found == ["20.22", "33.11", "40"]  # as the paper prints them
    rated = {"fmerl": {"vad": {"dimensions": ["valence", "arousal", "dominance"]}}}
    rated["zero_shot"] = {"unseen": ""}
    found = {f.value for f in published("fmerl", "meld", rated)}
    assert found == {67.66, 66.78}


def test_neither_jax_nor_matplotlib(tmp_path):
    workdir = make_run(tmp_path / "run")
    code = (
        "import sys; from pathlib import Path; from erc_jax.report import write_report; "
        "write_report(Path(sys.argv[1])); "
        "print([m for m in ('jax', 'flax', 'matplotlib', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(workdir)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
