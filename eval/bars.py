"""Small graphics for lists and tables as inline SVG: bars with marks, strips of dots, sparklines."""

import math
from collections.abc import Sequence

import msgspec
from markupsafe import Markup

Number = float | int


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """A reference value on a bar: chance, majority, untrained, wanted, planned ..."""

    kind: str
    value: Number


def bar(
    value: Number, *, scale: Number, marks: Sequence[Mark] = (), error: Number | None = None, style: str = ""
) -> Markup:
    """A bar in percentages of its cell, with reference marks and a line of one standard error each way.

    Marks beyond the scale are left out. Hidden from assistive technology: the number stands beside every bar.
    """
    parts = [Markup('<rect class="fill" width="{:.2f}%" height="100%"/>').format(_percent(value, scale))]
    if error:
        low, high = _percent(value - error, scale), _percent(value + error, scale)
        parts.append(Markup('<line class="error" x1="{:.2f}%" x2="{:.2f}%" y1="50%" y2="50%"/>').format(low, high))
    parts += [_mark(mark, scale) for mark in marks if mark.value <= scale]
    return Markup('<svg class="bar {}" aria-hidden="true" focusable="false">{}</svg>').format(
        style, Markup("").join(parts)
    )


_MARK_SHAPES = {
    "majority": Markup('<path d="M-3.5 0h7M0 -3.5v7"/>'),
    "untrained": Markup('<circle r="3.2"/>'),
    "ema": Markup('<path d="M0 -4l4 4l-4 4l-4 -4z"/>'),
    "ignore_rule": Markup('<path d="M-3 -3l6 6M-3 3l6 -6"/>'),
}


def mark_shape(kind: str) -> Markup:
    """The sign of a kind of mark around (0, 0): a plus, a ring, a lozenge, a cross; an upright line for all others."""
    return _MARK_SHAPES.get(kind, Markup('<path d="M0 -7v14"/>'))


def _mark(mark: Mark, scale: Number) -> Markup:
    return Markup('<svg class="mark {}" x="{:.2f}%" y="50%" overflow="visible">{}</svg>').format(
        mark.kind, _percent(mark.value, scale), mark_shape(mark.kind)
    )


def _percent(value: Number, scale: Number) -> Number:
    """Where a value lies on a bar, kept inside it."""
    return min(100.0, max(0.0, 100 * value / scale)) if scale > 0 and math.isfinite(value) else 0.0


def strip(
    dots: Sequence[tuple[Number, str, str]],
    *,
    scale: Number,
    marks: Sequence[Mark] = (),
    mean: Number | None = None,
) -> Markup:
    """One dot per (value, tooltip, style) on a common scale; dots are see-through, so crowds look darker."""
    circles = [
        Markup('<circle class="{}" cx="{:.2f}%" cy="50%" r="4.5"><title>{}</title></circle>').format(
            style, _percent(value, scale), tip
        )
        for value, tip, style in dots
    ]
    shapes = [_mark(mark, scale) for mark in marks if mark.value <= scale]
    if mean is not None:
        shapes.append(_mark(Mark(kind="mean", value=mean), scale))
    return Markup('<svg class="strip" aria-hidden="true" focusable="false">{}</svg>').format(
        Markup("").join([*shapes, *circles])
    )


def sparkline(values: Sequence[Number]) -> Markup:
    """A small line of how a value went, without axes; the numbers stand beside it."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return Markup("")
    low, high = min(finite), max(finite)
    span, gap = (high - low) or 1.0, 96 / (len(finite) - 1)
    points = " ".join(f"{2 + i * gap:.1f},{22 - 18 * (value - low) / span:.1f}" for i, value in enumerate(finite))
    return Markup(
        '<svg class="spark" viewBox="0 0 100 24" aria-hidden="true" focusable="false"><polyline points="{}"/></svg>'
    ).format(points)
