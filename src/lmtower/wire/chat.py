"""Chat completions: where the persona's prompt goes in, and what is put right on the way back.

On the way back (clients' facts, section 9): the usage chunk only when it was asked for, with ``choices: []``,
alone, before ``[DONE]``; reasoning under both of its names; a tool delta never in one chunk with the
``finish_reason``; ``content: null`` beside tool calls; the model's name as the client wrote it.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from lmtower.wire import scan, sse, usage
from lmtower.wire.abridged import without_long_texts
from lmtower.wire.answers import objects, read_object
from lmtower.wire.engine_faults import from_stream
from lmtower.wire.faults import Fault
from lmtower.wire.frame import Frame
from lmtower.wire.reply import Reply

_HEAD = frozenset((b"role", b"content"))
_SYSTEM_ROLES = (b'"system"', b'"developer"')
_SYSTEM_FIRST = re.compile(rb'\s*\[\s*\{\s*"role"\s*:\s*"system"\s*,\s*"content"\s*:\s*"')
"""What nearly every client writes: the system message first, its role first, its content a text."""
_NOT_SYSTEM = re.compile(rb'\s*\[\s*\{\s*"role"\s*:\s*"(?:user|assistant)"')
_encode = msgspec.json.Encoder().encode


def merge_system(messages: memoryview, prompt: bytes) -> list[bytes | memoryview]:
    """The messages with the persona's prompt at the start of the first system message.

    ``prompt`` is the text as the inside of a JSON string (escaped, without quotes). A ``developer`` message that
    takes the prompt becomes a ``system`` message: templates that know ``developer`` treat both alike, others
    refuse it. Without a system message one is put first. Only the head of the array is read.
    Raises Fault(400) when messages is no array of objects.
    """
    opening = _SYSTEM_FIRST.match(messages)
    if opening is not None:
        after = opening.end()
        return [messages[:after], prompt, b"" if messages[after] == 0x22 else b"\\n\\n", messages[after:]]
    at = scan.first_item(messages)
    if at is None:
        raise _invalid("The field 'messages' must be a list with at least one message.")
    plain = _NOT_SYSTEM.match(messages) is not None
    target = at if not plain and _is_system(messages, at) else _later_system(messages, at)
    if target is None:
        return [messages[:at], b'{"role":"system","content":"', prompt, b'"},', messages[at:]]
    found = scan.starts(messages, target, _HEAD)
    role = found[b"role"]
    content = found.get(b"content")
    if content is None or messages[content] not in b'"[':
        raise _invalid("A system message needs a text or a list of parts as content.")
    before, after = _insertion(messages, content, prompt)
    if bytes(messages[role : role + 8]) == b'"system"':
        return [messages[: content + 1], *before, messages[after:]]
    role_end = scan.skip_value(messages, role)
    if role < content:
        return [messages[:role], b'"system"', messages[role_end : content + 1], *before, messages[after:]]
    return [messages[: content + 1], *before, messages[after:role], b'"system"', messages[role_end:]]


def _invalid(message: str) -> Fault:
    return Fault(400, "invalid_messages", message, param="messages")


def _insertion(messages: memoryview, content: int, prompt: bytes) -> tuple[list[bytes], int]:
    """What goes after the opening ``"`` or ``[`` of the content, and where the client's own text goes on."""
    after = content + 1
    if messages[content] == 0x22:
        empty = messages[after] == 0x22
        return ([prompt] if empty else [prompt, b"\\n\\n"]), after
    after = scan.skip_space(messages, after)
    closing = b'"}' if messages[after] == 0x5D else b'"},'
    return [b'{"type":"text","text":"', prompt, closing], after


def _is_system(messages: memoryview, at: int) -> bool:
    if messages[at] != 0x7B:
        raise _invalid("Every message must be an object.")
    role = scan.starts(messages, at, frozenset((b"role",))).get(b"role")
    return role is not None and bytes(messages[role : scan.skip_value(messages, role)]) in _SYSTEM_ROLES


def _later_system(messages: memoryview, first: int) -> int | None:
    """A system message that is not the first (few clients do this): the prompt joins it, for two break templates."""
    text = without_long_texts(bytes(messages))
    if all(text.find(role) < 0 for role in _SYSTEM_ROLES):
        return None
    return next((span.start for span in scan.items(messages) if _is_system(messages, span.start)), None)


class ChatReply(Reply):
    """Chat completions, streamed or not. ``wants_usage``: the client asked for the usage chunk."""

    __slots__ = ("_silences", "frame", "wants_usage")

    _marker = b'"delta":{"content":"'
    """What stands right before the text of a plain chunk."""

    def __init__(self, served: str, asked: str, request_id: str, wants_usage: bool = False) -> None:
        super().__init__(served, asked, request_id)
        self.wants_usage = wants_usage
        self.frame: Frame | None = None
        self._silences = 0

    def alive(self) -> bytes:
        """A comment, then a chunk that says nothing, in turns: LangChain gives up after 120 s without a chunk."""
        self._silences += 1
        if self._silences % 2:
            return self.keepalive
        head = {
            "id": f"chatcmpl-{self.request_id}",
            "object": "chat.completion.chunk",
            "created": 0,
            "model": self.asked,
        }
        return b"data: " + _encode(self.nothing(head)) + b"\n\n"

    def nothing(self, head: dict[str, Any]) -> dict[str, Any]:
        """A chunk of this protocol without text."""
        return {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": None}]}

    def body(self, data: bytes) -> bytes:
        """The answer with the asked name, both names of the reasoning, and null content beside tool calls."""
        usage.read(data, self.usage)
        self.complete = True
        # compact JSON without reasoning and tool calls needs nothing but the name
        if not _needs_mending(data):
            named = data.replace(self._from, self._to, 1)
            if named is not data:  # the name was there, in compact JSON
                return named
        answer = read_object(data)
        answer["model"] = self.asked
        for choice in objects(answer, "choices"):
            message = choice.get("message")
            if isinstance(message, dict):
                _both_reasonings(message)
                if message.get("tool_calls") and not message.get("content"):
                    message["content"] = None
        return _encode(answer)

    def relay(self, run: bytes) -> bytes:
        """Whole events; only a run with something to mend is looked at event by event."""
        frame = self.frame
        if frame is None:
            frame = self.frame = Frame(self._marker)
        events, out = frame.renamed(run)
        if events:
            self.events += events
            return out
        self.events += run.count(b"\n\n")
        if not _needs_care(run):
            frame.learn(run, self.rename)
            return self.rename(run)
        return b"".join([self._event(event) for event in sse.split(run)])

    def _event(self, event: bytes) -> bytes:
        if event == sse.DONE:
            self.complete = True
            self.events -= 1
            return event
        data = sse.data_of(event)
        if data is None:
            self.events -= 1
            return event
        chunk = read_object(data)
        if chunk.get("error") is not None:
            # a malformed error would look like a complete answer: say it in the protocol's words
            raise from_stream(data)
        usage.read(data, self.usage)
        return b"".join(self._chunk(chunk))

    def _chunk(self, chunk: dict[str, Any]) -> list[bytes]:
        """One chunk as the chunks that a client may be sent."""
        if "model" in chunk:
            chunk["model"] = self.asked
        choices = objects(chunk, "choices")
        numbers = chunk.pop("usage", None)
        chunks = [chunk] if choices else []
        for choice in choices:
            delta = choice.get("delta")
            if not isinstance(delta, dict):
                continue
            _both_reasonings(delta)
            if delta.get("tool_calls") and choice.get("finish_reason") is not None:
                chunks = _finish_apart(chunk)
        if numbers is not None and self.wants_usage and (not choices or numbers.get("completion_tokens")):
            chunks.append({**{k: v for k, v in chunk.items() if k != "choices"}, "choices": [], "usage": numbers})
        if numbers is not None and not choices:
            self.events -= 1
        return [b"data: " + _encode(part) + b"\n\n" for part in chunks]


def _needs_mending(answer: bytes) -> bool:
    """What a whole answer is decoded for. A reasoning of null stays as it is."""
    text = answer.decode("latin-1")  # see ``items.is_plain``
    return '"reasoning":"' in text or '"reasoning_content":"' in text or '"tool_calls":[{' in text


def _needs_care(run: bytes) -> bool:
    find = run.find  # ``in`` costs three times as much, see ``items.is_plain``
    return (
        find(b'"usage":{') >= 0
        or find(b'"reasoning') >= 0
        or find(b'"tool_calls":[') >= 0
        or find(b"[DONE]") >= 0
        or find(b'"error"') >= 0
        or find(b"\n:") >= 0
        or run.startswith(b":")
        or find(b'": "') >= 0
    )


def _both_reasonings(message: dict[str, Any]) -> None:
    """vLLM renamed ``reasoning_content`` to ``reasoning``; Cline reads one, Codex the other. Give both."""
    text = message.get("reasoning")
    if text is None:
        text = message.get("reasoning_content")
    if text is not None:
        message["reasoning"] = message["reasoning_content"] = text


def _finish_apart(chunk: dict[str, Any]) -> list[dict[str, Any]]:
    """Home Assistant loses a tool call whose chunk also carries the finish reason: send two chunks."""
    deltas = [{**choice, "finish_reason": None} for choice in chunk["choices"]]
    ends = [{**choice, "delta": {}} for choice in chunk["choices"] if choice.get("finish_reason") is not None]
    return [{**chunk, "choices": deltas}, {**chunk, "choices": ends}]
