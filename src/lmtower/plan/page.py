"""The plan as one HTML page: table and bars as in the terminal, drawn as SVG. No script, no outside resource."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from lmtower.plan.picture import COLUMNS, engine_row, notes, on_node, segments
from lmtower.plan.types import NodePlan, Plan

_GIB = 1024**3
_WIDTH, _HEIGHT = 960, 56
_HUES = (212, 28, 145, 268, 340, 182, 52, 96)
_SHADES = {"weights": 38, "cache": 56, "overhead": 74}
_FREE = {"free": "#d8dee4", "reserve": "#8c959f"}
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:62rem;padding:0 1rem;color:#1b1f24}
table{border-collapse:collapse;width:100%;margin:1rem 0}
td,th{padding:.3rem .6rem;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}.no{color:#a40e26}.yes{color:#116329}svg{width:100%;height:auto}
.legend i{display:inline-block;width:.8em;height:.8em;margin:0 .3em 0 1em}.limit{stroke:#a40e26}
@media(prefers-color-scheme:dark){body{background:#14171a;color:#e6e8ea}td,th{border-color:#333}
.no{color:#ff8a94}.yes{color:#5fd38d}.limit{stroke:#ff8a94}}
"""


def page(plan: Plan, title: str = "lmtower plan") -> str:
    """A whole document."""
    verdict = '<p class="yes">It fits.</p>' if plan.fits else '<p class="no">It does not fit.</p>'
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            verdict,
            *(part for node in plan.nodes for part in _node(node, plan)),
            _table(plan),
            "<ul>",
            *(f"<li>{escape(note)}</li>" for note in notes(plan)),
            "</ul></body></html>",
            "",
        )
    )


def _node(node: NodePlan, plan: Plan) -> Iterator[str]:
    facts = node.facts
    yield (
        f"<h2>{escape(facts.name)} <small>{escape(facts.hardware or '')} "
        f"{facts.memory_total_bytes / _GIB:.1f} GiB</small></h2>"
    )
    label = f"Memory of {escape(facts.name, quote=True)}"
    yield f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + 24}" role="img" aria-label="{label}">'
    yield from _bars(node, plan)
    yield "</svg>"
    engines = on_node(node, plan)
    keys = "".join(
        f'<i style="background:{_colour(index, "weights")}"></i>{escape(engine.name)}'
        for index, engine in enumerate(engines)
    )
    keys += f'<i style="background:{_FREE["free"]}"></i>free<i style="background:{_FREE["reserve"]}"></i>reserve'
    limit = "; the line is where the memory ends" if node.free_bytes < 0 else ""
    yield f'<p class="legend">{keys}<br>Dark to light: weights, KV cache, overhead{limit}.</p>'


def _bars(node: NodePlan, plan: Plan) -> Iterator[str]:
    total = max(node.facts.memory_total_bytes, node.used_bytes, 1)
    engines = on_node(node, plan)
    order = {engine.name: index for index, engine in enumerate(engines)}
    at = 0.0
    for name, kind, size in segments(node, engines):
        width = size / total * _WIDTH
        colour = _colour(order[name], kind) if name else _FREE[kind]
        label = f"{name or node.facts.name}: {kind} {size / _GIB:.2f} GiB"
        place = f'x="{at:.2f}" y="0" width="{width:.2f}" height="{_HEIGHT}"'
        yield f'<rect {place} fill="{colour}"><title>{escape(label)}</title></rect>'
        if kind == "weights" and width > 40:
            yield f'<text x="{at + 4:.2f}" y="{_HEIGHT + 18}" font-size="14" fill="currentColor">{escape(name)}</text>'
        at += width
    if node.free_bytes < 0:
        edge = node.facts.memory_total_bytes / total * _WIDTH
        yield f'<line x1="{edge:.2f}" x2="{edge:.2f}" y1="0" y2="{_HEIGHT + 6}" class="limit" stroke-width="3"/>'


def _colour(index: int, kind: str) -> str:
    return f"hsl({_HUES[index % len(_HUES)]} 60% {_SHADES[kind]}%)"


def _table(plan: Plan) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in COLUMNS)
    body = "".join(
        "<tr>"
        + "".join(f"<td>{'–' if cell is None else escape(str(cell))}</td>" for cell in engine_row(engine))
        + "</tr>"
        for engine in plan.engines
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
