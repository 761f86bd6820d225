"""Logs of a running tower: readable lines on a terminal, one JSON object a line everywhere else."""

from __future__ import annotations

import sys

from lmtower import logs


def configure_logs(*, as_json: bool = False) -> None:
    """Have events written to stderr, with time and level."""
    logs.configure(_for_people if sys.stderr.isatty() and not as_json else None)


def _for_people() -> None:
    import structlog

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(20),
        cache_logger_on_first_use=True,
    )
