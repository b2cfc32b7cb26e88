import csv
import io
import json
import sys

import numpy as np
import pytest
from rich.console import Console

from erc_jax.errors import UserError
from erc_jax.human_evaluation import (
    ASPECTS,
    export_study,
    import_sheets,
    main,
    show_study,
    summarize,
)

# What spreadsheets would run, or a CSV file might break at.
TEXTS = [
    '=HYPERLINK("http://example.org","click")',
    "-- never mind",
    "+1 from me, too",
    "@home",
    "＝SUM(1)",
    " \t=1+1",
    "'Cause I said so",
    'She said "no",\nand left\r\nat once\x85then',
    "Ça va ? 你好 ; fine",
    "",
]
RUNS = ("runs/r", "runs/r-e6")
SAMPLES = 12


def write_run(folder, prefix, pairs=20, **changes):
    """A run whose reply to pair i is ``prefix i`` and a text."""
    lines = []
    for i in range(pairs):
        # Dialogues of three utterances, of which the last two were replied to.
        utterances = [f"u{i // 2}.{turn} {TEXTS[i % 7]}" for turn in range(2 + i % 2)]
        utterances[-1] = f"{TEXTS[i % len(TEXTS)]} {i}"
        record = {
            "id": f"d{i // 2}",
            "utterances": [{"speaker": "AB"[t % 2], "text": u} for t, u in enumerate(utterances)],
            "reply": f"{TEXTS[(i + 3) % len(TEXTS)]} {prefix} {i}" if i else TEXTS[0],
            "reference": "Fine .",
        }
        lines.append(json.dumps({**record, **changes}))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "predictions_test.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run, prefix in zip(RUNS, ("yes", "no"), strict=True):
        write_run(tmp_path / run, prefix)
    return [tmp_path.joinpath(run).relative_to(tmp_path) for run in RUNS]


@pytest.fixture
def study(runs, tmp_path):
    export_study(runs, tmp_path / "study", samples=SAMPLES, raters=3)
    return tmp_path / "study"


def read(sheet):
    return [*csv.DictReader(io.StringIO(sheet.read_bytes().decode("utf-8-sig"), newline=""))]


def write(sheet, rows, encoding="utf-8"):
    """As a spreadsheet program saves it."""
    with sheet.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def rate(study, rater, rating):
    """Fills a sheet; ``rating`` gives the rating of an item of the key, and an aspect."""
    items = json.loads((study / "key.json").read_text())["items"]
    sheet = study / f"sheet_{rater}.csv"
    rows = read(sheet)
    for row in rows:
        row |= {aspect: rating(items[row["item"]], aspect) for aspect in ASPECTS}
    write(sheet, rows)
    return sheet


def by_chance(seed):
    rng = np.random.default_rng(seed)
    return lambda item, aspect: int(rng.integers(1, 6))


@pytest.fixture
def returned(study):
    return [rate(study, rater, by_chance(rater)) for rater in (1, 2, 3)]


def test_every_sheet_has_each_runs_replies_to_the_same_utterances(study, runs):
    key = json.loads((study / "key.json").read_text())
    assert key["runs"] == [str(run) for run in runs]
    replies = {}
    for run in runs:
        for line in (run / "predictions_test.jsonl").read_text().splitlines():
            record = json.loads(line)
            texts = tuple(" ".join(text.split()) for text in (_last(record), record["reply"]))
            replies[str(run), record["id"], texts[0]] = texts[1]
    items = key["items"]
    assert len(items) == SAMPLES * len(runs)
    for item in items.values():
        assert replies[item["run"], item["id"], item["utterance"]] == item["response"]
    drawn = [
        {(i["sample"], i["id"], i["utterance"]) for i in items.values() if i["run"] == run}
        for run in key["runs"]
    ]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == SAMPLES

    orders = set()
    for rater in (1, 2, 3):
        rows = read(study / f"sheet_{rater}.csv")
        assert {row["item"] for row in rows} == items.keys()
        assert [*rows[0]] == ["item", "utterance", "response", *ASPECTS]
        for row in rows:
            for name in ("utterance", "response"):
                assert row[name].removeprefix("'") == items[row["item"]][name].removeprefix("'")
            assert not any(row[aspect] for aspect in ASPECTS)
        orders.add(tuple(row["item"] for row in rows))
    assert len(orders) == 3
    assert not (study / "sheet_4.csv").exists()


def _last(record):
    return record["utterances"][-1]["text"]


def test_sheets_tell_nothing_of_the_run(study):
    for file in study.glob("sheet_*.csv"):
        assert b"runs" not in file.read_bytes()
        # Neither do places: runs are mixed in every half of the items' numbers and of the sheet.
        items = json.loads((study / "key.json").read_text())["items"]
        for order in ([row["item"] for row in read(file)], sorted(items)):
            first = [items[item]["run"] for item in order[:SAMPLES]]
            assert 2 <= first.count("runs/r") <= SAMPLES - 2


def test_no_cell_is_a_formula(study):
    cells = [cell for row in read(study / "sheet_1.csv") for cell in row.values()]
    assert not [cell for cell in cells if cell.startswith(tuple("=+-@＝＋－＠\t\r"))]
    guarded = {cell[:2] for cell in cells if cell.startswith("'")}
    assert {"'=", "'-", "'+", "'@", "'＝"} <= guarded
    # What needs no protection has none.
    assert {cell[:7] for cell in cells if cell.startswith("'C")} == {"'Cause "}


def test_excel_is_told_that_a_sheet_is_utf8(study):
    assert (study / "sheet_1.csv").read_bytes().startswith(b"\xef\xbb\xbfitem,")


def test_instructions_ask_for_every_aspect(study):
    text = (study / "instructions.md").read_text()
    for aspect, question in ASPECTS.items():
        assert f"- **{aspect}**: {question}" in text
    assert "runs" not in text


def test_the_seed_alone_decides(study, runs, tmp_path):
    files = sorted(path.name for path in study.iterdir())
    assert files == ["instructions.md", "key.json", *(f"sheet_{i}.csv" for i in (1, 2, 3))]
    export_study(runs, tmp_path / "again", samples=SAMPLES, raters=3)
    for name in files:
        assert (tmp_path / "again" / name).read_bytes() == (study / name).read_bytes()
    export_study(runs, tmp_path / "other", samples=SAMPLES, raters=3, seed=1)
    keys = [json.loads((tmp_path / f / "key.json").read_text()) for f in ("study", "other")]
    drawn = [{(i["id"], i["utterance"]) for i in key["items"].values()} for key in keys]
    assert drawn[0] != drawn[1]


def test_a_study_is_not_overwritten(study, runs):
    before = (study / "sheet_1.csv").read_bytes()
    with pytest.raises(UserError, match=r"study holds a study.*another --output"):
        export_study(runs, study, samples=SAMPLES, seed=1)
    assert (study / "sheet_1.csv").read_bytes() == before


def test_what_cannot_be_exported(runs, tmp_path):
    output = tmp_path / "study"
    with pytest.raises(UserError, match="20 replies; give at most as many --samples, found 21"):
        export_study(runs, output, samples=21)
    for options in ({"samples": 0}, {"raters": 0}, {"samples": 1, "seed": -1}):
        with pytest.raises(UserError, match="at least 1 and --seed at least 0"):
            export_study(runs, output, **options)
    with pytest.raises(UserError, match="runs/r is named twice"):
        export_study([runs[0], *runs], output, samples=SAMPLES)
    with pytest.raises(UserError, match=r"elsewhere/predictions_test.jsonl is missing; is elsewhe"):
        export_study([*runs, tmp_path.joinpath("elsewhere").relative_to(tmp_path)], output)
    write_run(runs[1], "no", pairs=18)
    with pytest.raises(UserError, match=r"r-e6 and runs/r did not reply to the same.*2 are.*d9"):
        export_study(runs, output, samples=SAMPLES)
    assert not output.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reply": None}, r'predictions_test.jsonl:1: expected text as "reply"; is runs/r-e6'),
        ({"utterances": []}, r"predictions_test.jsonl:1: the dialogue has no utterances"),
        ({"id": "d", "utterances": [{"speaker": "A", "text": "Hi"}]}, r"jsonl:2: dialogue d was"),
    ],
)
def test_predictions_that_are_no_replies(runs, tmp_path, changes, message):
    write_run(runs[1], "no", **changes)
    with pytest.raises(UserError, match=message):
        export_study(runs, tmp_path / "study")


def test_means_are_of_the_right_run_and_aspect(study):
    """Whatever the order of a sheet: every run and aspect has ratings of its own."""

    def rating(item, aspect):
        return 1 + RUNS.index(item["run"]) + list(ASPECTS).index(aspect)

    sheets = [rate(study, rater, rating) for rater in (1, 2, 3)]
    scores = import_sheets(study, sheets)
    for k, run in enumerate(RUNS):
        for i, aspect in enumerate(ASPECTS):
            expected = {"mean": k + i + 1, "interval": [k + i + 1] * 2}
            assert scores["runs"][run][aspect] == expected
    assert scores["alpha"] == dict.fromkeys(ASPECTS, 1.0)
    assert (scores["raters"], scores["utterances"]) == (3, SAMPLES)
    assert scores["sheets"] == [str(sheet) for sheet in sheets]
    assert json.loads((study / "scores.json").read_text()) == scores


def test_ratings_of_an_utterance_stay_together(study):
    """What raters give to an utterance, all of them to both runs, is one draw of the bootstrap."""

    def rating(item, aspect):
        return 5 if item["sample"] < 3 else 1

    scores = import_sheets(study, [rate(study, rater, rating) for rater in (1, 2)])
    share = np.random.default_rng(1).binomial(SAMPLES, 3 / SAMPLES, 100_000) / SAMPLES
    expected = np.percentile(1 + 4 * share, [2.5, 97.5])
    for run in RUNS:
        assert scores["runs"][run]["emotion"]["mean"] == 2
        assert scores["runs"][run]["emotion"]["interval"] == pytest.approx(expected)


def test_means_are_over_all_raters(study):
    sheets = [rate(study, rater, lambda item, aspect, r=rater: r + 1) for rater in (1, 2, 3)]
    scores = import_sheets(study, sheets)
    assert scores["runs"]["runs/r"]["fluency"] == {"mean": 3, "interval": [3, 3]}


def test_some_raters_may_be_missing(study, returned):
    scores = import_sheets(study, returned[1:])
    assert scores["raters"] == 2
    assert import_sheets(study, returned[:1])["alpha"] == dict.fromkeys(ASPECTS)


def changed(number, **cells):
    """Changes a row of a sheet; row 0 is on line 2."""

    def change(rows):
        rows[number] |= cells
        return rows

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(0, fluency=""), r"sheet_2.csv:2: fluency is missing; expected whole numbers"),
        (changed(3, fluency=" ", emotion="6"), r"_2.csv:5: emotion is 6, fluency is missing; exp"),
        (changed(1, relevance="0"), r"sheet_2.csv:3: relevance is 0; expected"),
        (changed(1, relevance="4.5"), r"sheet_2.csv:3: relevance is 4.5; expected"),
        (changed(1, relevance="good"), r"sheet_2.csv:3: relevance is good; expected"),
        (changed(2, item="item-9999"), r"sheet_2.csv:4: unknown item 'item-9999'; is the sheet"),
        (changed(2, response="Better!"), r"_2.csv:4: the response of item-\d+ was changed: .*Bett"),
        (changed(2, utterance="Worse!"), r"_2.csv:4: the utterance of item-\d+ was changed: .*Wor"),
        (lambda rows: rows[:-2], r"sheet_2.csv: 2 items are missing, such as item-\d+"),
        (lambda rows: [*rows, rows[0]], r"sheet_2.csv:26: item-\d+ is in the sheet twice"),
    ],
)
def test_what_is_wrong_in_a_sheet(study, returned, change, message):
    write(returned[1], change(read(returned[1])))
    with pytest.raises(UserError, match=message):
        import_sheets(study, returned)
    assert not (study / "scores.json").exists()


def test_problems_of_all_sheets_are_told_at_once(study, returned):
    write(returned[0], changed(0, emotion="")(read(returned[0])))
    write(returned[2], changed(1, emotion="7")(read(returned[2])))
    with pytest.raises(UserError, match=r"sheet_1.csv:2: .*\n.*sheet_3.csv:3: "):
        import_sheets(study, returned)
    rows = read(returned[2])
    write(returned[2], [row | {"emotion": "9"} for row in rows])
    with pytest.raises(UserError, match="… and 5 more") as error:
        import_sheets(study, returned)
    assert len(str(error.value).splitlines()) == 22


def test_a_sheet_counts_once(study, returned):
    copy = study / "sheet_2 (1).csv"
    copy.write_bytes(returned[1].read_bytes())
    for again in (copy, returned[1]):
        with pytest.raises(UserError, match=r"sheet_2.*the same as .*sheet_2.csv"):
            import_sheets(study, [*returned, again])


def test_a_file_that_is_no_sheet(study, returned):
    rows = read(returned[0])
    write(returned[0], [{"a": row["item"]} for row in rows])
    with pytest.raises(UserError, match=r"sheet_1.csv:1: columns item, utterance, .* are missing"):
        import_sheets(study, returned)


def test_what_spreadsheets_do_to_a_sheet_is_no_harm(study, returned):
    expected = import_sheets(study, returned)
    rows = sorted(read(returned[0]), key=lambda row: row["item"])  # sorted by the rater
    for row in rows:
        row["remark"] = "hm"  # a column of the rater's own
        # Some take a ' in front for a sign of their own, and do not save it.
        row |= {name: row[name].removeprefix("'") for name in ("utterance", "response")}
        row["emotion"] = f" {row['emotion']} "
    rows += [dict.fromkeys(rows[0], "")] * 3
    write(returned[0], rows, encoding="utf-8-sig")
    assert import_sheets(study, returned) == expected


@pytest.mark.parametrize(
    "damage",
    [
        lambda key: [],
        lambda key: {**key, "items": {}},
        lambda key: {**key, "samples": 13},
        lambda key: {**key, "runs": ["runs/r"]},
        lambda key: {**key, "items": {i: {**v, "response": 1} for i, v in key["items"].items()}},
    ],
)
def test_a_changed_key(study, returned, damage):
    key = json.loads((study / "key.json").read_text())
    (study / "key.json").write_text(json.dumps(damage(key)))
    with pytest.raises(UserError, match=r"key.json is not as export wrote it"):
        import_sheets(study, returned)


def test_a_missing_or_cut_off_key(study, returned, tmp_path):
    with pytest.raises(UserError, match=r"key.json is missing; --study is the folder"):
        import_sheets(tmp_path, returned)
    whole = (study / "key.json").read_text()
    (study / "key.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"key.json: not a JSON object"):
        import_sheets(study, returned)


def test_alpha_is_krippendorffs_of_all_responses():
    given = np.array(
        [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, 5],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5],
            [1, 3, 3, 3, 2, 3, 4, 2, 2, 3],
        ]
    )
    ratings = np.stack([given, given, 6 - given, given[:, ::-1]], axis=-1)
    alpha = summarize(ratings.reshape(3, 2, 5, 4), ["a", "b"])["alpha"]
    assert 0.7 < alpha["emotion"] < 0.95
    for found in alpha.values():
        assert found == pytest.approx(ordinal_alpha(given), abs=1e-12)


def ordinal_alpha(given):
    """By the definition: observed over expected disagreement, in squared ranks between values."""
    counts = {value: int((given == value).sum()) for value in np.unique(given)}

    def distance(a, b):
        between = [n for value, n in counts.items() if min(a, b) <= value <= max(a, b)]
        return (sum(between) - (counts[a] + counts[b]) / 2) ** 2

    raters, n = len(given), given.size
    observed = sum(distance(a, b) for unit in given.T for a in unit for b in unit) / (raters - 1)
    everything = given.ravel()
    expected = sum(distance(a, b) for a in everything for b in everything) / (n - 1)
    return 1 - observed / expected


def test_agreement_is_undefined_where_all_ratings_are_the_same():
    ratings = np.full((3, 2, 4, len(ASPECTS)), 4)
    ratings[0, 0, 0, 1] = 5
    alpha = summarize(ratings, ["a", "b"])["alpha"]
    assert alpha["emotion"] is None
    assert alpha["fluency"] == pytest.approx(ordinal_alpha(ratings[..., 1].reshape(3, 8)))


def test_krippendorff_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "krippendorff", None)
    with pytest.raises(UserError, match=r"pip install 'erc-jax\[human-evaluation\]'"):
        summarize(np.ones((2, 1, 3, len(ASPECTS)), int), ["a"])


def test_the_command_line(runs, tmp_path, capsys):
    study = tmp_path / "study"
    main(["export", "--runs", *map(str, runs), "--output", str(study), "--samples", "12"])
    said = capsys.readouterr().out
    assert "7 sheets of 24 responses" in said
    assert "keep key.json" in said
    sheets = [str(rate(study, rater, by_chance(rater))) for rater in range(1, 8)]
    main(["import", "--study", str(study), *sheets])
    said = capsys.readouterr().out
    assert "7 raters, 12 utterances" in said
    assert f"Scores are in {study / 'scores.json'}" in said
    with pytest.raises(SystemExit, match=r"^Error: .* holds a study"):
        main(["export", "--runs", *map(str, runs), "--output", str(study)])
    with pytest.raises(SystemExit, match=r"^Error: .*key.json is missing"):
        main(["import", "--study", str(tmp_path), *sheets])


def test_scores_fit_a_narrow_terminal():
    ratings = np.random.default_rng(0).integers(1, 6, (7, 2, 100, len(ASPECTS)))
    console = Console(file=io.StringIO(), width=80)
    names = ["runs/r", "runs/r+e6,weights=[.5]"]
    scores = summarize(ratings, names)
    show_study(scores, console)
    said = console.file.getvalue()
    for word in (*names, *ASPECTS):
        assert word in said
    for score in scores["runs"][names[1]].values():
        assert f"{score['mean']:.2f}" in said
        assert "{:.2f}–{:.2f}".format(*score["interval"]) in said
    for alpha in scores["alpha"].values():
        assert f"{alpha:.3f}" in said
