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
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from lmtower.wire import conversation
from lmtower.wire import top as tops
from lmtower.wire.conversation import Read
from lmtower.wire.faults import Fault
from lmtower.wire.items import Items, Text, read
from lmtower.wire.top import Top

LEAST_BYTES = 32 * 1024
"""Shorter bodies are read as they are."""
_STEP = 8 * 1024
_SHOWN = 64
"""So much of a text stays: what a data URL says of itself."""
_AFTER_A_TEXT = b" \t\r\n,:]}"


class Cut(NamedTuple):
    """``body[start:end]`` is cut out: whole elements of a list, or (``inside``) a part of a text."""

    start: int
    end: int
    inside: bool


class Marks:
    """What stands for cuts: their number behind ``word`` (letters and digits that nobody can guess)."""

    __slots__ = ("all", "length", "pattern", "word")

    def __init__(self, word: bytes) -> None:
        self.word = word
        self.pattern = re.compile(rb'\{"%b(\d{6})":0\}|%b(\d{6})' % (word, word))
        self.length = len(word) + 6
        self.all = b'{"%b":0}' % word
        """Stands for a whole conversation."""

    def of(self, number: int, inside: bool) -> bytes:
        """The mark of a cut inside of a text, or of elements."""
        return b"%b%06d" % (self.word, number) if inside else b'{"%b%06d":0}' % (self.word, number)


class Shown(NamedTuple):
    """A field: its whole value, the text of it with marks, and where it lies in the body."""

    whole: msgspec.Raw
    short: msgspec.Raw
    place: tuple[int, int]


_NOTHING_SHOWN: Mapping[str, Shown] = MappingProxyType({})


class Abridged:
    """A body read at its top level. ``top`` holds whole values; ``short`` shows a field with marks in it."""

    __slots__ = ("_cuts", "_items", "_marks", "_shown", "body", "top")

    def __init__(
        self,
        body: bytes,
        top: Top,
        marks: Marks,
        cuts: Sequence[Cut] = (),
        shown: Mapping[str, Shown] = _NOTHING_SHOWN,
        items: Items | None = None,
    ) -> None:
        self.body = body
        self.top = top
        self._items = items
        self._marks = marks
        self._cuts = cuts
        self._shown = shown

    def copy(self) -> Abridged:
        """The same, with a top level that stays when rules edit this one."""
        return Abridged(self.body, dict(self.top), self._marks, self._cuts, self._shown, self._items)

    def short(self, name: str) -> msgspec.Raw:
        """The field's text with marks in it; all of its text if nothing is cut out, or it was set to another one."""
        value = self.top[name]
        shown = self._shown.get(name)
        return shown.short if shown is not None and value is shown.whole else value

    def items(self, name: str) -> Items | None:
        """The items of the conversation, marks in them as well, if it was read with the top level and is still that."""
        return self._items if self._items is not None and self.place(name) is not None else None

    def whole(self, short: Text) -> bytes:
        """A text with everything back in the place of its marks."""
        text = bytes(short)
        if not self._cuts or text.find(self._marks.word) < 0:
            return text
        return self._marks.pattern.sub(lambda mark: self.body[slice(*self._of(mark)[:2])], text)

    def stamped(self, short: Text) -> tuple[Text, int]:
        """A text with checksums in the place of its marks, and the length of the whole: enough to tell two apart."""
        if not self._cuts:
            return short, len(short)
        text = bytes(short)
        if text.find(self._marks.word) < 0:
            return text, len(text)
        length = len(text)

        def stamp(mark: re.Match[bytes]) -> bytes:
            nonlocal length
            cut = self._of(mark)
            length += cut.end - cut.start - len(mark[0])
            return b"%d:%08x" % (cut.end - cut.start, zlib.crc32(memoryview(self.body)[cut.start : cut.end]))

        return self._marks.pattern.sub(stamp, text), length

    def rest(self, text: str) -> tuple[str, bytes | memoryview]:
        """A decoded text that may end with a mark: what is shown of it, and what was cut off."""
        length = self._marks.length
        if self._cuts and text[-length:-6] == self._marks.word.decode():
            cut = self._cuts[int(text[-6:])]
            return text[:-length], memoryview(self.body)[cut.start : cut.end]
        return text, b""

    def place(self, name: str) -> tuple[int, int] | None:
        """Where in the body a field with cuts, or the conversation, lies; None when that is not known."""
        shown = self._shown.get(name)
        return None if shown is None or self.top.get(name) is not shown.whole else shown.place

    def begins(self, name: str) -> bool:
        """Whether the field is a list that begins with the first cut: elements which were said before."""
        shown = self._shown.get(name)
        if shown is None or not self._cuts or self._cuts[0].inside:
            return False
        known = b"[" + self._marks.of(0, False)
        return bytes(memoryview(shown.short)[: len(known)]) == known

    def _of(self, mark: re.Match[bytes]) -> Cut:
        return self._cuts[int(mark[1] or mark[2])]


def split(
    body: bytes, marks: Marks, said: Cut | None = None, step: int = _STEP, field: str = "", read: Read = read
) -> Abridged:
    """Read the top level of a body, and with it the conversation in ``field`` if that can be found.

    ``said``: elements known from an earlier request. Raises Fault(400).
    """
    cuts = [said] if said is not None else []
    if len(body) > step:
        cuts += long_texts(body, said.end if said is not None else 0, step)
    if not cuts:
        top, items, place = conversation.split(body, field, read, marks.all)
        shown = {field: Shown(top[field], top[field], place)} if items is not None else _NOTHING_SHOWN
        return Abridged(body, top, marks, (), shown, items)
    pieces: list[bytes] = []
    at = 0
    for number, cut in enumerate(cuts):
        pieces += (body[at : cut.start], marks.of(number, cut.inside))
        at = cut.end
    pieces.append(body[at:])
    try:
        top, items, place = conversation.split(b"".join(pieces), field, read, marks.all)
    except Fault:
        top = {}
    word = marks.word.decode()
    if not top or any(word in name for name in top):
        return Abridged(body, tops.split(body), marks)  # which says where the body is broken
    shown = {}
    for name, value in top.items():
        if name == field and items is not None:
            start, end = place
            found: tuple[int, int] | None = (_in_body(start, pieces, cuts), _in_body(end, pieces, cuts))
        else:
            found = _marked_place(bytes(value), marks, cuts)
        if found is not None:
            top[name] = msgspec.Raw(memoryview(body)[slice(*found)])
            shown[name] = Shown(top[name], value, found)
    return Abridged(body, top, marks, cuts, shown, items)


def _in_body(at: int, pieces: Sequence[bytes], cuts: Sequence[Cut]) -> int:
    """Where in the body lies what is at this place of the short text. Its ``pieces``: text, mark, text and so on."""
    ends = list(accumulate(map(len, pieces)))[1::2]
    number = bisect_right(ends, at) - 1
    return at if number < 0 else cuts[number].end + at - ends[number]


def _marked_place(short: bytes, marks: Marks, cuts: Sequence[Cut]) -> tuple[int, int] | None:
    """Where in the body the text of a field lies, reckoned from its first and last mark; None if there is none."""
    if short.find(marks.word) < 0:
        return None
    found = list(marks.pattern.finditer(short))
    first, last = (cuts[int(mark[1] or mark[2])] for mark in (found[0], found[-1]))
    return first.start - found[0].start(), last.end + len(short) - found[-1].end()


def long_texts(body: bytes, start: int, step: int = _STEP) -> list[Cut]:
    """The insides of long texts without escapes from ``start`` on. Finds all over 16 steps, others by luck."""
    found: list[Cut] = []
    stride = step
    at = start + stride
    while at < len(body):
        end = body.find(b'"', at)
        if end < 0:
            break
        opening = body.rfind(b'"', start, at)
        if (
            opening >= 0
            and end - opening > max(step // 2, 2 * _SHOWN)
            and body[opening + 1] not in _AFTER_A_TEXT
            and body.find(b"\\", opening, end) < 0
        ):
            cut = opening + 1 + _SHOWN
            while body[cut] & 0xC0 == 0x80:  # not in the middle of a character
                cut += 1
            found.append(Cut(cut, end, True))
            stride = step
        else:
            stride = min(2 * stride, 8 * step)  # a body of code has none, and a look costs as much as reading 1 KB
        start, at = end, end + stride
    return found


def without_long_texts(text: bytes) -> bytes:
    """JSON text for a search for names and short values: what ``long_texts`` finds is left out."""
    cuts = long_texts(text, 0)
    if not cuts:
        return text
    ends = [0, *(cut.end for cut in cuts)]
    starts = [*(cut.start for cut in cuts), len(text)]
    return b"".join([text[end:start] for end, start in zip(ends, starts, strict=True)])
