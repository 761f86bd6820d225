"""Event streams cut anywhere: hands out whole events, keeps the unfinished rest.

Theory of operation: an engine writes ``data: …\\n\\n`` per token and the network cuts the bytes wherever it
likes. Most reads hold one or more whole events, and most events need no change, so the scanner hands out the
longest run of whole events as one piece; a protocol looks into it only if one of its markers occurs in it.
"""

from __future__ import annotations

DONE = b"data: [DONE]\n\n"


class Scanner:
    """Collects bytes and gives back runs of whole events."""

    __slots__ = ("_carriage", "_rest")

    def __init__(self) -> None:
        self._rest = b""
        self._carriage: bool | None = None

    def feed(self, data: bytes) -> bytes:
        """Whole events that are complete now, joined; ``b""`` while none is."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if self._carriage is not False:
            data = self._normalise(data)
        if data.endswith(b"\n\n"):
            return data
        cut = data.rfind(b"\n\n")
        if cut < 0:
            self._rest = data
            return b""
        self._rest = data[cut + 2 :]
        return data[: cut + 2]

    def rest(self) -> bytes:
        """What is left of an event that never got its end."""
        return self._rest

    def _normalise(self, data: bytes) -> bytes:
        """The spec also allows CRLF as line end. Seen once, it is expected for the whole stream."""
        if self._carriage is None:
            newline = data.find(b"\n")
            if newline < 0:
                return data
            self._carriage = newline > 0 and data[newline - 1] == 0x0D
            if not self._carriage:
                return data
        return data.replace(b"\r\n", b"\n")


def split(run: bytes) -> list[bytes]:
    """The single events of a run of whole events, each with its blank line."""
    return [event + b"\n\n" for event in run.split(b"\n\n") if event]


def data_of(event: bytes) -> bytes | None:
    """The data of one event (its ``data:`` lines joined); None for a comment."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2:
        return event[6:-2]
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def name_of(event: bytes) -> bytes:
    """The ``event:`` field of one event, ``b"message"`` when it has none."""
    for line in event.split(b"\n"):
        if line.startswith(b"event:"):
            return line[6:].strip()
    return b"message"
