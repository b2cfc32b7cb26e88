"""Clouds of predicted valence, arousal and dominance (FMERL, section 5.3 and Figure 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from erc_jax.charts import N_COLOURS, colour_number
from erc_jax.drawing import (
    COLOURS,
    GREY,
    LITERAL,
    NEUTRAL_ON_LIGHT,
    PANEL_TITLE,
    SMALL,
    new_figure,
    save,
    set_figure_title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Those of pages and the terminal; the last one is the neutral emotion's.
_COLOURS = (*COLOURS[:N_COLOURS], NEUTRAL_ON_LIGHT)
# Emotions of the same colour, where there are many, differ in these.
_LINE_STYLES = ("-", "--", ":", "-.")


def rating_clouds(
    stages: Mapping[str, np.ndarray],
    ratings: np.ndarray,
    emotions: np.ndarray,
    names: Sequence[str],
    dimensions: Sequence[str],
    path: Path,
    title: str,
) -> list[Path]:
    """Draws predicted ratings as a Gaussian of each true emotion (FMERL, Figure 4).

    A stage of training is a column. A row is a plane of the first dimension and one of the others,
    with the same limits at every stage. An emotion has its predictions as faint points, their mean,
    which bears its name, the ellipse of one standard deviation, and a cross at the mean of what its
    utterances are rated.

    Args:
      stages: title to predictions float [N, V].
      ratings: float [N, V] of the same utterances, NaN where there is none.
      emotions: their true classes int [N].
      names: the C classes; one that does not occur is not drawn.
      dimensions: names of the V >= 2 dimensions.
      path: of the PNG.
      title: of the whole picture.

    Returns:
      The PNG and, beside it, the SVG.

    Raises:
      UserError: matplotlib is not installed, or the files cannot be written.
      ValueError: the arrays do not fit each other, or there are less than two dimensions.
    """
    shape = (len(emotions), len(dimensions))
    if shape[1] < 2 or any(np.shape(values) != shape for values in (*stages.values(), ratings)):
        raise ValueError(f"expected ratings {shape} of at least two dimensions")
    width, height = 5.2, 4.0
    planes = [(0, other) for other in range(1, len(dimensions))]
    figure, grid = new_figure(width, height, len(planes), len(stages), gaps=(0.6, 0.25))
    for row, (x, y) in zip(grid, planes, strict=True):
        clouds = [_Clouds(v[:, [x, y]], ratings[:, [x, y]], emotions) for v in stages.values()]
        low = np.min([cloud.low for cloud in clouds], axis=0)
        high = np.max([cloud.high for cloud in clouds], axis=0)
        margin = np.maximum(0.05 * (high - low), 1e-6)
        for axes, cloud in zip(row, clouds, strict=True):
            axes.set_xlim(low[0] - margin[0], high[0] + margin[0])
            axes.set_ylim(low[1] - margin[1], high[1] + margin[1])
            axes.set_xlabel(dimensions[x])
            axes.tick_params(labelleft=axes is row[0])
            axes.spines[["top", "right"]].set_visible(False)
            cloud.draw(axes, names)
        row[0].set_ylabel(dimensions[y])
    for axes, panel in zip(grid[0], stages, strict=True):
        axes.set_title(panel, loc="left", **LITERAL)
    _explain(figure, rated=bool(np.isfinite(ratings).any()))
    set_figure_title(figure, title, PANEL_TITLE)
    return save(figure, path)


class _Clouds:
    """The Gaussians of one stage in one plane.

    Attributes:
      low: float [2], of all that is drawn the smallest coordinates.
      high: float [2], the largest.
    """

    def __init__(self, points: np.ndarray, ratings: np.ndarray, emotions: np.ndarray):
        """Points and ratings float [N, 2], NaN where not rated; true classes int [N]."""
        self._points = {c: points[emotions == c] for c in np.unique(emotions)}
        self._means = {c: own.mean(axis=0) for c, own in self._points.items()}
        self._covariances = {c: np.cov(own.T) for c, own in self._points.items() if len(own) > 1}
        rated = np.isfinite(ratings).all(axis=1)
        self._rated = {
            c: ratings[rated & (emotions == c)].mean(axis=0) for c in np.unique(emotions[rated])
        }
        reach = [
            self._means[c] + side * np.sqrt(np.diag(covariance))
            for c, covariance in self._covariances.items()
            for side in (-1, 1)
        ]
        drawn = np.concatenate([points, np.reshape([*reach, *self._rated.values()], (-1, 2))])
        self.low, self.high = drawn.min(axis=0), drawn.max(axis=0)

    def draw(self, axes: Axes, names: Sequence[str]) -> None:
        """Draws them into axes whose limits are set."""
        from matplotlib.patches import Ellipse

        numbers = [colour_number(name, names) for name in names]
        colours = [_COLOURS[number] for number in numbers]
        for c, own in self._points.items():
            # Pixels in the SVG, too: thousands of circles would make it slow to show.
            axes.scatter(
                own[:, 0],
                own[:, 1],
                s=7,
                c=colours[c],
                alpha=0.25,
                linewidths=0,
                label=names[c],
                rasterized=True,
            )
        for c, covariance in self._covariances.items():
            variances, directions = np.linalg.eigh(covariance)
            diameters = 2 * np.sqrt(np.maximum(variances, 0))
            axes.add_patch(
                Ellipse(
                    self._means[c],
                    *diameters,
                    angle=math.degrees(math.atan2(directions[1, 0], directions[0, 0])),
                    fill=False,
                    edgecolor=colours[c],
                    linestyle=_LINE_STYLES[numbers[:c].count(numbers[c]) % len(_LINE_STYLES)],
                    linewidth=1.8,
                    label=names[c],
                )
            )
        for places, marker in ((self._means, "o"), (self._rated, "X")):
            for c, place in places.items():
                axes.plot(*place, marker, **_marker(colours[c]), label=names[c])
        _write_names(
            axes,
            {names[c]: (mean, colours[c]) for c, mean in self._means.items()},
            list(self._rated.values()),
        )


def _marker(colour: str) -> dict[str, Any]:
    return {"color": colour, "markersize": 8, "markeredgecolor": "white", "markeredgewidth": 0.8}


def _explain(figure: Figure, *, rated: bool) -> None:
    """Says below all axes what the marks are."""
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], linestyle="", marker="o", **_marker(GREY), label="mean of predictions"),
        Line2D([], [], color=GREY, linewidth=1.8, label="one standard deviation"),
    ]
    if rated:
        cross = Line2D([], [], linestyle="", marker="X", **_marker(GREY), label="mean of ratings")
        marks.append(cross)
    place = (0, -0.5 / figure.get_figheight())  # below the labels of the axes
    figure.legend(
        handles=marks,
        loc="upper left",
        bbox_to_anchor=place,
        ncols=len(marks),
        frameon=False,
        fontsize=SMALL,
    )


def _write_names(
    axes: Axes, places: Mapping[str, tuple[np.ndarray, str]], crosses: Sequence[np.ndarray]
) -> None:
    """Writes names beside their places, a line to each, so that none covers another or a mark.

    Args:
      axes: limits are set.
      places: name to its place float [2] in data, and its colour.
      crosses: further marks float [2].
    """
    from matplotlib.text import Text

    to_points = 72 / axes.figure.dpi  # offsets are in points, what is measured in pixels
    anchors = {name: axes.transData.transform(place) for name, (place, _) in places.items()}
    middle = np.mean(list(anchors.values()), axis=0)
    marks = np.array([*anchors.values(), *map(axes.transData.transform, crosses)])
    around_marks = np.stack([marks - 6, marks + 6], axis=1)
    written = np.zeros((0, 2, 2))
    # The outermost first, which find room where they are; inner ones then look for a gap.
    for name in sorted(anchors, key=lambda name: -np.linalg.norm(anchors[name] - middle)):
        place, colour = places[name]
        text = axes.annotate(
            name,
            (place[0], place[1]),
            (0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=SMALL,
            bbox={"boxstyle": "round,pad=0.2", "fc": "white", "ec": colour, "alpha": 0.9},
            arrowprops={"arrowstyle": "-", "color": colour, "shrinkA": 0, "shrinkB": 0},
            **LITERAL,
        )
        extent = Text.get_window_extent(text)
        size = np.array([extent.width + 10, extent.height + 8])  # with the frame
        offsets = _offsets(anchors[name] - middle, size)
        centres = anchors[name] + offsets
        boxes = np.stack([centres - size / 2, centres + size / 2], axis=1)
        # Among very many names, a line that crosses one is borne first, then one on another.
        cost = (
            1000 * _outside(boxes, axes.bbox.get_points())
            + 30 * _overlaps(boxes, np.concatenate([around_marks, written]))
            + _crossings(anchors[name], centres, written)
        )
        best = int(cost.argmin())  # of equal ones the nearest
        written = np.concatenate([written, boxes[best : best + 1]])
        text.set_position((offsets[best, 0] * to_points, offsets[best, 1] * to_points))


# Boxes are float [K, 2, 2] in pixels: lower left and upper right corner, x and y.


def _offsets(outwards: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Where a box's centre may lie from its mark, float [K, 2]: near first, outwards first."""
    gaps = np.arange(8, 240, 8)
    turns = np.array(sorted(np.linspace(-np.pi, np.pi, 24, endpoint=False), key=abs))
    angles = np.arctan2(outwards[1], outwards[0]) + turns
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return (directions * (gaps[:, None, None] + size / 2)).reshape(-1, 2)


def _outside(boxes: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Which boxes are not wholly within bounds, float [2, 2]: bool [K]."""
    return (boxes[:, 0] < bounds[0]).any(axis=1) | (boxes[:, 1] > bounds[1]).any(axis=1)


def _overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How many of the others each box overlaps, int [K]."""
    apart = (boxes[:, None, 0] > others[:, 1]) | (boxes[:, None, 1] < others[:, 0])
    return (~apart.any(axis=-1)).sum(axis=1)


def _crossings(start: np.ndarray, ends: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """How many of the boxes a line from start to each of K ends, float [K, 2], meets: int [K]."""
    shares = np.linspace(0, 1, 20)[:, None, None]
    points = start + shares[..., None] * (ends[:, None] - start)  # [20, K, 1, 2]
    within = (points >= boxes[:, 0]) & (points <= boxes[:, 1])
    return within.all(axis=-1).any(axis=0).sum(axis=-1)
