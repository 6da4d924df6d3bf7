"""Size against divergence, as an SVG that stands in a page and takes its colours from there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 480, 340
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 14, 50
# About what a character of a label takes, and its height.
LETTER, LINE = 7.6, 14.0
# Beyond these ratios an axis is logarithmic.
LOG_FROM = 3.0


@dataclass(frozen=True)
class Point:
    """A model in the plot: bytes, divergence and its error, and whether no other beats it."""

    label: str
    size: float
    loss: float
    error: float
    best: bool


@dataclass(frozen=True)
class Measure:
    """What is lost: its name, what stands at the axis, and the unit behind a number."""

    name: str
    axis: str
    unit: str = ""


DIVERGENCE = Measure("KL divergence", "mean KLD in nats", " nats")
PERPLEXITY = Measure("perplexity", "PPL")


@dataclass(frozen=True)
class Axis:
    """Where the values from `low` to `high` lie between the positions `begin` and `end`."""

    low: float
    high: float
    begin: float
    end: float
    log: bool

    @staticmethod
    def over(values: Sequence[float], begin: float, end: float, pad: float = 0.08) -> "Axis":
        """One on which all of `values` have room."""
        low, high = min(values), max(values)
        if low > 0 and high / low > LOG_FROM:
            factor = (high / low) ** pad
            return Axis(low / factor, high * factor, begin, end, log=True)
        room = (high - low) * pad or abs(high) * 0.5 or 1.0
        return Axis(low - room, high + room, begin, end, log=False)

    def at(self, value: float) -> float:
        """The position of `value`; of one beyond the axis that of its end."""
        low, high, value = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.begin + (value - low) / (high - low) * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Round values on it, three to eight."""
        if not self.log:
            return _even(self.low, self.high)
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for steps in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)):
            found = [s * 10.0**d for d in decades for s in steps]
            found = [value for value in found if self.low <= value <= self.high]
            if len(found) >= 4:
                return found
        return found


def _even(low: float, high: float) -> list[float]:
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(s * unit for s in (1, 2, 5, 10) if s * unit >= rough)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


@dataclass(frozen=True)
class Box:
    """A part of the plot that is taken."""

    x0: float
    y0: float
    x1: float
    y1: float

    def meets(self, other: "Box") -> bool:
        return (
            self.x0 < other.x1 and other.x0 < self.x1 and self.y0 < other.y1 and other.y0 < self.y1
        )


def size_plot(
    points: Sequence[Point], base: float | None, measure: Measure = DIVERGENCE, name: str = "plot"
) -> Markup:
    """The SVG, with title and description for who does not see it; `base` is the size of the
    reference, `measure` what is lost, `name` begins the ids of the page's elements. Numbers of
    `points` are finite; there is one at least."""
    sizes = [point.size for point in points] + ([base] if base else [])
    x = Axis.over(sizes, LEFT, WIDTH - RIGHT)
    y = Axis.over([point.loss for point in points], HEIGHT - BOTTOM, TOP)
    best = sorted((point for point in points if point.best), key=lambda point: point.size)
    line = " ".join(f"{x.at(p.size):.1f},{y.at(p.loss):.1f}" for p in best)
    parts = [
        Markup('<svg class="plot" viewBox="0 0 {0} {1}" role="img" aria-labelledby="{2}-title '
               '{2}-text">').format(WIDTH, HEIGHT, name),
        Markup('<title id="{}-title">Size against {}</title>').format(name, measure.name),
        Markup('<desc id="{}-text">{}</desc>').format(name, _described(points, best, measure)),
        *_axes(x, y, measure),
    ]  # fmt: skip
    if base:
        parts += _reference(x.at(base))
    if len(best) > 1:
        parts.append(Markup('<polyline class="best-line" points="{}"/>').format(line))
    parts += [_marker(point, x, y) for point in points]
    parts += _labels(points, x, y)
    return Markup("\n").join([*parts, Markup("</svg>")])


def _described(points: Sequence[Point], best: Sequence[Point], measure: Measure) -> str:
    each = "; ".join(f"{p.label}: {in_bytes(p.size)}, {p.loss:.3g}{measure.unit}" for p in points)
    return f"{each}. On the Pareto line: {', '.join(p.label for p in best)}."


def _axes(x: Axis, y: Axis, measure: Measure) -> list[Markup]:
    parts = []
    for value in x.ticks():
        parts.append(
            Markup(
                '<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>'
                '<text class="tick" x="{0:.1f}" y="{3}" text-anchor="middle">{4}</text>'
            ).format(x.at(value), TOP, HEIGHT - BOTTOM, HEIGHT - BOTTOM + 16, in_bytes(value))
        )
    for value in y.ticks():
        parts.append(
            Markup(
                '<line class="grid" x1="{1}" x2="{2}" y1="{0:.1f}" y2="{0:.1f}"/>'
                '<text class="tick" x="{3}" y="{4:.1f}" text-anchor="end">{5}</text>'
            ).format(y.at(value), LEFT, WIDTH - RIGHT, LEFT - 6, y.at(value) + 4, f"{value:.4g}")
        )
    scales = ["logarithmic" if axis.log else "linear" for axis in (x, y)]
    parts.append(Markup(
        '<text class="name" x="{0:.1f}" y="{1}" text-anchor="middle">size ({2})</text>'
        '<text class="name" transform="translate(14 {3:.1f}) rotate(-90)" text-anchor="middle">'
        '{5} ({4})</text>'
    ).format((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, scales[0],
             (TOP + HEIGHT - BOTTOM) / 2, scales[1], measure.axis))  # fmt: skip
    return parts


def _reference(at: float) -> list[Markup]:
    return [
        Markup('<line class="base-line" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>'
               '<text class="tick" x="{3:.1f}" y="{4}" text-anchor="end">reference</text>'
               ).format(at, TOP, HEIGHT - BOTTOM, at - 5, HEIGHT - BOTTOM - 6)
    ]  # fmt: skip


def _marker(point: Point, x: Axis, y: Axis) -> Markup:
    """A disk for what no other beats, an open diamond for the rest; a line as long as the error."""
    cx, cy = x.at(point.size), y.at(point.loss)
    low, high = y.at(point.loss - point.error), y.at(point.loss + point.error)
    bar = Markup('<line class="error" x1="{0:.1f}" x2="{0:.1f}" y1="{1:.1f}" y2="{2:.1f}"/>')
    if point.best:
        shape = Markup('<circle class="best" cx="{:.1f}" cy="{:.1f}" r="5"/>').format(cx, cy)
    else:
        corners = ((cx, cy - 6), (cx + 6, cy), (cx, cy + 6), (cx - 6, cy))
        around = " ".join(f"{left:.1f},{top:.1f}" for left, top in corners)
        shape = Markup('<polygon class="other" points="{}"/>').format(around)
    return bar.format(cx, low, high) + shape


def _labels(points: Sequence[Point], x: Axis, y: Axis) -> list[Markup]:
    """The labels, each where nothing else is, if there is such a place beside its point."""
    places = [(x.at(point.size), y.at(point.loss)) for point in points]
    taken = [Box(cx - 6, cy - 6, cx + 6, cy + 6) for cx, cy in places]
    found = []
    for point, (cx, cy) in zip(points, places, strict=True):
        label = point.label if len(point.label) <= 16 else f"{point.label[:15]}…"
        wide = len(label) * LETTER
        corners = [
            (cx + dx, cy + dy)
            for dx, dy in (
                (9, -LINE / 2), (-9 - wide, -LINE / 2), (-wide / 2, -9 - LINE), (-wide / 2, 9),
                (7, -7 - LINE), (7, 7), (-7 - wide, -7 - LINE), (-7 - wide, 7),
                (-9 - wide, -LINE), (-9 - wide, 0), (-9 - wide, -2 * LINE), (-9 - wide, LINE),
                (9, -2 * LINE), (9, LINE), (-9 - wide, -3 * LINE), (-9 - wide, 2 * LINE),
            )
        ]  # fmt: skip
        boxes = [Box(left, top, left + wide, top + LINE) for left, top in corners]
        inside = [
            box
            for box in boxes
            if box.x0 >= LEFT and box.x1 <= WIDTH and box.y0 >= 0 and box.y1 <= HEIGHT - BOTTOM
        ]
        free = [box for box in inside if not any(box.meets(other) for other in taken)]
        box = (free or inside or boxes)[0]
        taken.append(box)
        # The width is a guess: a label begins or ends on the side of its point.
        at, anchor = (box.x1, "end") if box.x1 < cx else (box.x0, "start")
        text = Markup('<text class="label" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
        found.append(text.format(at, box.y1 - 3, anchor, escape(label)))
    return found


def in_bytes(size: float) -> str:
    """`size` in a unit of a thousand of the one before, three digits or so."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while abs(size) >= 999.5 and len(units) > 1:
        size /= 1000
        del units[0]
    return f"{size:.3g} {units[0]}"


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """The numbers of the points (size, loss) that no other beats: none is as small and loses less,
    or loses as little and is smaller. In order of size; a loss that is no number takes no part."""
    known = [n for n, (_, loss) in enumerate(points) if math.isfinite(loss)]
    found: list[int] = []
    for number in sorted(known, key=lambda n: points[n]):
        if not found or points[number][1] < points[found[-1]][1]:
            found.append(number)
    return found
