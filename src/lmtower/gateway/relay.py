"""An event stream on its way from engine to client: straight through, with keep-alives and deadlines.

The engine's bytes arrive in its connection's callback and leave in the same callback. Both sides' flow control is
tied together: a client that reads slowly pauses the engine's connection, so memory does not grow. One watch over
all streams (a tick a second) sends keep-alives and enforces the deadlines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from lmtower.config.types import Gateway as GatewayConfig
from lmtower.gateway.engine import Engine
from lmtower.gateway.exchange import SSE, Exchange
from lmtower.gateway.flow import Flow
from lmtower.gateway.upstream import Call
from lmtower.wire.answers import MALFORMED, malformed
from lmtower.wire.faults import Fault
from lmtower.wire.reply import Reply


class Relay:
    """One stream. ``keep_alive`` may be called before there is a call: while the request waits for its slot."""

    __slots__ = ("_clock", "_reply", "call", "exchange", "fault", "flow", "last_write", "waiting_since")

    def __init__(self, flow: Flow, reply: Reply, clock: Callable[[], float]) -> None:
        self.flow = flow
        self.exchange: Exchange = flow.exchange
        self.call: Call | None = None
        self.fault: Fault | None = None
        self.last_write = self.waiting_since = clock()
        self._reply = reply
        self._clock = clock

    def keep_alive(self, now: float) -> None:
        """Show the client that the request is alive."""
        self._send(self._reply.alive())
        self.last_write = now

    def attach(self, call: Call) -> None:
        """Let the engine's bytes flow to the client. Status and headers go out with what is there of the answer."""
        self.call = call
        self.exchange.on_pause = call.pause
        self.exchange.on_resume = call.resume
        call.attach(self._sink, self._take)
        if not self.exchange.started:
            self._send(b"")

    def _send(self, out: bytes) -> None:
        """Bytes of the stream, behind status 200 and the headers of an event stream if they are the first."""
        if self.exchange.started:
            self.exchange.send(out)
        else:
            self.exchange.start(200, [*SSE, *self.flow.headers], out)

    def _take(self, data: bytes, start: int) -> bool:
        """A chunk that holds one event in the frame of those before it needs nothing else of what ``_sink`` does."""
        reply, call = self._reply, self.call
        frame = reply.frame
        if frame is None or call is None:
            return False
        out = frame.inside(data, start)
        if out:
            reply.events += 1
            self.flow.last_at = self.last_write = call.last_read
            self.exchange.send(out)
            return True
        return False

    def _sink(self, data: bytes) -> None:
        call = self.call
        if self.fault is not None or call is None:
            return
        reply = self._reply
        try:
            out = reply.feed(data)
        except (Fault, *MALFORMED) as exc:
            self.fault = exc.with_traceback(None) if isinstance(exc, Fault) else malformed()
            call.fail("the answer cannot be relayed")
            return
        if out:
            flow = self.flow
            flow.last_at = self.last_write = now = call.last_read
            if not flow.first_at:
                flow.first_at = now
            if reply.complete:
                flow.done()
            self._send(out)
        if reply.enough:
            # the answer is complete (a stop string): what the engine would still write is not wanted. This comes
            # last, because it wakes whoever waits for the end of the call.
            call.fail("enough")


class Watch:
    """Everything that waits for an engine, looked at once a tick. ``engines`` are those that may have calls."""

    def __init__(self, clock: Callable[[], float], engines: Callable[[], Iterable[Engine]]) -> None:
        self.relays: set[Relay] = set()
        self._clock = clock
        self._engines = engines

    async def run(self, config: Callable[[], GatewayConfig]) -> None:
        """Tick until cancelled."""
        while True:
            settings = config()
            await asyncio.sleep(_pause(settings))
            self.tick(self._clock(), settings)

    def tick(self, now: float, settings: GatewayConfig) -> None:
        """Send the keep-alives that are due, end what waited too long."""
        silence = settings.keepalive - _pause(settings)  # the next look would be too late
        for relay in list(self.relays):
            call = relay.call
            if call is not None and call.paused:
                if now - call.last_read > settings.idle_timeout:
                    relay.exchange.cancel()  # it left without saying so
                continue
            if call is not None:
                first = relay.flow.first_at
                limit = settings.idle_timeout if first else settings.first_token_timeout
                if now - max(call.last_read if first else 0.0, relay.waiting_since) > limit:
                    relay.fault = _too_slow(limit, first > 0)
                    call.fail("timeout")
                    continue
            if now - relay.last_write >= silence:
                relay.keep_alive(now)
        for engine in self._engines():
            for call in engine.calls():
                if not call.relayed and now - call.last_read > settings.first_token_timeout:
                    call.fail(f"The engine gave no answer for {settings.first_token_timeout:g} s.", late=True)


def _pause(settings: GatewayConfig) -> float:
    """Seconds between two looks: at least four per keep-alive interval."""
    return max(0.01, min(1.0, settings.keepalive / 4))


def _too_slow(seconds: float, started: bool) -> Fault:
    what = "fell silent" if started else "gave no first token"
    return Fault(504, "engine_timeout", f"The engine {what} for {seconds:g} s.")
