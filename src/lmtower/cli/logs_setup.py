"""Logs of a running tower: readable lines on a terminal, one JSON object a line everywhere else."""

from __future__ import annotations

import functools
import sys

from lmtower import logs


def configure_logs(*, as_json: bool = False) -> None:
    """Have structlog write events to stderr, with time and level, once it is loaded."""
    logs.configure(functools.partial(_configure, as_json))


def _configure(as_json: bool) -> None:
    import structlog

    pretty = sys.stderr.isatty() and not as_json
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if pretty
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if pretty else "iso", utc=not pretty),
            *([] if pretty else [structlog.processors.format_exc_info]),
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(20),
        cache_logger_on_first_use=True,
    )
