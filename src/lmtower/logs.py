"""Loggers: an event in words, facts as fields. Lines of JSON for machines, structlog's for people.

structlog brings its development renderer and with it rich's tracebacks: a third of the gateway's start-up, and 120 ms
of the interpreter at its first event, when the first requests come. So a tower whose log is read by machines does not
load it: a line of JSON needs a dict. For people, the first event is handed to a thread that imports structlog, sets it
up and writes what waits, in order; once it is loaded, events are written directly.
"""

from __future__ import annotations

import functools
import json
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any


class _Writer:
    """Where events go until structlog is loaded: a queue that its loader empties."""

    def __init__(self) -> None:
        self.loaded = False
        self.as_json = False
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


def configure(setup: Callable[[], None] | None) -> None:
    """Say how structlog is to be configured when it is loaded; None: lines of JSON on stderr, without it."""
    _writer().as_json = setup is None
    if setup is not None:
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
        self._write("error", event, {"exc_info": sys.exc_info(), **fields})

    def _write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        if not _writer().as_json:
            _writer().write(lambda: self._emit(level, event, fields))
        elif level != "debug":
            sys.stderr.write(as_json(level, event, fields, time.time()) + "\n")

    def _emit(self, level: str, event: str, fields: dict[str, Any]) -> None:
        if self._log is None:
            import structlog

            self._log = structlog.get_logger(self._name)
        getattr(self._log, level)(event, **fields)


def as_json(level: str, event: str, fields: dict[str, Any], now: float) -> str:
    """The line that structlog's JSON renderer would write."""
    shown = {name: value for name, value in fields.items() if name != "exc_info"}
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    shown |= {"event": event, "level": level, "timestamp": f"{seconds}.{int(now % 1 * 1e6):06}Z"}
    if "exc_info" in fields:
        shown["exception"] = "".join(traceback.format_exception(*fields["exc_info"])).rstrip("\n")
    return json.dumps(shown, default=repr)


def get_logger(name: str = "lmtower") -> Logger:
    """A logger for one module."""
    return Logger(name)
