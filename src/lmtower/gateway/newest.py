"""Autocomplete: of one editor's requests only the newest counts.

An editor asks at every pause of typing and throws the earlier answers away; some do not close the connection when
they do. So a new request gives up the older ones of the same editor, queued or running, unless it says the very
same (minuet asks three times at once to choose from three answers).
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from lmtower.wire.faults import Fault


class Superseded:
    """One running autocomplete request."""

    __slots__ = ("body", "hit", "task")

    def __init__(self, body: int, task: asyncio.Task[object]) -> None:
        self.body = body
        self.task = task
        self.hit = False


class Newest:
    """The running autocomplete requests of every editor."""

    def __init__(self) -> None:
        self._running: dict[Hashable, list[Superseded]] = {}

    @contextmanager
    def only(self, editor: Hashable, body: bytes) -> Iterator[None]:
        """Run as the newest request of this editor. Raises Fault(409) when a newer one comes."""
        task = asyncio.current_task()
        assert task is not None
        mine = Superseded(hash(body), task)
        others = self._running.setdefault(editor, [])
        for other in others:
            if other.body != mine.body and not other.hit:
                other.hit = True
                other.task.cancel()
        others.append(mine)
        try:
            yield
        except asyncio.CancelledError:
            # cancelled by a newer request, not by the client's leaving: the connection is still there to answer on
            if mine.hit and task.uncancel() == 0:
                raise Fault(
                    409, "superseded", "A newer autocomplete request of this editor came.", should_retry=False
                ) from None
            raise
        finally:
            others.remove(mine)
            if not others:
                del self._running[editor]
