"""Line charts as SVG, from nothing but their figures."""

import math
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 820, 420
LEFT, RIGHT, TOP, BOTTOM = 80, 260, 40, 56
# Told apart also by those who see few colours (Okabe and Ito).
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999"]
# Above the highest point and below the lowest.
HEADROOM = 1.3
SUFFIXES = [(1e9, "G"), (1e6, "M"), (1e3, "k")]


@dataclass
class Axis:
    label: str
    least: float
    most: float

    def at(self, value):
        """Where a value is, from 0 to 1."""
        return math.log(value / self.least) / math.log(self.most / self.least)

    def ticks(self):
        decades = range(math.floor(math.log10(self.least)), math.ceil(math.log10(self.most)) + 1)
        steps = (1, 2, 5) if len(decades) < 4 else (1,)
        ticks = [10.0**decade * step for decade in decades for step in steps]
        return [tick for tick in ticks if self.least <= tick <= self.most]


def chart(title, x_label, y_label, series):
    """`series`: points by name; both axes are logarithmic."""
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    x_axis = Axis(x_label, min(xs), max(xs))
    y_axis = Axis(y_label, min(ys) / HEADROOM, max(ys) * HEADROOM)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        text(LEFT, 22, title, size=15),
        *grid(x_axis, y_axis),
    ]
    for number, (name, points) in enumerate(series.items()):
        parts += line(name, points, number, x_axis, y_axis)
    return "\n".join([*parts, "</svg>", ""])


def grid(x_axis, y_axis):
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    for tick in x_axis.ticks():
        x = across(x_axis, tick)
        yield rule(x, TOP, x, bottom)
        yield text(x, bottom + 16, short(tick), "middle")
    for tick in y_axis.ticks():
        y = down(y_axis, tick)
        yield rule(LEFT, y, right, y)
        yield text(LEFT - 6, y + 4, short(tick), "end")
    yield text((LEFT + right) / 2, HEIGHT - 14, x_axis.label, "middle")
    middle = (TOP + bottom) / 2
    yield text(16, middle, y_axis.label, "middle", f' transform="rotate(-90 16 {middle:.1f})"')


def line(name, points, number, x_axis, y_axis):
    colour = COLOURS[number % len(COLOURS)]
    places = [(across(x_axis, x), down(y_axis, y)) for x, y in sorted(points)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
    if len(places) < 20:
        for x, y in places:
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
    y = TOP + 14 + number * 20
    x = WIDTH - RIGHT + 14
    yield f'<rect x="{x}" y="{y - 6}" width="18" height="3" fill="{colour}"/>'
    yield text(x + 24, y, name)


def across(axis, value):
    return LEFT + axis.at(value) * (WIDTH - LEFT - RIGHT)


def down(axis, value):
    return HEIGHT - BOTTOM - axis.at(value) * (HEIGHT - TOP - BOTTOM)


def rule(x1, y1, x2, y2):
    return (f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
            'stroke="#dddddd" stroke-width="1"/>')


def text(x, y, words, anchor="start", more="", size=12):
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
            f'fill="#222222"{more}>{escape(words)}</text>')


def short(number):
    for least, suffix in SUFFIXES:
        if number >= least:
            return f"{number / least:g}{suffix}"
    return f"{number:.3g}"
