"""Pictures as PNG and SVG: confusion matrices and labels' frequencies; what all pictures share."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from erc_jax.data.dialogue import write_whole
from erc_jax.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart; in grey they differ in lightness.
# Their yellow is left out: on white it is hardly seen.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
GREY = "#777777"
# The neutral emotion on a light and on a dark page: as far from the colours as they from each other
# (tests/test_colours.py).
NEUTRAL_ON_LIGHT, NEUTRAL_ON_DARK = "#565d66", "#c8ccd2"
_TITLE: dict[str, Any] = {"fontsize": 12, "fontweight": "bold"}
SMALL = 8.5  # points, of what comes in numbers
PANEL_TITLE = 0.3  # inches that it takes above its axes
# Names of labels and corpora are text: matplotlib would read $…$ in them as a formula.
LITERAL: dict[str, Any] = {"parse_math": False}


def confusion_matrices(
    confusions: Mapping[str, np.ndarray], names: Sequence[str], path: Path, title: str
) -> list[Path]:
    """Draws confusion matrices side by side, shaded by the share of each row.

    They are of the same utterances, so the rows' names stand on the left only (SentEmoContext,
    Figure 3; FMERL, Figure 5).

    Args:
      confusions: title to counts int [C, C]: rows are true classes, columns predicted ones. The
        title of a single one may be "".
      names: the C classes.
      path: of the PNG.
      title: of the whole picture.

    Returns:
      The PNG and, beside it, the SVG.

    Raises:
      UserError: matplotlib is not installed, or the files cannot be written.
      ValueError: a matrix is not one of these classes.
    """
    for confusion in confusions.values():
        if np.shape(confusion) != (len(names), len(names)):
            raise ValueError(f"{len(names)} names for a confusion matrix {np.shape(confusion)}")
    # A cell of 0.62 inches holds a count of six digits above its share; 2.8 hold what is below.
    side = max(0.62 * len(names), 2.8)
    figure, grid = new_figure(side, side, columns=len(confusions), gaps=(0, 0.3))
    for axes, (panel, confusion) in zip(grid[0], confusions.items(), strict=True):
        axes.set_title(panel, loc="left", **LITERAL)
        _draw_confusion(axes, np.asarray(confusion), names)
    for axes in grid[0, 1:]:
        axes.tick_params(labelleft=False)
    grid[0, 0].set_ylabel("true (utterances)")
    set_figure_title(figure, title, PANEL_TITLE if any(confusions) else 0)
    return save(figure, path)


def _draw_confusion(axes: Axes, confusion: np.ndarray, names: Sequence[str]) -> None:
    """A matrix int [C, C]: each cell has its count and its share of the row."""
    support = confusion.sum(axis=1)
    shares = confusion / np.maximum(support, 1)[:, None]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(confusion.shape):
        count, share = confusion[row, column], shares[row, column]
        axes.text(
            column,
            row,
            f"{count:,}\n{_percent(share)}" if count else "0",
            ha="center",
            va="center",
            fontsize=SMALL,
            color="white" if share > 0.7 else "black" if count else GREY,
        )
    places = np.arange(len(names))
    axes.set_xticks(places, names, rotation=45, ha="right", rotation_mode="anchor", **LITERAL)
    rows = [f"{name} ({total:,})" for name, total in zip(names, support, strict=True)]
    axes.set_yticks(places, rows, **LITERAL)
    axes.tick_params(length=0)
    # White lines between the cells.
    axes.set_xticks(places[1:] - 0.5, minor=True)
    axes.set_yticks(places[1:] - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel("predicted\npercentage and shade: share of the row")


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

    thickness = 0.8 / len(counts)
    figure, grid = new_figure(6.0, 0.19 * len(shown) * (len(counts) + 1))
    axes = grid[0, 0]
    for i, (split, of_split) in enumerate(zip(counts, table, strict=True)):
        bars = axes.barh(
            np.arange(len(shown)) + (i - (len(counts) - 1) / 2) * thickness,
            shares[i, shown],
            thickness * 0.94,
            color=COLOURS[i % len(COLOURS)],
            label=f"{split} ({totals[i]:,})",
        )
        texts = [f"{count:,}" for count in of_split[shown]]
        axes.bar_label(bars, texts, padding=3, fontsize=SMALL)
    axes.set_yticks(np.arange(len(shown)), [names[i] for i in shown], **LITERAL)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(0, 1.12 * max(shares[:, shown].max(initial=0), 0.01))  # space for the counts
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    # Outside of the axes, where no bar reaches.
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(counts), frameon=False)
    caption = "share of the split's utterances"
    if neutral is not None:
        column = list(names).index(neutral)
        left_out = ", ".join(
            f"{split} {row[column]:,} ({_percent(row[column] / max(row.sum(), 1))})"
            for split, row in zip(counts, table, strict=True)
        )
        caption += f" that are not {neutral}\n{neutral}: {left_out}"
    axes.set_xlabel(caption, **LITERAL)
    set_figure_title(figure, title, PANEL_TITLE)
    return save(figure, path)


def new_figure(
    width: float,
    height: float,
    rows: int = 1,
    columns: int = 1,
    gaps: tuple[float, float] = (0.0, 0.0),
) -> tuple[Figure, np.ndarray]:
    """A figure that is all axes; what lies outside of them is added on saving.

    It is its own: nothing of pyplot's state is touched.

    Args:
      width: of each of the axes, in inches.
      height: likewise.
      rows: of axes.
      columns: of axes.
      gaps: between rows and between columns, in inches.

    Returns:
      The figure, and its axes [rows, columns].
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "Figures need matplotlib, which is not installed: pip install 'erc-jax[figures]'"
        ) from error
    whole = (columns * width + (columns - 1) * gaps[1], rows * height + (rows - 1) * gaps[0])
    figure = Figure(figsize=whole)
    FigureCanvasAgg(figure)
    spaces = {"hspace": gaps[0] / height, "wspace": gaps[1] / width}
    frame = {"left": 0, "right": 1, "bottom": 0, "top": 1}
    return figure, figure.subplots(rows, columns, squeeze=False, gridspec_kw={**frame, **spaces})


def set_figure_title(figure: Figure, title: str, space: float) -> None:
    """Puts a title above the axes and the inches of space that something else takes there."""
    width, height = figure.get_size_inches()
    title = textwrap.fill(title, int(11 * width))
    above = 1 + (0.1 + space) / height
    figure.suptitle(title, x=0, y=above, ha="left", va="bottom", **_TITLE, **LITERAL)


def _percent(share: float) -> str:
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def save(figure: Figure, path: Path) -> list[Path]:
    files = [path.with_suffix(".png"), path.with_suffix(".svg")]
    for file in files:
        content = io.BytesIO()
        figure.savefig(
            content, format=file.suffix[1:], dpi=150, bbox_inches="tight", pad_inches=0.15
        )
        write_whole(file, content.getvalue())
    return files
