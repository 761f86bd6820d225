"""How starting engines looks on a terminal: one line a phase with its time, a bar while something is fetched."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from lmtower.cli.output import table

if TYPE_CHECKING:
    from lmtower.nodes.apply import Event
    from lmtower.nodes.diff import Step
    from lmtower.nodes.drivers import Progress

_SIGNS = {"start": "+", "stop": "-", "replace": "~", "keep": "="}
_WIDTH = 30
_GIB = 1024**3


class Printer:
    """Prints events. On a terminal a bar is drawn in place; elsewhere every tenth is a line."""

    def __init__(self, out: TextIO = sys.stderr) -> None:
        self._out = out
        self._live = out.isatty()
        self._tenths: dict[str, int] = {}
        self._said: dict[str, str] = {}
        self._bar = False

    def __call__(self, event: Event) -> None:
        """Print one event."""
        if event.progress is not None:
            self._progress(event.engine, event.progress)
            return
        if event.elapsed is not None:
            self._goes_on(event, event.elapsed)
            return
        if event.phase == "fetch" and (event.seconds or 0) < 1:
            return
        if event.seconds is not None:
            self._line(f"{event.engine}  {event.phase} done in {event.seconds:.1f} s")
        elif event.phase in ("failed", "warning", "measured"):
            self._line(f"{event.engine}  {event.phase}: {event.detail}")
        elif event.phase != "memory":
            self._line(f"{event.engine}  {event.phase}{': ' * bool(event.detail)}{event.detail} ...")

    def _progress(self, engine: str, at: Progress) -> None:
        share = at.done_bytes / at.total_bytes if at.total_bytes else 0.0
        text = f"{engine}  {at.what} {bar(share)} {at.done_bytes / _GIB:.1f} of {at.total_bytes / _GIB:.1f} GiB"
        if self._live:
            self._in_place(text)
        elif int(share * 10) != self._tenths.get(at.what):
            self._tenths[at.what] = int(share * 10)
            print(text, file=self._out, flush=True)

    def _goes_on(self, event: Event, elapsed: float) -> None:
        """On a terminal the seconds are counted; elsewhere a line is worth it when something new is said."""
        words = f": {event.detail}" if event.detail else ""
        if self._live:
            self._in_place(f"{event.engine}  {event.phase} {elapsed:.0f} s{words}")
        elif event.detail and self._said.get(event.engine) != event.detail:
            self._said[event.engine] = event.detail
            self._line(f"{event.engine}  {event.phase} {elapsed:.0f} s{words}")

    def _in_place(self, text: str) -> None:
        print(f"\r{text}\x1b[K", end="", file=self._out, flush=True)
        self._bar = True

    def _line(self, text: str) -> None:
        if self._bar:
            print(file=self._out)
            self._bar = False
        print(text, file=self._out, flush=True)


def bar(share: float) -> str:
    """``[#####.....]  50 %``."""
    full = round(share * _WIDTH)
    return f"[{'#' * full}{'.' * (_WIDTH - full)}] {share:4.0%}"


def diff_text(steps: Sequence[Step]) -> str:
    """The diff as a table: sign, engine, node, what and why."""
    return table(
        ("", "ENGINE", "NODE", "STEP", "WHY"),
        [(_SIGNS[step.action], step.engine, step.node, step.action, step.why) for step in steps],
    )
