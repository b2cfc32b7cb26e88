"""Small charts as inline SVG, for pages without scripts.

All are drawn 360 units wide, the width of a phone, so that their texts are as large as the page's
there; a page sets wide ones side by side. Colours come from the page's style (``--c0`` and on), so
that they suit a light and a dark background; nothing is told by colour alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup, escape

WIDTH = 360
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 40  # margins, in which ticks and labels stand


def _svg(title: str, description: str, height: float, parts: Sequence[Markup]) -> Markup:
    return Markup(
        '<svg viewBox="0 0 {} {:.0f}" role="img" xmlns="http://www.w3.org/2000/svg">'
        "<title>{}</title><desc>{}</desc>{}</svg>"
    ).format(WIDTH, height, title, description, Markup("").join(parts))


def _text(x: float, y: float, text: str, anchor: str = "middle", extra: str = "") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" {}>{}</text>').format(
        x, y, anchor, Markup(extra), text
    )


def _line(x1: float, y1: float, x2: float, y2: float, style: str = "grid") -> Markup:
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(
        x1, y1, x2, y2, style
    )


def _circle(x: float, y: float, radius: float, style: str, tooltip: str = "") -> Markup:
    title = Markup("<title>{}</title>").format(tooltip) if tooltip else ""
    return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{:.1f}" class="{}">{}</circle>').format(
        x, y, radius, style, title
    )


def _path(points: Sequence[tuple[float, float]], style: str, tooltip: str = "") -> Markup:
    title = Markup("<title>{}</title>").format(tooltip) if tooltip else ""
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return Markup('<polyline points="{}" class="{}">{}</polyline>').format(places, style, title)


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers between two, about so many of them."""
    step = 10.0 ** math.floor(math.log10((high - low) / wanted))
    step *= min((1, 2, 5, 10), key=lambda by: abs((high - low) / (step * by) - wanted))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


class _Axes:
    """A frame with ticks and names; places of data in it."""

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        names: tuple[str, str],
        height: float = 230,
    ):
        self._x, self._y, self.height = x, y, height
        self.bottom = height - BOTTOM
        self.parts: list[Markup] = []
        for tick in ticks(*y):
            place = self.y(tick)
            self.parts += [
                _line(LEFT, place, WIDTH - RIGHT, place),
                _text(LEFT - 5, place + 4, f"{tick:,g}", "end"),
            ]
        for tick in ticks(*x):
            self.parts.append(_text(self.x(tick), self.bottom + 15, f"{tick:,g}"))
        self.parts.append(_line(LEFT, self.bottom, WIDTH - RIGHT, self.bottom, "axis"))
        middle = (TOP + self.bottom) / 2
        self.parts += [
            _text((LEFT + WIDTH - RIGHT) / 2, height - 6, names[0]),
            _text(11, middle, names[1], extra=f'transform="rotate(-90 11 {middle:.0f})"'),
        ]

    def x(self, value: float) -> float:
        low, high = self._x
        return LEFT + (value - low) / (high - low) * (WIDTH - RIGHT - LEFT)

    def y(self, value: float) -> float:
        low, high = self._y
        return self.bottom - (value - low) / (high - low) * (self.bottom - TOP)


def _span(values: Sequence[float], margin: float = 0.05) -> tuple[float, float]:
    """Limits of an axis."""
    low, high = min(values), max(values)
    room = margin * (high - low) or 0.5 * abs(high) or 1.0
    return low - room, high + room


@dataclasses.dataclass(frozen=True)
class Curve:
    """Points in a line; the main one is drawn strongly, its ``mark`` as a dot."""

    name: str
    points: Sequence[tuple[float, float]]
    main: bool = True
    mark: float | None = None  # the x of a point


N_COLOURS = 6
NEUTRAL_NAMES = ("neutral", "no emotion")  # the corpora's; without a colour, others stand out


# The corpora's names of what has the same colour everywhere, by its place in ``drawing.COLOURS``.
USUAL_NAMES = {
    name: number
    for number, names in enumerate(
        (
            ("sadness", "sad"),  # blue
            ("joy", "joyful", "happiness", "happy"),  # orange
            ("disgust", "peaceful", "frustrated"),  # green
            ("fear", "scared"),  # pink
            ("surprise", "powerful", "excited"),  # light blue
            ("anger", "angry", "mad"),  # red
        )
    )
    for name in names
}


def colour_number(emotion: str, emotions: Sequence[str]) -> int:
    """Which colour an emotion has, on pages and on the terminal.

    Args:
      emotion: its name.
      emotions: all classes, in order.

    Returns:
      A place in ``drawing.COLOURS`` below N_COLOURS; names that are not usual get those that are
      left, which come again where there are many emotions. N_COLOURS, which is grey, for the
      neutral one.
    """
    if emotion in NEUTRAL_NAMES:
        return N_COLOURS
    if emotion in USUAL_NAMES:
        return USUAL_NAMES[emotion]
    taken = {USUAL_NAMES.get(name) for name in emotions}
    left = [number for number in range(N_COLOURS) if number not in taken] or range(N_COLOURS)
    unusual = [name for name in emotions if name not in (*NEUTRAL_NAMES, *USUAL_NAMES)]
    return left[unusual.index(emotion) % len(left)]


MAX_POINTS = 200  # of a curve: more than a screen shows


def curves(title: str, description: str, lines: Sequence[Curve], names: tuple[str, str]) -> Markup:
    """A chart of lines.

    Args:
      title: of the chart.
      description: what a reader who cannot see it is told.
      lines: with at least one point in all.
      names: of the axes.
    """
    finite = [point for line in lines for point in line.points if np.isfinite(point).all()]
    axes = _Axes(_span([x for x, _ in finite], 0.02), _span([y for _, y in finite]), names)
    parts = axes.parts
    for line in sorted(lines, key=lambda line: line.main):  # the main one on top
        points = [point for point in line.points if np.isfinite(point).all()]
        thinned = points[:: -(-len(points) // MAX_POINTS) or 1]
        places = [(axes.x(x), axes.y(y)) for x, y in thinned]
        parts.append(_path(places, "main" if line.main else "other", line.name))
        parts += [_circle(axes.x(x), axes.y(y), 4.5, "mark") for x, y in points if x == line.mark]
    return _svg(title, description, axes.height, parts)


def reliability(title: str, description: str, bins: Sequence[tuple[int, float, float]]) -> Markup:
    """How often predictions of a confidence are right, and how many there are of each.

    Args:
      title: of the chart.
      description: in words.
      bins: number of predictions, mean confidence, share that is right, of equally wide bins of
        [0, 1].
    """
    axes = _Axes((0, 1), (0, 1), ("confidence", "share that is right"))
    width = 1 / len(bins)
    total = max(sum(count for count, _, _ in bins), 1)
    parts = axes.parts
    for number, (count, confidence, right) in enumerate(bins):
        if not count:
            continue
        left = axes.x(number * width) + 1.5
        parts.append(
            Markup(
                '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="bar" '
                'fill-opacity="{:.2f}"><title>{:,} utterances, mean confidence {:.1%}, right '
                "{:.1%}</title></rect>"
            ).format(
                left,
                axes.y(right),
                axes.x((number + 1) * width) - 1.5 - left,
                axes.bottom - axes.y(right),
                0.25 + 0.6 * min(4 * count / total, 1),  # bins of few utterances are pale
                count,
                confidence,
                right,
            )
        )
        parts.append(_circle(axes.x(confidence), axes.y(right), 3.5, "mark"))
    parts.append(_line(axes.x(0), axes.y(0), axes.x(1), axes.y(1), "ideal"))
    return _svg(title, description, axes.height, parts)


TURNS = 28  # in a line of a timeline; more would not be told apart on a phone


def timeline(
    title: str,
    description: str,
    true: Sequence[str | None],
    predicted: Sequence[str | None],
    emotions: Sequence[str],
) -> Markup:
    """A dialogue's emotions, turn by turn: rings are true ones, dots predicted ones.

    A long dialogue goes on in further lines.

    Args:
      title: of the chart.
      description: in words.
      true: of each turn, at least one.
      predicted: of each turn.
      emotions: all classes; those that do not occur get no row.
    """
    rows = [name for name in emotions if name in {*true, *predicted}]
    left, row_height = 92, 22
    height = row_height * len(rows) + 22
    step = (WIDTH - RIGHT - left) / min(len(true), TURNS)
    radius = min(5.5, 0.4 * step)
    parts = []
    for start in range(0, len(true), TURNS):
        top = 8 + height * (start // TURNS)
        n_turns = len(true[start : start + TURNS])
        y_of = {name: top + row_height * (number + 0.5) for number, name in enumerate(rows)}
        x_of = [left + step * (place + 0.5) for place in range(n_turns)]
        for name, y in y_of.items():
            shown = name if len(name) <= 13 else name[:12] + "…"
            parts += [_line(left, y, WIDTH - RIGHT, y), _text(left - 6, y + 4, shown, "end")]
        thread = zip(x_of, predicted[start:], strict=False)
        parts.append(_path([(x, y_of[emotion]) for x, emotion in thread if emotion], "thread"))
        for kind, of_turns, size in (("ring", true, radius + 1), ("dot", predicted, radius - 1)):
            for x, emotion in zip(x_of, of_turns[start:], strict=False):
                if emotion:
                    style = f"{kind} e{colour_number(emotion, emotions)}"
                    parts.append(_circle(x, y_of[emotion], size, style))
        for place in sorted({0, n_turns // 2, n_turns - 1}):
            bottom = top + row_height * len(rows)
            parts.append(_text(x_of[place], bottom + 12, str(start + place + 1)))
    bottom = 8 + height * -(-len(true) // TURNS)
    parts.append(_text((left + WIDTH - RIGHT) / 2, bottom + 8, "turn"))
    return _svg(title, description, bottom + 14, parts)


def plane(
    title: str,
    description: str,
    means: Mapping[str, tuple[float, float]],
    rated: Mapping[str, tuple[float, float]],
    names: tuple[str, str],
    emotions: Sequence[str],
) -> Markup:
    """Mean predicted ratings of each emotion in a plane, with a line to the mean of its ratings.

    Args:
      title: of the chart.
      description: in words.
      means: emotion to its place, at least one.
      rated: likewise, a cross, where there are ratings.
      names: of the axes.
      emotions: all classes.
    """
    places = [*means.values(), *rated.values()]
    spans = (_span([x for x, _ in places], 0.15), _span([y for _, y in places], 0.12))
    axes = _Axes(*spans, names, height=300)
    parts = axes.parts
    marks = {name: (axes.x(x), axes.y(y)) for name, (x, y) in means.items()}
    for name, (px, py) in marks.items():
        colour = colour_number(name, emotions)
        if name in rated:
            rx, ry = axes.x(rated[name][0]), axes.y(rated[name][1])
            parts += [
                _line(px, py, rx, ry, f"link e{colour}"),
                _line(rx - 4, ry - 4, rx + 4, ry + 4, f"cross e{colour}"),
                _line(rx - 4, ry + 4, rx + 4, ry - 4, f"cross e{colour}"),
            ]
        parts.append(_circle(px, py, 5, f"dot e{colour}"))
    # What names must not cover: the middle of its height, its ends from left to right.
    taken = [(py, px - 5, px + 5) for px, py in marks.values()]
    for name, (px, py) in marks.items():
        right = px < 0.72 * WIDTH
        start, end = (
            (px + 9, px + 9 + 6.8 * len(name)) if right else (px - 9 - 6.8 * len(name), px - 9)
        )
        beside = [t for t, left, other in taken if left <= end and start <= other]
        middles = [py, *np.arange(TOP + 6, axes.bottom - 6, 2).tolist()]
        free = [y for y in middles if all(abs(y - t) >= 12 for t in beside)]
        middle = min(free or [py], key=lambda y, py=py: abs(y - py))  # type: ignore[misc]
        taken.append((middle, start, end))
        x = px + 9 if right else px - 9
        if abs(middle - py) > 8:
            parts.append(_line(px, py, x, middle, "axis"))
        parts.append(_text(x, middle + 4, name, "start" if right else "end", 'class="halo"'))
    return _svg(title, description, axes.height, parts)


def intervals(
    title: str,
    description: str,
    rows: Sequence[tuple[str, float, float, float]],
    name: str,
) -> Markup:
    """A row for each: a dot with its interval.

    Args:
      title: of the chart.
      description: in words.
      rows: name, value, lower and upper end.
      name: of the axis.
    """
    low = min(min(row[1:]) for row in rows)
    high = max(max(row[1:]) for row in rows)
    low, high = _span([low, high])
    height, left = 26 * len(rows) + 48, 60
    bottom = height - 40

    def place(value: float) -> float:
        return left + (value - low) / (high - low) * (WIDTH - RIGHT - left)

    parts = []
    for tick in ticks(low, high):
        parts += [
            _line(place(tick), 4, place(tick), bottom),
            _text(place(tick), bottom + 15, f"{tick:g}"),
        ]
    for number, (label, value, lower, upper) in enumerate(rows):
        y = 4 + 26 * (number + 0.5)
        parts += [
            _text(left - 8, y + 4, label, "end"),
            _line(place(lower), y, place(upper), y, "whisker"),
            _circle(
                *(place(value), y, 5, "mark"),
                tooltip=f"{label}: {value:.2f}, {lower:.2f} to {upper:.2f}",
            ),
        ]
    parts.append(_text((left + WIDTH - RIGHT) / 2, height - 6, name))
    return _svg(title, description, height, parts)


def shade(share: float) -> Markup:
    """A cell's background: the stronger, the larger the share; texts on it stay legible."""
    return escape(f"background:rgba(0,114,178,{0.6 * share:.2f})")
