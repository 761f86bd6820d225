"""The frame that stays the same around the text from chunk to chunk of one stream.

Theory of operation: an engine writes every chunk of a stream from one mould: the same id, time, model and fields, with
another piece of text in the middle. Once a chunk has been looked at properly and found plain, its bytes before and
after the text are kept. A later event that begins and ends with these same bytes, and has no quote in between, can
hold nothing but other text (a quote inside JSON text is escaped, and a raw line break cannot occur in it), so it needs
no second look. Three comparisons stand for a dozen searches, thousands of times per answer.
"""

from __future__ import annotations

from collections.abc import Callable


class Frame:
    """``marker`` is what stands right before the text, up to its opening quote."""

    __slots__ = ("_after", "_before", "_between", "_marker", "_new_between", "_tail", "head", "size")

    def __init__(self, marker: bytes) -> None:
        self._marker = marker
        self._before = b""
        self._after = b""
        self._tail: bytes | None = None
        """What stands after the quote behind the text."""
        self._between = b""
        """What stands between the texts of two events."""
        self._new_between = b""
        self.head = b""
        """What is sent in place of the first ``size`` bytes of an event."""
        self.size = 0

    def learn(self, event: bytes, rename: Callable[[bytes], bytes]) -> None:
        """Keep the frame of a plain event, and its head as clients are to see it."""
        text = event.find(self._marker) + len(self._marker)
        if text < len(self._marker) or event.find(b"\n\n") != len(event) - 2:
            return
        quote = event.find(b'"', text)
        before, after = event[:text], event[quote:]
        if event[quote - 1] != 0x5C and rename(after) == after:
            self._before, self._after, self.head, self.size = before, after, rename(before), text
            self._tail = after[1:]
            self._between, self._new_between = after + before, after + self.head

    def inside(self, data: bytes, start: int) -> bytes:
        """What is sent in place of the event from ``start`` to the last two bytes; nothing if it has another frame."""
        text = start + self.size
        rest = data[text:-2]
        if rest.partition(b'"')[2] != self._tail or data[start:text] != self._before:
            return b""
        return self.head + rest

    def renamed(self, run: bytes) -> tuple[int, bytes]:
        """How many events the run is made of, and what is sent in its place; 0 if not all of them have this frame."""
        before, after = self._before, self._after
        if not before or not run.startswith(before):
            return 0, b""
        quote = run.find(b'"', self.size)
        if not run.startswith(after, quote):
            return 0, b""
        if quote + len(after) == len(run):
            return 1, self.head + run[self.size :]
        if not run.endswith(after):
            return 0, b""
        texts = run[self.size : -len(after)].split(self._between)
        if b"".join(texts).find(b'"') >= 0:
            return 0, b""
        return len(texts), self.head + self._new_between.join(texts) + after
