"""Line charts over steps as inline SVG; colours come from the report's style sheet."""

import math
from collections.abc import Sequence

import msgspec
from markupsafe import Markup

from eval.bars import Number

MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 52, 14, 26, 38
HOVER_COLUMNS = 100


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """One line, or with `dots` one set of unconnected points. Values that are not finite leave a gap."""

    name: str
    style: str
    """CSS class that gives the colour and width."""
    xs: Sequence[Number]
    ys: Sequence[Number]
    dots: bool = False


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """A vertical line at `x`; the span from `x` to `until` is shaded (steps that were run again)."""

    x: Number
    until: Number
    label: str
    detail: str


def smooth(values: Sequence[Number], weights: Sequence[Number], *, half_life: Number) -> list[Number]:
    """Weighted averages over both neighbourhoods, so that the smooth line does not lag behind the values.

    s_t = sum_i d^|t-i| w_i v_i / sum_i d^|t-i| w_i with d = 0.5 ** (1 / half_life). A value that is
    not finite counts for nothing. With equal weights and half_life 1, values 4, 2, 2 give 3.143, 2.5, 2.286.
    """
    decay = 0.5 ** (1 / half_life)
    terms = [(w * v, w) if math.isfinite(v) else (0.0, 0.0) for v, w in zip(values, weights, strict=True)]
    forward, backward = _decaying_sums(terms, decay), _decaying_sums(terms[::-1], decay)[::-1]
    sums = [
        (left[0] + right[0] - own[0], left[1] + right[1] - own[1])
        for left, right, own in zip(forward, backward, terms, strict=True)
    ]
    return [total / norm if norm > 0 else math.nan for total, norm in sums]


def _decaying_sums(terms: Sequence[tuple[Number, Number]], decay: Number) -> list[tuple[Number, Number]]:
    """At each place the sums of the terms up to it, each halved with distance."""
    total = norm = 0.0
    sums = []
    for value, weight in terms:
        total, norm = total * decay + value, norm * decay + weight
        sums.append((total, norm))
    return sums


def nice_ticks(low: Number, high: Number, *, count: int = 5) -> list[Number]:
    """About `count` round numbers, 1, 2 or 5 times a power of ten apart, that span `low` to `high`."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    gap = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.8)
    first, last = math.floor(low / gap + 1e-9), math.ceil(high / gap - 1e-9)
    return [round(index * gap, 12) for index in range(first, last + 1)]


def thin(xs: Sequence[Number], ys: Sequence[Number], *, limit: int) -> tuple[list[Number], list[Number]]:
    """About `limit` of the points: the lowest and highest of each stretch, so that spikes stay visible."""
    if len(xs) <= limit:
        return list(xs), list(ys)
    stretch = 2 * len(xs) / limit
    kept = {0, len(xs) - 1}
    for index in range(math.ceil(limit / 2)):
        inside = range(int(index * stretch), min(len(xs), int((index + 1) * stretch)))
        finite = [i for i in inside if math.isfinite(ys[i])]
        if finite:
            kept |= {min(finite, key=lambda i: ys[i]), max(finite, key=lambda i: ys[i])}
        else:
            kept |= set(inside[:1])
    order = sorted(kept)
    return [xs[i] for i in order], [ys[i] for i in order]


def format_tick(value: Number) -> str:
    """A number short enough to stand beside an axis: 2M, 50k, 0.25."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (abs(value) >= size and size > 1e3):
            return f"{value / size:.3g}{unit}"
    return format_number(value)


def format_number(value: Number) -> str:
    """A short decimal for axes and tables: 12,500, 0.25, 1.5e-05; a dash where there is no number."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


class _Frame(msgspec.Struct, frozen=True, kw_only=True):
    """Where data coordinates fall in an SVG of `width` by `height`."""

    width: int
    height: int
    x_ticks: list[Number]
    y_ticks: list[Number]

    def x(self, value: Number) -> Number:
        low, high = self.x_ticks[0], self.x_ticks[-1]
        return MARGIN_LEFT + (value - low) / (high - low) * (self.width - MARGIN_LEFT - MARGIN_RIGHT)

    def y(self, value: Number) -> Number:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return MARGIN_TOP + (high - value) / (high - low) * (self.height - MARGIN_TOP - MARGIN_BOTTOM)


def line_chart(
    series: Sequence[Series],
    *,
    name: str,
    title: str,
    description: str,
    size: tuple[int, int] = (960, 340),
    moments: Sequence[Moment] = (),
    y_from_zero: bool = False,
    style: str = "",
) -> Markup:
    """An SVG line chart over steps; `name` keeps its ids apart from those of other charts in the page."""
    ys = [y for line in series for y in line.ys if math.isfinite(y)]
    xs = [x for line in series for x in line.xs]
    if not ys:
        return Markup("")
    width, height = size
    frame = _Frame(
        width=width,
        height=height,
        x_ticks=_span_ticks(min(xs), max(xs), count=max(3, width // 130)),
        y_ticks=nice_ticks(0.0 if y_from_zero else min(ys), max(ys), count=max(2, height // 60)),
    )
    head = Markup(
        '<svg class="chart {}" role="img" viewBox="0 0 {} {}" aria-labelledby="{}-title {}-desc">'
        '<title id="{}-title">{}</title><desc id="{}-desc">{}</desc>'
    ).format(style, width, height, name, name, name, title, name, description)
    parts = [head, _axes(frame), *(_moment(moment, frame) for moment in moments)]
    parts += [_dots(line, frame) if line.dots else _path(line, frame) for line in series]
    return Markup("").join([*parts, _hover(series, frame), Markup("</svg>")])


def _span_ticks(low: Number, high: Number, *, count: int) -> list[Number]:
    """Round step numbers inside the span, with the span's own ends as first and last."""
    if high <= low:
        low, high = low - 1, high + 1
    inside = [tick for tick in nice_ticks(low, high, count=count) if low < tick < high]
    room = (high - low) / count / 2
    return [low, *(tick for tick in inside if tick - low > room and high - tick > room), high]


def _axes(frame: _Frame) -> Markup:
    right, bottom = frame.width - MARGIN_RIGHT, frame.height - MARGIN_BOTTOM
    rows = [
        Markup(
            '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
            '<text class="axis" x="{}" y="{:.1f}" text-anchor="end">{}</text>'
        ).format(MARGIN_LEFT, right, y, y, MARGIN_LEFT - 8, y + 4, format_tick(tick))
        for tick in frame.y_ticks
        for y in [frame.y(tick)]
    ]
    columns = [
        Markup('<text class="axis" x="{:.1f}" y="{}" text-anchor="{}">{:,.0f}</text>').format(
            frame.x(tick), bottom + 18, "end" if tick == frame.x_ticks[-1] else "middle", tick
        )
        for tick in frame.x_ticks
    ]
    label = Markup('<text class="axis" x="{:.1f}" y="{}" text-anchor="middle">step</text>').format(
        (MARGIN_LEFT + right) / 2, bottom + 34
    )
    return Markup("").join([*rows, *columns, label])


def _path(line: Series, frame: _Frame) -> Markup:
    xs, ys = thin(line.xs, line.ys, limit=frame.width)
    commands, pen_up = [], True
    for x, y in zip(xs, ys, strict=True):
        if math.isfinite(y):
            commands.append(f"{'M' if pen_up else 'L'}{frame.x(x):.1f} {frame.y(y):.1f}")
        pen_up = not math.isfinite(y)
    return Markup('<path class="line {}" d="{}"/>').format(line.style, "".join(commands))


def _dots(line: Series, frame: _Frame) -> Markup:
    return Markup("").join(
        Markup(
            '<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="4.5"><title>{} at step {:,.0f}: {}</title></circle>'
        ).format(line.style, frame.x(x), frame.y(y), line.name, x, format_number(y))
        for x, y in zip(line.xs, line.ys, strict=True)
        if math.isfinite(y)
    )


def _moment(moment: Moment, frame: _Frame) -> Markup:
    x, bottom = frame.x(moment.x), frame.height - MARGIN_BOTTOM
    flip = x > frame.width - 110
    return Markup(
        '<g class="moment"><title>{}</title>'
        '<rect x="{:.1f}" y="{}" width="{:.1f}" height="{}"/><line x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/>'
        '<text class="axis" x="{:.1f}" y="{}" text-anchor="{}">{}</text></g>'
    ).format(
        moment.detail,
        *(x, MARGIN_TOP, max(0.0, frame.x(moment.until) - x), bottom - MARGIN_TOP),
        *(x, x, MARGIN_TOP - 8, bottom),
        *(x - 5 if flip else x + 5, MARGIN_TOP - 10, "end" if flip else "start", moment.label),
    )


def _hover(series: Sequence[Series], frame: _Frame) -> Markup:
    """Invisible columns whose native tooltip gives the values there: no script needed."""
    lines = [line for line in series if not line.dots]
    if not lines:
        return Markup("")
    xs = lines[0].xs
    every = max(1, math.ceil(len(xs) / HOVER_COLUMNS))
    gap = (frame.width - MARGIN_LEFT - MARGIN_RIGHT) / max(1, len(xs) / every)
    cells = []
    for index in range(0, len(xs), every):
        values = ", ".join(f"{line.name} {format_number(line.ys[index])}" for line in lines if index < len(line.ys))
        cells.append(
            Markup('<rect x="{:.1f}" y="{}" width="{:.1f}" height="{}"><title>step {:,.0f}: {}</title></rect>').format(
                *(frame.x(xs[index]) - gap / 2, MARGIN_TOP, gap, frame.height - MARGIN_TOP - MARGIN_BOTTOM),
                *(xs[index], values),
            )
        )
    return Markup('<g class="hover">{}</g>').format(Markup("").join(cells))
