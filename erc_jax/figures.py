"""Pictures of a finished run: confusion matrices, and how often each emotion occurs."""

from __future__ import annotations

import contextlib
import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from erc_jax.config import load_config
from erc_jax.data.dialogue import decode, parse_json, read_bytes, write_whole
from erc_jax.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart; in grey they differ in lightness.
_SPLIT_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
_GREY = "#777777"
_TITLE: dict[str, Any] = {"fontsize": 12, "fontweight": "bold"}
_SMALL = 8.5  # points, of what comes in numbers
# Names of labels and corpora are text: matplotlib would read $…$ in them as a formula.
_LITERAL: dict[str, Any] = {"parse_math": False}


def run_figures(workdir: Path) -> list[Path]:
    """Draws what a finished run's metrics.json holds into WORKDIR/figures.

    Args:
      workdir: of the run; of several seeds, their common one.

    Returns:
      The files: confusion_SPLIT of every split that is scored, and labels; each PNG and SVG.

    Raises:
      UserError: the folder is no finished run, its metrics.json is damaged, or matplotlib is not
        installed.
    """
    load_config(workdir)  # says what is wrong with a folder that is no workdir
    path = workdir / "metrics.json"
    if not path.is_file():
        raise UserError(
            f"{path} is missing: the run is not finished; the command that started it goes on "
            "from the last checkpoint"
        )
    content = parse_json(decode(read_bytes(path), str(path)), str(path))
    with _damaged(path):
        corpus, seeds = content["run"]["corpus"], content["run"].get("seeds", [])
        scored = {split: content[split] for split in content if split not in ("run", "seeds")}
        names = list(next(iter(scored.values()))["per_class"])
        if "neutral" not in corpus or any("emotions" not in s for s in corpus["splits"].values()):
            raise UserError(
                f"{path} is of an earlier version, which did not count the labels; write it anew: "
                f"python -m erc_jax.main --workdir {workdir} --mode evaluate --split test"
            )
        counts = {
            split: [int(facts["emotions"].get(name, 0)) for name in names]
            for split, facts in corpus["splits"].items()
        }
        confusions = {
            split: np.array(block["confusion"], np.int64).reshape(len(names), len(names))
            for split, block in scored.items()
        }
    of_seeds = f", sum of {len(seeds)} seeds" if len(seeds) > 1 else ""
    files = []
    for split, confusion in confusions.items():
        file = workdir / "figures" / f"confusion_{split}.png"
        files += confusion_matrix(confusion, names, file, f"{corpus['name']}, {split}{of_seeds}")
    file = workdir / "figures" / "labels.png"
    return files + label_histogram(
        counts, names, corpus["neutral"], file, f"{corpus['name']}: emotions"
    )


def confusion_matrix(
    confusion: np.ndarray, names: Sequence[str], path: Path, title: str
) -> list[Path]:
    """Draws a confusion matrix, shaded by the share of each row (SentEmoContext, Figure 3).

    Args:
      confusion: counts int [C, C]: rows are true classes, columns predicted ones.
      names: the C classes.
      path: of the PNG.
      title: of the picture.

    Returns:
      The PNG and, beside it, the SVG.

    Raises:
      UserError: matplotlib is not installed, or the files cannot be written.
      ValueError: the matrix is not one of these classes.
    """
    confusion = np.asarray(confusion)
    n_classes = len(names)
    if confusion.shape != (n_classes, n_classes):
        raise ValueError(f"{n_classes} names for a confusion matrix {confusion.shape}")
    support = confusion.sum(axis=1)
    shares = confusion / np.maximum(support, 1)[:, None]

    # A cell of 0.62 inches holds a count of six digits above its share.
    side = max(0.62 * n_classes, 2.5)
    figure, axes = _figure(side, side)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(confusion.shape):
        count, share = confusion[row, column], shares[row, column]
        axes.text(
            column,
            row,
            f"{count:,}\n{_percent(share)}" if count else "0",
            ha="center",
            va="center",
            fontsize=_SMALL,
            color="white" if share > 0.7 else "black" if count else _GREY,
        )
    places = np.arange(n_classes)
    axes.set_xticks(places, names, rotation=45, ha="right", rotation_mode="anchor", **_LITERAL)
    rows = [f"{name} ({total:,})" for name, total in zip(names, support, strict=True)]
    axes.set_yticks(places, rows, **_LITERAL)
    axes.tick_params(length=0)
    # White lines between the cells.
    axes.set_xticks(places[1:] - 0.5, minor=True)
    axes.set_yticks(places[1:] - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel("predicted; percentage and shade: share of the row")
    axes.set_ylabel("true (utterances)")
    axes.set_title(textwrap.fill(title, int(11 * side)), loc="left", **_TITLE, **_LITERAL)
    return _save(figure, path)


def label_histogram(
    counts: Mapping[str, Sequence[int]],
    names: Sequence[str],
    neutral: str | None,
    path: Path,
    title: str,
) -> list[Path]:
    """Draws how often each emotion occurs in each split (SentEmoContext, Figure 4).

    A bar is as long as the emotion's share of the split's emotions, so that splits of different
    sizes can be compared, and says how many utterances that is.

    Args:
      counts: split to the number of utterances of each of the C classes.
      names: the C classes.
      neutral: the class that is left out of bars and shares, and told beside them.
      path: of the PNG.
      title: of the picture.

    Returns:
      The PNG and, beside it, the SVG.

    Raises:
      UserError: matplotlib is not installed, or the files cannot be written.
      ValueError: counts and names do not fit, or neutral is not one of them.
    """
    table = np.array([list(of_split) for of_split in counts.values()])
    if not counts or table.shape != (len(counts), len(names)):
        raise ValueError(f"{len(names)} names and {len(counts)} splits for counts {table.shape}")
    shown = np.array([i for i, name in enumerate(names) if name != neutral], int)
    totals = table[:, shown].sum(axis=1)
    shares = table / np.maximum(totals, 1)[:, None]
    # Frequent emotions first, by the first split: the imbalance is what the picture is about.
    shown = shown[np.argsort(-table[0, shown], kind="stable")]

    width, thickness = 6.0, 0.8 / len(counts)
    figure, axes = _figure(width, 0.19 * len(shown) * (len(counts) + 1))
    for i, (split, of_split) in enumerate(zip(counts, table, strict=True)):
        bars = axes.barh(
            np.arange(len(shown)) + (i - (len(counts) - 1) / 2) * thickness,
            shares[i, shown],
            thickness * 0.94,
            color=_SPLIT_COLOURS[i % len(_SPLIT_COLOURS)],
            label=f"{split} ({totals[i]:,})",
        )
        texts = [f"{count:,}" for count in of_split[shown]]
        axes.bar_label(bars, texts, padding=3, fontsize=_SMALL)
    axes.set_yticks(np.arange(len(shown)), [names[i] for i in shown], **_LITERAL)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(0, 1.12 * max(shares[:, shown].max(initial=0), 0.01))  # space for the counts
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    # Outside of the axes, where no bar reaches.
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(counts), frameon=False)
    axes.set_title(textwrap.fill(title, int(11 * width)), loc="left", pad=28, **_TITLE, **_LITERAL)
    caption = "share of the split's utterances"
    if neutral is not None:
        column = list(names).index(neutral)
        left_out = ", ".join(
            f"{split} {row[column]:,} ({_percent(row[column] / max(row.sum(), 1))})"
            for split, row in zip(counts, table, strict=True)
        )
        caption += f" that are not {neutral}\n{neutral}: {left_out}"
    axes.set_xlabel(caption, **_LITERAL)
    return _save(figure, path)


@contextlib.contextmanager
def _damaged(path: Path) -> Iterator[None]:
    """Turns what is met in a metrics.json of another shape into a UserError."""
    try:
        yield
    except (AttributeError, KeyError, StopIteration, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: damaged ({type(error).__name__}: {error}); restore the file, or train again "
            "in another workdir"
        ) from error


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure that is all axes, of so many inches; what lies outside of them is added on saving.

    It is its own: nothing of pyplot's state is touched.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "Figures need matplotlib, which is not installed: pip install 'erc-jax[figures]'"
        ) from error
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure, figure.add_axes((0, 0, 1, 1))


def _percent(share: float) -> str:
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def _save(figure: Figure, path: Path) -> list[Path]:
    files = [path.with_suffix(".png"), path.with_suffix(".svg")]
    for file in files:
        content = io.BytesIO()
        figure.savefig(
            content, format=file.suffix[1:], dpi=150, bbox_inches="tight", pad_inches=0.15
        )
        write_whole(file, content.getvalue())
    return files
