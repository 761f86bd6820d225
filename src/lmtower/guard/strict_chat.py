"""Strict tool calls in chat completions: text streams on, tool deltas wait until they are known to be good."""

from __future__ import annotations

from typing import Any

import msgspec

from lmtower.guard.assemble import Assembler, deltas, message_calls
from lmtower.guard.judge import Call, Verdict
from lmtower.guard.leaks import MARKERS
from lmtower.guard.strict import Strict, rejected
from lmtower.wire import sse, usage
from lmtower.wire.answers import objects, read_success
from lmtower.wire.chat import ChatReply
from lmtower.wire.faults import Fault
from lmtower.wire.stops import Cut
from lmtower.wire.usage import Usage

_encode = msgspec.json.Encoder().encode


class _Choice:
    """One choice of a stream: what is held back of it."""

    __slots__ = ("calls", "leak")

    def __init__(self) -> None:
        self.calls = Assembler()
        self.leak = Cut(MARKERS)


class StrictChatReply(ChatReply):
    """Chat completions under ``tools: strict``."""

    __slots__ = ("_choices", "_held", "again", "strict")

    def __init__(self, served: str, asked: str, request_id: str, wants_usage: bool, strict: Strict) -> None:
        super().__init__(served, asked, request_id, wants_usage)
        self.strict = strict
        self.again = None
        self._choices: dict[int, _Choice] = {}
        self._held: list[dict[str, Any]] = []
        """Chunks that go out after the retried calls: the finish, then the usage."""

    # -- not streamed ----------------------------------------------------------------------------------------

    def body(self, data: bytes) -> bytes:
        """The answer with good calls only; empty when a second request is needed first."""
        read_success(data)
        answer: dict[str, Any] = msgspec.json.decode(super().body(data))
        choices = [choice for choice in objects(answer, "choices") if isinstance(choice.get("message"), dict)]
        for choice in choices:
            judgement = self.strict.judge(self._message_calls(choice), cut=choice.get("finish_reason") == "length")
            if judgement.verdict in (Verdict.RETRY, Verdict.REJECT):
                if len(choices) > 1 or judgement.verdict is Verdict.REJECT:
                    raise rejected(judgement)
                self.again, self._held, self.complete = self.strict.again(), [answer], False
                return b""
            _put_calls(choice, list(judgement.calls))
        return _encode(answer)

    def _message_calls(self, choice: dict[str, Any]) -> list[Call]:
        """The calls of a message; those that leaked into its text are taken out of it."""
        message = choice["message"]
        assembler = Assembler()
        assembler.add([{**call, "index": i} for i, call in enumerate(message.get("tool_calls") or ())])
        calls = assembler.calls(self.strict.new_id)
        text = message.get("content")
        if not calls and isinstance(text, str):
            text, calls = self.strict.without_leaks(text)
            if calls:
                message["content"] = text or None
        return calls

    def recovered(self, status: int, body: bytes) -> bool:
        """A call that the engine could not read gets the constrained request, too."""
        self.again = self.strict.recover(status, body)
        return self.again is not None

    # -- streamed --------------------------------------------------------------------------------------------

    def relay(self, run: bytes) -> bytes:
        """Every chunk is read: any may hold a piece of a call."""
        self.events += run.count(b"\n\n")
        return b"".join([self._strict_event(event) for event in sse.split(run)])

    def _strict_event(self, event: bytes) -> bytes:
        data = sse.data_of(event)
        if self.again is not None:
            if data is not None and data != b"[DONE]":
                usage.read(data, self.usage)
            return b""
        if data is None or data == b"[DONE]":
            return self._event(event)
        chunk = read_success(data)
        out: list[dict[str, Any]] = []
        for choice in objects(chunk, "choices"):
            out.extend(self._choice(chunk, choice))
        if not chunk.get("choices"):
            out.append(chunk)
        elif chunk.get("usage") is not None:
            out = out or [{**chunk, "choices": []}]
            out[-1]["usage"] = chunk["usage"]
        return b"".join([self._event(b"data: " + _encode(part) + b"\n\n") for part in out])

    def _choice(self, chunk: dict[str, Any], choice: dict[str, Any]) -> list[dict[str, Any]]:
        """One choice of a chunk as the chunks that may go out now."""
        head = {key: value for key, value in chunk.items() if key != "usage"}
        held = self._choices.setdefault(choice.get("index", 0), _Choice())
        given = choice.get("delta")
        delta: dict[str, Any] = given if isinstance(given, dict) else {}
        held.calls.add(delta.pop("tool_calls", None))
        if isinstance(delta.get("content"), str):
            delta["content"] = held.leak.feed(delta["content"])
        finish = choice.pop("finish_reason", None)
        told = _meaningful(delta)
        out = [{**head, "choices": [{**choice, "delta": delta, "finish_reason": None}]}] if told else []
        if finish is None:
            return out
        return out + self._finished(head, choice, held, finish)

    def _finished(
        self, head: dict[str, Any], choice: dict[str, Any], held: _Choice, finish: str
    ) -> list[dict[str, Any]]:
        number = choice.get("index", 0)
        calls = held.calls.calls(self.strict.new_id)
        leaked = held.leak.held() if held.leak.found is not None else ""
        rest = "" if leaked else held.leak.rest()
        if leaked and not calls:
            calls = self.strict.leaked(leaked)
            rest = "" if calls else leaked
        out = [_chunk(head, number, {"content": rest})] if rest else []
        judgement = self.strict.judge(calls, cut=finish == "length")
        if judgement.verdict is Verdict.REJECT or (judgement.verdict is Verdict.RETRY and len(self._choices) > 1):
            raise rejected(judgement)
        end = _chunk(head, number, {}, "tool_calls" if judgement.calls else finish)
        if judgement.verdict is Verdict.RETRY:
            end["choices"][0]["finish_reason"] = "tool_calls"
            self.again, self._held = self.strict.again(), [head, end]
            return out
        return [*out, *(_chunk(head, number, delta) for delta in deltas(judgement.calls)), end]

    def end(self) -> bytes:
        """Nothing yet when a second request is still to come."""
        return super().end() if self.again is None else b""

    # -- the second answer -----------------------------------------------------------------------------------

    def retried(self, data: bytes) -> bytes:
        """The rest of the stream, or the whole body, with the calls of the constrained answer."""
        first, self.usage = self.usage, Usage()
        answer = read_success(data)
        usage.read(data, self.usage)
        _add(self.usage, first)
        self.again = None
        calls = self.strict.retried(_content(answer))
        if len(self._held) < 2:
            whole = self._held[0] if self._held else _emptied(msgspec.json.decode(super().body(data)))
            _put_calls(whole["choices"][0], calls)
            if "usage" in whole:
                whole["usage"] = _numbers(self.usage)
            self.complete = True
            return _encode(whole)
        head, end = self._held
        number = end["choices"][0].get("index", 0)
        chunks = [*(_chunk(head, number, delta) for delta in deltas(calls)), end]
        if self.wants_usage:
            chunks.append({**head, "choices": [], "usage": _numbers(self.usage)})
        self.complete = True
        for chunk in chunks:
            chunk["model"] = self.asked
        return b"".join([b"data: " + _encode(chunk) + b"\n\n" for chunk in chunks]) + sse.DONE


def _meaningful(delta: dict[str, Any]) -> bool:
    """Whether a delta still says something: an empty text alone does not, the first one's role does."""
    return any(value not in (None, "") for value in delta.values())


def _chunk(head: dict[str, Any], index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {**head, "choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


def _put_calls(choice: dict[str, Any], calls: list[Call]) -> None:
    if calls:
        message = choice["message"]
        message["tool_calls"] = message_calls(calls)
        message["content"] = message.get("content") or None
        choice["finish_reason"] = "tool_calls"


def _emptied(answer: dict[str, Any]) -> dict[str, Any]:
    answer["choices"][0]["message"]["content"] = None
    return answer


def _content(answer: dict[str, Any]) -> str:
    try:
        content = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        content = None
    if not isinstance(content, str):
        raise Fault(502, "invalid_tool_call", "The model did not produce a valid tool call.", should_retry=False)
    return content


def _add(total: Usage, part: Usage) -> None:
    total.known = total.known or part.known
    for name in ("input_tokens", "cached_tokens", "image_tokens", "output_tokens", "reasoning_tokens"):
        setattr(total, name, getattr(total, name) + getattr(part, name))


def _numbers(used: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": used.input_tokens,
        "completion_tokens": used.output_tokens,
        "total_tokens": used.input_tokens + used.output_tokens,
        "prompt_tokens_details": {"cached_tokens": used.cached_tokens},
    }
