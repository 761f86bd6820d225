"""Logs: what a line holds, and what writing one loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from lmtower import logs

NOW = 1_795_437_000.0625
"""2026-11-23 12:30 UTC and a sixteenth."""


def _by_structlog(level: str, event: str, fields: dict[str, object]) -> str:
    event_dict = {**fields, "event": event, "level": level, "timestamp": "2026-11-23T12:30:00.062500Z"}
    for step in (structlog.processors.format_exc_info, structlog.processors.JSONRenderer()):
        event_dict = step(None, level, event_dict)
    return str(event_dict)


def _caught() -> dict[str, object]:
    try:
        raise KeyError("missing")
    except KeyError:
        return {"exc_info": sys.exc_info(), "number": 5}


@pytest.mark.parametrize(
    "fields",
    [{}, {"engine": "eyes", "seconds": 1.5, "found": None}, {"path": Path("/é\n"), "names": {"a"}}, _caught()],
)
def test_line_is_what_structlog_would_write(fields: dict[str, object]) -> None:
    """The same keys in the same order, unknown values by their repr, a traceback as text."""
    assert logs.as_json("warning", "engine lost", fields, NOW) == _by_structlog("warning", "engine lost", fields)


def test_log_of_a_service_loads_no_structlog() -> None:
    """Its lines go to stderr at once, those for debugging nowhere."""
    code = (
        "import sys; from lmtower.cli.logs_setup import configure_logs; from lmtower.logs import get_logger; "
        "configure_logs(); log = get_logger(); log.info('engine ready', engine='eyes'); log.debug('nothing'); "
        "print('structlog' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.startswith('{"engine": "eyes", "event": "engine ready", "level": "info", "timestamp": "20')
    assert (done.stderr.count("\n"), done.stdout) == (1, "False\n")
