"""Line charts as SVG, to stand in an HTML page. Every text is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 14, 40
_COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df")
_MOST_POINTS = 1000
_NICE = (1, 1.2, 1.6, 2, 2.4, 2.8, 3.2, 4, 4.8, 6, 8, 10, 12)


@dataclass(frozen=True, slots=True)
class Series:
    """A line (or with `is_dots` its points alone) with its name."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    is_dots: bool = False


def chart(title: str, series: Sequence[Series], *, x_label: str, y_label: str) -> str:
    """A chart of one or more series, from 0 upwards. Long ones are thinned out evenly."""
    x_most = _round_up(max((x for one in series for x in one.xs), default=0.0))
    y_most = _round_up(max((y for one in series for y in one.ys), default=0.0))
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">',
        *_axes(x_most, y_most, x_label, y_label),
    ]
    for index, one in enumerate(series):
        colour = _COLOURS[index % len(_COLOURS)]
        points = _points(one, x_most, y_most)
        if one.is_dots:
            parts += (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.5" fill="{colour}"/>'
                      for x, y in points)  # fmt: skip
        else:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(
                f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
            )
        left = _LEFT + 10 + 150 * index
        parts.append(f'<rect x="{left}" y="2" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{left + 14}" y="11">{escape(one.name)}</text>')
    heading = f"<figcaption>{escape(title)}</figcaption>"
    return f"<figure>{heading}{''.join(parts)}</svg></figure>"


def _axes(x_most: float, y_most: float, x_label: str, y_label: str) -> list[str]:
    parts = []
    for step in range(5):
        share = step / 4
        x, y = _place(share, share)
        parts += [
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>',
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{y_most * share:g}</text>',
            f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 15}" text-anchor="middle">'
            f"{x_most * share:g}</text>",
        ]
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts += [
        f'<text x="{(_LEFT + _WIDTH) / 2:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">'
        f"{escape(x_label)}</text>",
        f'<text transform="translate(12 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>",
    ]
    return parts


def _points(one: Series, x_most: float, y_most: float) -> list[tuple[float, float]]:
    stride = max(1, math.ceil(len(one.xs) / _MOST_POINTS))
    pairs = zip(one.xs[::stride], one.ys[::stride], strict=True)
    return [_place(x / x_most, y / y_most) for x, y in pairs]


def _place(x_share: float, y_share: float) -> tuple[float, float]:
    x = _LEFT + x_share * (_WIDTH - _LEFT - _RIGHT)
    return x, _HEIGHT - _BOTTOM - y_share * (_HEIGHT - _BOTTOM - _TOP)


def _round_up(value: float) -> float:
    """The next number of which a quarter is short; 1 for nothing."""
    if not 0 < value < math.inf:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(nice * power for nice in _NICE if nice * power >= value)
