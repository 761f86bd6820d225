"""Guard: tool calls that a client can rely on. Validate, repair, decide on one constrained retry; clean history.

Reading order: ``tools`` (schemas), ``repair`` (certain repairs), ``judge`` (the verdict), ``retry`` (the body of the
one constrained retry), ``assemble`` (streamed deltas), ``history`` (replayed calls). Pure: bytes and values only.
"""

from lmtower.guard.assemble import Assembler, deltas, message_calls
from lmtower.guard.history import clean_chat, clean_messages, clean_responses
from lmtower.guard.judge import Call, Judgement, Rules, Verdict, judge
from lmtower.guard.retry import retried_call, retry_edits
from lmtower.guard.tools import Tool, ToolCache, ToolSet

__all__ = [
    "Assembler",
    "Call",
    "Judgement",
    "Rules",
    "Tool",
    "ToolCache",
    "ToolSet",
    "Verdict",
    "clean_chat",
    "clean_messages",
    "clean_responses",
    "deltas",
    "judge",
    "message_calls",
    "retried_call",
    "retry_edits",
]
