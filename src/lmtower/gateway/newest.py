"""Autocomplete: of one editor's requests only the newest counts.

An editor asks at every pause of typing and throws the earlier answers away; some do not close the connection when
they do. So a new request gives up the older ones of the same editor, queued or running, unless it says the very
same (minuet asks three times at once to choose from three answers).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

from lmtower.wire.faults import Fault


class Superseded:
    """One running autocomplete request."""

    __slots__ = ("body", "cancel", "hit")

    def __init__(self, body: int, cancel: Callable[[], None]) -> None:
        self.body = body
        self.cancel = cancel
        self.hit = False


class Newest:
    """The running autocomplete requests of every editor."""

    def __init__(self) -> None:
        self._running: dict[Hashable, list[Superseded]] = {}

    @contextmanager
    def only(self, editor: Hashable, body: bytes, cancel: Callable[[], None]) -> Iterator[None]:
        """Run as the newest request of this editor. A newer one calls ``cancel``, and this raises Fault(409)."""
        mine = Superseded(hash(body), cancel)
        others = self._running.setdefault(editor, [])
        others.append(mine)
        for other in [other for other in others if other.body != mine.body and not other.hit]:
            other.hit = True
            other.cancel()
        try:
            yield
        except asyncio.CancelledError:
            if mine.hit:  # by a newer request; should the client have left, too, nobody reads the answer
                raise Fault(
                    409, "superseded", "A newer autocomplete request of this editor came.", should_retry=False
                ) from None
            raise
        finally:
            others.remove(mine)
            if not others:
                del self._running[editor]
