"""``lmtower top`` on a terminal: a frame as rich renderables, made for 80 columns and 24 lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lmtower.cli.top_data import Frame, Memory, Rates

_STATES = {"ready": "green", "starting": "yellow", "draining": "yellow", "failed": "bold red", "stopped": "dim"}
_LANES = ("interactive", "agent", "default", "batch")
_HEAD_LINES = 4  # title, blank, help, and one spare


def screen(frame: Frame, height: int = 24) -> RenderableType:
    """The whole screen. What does not fit into ``height`` is counted in the last line of its table."""
    engines = list(frame.status.get("engines", ()))
    personas = list(frame.status.get("personas", ()))
    room = max(6, height - _HEAD_LINES - len(frame.memory) - 4)
    engine_rows = min(len(engines), max(2, room // 2))
    persona_rows = min(len(personas), room - engine_rows)
    parts: list[RenderableType] = [_title(frame), _engines(frame, engines, engine_rows)]
    parts.append(_personas(frame, personas, persona_rows))
    parts += [_memory(memory) for memory in frame.memory]
    parts.append(Text("q quits", style="dim"))
    return Group(*parts)


def _title(frame: Frame) -> Text:
    total, status = frame.total, frame.status
    gateway, snapshot = status.get("gateway", {}), status.get("snapshot", {})
    text = Text()
    text.append("lmtower ", style="bold")
    text.append(f"{gateway.get('listen', '')}  ")
    text.append(
        f"{total.requests:.1f} req/s  {_number(total.input_tokens)} in/s  {_number(total.output_tokens)} out/s  "
    )
    text.append(f"cached {_share(total.hit_rate)}  streams {gateway.get('open_streams', 0)}")
    if snapshot.get("error"):
        text.append("\nthe tower file is wrong, the last good one serves: lmtower check", style="bold red")
    return text


def _engines(frame: Frame, engines: Sequence[Mapping[str, Any]], rows: int) -> Table:
    table = _table("ENGINE", "state", "slots", "queue", "in/s", "out/s", "hit")
    for engine in engines[:rows]:
        rates = frame.engines.get(engine["name"], Rates())
        hit = rates.hit_rate if rates.hit_rate is not None else engine.get("hit_rate")
        table.add_row(
            _cut(engine["name"], 20),
            Text(engine["state"], style=_STATES.get(engine["state"], "")),
            _slots(engine["in_flight"], engine["slots"]),
            _queue(engine.get("queued", {}), engine.get("held", ())),
            _number(rates.input_tokens),
            _number(rates.output_tokens),
            _share(hit),
        )
    return _with_rest(table, len(engines) - rows)


def _personas(frame: Frame, personas: Sequence[Mapping[str, Any]], rows: int) -> Table:
    table = _table("PERSONA", "engine", "lane", "req/s", "out/s", "ttft", "hit")
    busy = sorted(personas, key=lambda one: -frame.personas.get(one["name"], Rates()).requests)
    for persona in busy[:rows]:
        rates = frame.personas.get(persona["name"], Rates())
        hit = rates.hit_rate if rates.hit_rate is not None else persona.get("hit_rate")
        table.add_row(
            _cut(persona["name"], 20),
            _cut(persona["engine"], 14),
            persona["lane"],
            f"{rates.requests:.1f}",
            _number(rates.output_tokens),
            _seconds(persona.get("ttft_p50")),
            _share(hit),
        )
    return _with_rest(table, len(personas) - rows)


def _memory(memory: Memory, width: int = 40) -> Text:
    gib = 1024**3
    used = memory.total_bytes - memory.available_bytes
    filled = round(width * used / memory.total_bytes) if memory.total_bytes else 0
    short = memory.reserve_bytes is not None and memory.available_bytes < memory.reserve_bytes
    text = Text(f"{_cut(memory.node, 12):<12} ")
    text.append("█" * filled, style="red" if short else "cyan").append("░" * (width - filled), style="dim")
    text.append(f" {memory.available_bytes / gib:.1f} of {memory.total_bytes / gib:.1f} GiB free")
    return text


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), expand=True, header_style="bold")
    table.add_column(first, no_wrap=True, ratio=2)
    for column in columns:
        table.add_column(column, justify="left" if column in ("state", "engine", "lane") else "right", no_wrap=True)
    return table


def _with_rest(table: Table, rest: int) -> Table:
    if rest > 0:
        table.add_row(Text(f"… {rest} more", style="dim"))
    return table


def _slots(used: int, slots: int) -> Text:
    bar = "■" * min(used, 8) + "□" * max(0, min(slots, 8) - used)
    return Text(f"{bar} {used}/{slots}", style="yellow" if slots and used >= slots else "")


def _queue(queued: Mapping[str, int], held: Sequence[str]) -> Text:
    """Waiting requests by lane, interactive first; a lane held by the watchdog is marked."""
    text = Text()
    for lane in _LANES:
        number = queued.get(lane, 0)
        style = "bold red" if lane in held else "yellow" if number else "dim"
        text.append(("/" if text else "") + str(number), style=style)
    return text


def _number(value: float) -> str:
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.1f}{unit}"
    return f"{value:.0f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
