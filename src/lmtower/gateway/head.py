"""Request heads that say the same again: found by comparing bytes, without parsing.

Theory of operation. A client that keeps its connection sends the same request line and headers each time; only the
length of the body differs. So once a head was parsed and found in order, its bytes before and behind the digits of
Content-Length are kept. A later request that begins with these bytes, with other digits between them, parses to the
same head: there is nothing in it that could be read in another way. Anything else goes through the parser. The heads
of an engine's answers repeat in the same way. A client that connects anew for every request repeats itself, too: the
heads that were parsed last are found by their bytes on every connection (``Heads``).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from urllib.parse import unquote_to_bytes

from lmtower.gateway.exchange import Head

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d{1,12})\r\n", re.IGNORECASE)
_MOST_HEADS = 256
_MOST_BYTES = 4096
_NEVER_AGAIN = (b"transfer-encoding", b"expect", b"upgrade")


class Repeat:
    """A head as bytes. ``match`` and ``whole`` say whether more bytes begin with it."""

    __slots__ = ("_after", "_around", "_at", "_before", "_digits", "_most")

    def __init__(self, before: bytes, after: bytes) -> None:
        self._before = before
        self._after = after
        self._at = len(before)
        self._around = len(before) + len(after)
        self._digits = 0
        self._most = len(before) + 12 + len(after)

    def whole(self, data: bytes) -> int:
        """Where the body begins when the data are a message with this head and all of its body, else 0.

        Only finds lengths with as many digits as the last one that ``match`` found: then the length of the data tells
        what the head has to say, and one comparison is enough.
        """
        length = len(data) - self._around - self._digits
        head = b"%b%d%b" % (self._before, length, self._after)
        start = len(head)
        return start if start + length == len(data) and data.startswith(head) else 0

    def match(self, data: bytes) -> tuple[int, int] | None:
        """(where the body begins, its length) when the data begin with this head, else None."""
        if not data.startswith(self._before):
            return None
        at = self._at
        end = data.find(self._after, at, self._most)
        digits = data[at:end]
        if end < 0 or not digits.isdigit():
            return None
        self._digits = len(digits)
        return end + len(self._after), int(digits)


class RequestRepeat(Repeat):
    """The bytes of a request's head, and what they say."""

    __slots__ = ("head",)

    def __init__(self, before: bytes, after: bytes, head: Head) -> None:
        super().__init__(before, after)
        self.head = head


def around_length(data: bytes) -> tuple[bytes, bytes] | None:
    """The head at the start of the data, before and behind the digits of its Content-Length; None without one."""
    end = data.find(b"\r\n\r\n") + 4
    found = _LENGTH.search(data, 0, end) if end >= 4 else None
    return None if found is None else (data[: found.start(1)], data[found.end(1) : end])


class Heads:
    """The heads that were parsed last, for whoever connects next."""

    def __init__(self) -> None:
        self._heads: OrderedDict[tuple[bytes, bytes], Head] = OrderedDict()

    def keep(self, head: Head, data: bytes) -> RequestRepeat | None:
        """The head at the start of ``data``, if its like can be recognised: with a length, complete, kept alive."""
        if not head.keep_alive or not head.http11 or any(name in head.headers for name in _NEVER_AGAIN):
            return None
        parts = around_length(data)
        if parts is None:
            return None
        if len(parts[0]) + len(parts[1]) <= _MOST_BYTES:
            self._heads[parts] = head
            if len(self._heads) > _MOST_HEADS:
                self._heads.popitem(last=False)
        return RequestRepeat(*parts, head)

    def clear(self) -> None:
        """Forget them: what the handler found out from them holds on to a configuration that is no more."""
        self._heads.clear()

    def find(self, data: bytes) -> RequestRepeat | None:
        """The head at the start of the first read of a connection, if it was parsed before."""
        parts = around_length(data)
        head = self._heads.get(parts) if parts is not None else None
        if head is None or parts is None:
            return None
        self._heads.move_to_end(parts)
        return RequestRepeat(*parts, head)


def target(url: bytes) -> tuple[str, bytes]:
    """Path (decoded) and query (as it came) of a request target, which may be absolute (RFC 9112 3.2.2)."""
    if not url.startswith(b"/"):
        scheme = url.find(b"://")
        slash = url.find(b"/", scheme + 3) if scheme > 0 else -1
        url = url[slash:] if slash > 0 else b"/"
    path, _, query = url.partition(b"?")
    if b"%" in path:
        path = unquote_to_bytes(path)
    return path.decode("latin-1"), query
