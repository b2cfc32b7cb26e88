r"""Human evaluation of replies (the response system's paper, section 4.3).

    python -m erc_jax.human_evaluation export --runs runs/r runs/r-e6 --output study
    python -m erc_jax.human_evaluation import --study study returned/*.csv

``export`` draws test utterances, the same for every run, and writes a sheet for each rater
(sheet_1.csv, …) with what each run replied to them: blinded, and each sheet in an order of its own.
instructions.md is for the raters; key.json says which run each item is of, and is not.

``import`` checks the sheets that came back, and writes scores.json into the study's folder: each
run's mean of each aspect with its 95% bootstrap interval over utterances, and how far the raters
agree (Krippendorff's alpha). It needs krippendorff: pip install 'erc-jax[human-evaluation]'
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from erc_jax.data.dialogue import (
    Dialogue,
    csv_rows,
    decode,
    parse_json,
    read_bytes,
    text_lines,
    write_whole,
)
from erc_jax.errors import UserError
from erc_jax.progress import say

ASPECTS = {  # and what raters are asked, in the paper's words
    "emotion": "Does the response take into account the emotion of the utterance?",
    "fluency": "Is the response grammatically correct?",
    "informativeness": "Does the response provide some information for the utterance?",
    "relevance": "Is the content of the response appropriately related to the utterance?",
}
RATINGS = ("1", "2", "3", "4", "5")
TEXTS = ("utterance", "response")
COLUMNS = ("item", *TEXTS, *ASPECTS)
PREDICTIONS = "predictions_test.jsonl"
KEY, SCORES = "key.json", "scores.json"
SHOWN = 20  # problems of returned sheets that are told at once
RESAMPLES = 10_000

INSTRUCTIONS = """# How to rate the responses

Each row of your sheet has an utterance and a response to it. Rate the response from 1 to 5 in four
aspects, whatever you think of the other aspects:

{aspects}

1 is "not at all", 2 "a little", 3 "partly", 4 "mostly" and 5 "fully". The same utterance may come
more than once, with other responses or with the same one: rate each for itself.

- Write a whole number from 1 to 5 into all four cells of every row.
- Change nothing else. A text that begins with = + - or @ has a ' before it, which is no part of it.
- Save the sheet as CSV (comma delimited, UTF-8), not in the format of the spreadsheet program.
- Do not talk with other raters about the responses before all of you have finished.
"""


def export_study(
    runs: Sequence[Path], output: Path, *, samples: int = 100, seed: int = 0, raters: int = 7
) -> None:
    """Writes the sheets, the instructions and the key of a study.

    Args:
      runs: workdirs of runs that replied to the same test utterances.
      output: folder of the study; it holds none yet.
      samples: utterances to draw.
      seed: draws them, and shuffles the sheets.
      raters: how many sheets to write.

    Raises:
      UserError: the folder holds a study, predictions are missing or damaged, the runs' utterances
        differ, or there are too few of them.
    """
    if (output / KEY).exists():
        raise UserError(
            f"{output} holds a study, whose sheets may be with its raters; give another --output"
        )
    names = [str(run) for run in runs]
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise UserError(f"--runs: {', '.join(twice)} is named twice")
    if samples < 1 or raters < 1 or seed < 0:
        raise UserError(
            "--samples and --raters are at least 1 and --seed at least 0, found "
            f"{samples}, {raters} and {seed}"
        )
    replies = [_read_replies(run / PREDICTIONS) for run in runs]
    for name, of_run in zip(names, replies, strict=True):
        if differ := replies[0].keys() ^ of_run.keys():
            raise UserError(
                f"{name} and {names[0]} did not reply to the same utterances: {len(differ):,} are "
                f"only in one, such as that of dialogue {min(differ)[0]}; compare runs on the same "
                "corpus"
            )
    if len(replies[0]) < samples:
        raise UserError(
            f"{runs[0] / PREDICTIONS} has {len(replies[0]):,} replies; give at most as many "
            f"--samples, found {samples:,}"
        )

    rng = np.random.default_rng(seed)
    answered = sorted(replies[0])
    drawn = [answered[i] for i in rng.choice(len(answered), samples, replace=False)]
    pairs = [(run, sample) for run in range(len(runs)) for sample in range(samples)]
    items = {}
    for number, place in enumerate(rng.permutation(len(pairs)), 1):
        run, sample = pairs[place]
        identifier, *texts = drawn[sample]
        items[f"item-{number:04}"] = {
            "run": names[run],
            "id": identifier,
            "sample": sample,
            "utterance": _one_line(texts[-1]),
            "response": _one_line(replies[run][drawn[sample]]),
        }
    for rater in range(1, raters + 1):
        order = rng.permutation(list(items))
        write_whole(output / f"sheet_{rater}.csv", _sheet({item: items[item] for item in order}))
    aspects = "\n".join(f"- **{aspect}**: {question}" for aspect, question in ASPECTS.items())
    write_whole(output / "instructions.md", INSTRUCTIONS.format(aspects=aspects))
    # Last: without it the folder holds no study.
    key = {"seed": seed, "samples": samples, "runs": names, "items": items}
    write_whole(output / KEY, json.dumps(key, indent=2, ensure_ascii=False) + "\n")
    say(
        f"{raters} sheets of {len(items):,} responses are in {output}. Give each rater one of them "
        f"and instructions.md, and keep {KEY}."
    )


def _read_replies(path: Path) -> dict[tuple[str, ...], str]:
    """A run's replies; each key is the dialogue's id and the texts up to the utterance."""
    if not path.is_file():
        raise UserError(
            f"{path} is missing; is {path.parent} a finished run of the response system?"
        )
    replies: dict[tuple[str, ...], str] = {}
    for where, line in text_lines(path):
        dialogue = Dialogue.from_json(parse_json(line, where), where)
        reply = dialogue.extra.get("reply")
        if not isinstance(reply, str):
            raise UserError(
                f'{where}: expected text as "reply"; is {path.parent} a run of the response system?'
            )
        answered = (dialogue.id, *(utterance.text for utterance in dialogue.utterances))
        if answered in replies:
            raise UserError(f"{where}: dialogue {dialogue.id} was replied to in another line")
        replies[answered] = reply
    return replies


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _sheet(items: Mapping[str, Mapping[str, str]]) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    for item, of in items.items():
        writer.writerow(
            [item, *(_protected(of[column]) for column in TEXTS), *("" for _ in ASPECTS)]
        )
    # Excel takes a file without the mark for one in the system's own encoding.
    return "\ufeff" + file.getvalue()


def _protected(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    # The wide forms are what East Asian keyboards write, and spreadsheets there understand.
    return f"'{text}" if text.startswith(tuple("=+-@＝＋－＠")) else text


def import_sheets(study: Path, sheets: Sequence[Path]) -> dict[str, Any]:
    """Reads the sheets that raters returned, and writes what they say into scores.json.

    Args:
      study: folder that ``export_study`` wrote.
      sheets: CSV files, one of each rater; some raters' may be missing.

    Returns:
      What scores.json holds; see ``summarize``. ``sheets`` are their names.

    Raises:
      UserError: the key or a sheet is missing or damaged, or sheets have missing or wrong ratings,
        unknown items or changed texts; the message names file and line of each of these.
    """
    runs, samples, items = _read_key(study / KEY)
    problems: list[str] = []
    rated: list[dict[str, list[int]]] = []
    for sheet in sheets:
        ratings = _read_sheet(sheet, items, problems)
        for other, others in zip(sheets, rated, strict=False):
            if [*ratings.items()] == [*others.items()]:  # each rater's order is another one
                problems.append(f"{sheet}: the same as {other}; give each rater's sheet once")
        rated.append(ratings)
    if problems:
        more = [f"… and {len(problems) - SHOWN:,} more"] if len(problems) > SHOWN else []
        raise UserError("sheets cannot be used:\n" + "\n".join(problems[:SHOWN] + more))

    table = np.zeros((len(sheets), len(runs), samples, len(ASPECTS)), int)
    for rater, ratings in enumerate(rated):
        for item, given in ratings.items():
            table[rater, runs.index(items[item]["run"]), items[item]["sample"]] = given
    content = {"sheets": [str(sheet) for sheet in sheets], **summarize(table, runs)}
    write_whole(study / SCORES, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return content


def _read_key(path: Path) -> tuple[list[str], int, dict[str, dict[str, Any]]]:
    """The runs, the number of utterances, and each item's run, utterance's number and texts."""
    if not path.is_file():
        raise UserError(f"{path} is missing; --study is the folder that export wrote")
    key = parse_json(decode(read_bytes(path), str(path)), str(path))
    try:
        runs, samples, items = key["runs"], key["samples"], key["items"]
        places = [(item["run"], item["sample"]) for item in items.values()]
        whole = sorted(places) == sorted((run, i) for run in runs for i in range(samples))
        whole &= all(isinstance(item[text], str) for item in items.values() for text in TEXTS)
    except (AttributeError, KeyError, TypeError):
        whole = False
    if not whole:
        raise UserError(f"{path} is not as export wrote it; without it no item's run is known")
    return runs, samples, items


def _read_sheet(
    path: Path, items: Mapping[str, Mapping[str, Any]], problems: list[str]
) -> dict[str, list[int]]:
    """A rater's ratings of each item by aspect, in the sheet's order; adds to the problems."""
    ratings: dict[str, list[int]] = {}
    for where, row in csv_rows(path, COLUMNS):
        if not any(cell.strip() for cell in row.values()):
            continue  # spreadsheet programs leave such rows
        item = row["item"].strip()
        if item not in items:
            problems.append(f"{where}: unknown item {item!r}; is the sheet of this study?")
            continue
        if item in ratings:
            problems.append(f"{where}: {item} is in the sheet twice")
        for name in TEXTS:
            text, found = items[item][name], _one_line(row[name])
            # A ' in front may be ours, and spreadsheet programs may drop one that is not.
            if found.removeprefix("'") != text.removeprefix("'"):
                problems.append(
                    f"{where}: the {name} of {item} was changed: expected {text[:60]!r}, found "
                    f"{found[:60]!r}"
                )
        cells = {aspect: row[aspect].strip() for aspect in ASPECTS}
        if wrong := {aspect: cell for aspect, cell in cells.items() if cell not in RATINGS}:
            found = ", ".join(f"{aspect} is {cell or 'missing'}" for aspect, cell in wrong.items())
            problems.append(f"{where}: {found}; expected whole numbers from 1 to 5")
        ratings[item] = [int(cell) for cell in cells.values() if cell in RATINGS]
    if missing := [item for item in items if item not in ratings]:
        problems.append(f"{path}: {len(missing):,} items are missing, such as {missing[0]}")
    return ratings


def summarize(ratings: np.ndarray, runs: Sequence[str]) -> dict[str, Any]:
    """Means of each run and aspect, and the raters' agreement.

    Args:
      ratings: int [R, K, U, A], what R raters gave to K runs' responses to U utterances in the A
        aspects, from 1 to 5.
      runs: the K names.

    Returns:
      ``raters`` (R), ``utterances`` (U), ``runs``: run to aspect to its ``mean`` and ``interval``
      ([low, high], the 95% percentile bootstrap over utterances of the raters' means), and
      ``alpha``: aspect to Krippendorff's ordinal alpha over all responses, 1 where raters agree and
      0 where they might as well have guessed; None of a single rater, or where all ratings are the
      same.

    Raises:
      UserError: krippendorff is not installed.
    """
    try:
        import krippendorff
    except ImportError as error:
        raise UserError(
            "agreement needs the package krippendorff: pip install 'erc-jax[human-evaluation]'"
        ) from error
    n_raters, n_runs, n_utterances, _ = ratings.shape
    by_utterance = ratings.mean(axis=0)  # [K, U, A]
    # How often each utterance is drawn in each resample, the same ones for all runs.
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(n_utterances, np.full(n_utterances, 1 / n_utterances), RESAMPLES)
    resampled = drawn @ by_utterance / n_utterances  # [K, RESAMPLES, A]
    intervals = np.percentile(resampled, [2.5, 97.5], axis=1)
    means = by_utterance.mean(axis=1)

    alpha: dict[str, float | None] = {}
    for i, aspect in enumerate(ASPECTS):
        given = ratings[..., i].reshape(n_raters, n_runs * n_utterances)
        defined = n_raters > 1 and np.ptp(given) > 0
        alpha[aspect] = (
            float(krippendorff.alpha(given, level_of_measurement="ordinal")) if defined else None
        )
    return {
        "raters": n_raters,
        "utterances": n_utterances,
        "runs": {
            run: {
                aspect: {"mean": float(means[k, i]), "interval": intervals[:, k, i].tolist()}
                for i, aspect in enumerate(ASPECTS)
            }
            for k, run in enumerate(runs)
        },
        "alpha": alpha,
    }


def show_study(content: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints what scores.json holds: a line per run, and the raters' agreement.

    Args:
      content: as ``import_sheets`` returns it.
      console: where to; standard output by default.
    """
    console = console or Console()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("run", *ASPECTS):
        table.add_column(name, overflow="fold")
    for run, scores in content["runs"].items():
        cells = (
            "{:.2f}\n{:.2f}–{:.2f}".format(score["mean"], *score["interval"])
            for score in scores.values()
        )
        table.add_row(Text(run), *cells)
    table.add_section()
    agreement = ("–" if alpha is None else f"{alpha:.3f}" for alpha in content["alpha"].values())
    table.add_row("alpha", *agreement)
    console.print(table)
    console.print(
        f"{content['raters']} raters, {content['utterances']} utterances; means with 95% intervals "
        "over utterances, and Krippendorff's alpha (ordinal)."
    )


def main(argv: Sequence[str]) -> None:
    """Runs the command line; a user's mistake becomes one message and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m erc_jax.human_evaluation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="write sheets for raters")
    export.add_argument("--runs", nargs="+", type=Path, required=True, help="workdirs")
    export.add_argument("--output", type=Path, required=True, help="folder of the study")
    export.add_argument("--samples", type=int, default=100, help="utterances (100)")
    export.add_argument("--seed", type=int, default=0, help="draws and shuffles (0)")
    export.add_argument("--raters", type=int, default=7, help="sheets (7)")
    returned = commands.add_parser("import", help="read the sheets that raters returned")
    returned.add_argument("--study", type=Path, required=True, help="folder of the study")
    returned.add_argument("sheets", nargs="+", type=Path, help="CSV files")
    args = parser.parse_args(argv)
    try:
        if args.command == "export":
            export_study(
                args.runs, args.output, samples=args.samples, seed=args.seed, raters=args.raters
            )
        else:
            show_study(import_sheets(args.study, args.sheets))
            say(f"Scores are in {args.study / SCORES}")
    except UserError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
