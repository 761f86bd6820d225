"""A coroutine that runs in its caller's stack until it has to wait, and goes on in the stack of what it waited for.

Theory of operation
-------------------
An ``asyncio.Task`` takes its first step in the next turn of the loop, and so does a task whose future is done. For a
request that waits once, for its engine, that is three turns, three handles and a context switch each, a tenth of all
work that the request is. An ``Errand`` takes its first step in ``start``. It can await anything that tasks can;
an ``Answer`` (what an engine's connection gives) wakes it at once, in the callback in which the last byte came.

What an errand is not: a task. ``asyncio.current_task`` is None inside, so ``asyncio.timeout`` and libraries that need
a task go into one: ``await asyncio.create_task(...)``. ``cancel`` raises CancelledError inside before it returns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import Any


class Errand:
    """Runs a coroutine. ``on_end`` is told how it ended: with None, or with what it raised."""

    __slots__ = ("_cancelled", "_coroutine", "_on_end", "_running", "_waiting", "done")

    def __init__(self, coroutine: Coroutine[Any, Any, None], on_end: Callable[[BaseException | None], object]) -> None:
        self.done = False
        self._on_end = on_end
        self._coroutine = coroutine
        self._waiting: Any = None
        self._cancelled = False
        self._running = False

    def start(self) -> None:
        """Run up to where the coroutine waits for the first time."""
        self._go_on(None)

    def cancel(self) -> None:
        """Raise CancelledError where the coroutine waits; if it runs just now, where it waits next."""
        if self.done:
            return
        if self._running:
            self._cancelled = True
            return
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.remove_done_callback(self._go_on)
            waiting.cancel()
        self._go_on(None, asyncio.CancelledError)

    def _go_on(self, waited: object, raised: type[BaseException] | None = None) -> None:
        """Take the next step; ``waited`` is done, or a ``raised`` is raised where the coroutine waits."""
        # a future that was done before ``cancel`` still calls, when the coroutine may wait for something else
        if waited is not self._waiting or self.done:
            return
        self._running = True
        coroutine = self._coroutine
        ended: BaseException | None = None
        try:
            waiting = coroutine.send(None) if raised is None else coroutine.throw(raised)
            while self._cancelled:
                self._cancelled = False
                waiting = coroutine.throw(asyncio.CancelledError())
        except StopIteration:
            pass
        except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001 - whoever waits for the end hears of it
            ended = exc
        else:
            self._running = False
            if waiting is None:  # asyncio.sleep(0)
                waiting = Signal()
                asyncio.get_running_loop().call_soon(waiting.wake)
            self._waiting = waiting
            waiting._asyncio_future_blocking = False
            waiting.add_done_callback(self._go_on)
            return
        self._running = False
        self.done = True
        self._on_end(ended)
        # it holds this frame and the coroutine's: together they, and the bodies in them, would wait for the collector
        ended = None


class Signal:
    """What one coroutine waits for, woken in the stack of ``wake``. Tasks may wait for it too; they are woken soon."""

    __slots__ = ("_asyncio_future_blocking", "_cancelled", "_waiter")

    def __init__(self) -> None:
        self._waiter: Callable[[Any], object] | None = None
        self._cancelled = False

    def __await__(self) -> Generator[Any, None, None]:
        """Wait for the next ``wake``."""
        self._asyncio_future_blocking = True
        yield self

    def wake(self) -> None:
        """Let the waiting coroutine go on, if one waits."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter(self)

    # What a task asks of a future that it waits for.

    def add_done_callback(self, callback: Callable[[Any], object], *, context: Context | None = None) -> None:
        """Remember who waits. Only tasks give a context: they cannot run inside of another one's step."""
        if context is None:
            self._waiter = callback
        else:
            loop = asyncio.get_running_loop()
            self._waiter = lambda signal: loop.call_soon(callback, signal, context=context)

    def remove_done_callback(self, callback: Callable[[Any], object]) -> None:
        """Forget who waits."""
        self._waiter = None

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The loop of the task that asks."""
        return asyncio.get_running_loop()

    def cancel(self, msg: object = None) -> bool:
        """The waiting task is cancelled. False: it was just woken, and is told in another way."""
        self._cancelled = waiting = self._waiter is not None
        self.wake()
        return waiting

    def result(self) -> None:
        """Raises CancelledError when the task that waited was cancelled."""
        if self._cancelled:
            self._cancelled = False
            raise asyncio.CancelledError
