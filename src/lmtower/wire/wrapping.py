"""A reply around another reply: it sees what the inner one sends, and may change it."""

from __future__ import annotations

from lmtower.wire.faults import Fault
from lmtower.wire.reply import Reply


class Wrapping(Reply):
    """Passes everything on to ``inner`` and shows its state as its own; ``changed`` is the place for changes."""

    __slots__ = ("again", "dialect", "enough", "inner")

    def __init__(self, inner: Reply) -> None:
        super().__init__(inner.served, inner.asked, inner.request_id)
        self.inner = inner
        self.follow()

    def follow(self) -> None:
        """Show the inner reply's state."""
        inner = self.inner
        self.dialect = inner.dialect
        self.usage, self.complete, self.events = inner.usage, inner.complete, inner.events
        self.again, self.enough = inner.again, inner.enough

    def changed(self, out: bytes, whole: bool) -> bytes:
        """What goes out in place of ``out``, which is not empty: an answer (``whole``) or events of a stream."""
        return out

    def alive(self) -> bytes:
        """The inner protocol's."""
        return self.inner.alive()

    def body(self, data: bytes) -> bytes:
        """The whole answer."""
        return self._passed(self.inner.body(data), True)

    def feed(self, data: bytes) -> bytes:
        """Stream bytes through the inner reply first."""
        return self._passed(self.inner.feed(data), False)

    def end(self) -> bytes:
        """What the inner reply sends last."""
        return self._passed(self.inner.end(), False)

    def retried(self, data: bytes) -> bytes:
        """The second answer: whole, or the rest of a stream."""
        out = self.inner.retried(data)
        return self._passed(out, out[:1] == b"{")

    def recovered(self, status: int, body: bytes) -> bool:
        """Whether the inner reply asks again."""
        found = self.inner.recovered(status, body)
        self.follow()
        return found

    def broken(self, fault: Fault) -> bytes:
        """The protocol's error event."""
        return self._passed(self.inner.broken(fault), False)

    def _passed(self, out: bytes, whole: bool) -> bytes:
        self.follow()
        return self.changed(out, whole) if out else out
