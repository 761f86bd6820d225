"""What strict tool calling knows of one request, in every dialect: the rules, the verdicts, the one retry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from lmtower.config.types import Runtime
from lmtower.guard.judge import Call, Judgement, Rules, Verdict, judge
from lmtower.guard.leaks import MARKERS, parse
from lmtower.guard.retry import as_chat, retried_call, retry_edits
from lmtower.guard.tools import Tool, ToolCache
from lmtower.wire import top as tops
from lmtower.wire.engine_faults import unreadable_call
from lmtower.wire.faults import Dialect, Fault
from lmtower.wire.reply import Again
from lmtower.wire.stops import Cut
from lmtower.wire.top import Piece, Top

VALID, REPAIRED, RETRIED, REJECTED = range(4)


class Strict:
    """One request under ``tools: strict``. ``tally`` counts calls: valid, repaired, retried, rejected."""

    __slots__ = ("_chat", "_dialect", "_new_id", "_path", "_pieces", "_tool", "rules", "tally")

    def __init__(
        self,
        rules: Rules,
        path: str,
        pieces: list[Piece],
        dialect: Dialect,
        new_id: Callable[[], str],
        runtime: Runtime = "vllm",
    ) -> None:
        self.rules = rules
        self.tally = [0, 0, 0, 0]
        self._path = path
        self._pieces = pieces
        self._dialect = dialect
        self._new_id = new_id
        self._chat = dialect == "anthropic" and runtime == "llamacpp"
        """Second requests go to the chat route, the only one whose answers this engine constrains."""
        self._tool: Tool | None = None

    def new_id(self) -> str:
        """A fresh id for a call that came without one."""
        return self._new_id()

    def judge(self, calls: Sequence[Call], *, cut: bool = False) -> Judgement:
        """The verdict on the first answer, counted. A retry remembers its tool."""
        judgement = judge(calls, self.rules, cut=cut)
        self._count(judgement)
        if judgement.verdict is Verdict.RETRY:
            self._tool = judgement.tool
        return judgement

    def leaked(self, text: str) -> list[Call]:
        """The calls in a text that begins with a parser's marker; none when it is about something else.

        A text that shows how calls are written names tools that nobody offered: it stays a text.
        """
        calls = parse(text)
        if any(self.rules.tools.find(call.name) is None for call in calls):
            return []
        return [Call(call.name, call.arguments, call.id or self.new_id()) for call in calls]

    def without_leaks(self, text: str) -> tuple[str, list[Call]]:
        """A complete text without the calls that leaked into it, and these calls."""
        cut = Cut(MARKERS)
        before = cut.feed(text)
        calls = self.leaked(text[len(before) :]) if cut.found is not None else []
        return (before.rstrip(), calls) if calls else (text, [])

    def again(self) -> Again:
        """The constrained second request."""
        top = tops.split(b"".join(bytes(memoryview(piece)) for piece in self._pieces))
        dialect, path = self._dialect, self._path
        if self._chat:
            top, dialect, path = as_chat(top), "openai", "/v1/chat/completions"
        for key, value in retry_edits(dialect, top, self._tool, list(self.rules.tools.tools.values())).items():
            if value is None:
                top.pop(key, None)
            else:
                top[key] = msgspec.Raw(value)
        return Again(path, tops.join(top))

    def recover(self, status: int, body: bytes) -> Again | None:
        """The constrained request after an engine could not read its own model's call, which it tells as a failure.

        vLLM decodes the arguments for an answer in Anthropic's form, llama.cpp those of every form.
        """
        if status != 500 and not unreadable_call(body):
            return None
        self._tool = self.rules.expected()
        return self.again()

    def retried(self, content: str) -> list[Call]:
        """The calls of the second answer. Raises Fault when they are wrong again."""
        self.tally[RETRIED] += 1
        call = retried_call(content, self._tool, self.new_id())
        judgement = judge([call], self.rules, retried=True)
        self._count(judgement)
        if judgement.verdict is Verdict.REJECT:
            raise rejected(judgement)
        return list(judgement.calls)

    def _count(self, judgement: Judgement) -> None:
        if judgement.verdict is Verdict.REJECT:
            self.tally[REJECTED] += 1
        else:
            self.tally[REPAIRED] += judgement.repaired
            self.tally[VALID] += len(judgement.calls) - judgement.repaired


def rejected(judgement: Judgement) -> Fault:
    """The error of a model that twice failed to write a valid call; trying once more would not help."""
    message = f"The model did not produce a valid tool call: {judgement.reason}."
    return Fault(502, "invalid_tool_call", message, should_retry=False)


def rules_of(top: Top, cache: ToolCache) -> Rules | None:
    """What the request asks of tool calls, in any dialect; None when it offers no tools or wants none called."""
    if not tops.given(top, "tools"):
        return None
    tools = cache.get(bytes(memoryview(top["tools"])))
    choice: Any = tops.value(top, "tool_choice")
    if not tools.tools or choice == "none" or (isinstance(choice, dict) and choice.get("type") == "none"):
        return None
    parallel = not (tops.given(top, "parallel_tool_calls") and not tops.flag(top, "parallel_tool_calls"))
    required = choice in ("required", "any")
    forced = None
    if isinstance(choice, dict):
        parallel = parallel and not choice.get("disable_parallel_tool_use")
        function = choice.get("function")
        named = function.get("name") if isinstance(function, dict) else choice.get("name")
        # a name that is not among the tools is the engine's to refuse, or went with a tool that no engine runs
        forced = named if isinstance(named, str) and tools.find(named) is not None else None
        required = choice.get("type") == "any" or choice.get("mode") == "required"
    return Rules(tools, forced, required, parallel)
