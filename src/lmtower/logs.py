"""Loggers that load structlog when the first event is logged, not when a module is imported.

structlog brings its development renderer and with it rich's tracebacks: a third of the gateway's start-up. The
first event of a process is therefore handed to a thread that imports structlog, sets it up and writes what waits,
in order; once it is loaded, events are written directly.
"""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable
from typing import Any


class _Writer:
    """Where events go until structlog is loaded: a queue that its loader empties."""

    def __init__(self) -> None:
        self.loaded = False
        self._setup: Callable[[], None] | None = None
        self._waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def configure(self, setup: Callable[[], None]) -> None:
        """``setup`` configures structlog; it runs in the loader, or now if structlog is already in use."""
        self._setup = setup
        if self.loaded:
            setup()

    def write(self, event: Callable[[], None]) -> None:
        with self._lock:
            if not self.loaded:
                self._waiting.put(event)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._load, name="logs")
                    self._thread.start()
                return
        event()

    def _load(self) -> None:
        import structlog  # noqa: F401 - the import is the work

        if self._setup is not None:
            self._setup()
        while True:
            with self._lock:
                if self._waiting.empty():
                    self.loaded = True
                    return
            self._waiting.get()()


@functools.cache
def _writer() -> _Writer:
    return _Writer()


def configure(setup: Callable[[], None]) -> None:
    """Say how structlog is to be configured when it is loaded."""
    _writer().configure(setup)


class Logger:
    """structlog's usual methods: an event in words, facts as fields."""

    __slots__ = ("_log", "_name")

    def __init__(self, name: str) -> None:
        self._name = name
        self._log: Any = None

    def debug(self, event: str, **fields: Any) -> None:
        self._write("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._write("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._write("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._write("error", event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """An error with the traceback of the exception that is being handled."""
        import sys

        self._write("error", event, {"exc_info": sys.exc_info(), **fields})

    def _write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        _writer().write(lambda: self._emit(level, event, fields))

    def _emit(self, level: str, event: str, fields: dict[str, Any]) -> None:
        if self._log is None:
            import structlog

            self._log = structlog.get_logger(self._name)
        getattr(self._log, level)(event, **fields)


def get_logger(name: str = "lmtower") -> Logger:
    """A logger for one module."""
    return Logger(name)
