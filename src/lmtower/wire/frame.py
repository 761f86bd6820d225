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

    __slots__ = ("_after", "_before", "_marker", "head", "size")

    def __init__(self, marker: bytes) -> None:
        self._marker = marker
        self._before = b""
        self._after = b""
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

    def fits(self, run: bytes) -> int:
        """How many events the run is made of, if all of them have this frame; else 0."""
        before, after = self._before, self._after
        at, end, events = 0, len(run), 0
        if not before:
            return 0
        while at < end:
            if not run.startswith(before, at):
                return 0
            quote = run.find(b'"', at + len(before))
            if not run.startswith(after, quote):
                return 0
            at = quote + len(after)
            events += 1
        return events
