"""The ledger for commands that work on it directly: no tower has to run."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from lmtower.cli.globals import Globals
from lmtower.errors import ConfigError, Refused

if TYPE_CHECKING:
    from lmtower.config import Tower
    from lmtower.ledger import Ledger


@contextmanager
def ledger(options: Globals) -> Iterator[tuple[Ledger, Tower | None]]:
    """The ledger of this call's data folder, and the tower file if it can be used.

    A key must be revocable when the tower file is wrong or gone: then only its ``database`` is looked at.
    """
    from lmtower.ledger import Ledger

    tower: Tower | None = None
    try:
        tower = options.load().tower
        url = tower.database
    except ConfigError:
        url = _database_of(options)
    opened = Ledger.open(options.data_dir, url)
    try:
        yield opened, tower
    finally:
        opened.shut()


def _database_of(options: Globals) -> str | None:
    """``database`` of a tower file that has problems elsewhere. Raises ConfigError when it has one there."""
    from lmtower.config.references import resolve
    from lmtower.config.source import read

    try:
        text = options.config.read_text("utf-8-sig")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as exc:
        raise Refused(f"{options.config} cannot be read: {exc}") from exc
    source = read(text, str(options.config))
    resolve(source, options.config.parent, options.environ)
    problems = [problem for problem in source.problems if problem.path == "database" or not source.data]
    url = source.data.get("database")
    if problems:
        raise ConfigError(problems)
    return url if isinstance(url, str) else None


def moment(text: str, now: float, *, past: bool) -> float:
    """``7d`` (ago, or from now on), ``2026-11-23``, ``2026-11-23T14:00``, UTC unless it says otherwise; seconds since
    the epoch. Raises Refused."""
    from lmtower.config.units import parse_duration

    if re.match(r"^\d{4}-", text):
        try:
            found = datetime.fromisoformat(text)
        except ValueError as exc:
            raise Refused(f"{text!r} is not a date. Write it as 2026-11-23 or 2026-11-23T14:00.") from exc
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    try:
        seconds = parse_duration(text)
    except ValueError as exc:
        raise Refused(f"{text!r} is neither a duration (30min, 12h, 7d) nor a date (2026-11-23).") from exc
    return now - seconds if past else now + seconds


def spoken_moment(at: float | None) -> str | None:
    """``2026-11-23 14:00`` (UTC)."""
    return None if at is None else time.strftime("%Y-%m-%d %H:%M", time.gmtime(at))


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], footer: Sequence[object] | None = None
) -> None:
    """A rich table on a terminal, aligned plain text elsewhere; the footer (totals) is set apart."""
    import sys

    from lmtower.cli.output import table

    if not sys.stdout.isatty():
        print(table(columns, [*rows, *([footer] if footer is not None else [])]))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, show_footer=footer is not None, pad_edge=False)
    for at, column in enumerate(columns):
        numeric = bool(rows) and all(row[at] is None or re.fullmatch(r"[\d.,]+%?", str(row[at])) for row in rows)
        total = "" if footer is None or footer[at] is None else str(footer[at])
        shown.add_column(column, justify="right" if numeric else "left", footer=total, overflow="fold")
    for row in rows:
        shown.add_row(*("-" if cell is None else str(cell) for cell in row))
    Console().print(shown)
