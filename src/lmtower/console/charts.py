"""Charts as SVG text: no script draws them, no style attribute is needed. Pure.

Colours come from classes (``s1`` to ``s4``), so that light and dark are the style sheet's business. The shapes stretch
with the page; text stays outside of the stretched picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

WIDTH, HEIGHT = 600.0, 140.0


@dataclass(frozen=True, slots=True)
class Line:
    """One series; None is a gap. ``shade`` picks the colour."""

    name: str
    values: Sequence[float | None]
    shade: int = 1


def top_of(lines: Sequence[Line]) -> float:
    """A round number at or above every value; 1 when all are zero."""
    most = max((value for line in lines for value in line.values if value is not None), default=0.0)
    if most <= 0:
        return 1.0
    scale = 1.0
    while scale * 10 <= most:
        scale *= 10
    while scale > most:
        scale /= 10
    return next((step * scale for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * scale >= most * 0.999), 10 * scale)


def chart(
    times: Sequence[float],
    lines: Sequence[Line],
    show: Callable[[float | None], str],
    when: Callable[[float], str],
    *,
    top: float | None = None,
    label: str = "",
) -> Markup:
    """A line chart over time with its scale and its latest values in words."""
    top = top or top_of(lines)
    drawn = [_line(times, line, top) for line in lines] if len(times) > 1 else []
    grid = "".join(f'<line class="rule" x1="0" x2="{WIDTH:g}" y1="{y:g}" y2="{y:g}"/>' for y in (0.5, 70, 139.5))
    latest = "; ".join(f"{line.name} {show(_last(line.values))}" for line in lines)
    ends = (when(times[0]), when(times[-1])) if len(times) > 1 else ("", "")
    empty = "" if drawn else '<p class="waiting">collecting …</p>'
    return Markup(
        f'<div class="chart">{empty}<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(f"{label}: {latest}", quote=True)}">{grid}{"".join(drawn)}</svg>'
        f'<span class="top">{escape(show(top))}</span>'
        f'<span class="from">{escape(ends[0])}</span><span class="to">{escape(ends[1])}</span></div>'
    )


def _last(values: Sequence[float | None]) -> float | None:
    return next((value for value in reversed(values) if value is not None), None)


def _line(times: Sequence[float], line: Line, top: float) -> str:
    span = times[-1] - times[0]
    runs: list[list[tuple[float, float]]] = [[]]
    for at, value in zip(times, line.values, strict=True):
        if value is None:
            runs.append([])
        else:
            x = (at - times[0]) / span * WIDTH if span else 0.0
            runs[-1].append((x, HEIGHT - 1 - min(1.0, max(0.0, value / top)) * (HEIGHT - 4)))
    return "".join(_run(run, line.shade) for run in runs if run)


def _run(run: Sequence[tuple[float, float]], shade: int) -> str:
    if len(run) == 1:
        (x, y), half = run[0], 5.0
        return f'<path class="line s{shade}" d="M{max(0.0, x - half):.1f} {y:.1f}L{min(WIDTH, x + half):.1f} {y:.1f}"/>'
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in run)
    area = f"M{run[0][0]:.1f} {HEIGHT:g}L{path}L{run[-1][0]:.1f} {HEIGHT:g}Z"
    return f'<path class="area s{shade}" d="{area}"/><path class="line s{shade}" d="M{path}"/>'


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a bar. ``kind`` is a class of the style sheet."""

    name: str
    size: float
    kind: str


def bar(parts: Sequence[Part], total: float, label: str, *, height: int = 12) -> Markup:
    """Parts side by side on a track of ``total``."""
    at, drawn = 0.0, []
    whole = max(total, sum(part.size for part in parts)) or 1.0
    for part in parts:
        width = part.size / whole * 1000
        if width > 0:
            drawn.append(
                f'<rect class="{part.kind}" x="{at:.1f}" y="0" width="{width:.1f}" height="{height}">'
                f"<title>{escape(part.name)}</title></rect>"
            )
        at += width
    return Markup(
        f'<svg class="bar" viewBox="0 0 1000 {height}" height="{height}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label, quote=True)}"><rect class="track" width="1000" height="{height}"/>'
        f"{''.join(drawn)}</svg>"
    )


def columns(values: Sequence[tuple[str, float]], label: str) -> Markup:
    """One column a value, for usage by day."""
    most = max((value for _, value in values), default=0.0) or 1.0
    width = 600 / max(1, len(values))
    rects = "".join(
        f'<rect class="column" x="{i * width + width * 0.12:.1f}" width="{width * 0.76:.1f}" '
        f'y="{100 - value / most * 98:.1f}" height="{value / most * 98:.1f}"><title>{escape(name)}</title></rect>'
        for i, (name, value) in enumerate(values)
    )
    return Markup(
        f'<svg class="columns" viewBox="0 0 600 100" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label, quote=True)}">{rects}<line class="rule" x1="0" x2="600" y1="99.5" y2="99.5"/>'
        "</svg>"
    )
