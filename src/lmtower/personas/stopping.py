"""More stop strings than an engine takes: it gets the first few, the gateway enforces all."""

from __future__ import annotations

from typing import Any

import msgspec

from lmtower.personas.rules import Trace
from lmtower.wire import stops
from lmtower.wire import top as tops
from lmtower.wire.faults import Fault
from lmtower.wire.reply import Reply
from lmtower.wire.stops_messages import StoppingMessages
from lmtower.wire.top import Top

_encode = msgspec.json.encode


def limit_stops(top: Top, reply: Reply, limit: int | None, trace: Trace | None) -> Reply:
    """Leave an engine no more ``stop`` strings than it takes. Returns the reply that enforces the others."""
    ours = _limited(top, "stop", limit, trace)
    if not ours:
        return reply
    if tops.flag(top, "stream"):
        # the answer may end here before the engine's last chunk, which has the usage
        top["stream_options"] = tops.encoded({"include_usage": True, "continuous_usage_stats": True})
    return stops.StoppingReply(reply, ours, _choices(top))


def limit_stop_sequences(top: Top, reply: Reply, limit: int | None, trace: Trace | None) -> Reply:
    """The same for Anthropic messages, whose stream begins with the usage that is known by then."""
    ours = _limited(top, "stop_sequences", limit, trace)
    return StoppingMessages(reply, ours) if ours else reply


def _limited(top: Top, field: str, limit: int | None, trace: Trace | None) -> tuple[str, ...]:
    """What the gateway has to enforce; the engine's part is in the body."""
    if limit is None or not tops.given(top, field):
        return ()
    engine, ours = stops.split(stop_strings(top, field), limit)
    if ours:
        top[field] = tops.encoded(engine)
        if trace is not None:
            rule = f"{len(ours)} stop strings: the engine takes {len(engine)}, the gateway enforces all"
            trace.append((field, rule))
    return ours


def stop_strings(top: Top, field: str) -> tuple[str, ...]:
    """The client's stop strings. Raises Fault(400) when they are something else."""
    given: Any = tops.value(top, field)
    found = [given] if isinstance(given, str) else given or []
    if not isinstance(found, list) or not all(isinstance(stop, str) for stop in found):
        message = f"The field {field!r} must be a string or a list of strings."
        raise Fault(400, "invalid_type", message, param=field)
    return tuple(found)


def _choices(top: Top) -> int:
    """How many answers a request gets: ``n`` of each prompt."""
    prompts = tops.value(top, "prompt")
    several = isinstance(prompts, list) and bool(prompts) and not isinstance(prompts[0], int)
    return (tops.whole(top, "n") or 1) * (len(prompts) if several else 1)
