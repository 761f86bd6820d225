"""Stop strings that the gateway enforces, because an engine takes only four (vLLM) and editors send a dozen.

Theory of operation. Text arrives in pieces that may cut a stop string anywhere, so the longest tail that could
still become one is held back. When one is found, the answer ends before it: the client gets the text up to there
and ``finish_reason: stop``, and the engine's call is given up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from lmtower.wire import sse, usage
from lmtower.wire.answers import objects, read_success
from lmtower.wire.reply import Reply
from lmtower.wire.wrapping import Wrapping

ENGINE_LIMIT = 4
"""What vLLM takes (VLLM_MAX_STOP_STRINGS)."""
_encode = msgspec.json.Encoder().encode


class Cut:
    """Finds the first of some strings in text that comes in pieces."""

    __slots__ = ("_held", "_longest", "_strings", "found")

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self._longest = max(map(len, self._strings), default=1) - 1
        self._held = ""
        self.found: str | None = None

    def feed(self, text: str) -> str:
        """Text that is certainly before any of the strings; nothing more once one was found."""
        if self.found is not None:
            self._held += text
            return ""
        text = self._held + text
        places = [(at, string) for string in self._strings if (at := text.find(string)) >= 0]
        if places:
            at, self.found = min(places, key=lambda place: (place[0], -len(place[1])))
            self._held = text[at:]
            return text[:at]
        keep = self._tail(text)
        self._held = text[len(text) - keep :] if keep else ""
        return text[: len(text) - keep]

    def rest(self) -> str:
        """What was held back when the text ended without any of the strings."""
        held, self._held = self._held, ""
        return "" if self.found is not None else held

    def held(self) -> str:
        """Everything from the found string on."""
        return self._held

    def _tail(self, text: str) -> int:
        """Length of the longest end of the text that one of the strings begins with."""
        for length in range(min(self._longest, len(text)), 0, -1):
            tail = text[-length:]
            if any(string.startswith(tail) for string in self._strings):
                return length
        return 0


class Stopping(Wrapping):
    """Stands between the engine and another reply; the protocols say what an event of theirs is cut to."""

    __slots__ = ("_here", "_stops")

    def __init__(self, inner: Reply, stops: Sequence[str]) -> None:
        super().__init__(inner)
        self._stops = tuple(stops)
        self._here = 0
        """Events with tokens in this run, which the inner reply has not counted yet."""

    def feed(self, data: bytes) -> bytes:
        """Stream bytes as they were read; the inner reply gets whole events."""
        run = self._whole_events(data)
        return self.relay(run) if run else b""

    def relay(self, run: bytes) -> bytes:
        """Every event is looked at: any may hold a piece of a stop string. None counts after the answer's end."""
        self._here = 0
        cut = b"".join([b"" if self.enough else self.event(event) for event in sse.split(run)])
        enough, out = self.enough, self._passed(self.inner.relay(cut), False)
        self.enough = enough
        return out

    def end(self) -> bytes:
        """What is left, in the inner reply's words."""
        last = self.relay(sse.DONE) if self._unfinished().strip() == sse.DONE.strip() else b""
        return last + super().end()

    def event(self, event: bytes) -> bytes:
        """One event as the inner reply may see it; sets ``enough`` where a stop string ended the answer."""
        raise NotImplementedError

    def made(self) -> int:
        """Output tokens up to here: the engine's number, else one for every event."""
        return self.usage.output_tokens or max(1, self.inner.events + self._here)


class StoppingReply(Stopping):
    """Ends every text of a chat or completion at the first stop string."""

    __slots__ = ("_choices", "_cuts", "_ended", "_stopped")

    def __init__(self, inner: Reply, stops: Sequence[str], choices: int = 1) -> None:
        super().__init__(inner, stops)
        self._choices = choices
        self._cuts: dict[int, Cut] = {}
        self._stopped: set[int] = set()
        self._ended: set[int] = set()
        """Choices that a stop string or the engine has ended."""

    def body(self, data: bytes) -> bytes:
        """The whole answer, every text cut at the first stop string."""
        answer = read_success(data)
        for choice in objects(answer, "choices"):
            place, key = _place(choice, "message")
            if place is None or not isinstance(place.get(key), str):
                continue
            cut = Cut(self._stops)
            text = cut.feed(place[key])
            if cut.found is not None:
                place[key], choice["finish_reason"], choice["stop_reason"] = text, "stop", cut.found
        return super().body(_encode(answer))

    def event(self, event: bytes) -> bytes:
        """One chunk, its texts cut."""
        data = sse.data_of(event) if event.startswith(b"data: {") else None
        if data is None:
            return event
        chunk = read_success(data)
        choices = objects(chunk, "choices")
        if not choices:
            return event
        if chunk.pop("usage", None) is not None:  # asked for in every chunk, for the engine may not come to its last
            usage.read(data, self.usage)
        self._here += 1
        cuts = [self._cut(choice) for choice in choices]
        out = b"data: " + _encode(chunk) + b"\n\n"
        if any(cuts) and len(self._ended) >= self._choices:
            self.enough = True
            return out + self._last(chunk)
        return out

    def _cut(self, choice: dict[str, Any]) -> bool:
        """Cut one choice's piece of text. Returns whether its answer was ended here, now or before."""
        number = choice.get("index", 0)
        place, key = _place(choice, "delta")
        if place is None:
            return False
        cut = self._cuts.setdefault(number, Cut(self._stops))
        if number in self._stopped:
            place[key], choice["finish_reason"] = "", None
            return True
        text = cut.feed(place.get(key) or "")
        if cut.found is not None:
            self._stopped.add(number)
            self._ended.add(number)
            choice["finish_reason"], choice["stop_reason"] = "stop", cut.found
        elif choice.get("finish_reason") is not None:
            self._ended.add(number)
            text += cut.rest()
        if text or place.get(key) is not None:
            place[key] = text
        return number in self._stopped

    def _last(self, chunk: dict[str, Any]) -> bytes:
        """A usage chunk and the end, as the engine would have said them: its own numbers never come."""
        numbers = {"prompt_tokens": self.usage.input_tokens, "completion_tokens": self.made()}
        told = {**chunk, "choices": [], "usage": {**numbers, "total_tokens": sum(numbers.values())}}
        return b"data: " + _encode(told) + b"\n\n" + sse.DONE


def _place(choice: dict[str, Any], field: str) -> tuple[dict[str, Any] | None, str]:
    """Where a choice has its text: (object, key)."""
    if "text" in choice:
        return choice, "text"
    inner = choice.get(field)
    return (inner, "content") if isinstance(inner, dict) else (None, "content")


def split(stops: Sequence[str], limit: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(for the engine, for the gateway): beyond the limit the gateway enforces all, so that the first one wins."""
    kept = tuple(dict.fromkeys(stop for stop in stops if stop))
    return (kept, ()) if len(kept) <= limit else (kept[:limit], kept)
