"""Large bodies made short before they are read: what need not be looked at is cut out, marked, and put back later.

Theory of operation
-------------------
Reading JSON costs time by the byte, and most bytes of a large body need not be read: the inside of a long text or
picture (nothing in it can end the text, so it has no grammar), and messages that an earlier request already said
(``gateway.beginnings``). Both are cut out and a mark takes their place; the short text has the same grammar as the
body, so it is valid exactly when the body is, and each of its fields is the body's field with marks in it.

- *Inside of a text*: a stretch without quotes and backslashes behind a quote. If that quote begins a text, so does
  the stretch lie in it, up to the next quote. If it ended one, JSON would go on with ``, : ] }`` or white space;
  stretches that begin so are left alone, and with anything else the body is broken, and the short text as well.
  Control characters in it are not noticed; engines refuse them.
- *Said before*: whole elements of a list, known to be valid with everything before them. One object stands for all.

Marks hold a random word of this process, so nobody can write one into a body. They never leave the gateway.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from lmtower.wire import top as tops
from lmtower.wire.faults import Fault
from lmtower.wire.top import Top

LEAST_BYTES = 32 * 1024
"""Shorter bodies are read as they are."""
_STEP = 8 * 1024
_SHOWN = 64
"""So much of a text stays: what a data URL says of itself."""
_NOTHING_CUT: Mapping[str, tuple[Any, bytes]] = MappingProxyType({})
_AFTER_A_TEXT = b" \t\r\n,:]}"


class Cut(NamedTuple):
    """``body[start:end]`` is cut out: whole elements of a list, or (``inside``) a part of a text."""

    start: int
    end: int
    inside: bool


class Marks:
    """What stands for cuts: their number behind ``word`` (letters and digits that nobody can guess)."""

    __slots__ = ("length", "pattern", "word")

    def __init__(self, word: bytes) -> None:
        self.word = word
        self.pattern = re.compile(rb'\{"%b(\d{6})":0\}|%b(\d{6})' % (word, word))
        self.length = len(word) + 6

    def of(self, number: int, inside: bool) -> bytes:
        """The mark of a cut inside of a text, or of elements."""
        return b"%b%06d" % (self.word, number) if inside else b'{"%b%06d":0}' % (self.word, number)


class Abridged:
    """A body read at its top level. ``top`` holds whole values; ``short`` shows a field with marks in it."""

    __slots__ = ("_cuts", "_marks", "_shorts", "body", "top")

    def __init__(self, body: bytes, top: Top, marks: Marks, cuts: Sequence[Cut] = ()) -> None:
        self.body = body
        self.top = top
        self._marks = marks
        self._cuts = cuts
        self._shorts: Mapping[str, tuple[Any, bytes]] = _NOTHING_CUT
        if not cuts:
            return
        self._shorts = shorts = {}
        for name, value in top.items():
            short = bytes(value)
            span = self._span(short)
            if span is not None:
                top[name] = msgspec.Raw(memoryview(body)[span[0] : span[1]])
                shorts[name] = top[name], short

    def short(self, name: str) -> bytes:
        """The field's text with marks in it; all of its text if nothing is cut out, or it was set to another one."""
        value = self.top[name]
        if not self._cuts:
            return bytes(value)
        whole, short = self._shorts.get(name, (None, b""))
        return short if value is whole else bytes(value)

    def whole(self, short: bytes) -> bytes:
        """A text with everything back in the place of its marks."""
        if not self._cuts or short.find(self._marks.word) < 0:
            return short
        return self._marks.pattern.sub(lambda mark: self.body[slice(*self._of(mark)[:2])], short)

    def stamped(self, short: bytes) -> tuple[bytes, int]:
        """A text with checksums in the place of its marks, and the length of the whole: enough to tell two apart."""
        if not self._cuts or short.find(self._marks.word) < 0:
            return short, len(short)
        length = len(short)

        def stamp(mark: re.Match[bytes]) -> bytes:
            nonlocal length
            cut = self._of(mark)
            length += cut.end - cut.start - len(mark[0])
            return b"%d:%08x" % (cut.end - cut.start, zlib.crc32(memoryview(self.body)[cut.start : cut.end]))

        return self._marks.pattern.sub(stamp, short), length

    def rest(self, text: str) -> tuple[str, bytes | memoryview]:
        """A decoded text that may end with a mark: what is shown of it, and what was cut off."""
        length = self._marks.length
        if self._cuts and text[-length:-6] == self._marks.word.decode():
            cut = self._cuts[int(text[-6:])]
            return text[:-length], memoryview(self.body)[cut.start : cut.end]
        return text, b""

    def place(self, name: str) -> tuple[int, int] | None:
        """Where in the body a field with cuts lies; None for others."""
        found = self._shorts.get(name)
        return None if found is None or self.top.get(name) is not found[0] else self._span(found[1])

    def begins(self, name: str) -> bool:
        """Whether the field is a list that begins with the first cut: elements which were said before."""
        found = self._shorts.get(name)
        return found is not None and not self._cuts[0].inside and found[1].startswith(b"[" + self._marks.of(0, False))

    def _of(self, mark: re.Match[bytes]) -> Cut:
        return self._cuts[int(mark[1] or mark[2])]

    def _span(self, short: bytes) -> tuple[int, int] | None:
        """Where the text of a field lies in the body, reckoned from its first and last mark."""
        if short.find(self._marks.word) < 0:
            return None
        marks = list(self._marks.pattern.finditer(short))
        first, last = marks[0], marks[-1]
        return self._of(first).start - first.start(), self._of(last).end + len(short) - last.end()


def split(body: bytes, marks: Marks, said: Cut | None = None, step: int = _STEP) -> Abridged:
    """Read the top level of a body. ``said``: elements known from an earlier request. Raises Fault(400)."""
    cuts = [said] if said is not None else []
    if len(body) > step:
        cuts += long_texts(body, said.end if said is not None else 0, step)
    if not cuts:
        return Abridged(body, tops.split(body), marks)
    pieces: list[bytes] = []
    at = 0
    for number, cut in enumerate(cuts):
        pieces += (body[at : cut.start], marks.of(number, cut.inside))
        at = cut.end
    pieces.append(body[at:])
    try:
        top = tops.split(b"".join(pieces))
    except Fault:
        top = {}
    word = marks.word.decode()
    if not top or any(word in name for name in top):
        return Abridged(body, tops.split(body), marks)  # which says where the body is broken
    return Abridged(body, top, marks, cuts)


def long_texts(body: bytes, start: int, step: int = _STEP) -> list[Cut]:
    """The insides of long texts without escapes from ``start`` on. Finds all over twice the step, others by luck."""
    found: list[Cut] = []
    at = start + step
    while at < len(body):
        end = body.find(b'"', at)
        if end < 0:
            break
        opening = body.rfind(b'"', start, at)
        if opening >= 0 and end - opening > max(step // 2, 2 * _SHOWN) and body[opening + 1] not in _AFTER_A_TEXT:
            cut = opening + 1 + _SHOWN
            while body[cut] & 0xC0 == 0x80:  # not in the middle of a character
                cut += 1
            if body.find(b"\\", opening, end) < 0:
                found.append(Cut(cut, end, True))
        start, at = end, end + step
    return found


def without_long_texts(text: bytes) -> bytes:
    """JSON text for a search for names and short values: what ``long_texts`` finds is left out."""
    cuts = long_texts(text, 0)
    if not cuts:
        return text
    ends = [0, *(cut.end for cut in cuts)]
    starts = [*(cut.start for cut in cuts), len(text)]
    return b"".join([text[end:start] for end, start in zip(ends, starts, strict=True)])
