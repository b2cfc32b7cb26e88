import json
import math
import subprocess
import sys

import numpy as np
import pytest

from erc_jax import metrics
from erc_jax.compare import compare, holm, mcnemar, seed_counts, write_comparison
from erc_jax.errors import UserError
from erc_jax.finished import read_run
from tests.fabricated import EMOTIONS, block, change, dialogues, make_run, utterance, write_lines
from tests.test_report import HOSTILE, Reader


@pytest.fixture
def three(tmp_path):
    """Two runs of one seed and one of two, which is better."""
    return [
        make_run(tmp_path / "a", {0: dialogues(1, 0.4)}),
        make_run(tmp_path / "b", {0: dialogues(2, 0.45)}),
        make_run(tmp_path / "c", {0: dialogues(3, 0.9), 7: dialogues(4, 0.95)}),
    ]


def test_scores_are_counted_from_all_seeds(three):
    found = compare(three)
    assert list(found.runs) == ["A", "B", "C"]
    scores = [block(dialogues(seed, right)) for seed, right in ((3, 0.9), (4, 0.95))]
    for name in ("weighted_f1", "micro_f1_no_neutral", "mcc"):
        expected = [score[name] for score in scores]
        assert found.scores["C"][name] == pytest.approx(np.mean(expected))
        assert found.scores["C"]["std"][name] == pytest.approx(np.std(expected, ddof=1))
    assert found.runs["C"].predicting == 7
    assert sum(found.support) == 12 * 6


def test_pairs(three):
    found = compare(three)
    assert [(p.first, p.second) for p in found.pairs] == [("A", "B"), ("A", "C"), ("B", "C")]
    a_c = found.pairs[1]
    difference = a_c.differences["weighted_f1"]
    expected = found.scores["C"]["weighted_f1"] - found.scores["A"]["weighted_f1"]
    assert difference["difference"] == pytest.approx(expected)
    assert 0 < difference["interval"][0] < expected < difference["interval"][1]
    # The counts of McNemar's test, of the seeds that predict.
    right = [
        [u["emotion"] == u["gold"]["emotion"] for r in records for u in r["utterances"]]
        for records in (dialogues(1, 0.4), dialogues(4, 0.95))
    ]
    assert a_c.only_first == sum(a and not c for a, c in zip(*right, strict=True))
    assert a_c.only_second == sum(c and not a for a, c in zip(*right, strict=True))
    assert a_c.p == mcnemar(a_c.only_first, a_c.only_second) < 0.001
    assert [p.p_holm for p in found.pairs] == holm([p.p for p in found.pairs])


def test_mcnemar_by_hand():
    # Both tails of 10 tosses with 1 or fewer of a side: 2 * (1 + 10) / 2^10.
    assert mcnemar(1, 9) == mcnemar(9, 1) == pytest.approx(22 / 1024)
    assert mcnemar(5, 5) == mcnemar(0, 0) == 1.0
    assert mcnemar(0, 30) == pytest.approx(2 / 2**30)


def test_holm_by_hand():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]


def test_disagreements(tmp_path):
    """The farther apart the probabilities of the truth, the earlier; agreement is left out."""

    def run(name, labels):
        said = [
            utterance("joy", label, p, f"Turn {n}") for n, (label, p) in enumerate(labels, start=1)
        ]
        return make_run(tmp_path / name, {0: [{"id": "d", "utterances": said}]})

    a = run("a", [("joy", 0.5), ("joy", 0.9), ("anger", 0.9), ("anger", 0.6), ("joy", 0.6)])
    b = run("b", [("anger", 0.5), ("joy", 0.4), ("anger", 0.4), ("joy", 0.99), ("anger", 0.9)])
    found = compare([a, b])
    assert [d.number for d in found.disagreements] == [4, 5, 1]
    assert found.n_disagreements == 3
    first = found.disagreements[0]
    assert first.gap == pytest.approx(0.99 - 0.2)
    assert [turn.text for turn in first.before] == ["Turn 2", "Turn 3"]
    assert (first.turns["A"].predicted, first.turns["B"].predicted) == ("anger", "joy")


def test_seed_counts(three):
    counts, ids = seed_counts(read_run(three[2]), "test")
    assert counts.shape == (2, 12, 3, 3)
    assert ids == [f"d{n}" for n in range(12)]
    expected = metrics.block(counts[1].sum(axis=0), EMOTIONS, "neutral")
    assert expected == block(dialogues(4, 0.95))


def test_the_page(three, tmp_path):
    path = tmp_path / "new" / "compare.html"
    found = compare(three, "validation")
    write_comparison(found, path)
    text = path.read_text()
    reader = Reader(text)
    assert not {"script", "link", "img"} & set(reader.tags)
    for part in ("C less A", "McNemar", "corrected for 3 pairs", "3 runs on meld, validation"):
        assert part in text, part
    mean, std = found.scores["C"]["mcc"], found.scores["C"]["std"]["mcc"]
    assert f"{100 * mean:.2f} ± {100 * std:.2f}" in text
    change_f1 = found.pairs[0].differences["per_class"]["joy"]["f1"]["difference"]
    assert f"{100 * change_f1:+.2f}" in text
    assert "A: 0, B: 0, C: 7" in text
    assert reader.tags.count("svg") == 3
    assert "commit 0123456789ab" in text
    assert "0123456789abcdef" not in text


def test_the_score_that_chose_the_checkpoints_is_drawn(three, tmp_path):
    change(
        three[1] / "metrics.json",
        lambda content: content["run"].update(selected_on="validation micro_f1_no_neutral"),
    )
    write_comparison(compare(three), tmp_path / "compare.html")
    text = (tmp_path / "compare.html").read_text()
    assert Reader(text).tags.count("svg") == 4
    assert "micro F1 without neutral of each run with its 95% interval" in text


def test_texts_are_no_markup(tmp_path):
    paths = []
    for name, seed in (("<script>a", 1), ("<script>b", 2)):
        records = json.loads(json.dumps(dialogues(seed)).replace('"joy"', json.dumps(HOSTILE)))
        for record in records:
            record["id"] += HOSTILE
            for said in record["utterances"]:
                said["text"] = said["speaker"] = HOSTILE
        workdir = make_run(tmp_path / name, {0: dialogues(seed)})
        write_lines(workdir / "predictions_test.jsonl", records)

        def hostile(content):
            per_class = content["validation"]["per_class"]
            content["validation"]["per_class"] = {
                HOSTILE if label == "joy" else label: of for label, of in per_class.items()
            }
            content["run"]["corpus"]["name"] = content["run"]["commit"] = HOSTILE

        change(workdir / "metrics.json", hostile)
        paths.append(workdir)
    write_comparison(compare(paths), tmp_path / "c.html")
    reader = Reader((tmp_path / "c.html").read_text())
    assert not {"script", "img"} & set(reader.tags)
    assert "".join(reader.texts).count(HOSTILE) > 30


def shortened(workdir):
    write_lines(workdir / "predictions_test.jsonl", dialogues(2)[:-1])


def relabelled(workdir):
    records = dialogues(2)
    records[3]["utterances"][1]["gold"]["emotion"] = "anger"
    records[3]["utterances"][1]["text"] = "Something else"
    write_lines(workdir / "predictions_test.jsonl", records)


def unnamed(workdir):
    records = dialogues(2)
    del records[3]["utterances"][1]["emotion"]
    del records[3]["utterances"][1]["probabilities"]
    write_lines(workdir / "predictions_test.jsonl", records)


def facts(**new):
    return lambda workdir: change(workdir / "metrics.json", lambda c: c["run"].update(new))


def renamed(content):
    per_class = content["validation"]["per_class"]
    per_class["envy"] = per_class.pop("joy")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (facts(corpus={"name": "emorynlp"}), "b is a run on emorynlp, .*a on meld"),
        (facts(system="response"), "b: this run replies"),
        (facts(system="prompting"), "b: this run is a chat model's"),
        (lambda w: change(w / "metrics.json", renamed), "b names neutral, anger, envy; .*a names"),
        (
            lambda w: (w / "predictions_test.jsonl").unlink(),
            "the run was not scored on test; write",
        ),
        (shortened, "same utterances of test: they differ from dialogue d11, turn 1 on"),
        (relabelled, "same utterances of test: they differ from dialogue d3, turn 2 on"),
        (unnamed, r"b/predictions_test\.jsonl: damaged \(dialogue d3, turn 2 has no emotion"),
        (facts(corpus={}), r"b/metrics\.json: damaged \(KeyError: 'name'"),
        (lambda w: (w / "metrics.json").unlink(), "the run is not finished"),
        (
            lambda w: (w / "predictions_test.jsonl").write_text('{"id": "d0"\n'),
            r"predictions_test\.jsonl:1: not a JSON object",
        ),
    ],
)
def test_refusals(tmp_path, spoil, message):
    a = make_run(tmp_path / "a", {0: dialogues(1)})
    b = make_run(tmp_path / "b", {0: dialogues(2)})
    spoil(b)
    with pytest.raises(UserError, match=message):
        compare([a, b])


def test_a_seed_of_other_dialogues(tmp_path):
    a = make_run(tmp_path / "a", {0: dialogues(1), 1: dialogues(2)})
    write_lines(a / "seeds" / "1" / "predictions_test.jsonl", dialogues(2)[1:])
    with pytest.raises(UserError, match="not the dialogues of the run's other seeds"):
        compare([a, make_run(tmp_path / "b")])


def test_how_many_runs(tmp_path):
    a = make_run(tmp_path / "a")
    with pytest.raises(UserError, match="takes 2 to 26 workdirs, found 1"):
        compare([a])
    with pytest.raises(UserError, match="is given twice"):
        compare([a, a / ".." / "a"])


def test_an_older_run_names_no_neutral(tmp_path):
    """Then the scores without it are left out."""
    a = make_run(tmp_path / "a", {0: dialogues(1)}, facts={"corpus": {"name": "meld"}})
    found = compare([a, make_run(tmp_path / "b", {0: dialogues(2)})])
    assert "micro_f1_no_neutral" not in found.shown_scores
    assert "mcc" in found.shown_scores
    assert not math.isnan(found.pairs[0].differences["mcc"]["difference"])


def test_without_jax(three):
    code = (
        "import sys; from pathlib import Path; from erc_jax.compare import compare; "
        "compare(list(map(Path, sys.argv[1:]))); "
        "print([m for m in ('jax', 'flax', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, three)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
