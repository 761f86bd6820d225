"""The verdict on the tool calls of one answer: valid, repaired, retry (once) or reject."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from lmtower.guard.repair import decode, repair
from lmtower.guard.tools import Tool, ToolSet


class Verdict(StrEnum):
    VALID = "valid"
    REPAIRED = "repaired"
    RETRY = "retry"
    REJECT = "reject"


class Call(msgspec.Struct, frozen=True):
    """One tool call, complete: what a client gets. ``arguments`` is JSON text."""

    name: str
    arguments: str
    id: str = ""


class Judgement(msgspec.Struct, frozen=True):
    """``calls`` may go to the client when ``verdict`` is valid or repaired; ``tool`` is what a retry must produce."""

    verdict: Verdict
    calls: tuple[Call, ...] = ()
    tool: Tool | None = None
    reason: str = ""
    repaired: int = 0
    dropped: int = 0
    """Calls beyond the first that ``parallel_tool_calls: false`` forbids."""


class Rules(msgspec.Struct, frozen=True):
    """What the client and the persona ask of the calls of this request."""

    tools: ToolSet
    forced: str | None = None
    """Name of the tool that ``tool_choice`` names; an answer must call it."""
    required: bool = False
    """``tool_choice: required``: an answer without a call is wrong."""
    parallel: bool = True

    def expected(self) -> Tool | None:
        """The tool that a constrained retry must call: the forced one, or the only one there is."""
        if self.forced is not None:
            return self.tools.find(self.forced)
        return next(iter(self.tools.tools.values())) if len(self.tools.tools) == 1 else None


def judge(calls: Sequence[Call], rules: Rules, *, cut: bool = False, retried: bool = False) -> Judgement:
    """What to do with these calls. ``cut``: the answer ended at ``max_tokens``; ``retried``: no second retry."""
    failed = Verdict.REJECT if retried else Verdict.RETRY
    kept = list(calls) if rules.parallel else list(calls[:1])
    if not kept:
        if rules.forced is None and not rules.required:
            return Judgement(Verdict.VALID)
        return Judgement(failed, tool=rules.expected(), reason="the model did not call a tool")
    good: list[Call] = []
    repaired = 0
    for call in kept:
        tool = rules.tools.find(call.name)
        if tool is None or (rules.forced is not None and tool.name != rules.forced):
            return Judgement(
                failed, tool=rules.expected(), reason=f"the model called an unknown tool {call.name[:80]!r}"
            )
        fixed = check(call, tool, cut=cut)
        if fixed is None:
            return Judgement(failed, tool=tool, reason=complaint(call, tool))
        repaired += fixed is not call
        good.append(fixed)
    verdict = Verdict.REPAIRED if repaired else Verdict.VALID
    return Judgement(verdict, tuple(good), repaired=repaired, dropped=len(calls) - len(kept))


def check(call: Call, tool: Tool, *, cut: bool = False) -> Call | None:
    """The same object when the call is valid, a repaired one when the repair is certain, else None."""
    value = decode(call.arguments)
    if isinstance(value, dict) and not tool.errors(value):
        return call if call.name == tool.name else msgspec.structs.replace(call, name=tool.name)
    fixed = repair(call.arguments, tool, cut=cut)
    return None if fixed is None else Call(tool.name, msgspec.json.encode(fixed).decode(), call.id)


def complaint(call: Call, tool: Tool) -> str:
    """One line that says what is wrong with the arguments, without quoting them."""
    value = decode(call.arguments)
    if not isinstance(value, dict):
        return f"arguments of tool {tool.name!r} are not a JSON object"
    error = tool.errors(value)[0]
    where = ".".join(str(step) for step in error.instance_path) or "arguments"
    return f"arguments of tool {tool.name!r} do not fit its schema: {where}: {error.kind.name}"
