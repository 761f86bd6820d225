"""Guard: tool calls that a client can rely on. Validate, repair, decide on one constrained retry; clean history.

Reading order: ``tools`` (schemas), ``repair`` (certain repairs), ``judge`` (the verdict), ``retry`` (the body of the
one constrained retry), ``strict`` (all of it for one request), ``strict_chat`` and its siblings (the replies),
``history`` (replayed calls). Pure: bytes and values only.
"""

from lmtower.guard.history import clean_chat, clean_messages, clean_responses, mended
from lmtower.guard.judge import Call, Judgement, Rules, Verdict, judge
from lmtower.guard.strict import Strict, rules_of
from lmtower.guard.strict_chat import StrictChatReply
from lmtower.guard.strict_messages import StrictMessagesReply
from lmtower.guard.strict_responses import StrictResponsesReply
from lmtower.guard.tools import Tool, ToolCache, ToolSet

__all__ = [
    "Call",
    "Judgement",
    "Rules",
    "Strict",
    "StrictChatReply",
    "StrictMessagesReply",
    "StrictResponsesReply",
    "Tool",
    "ToolCache",
    "ToolSet",
    "Verdict",
    "clean_chat",
    "clean_messages",
    "clean_responses",
    "judge",
    "mended",
    "rules_of",
]
