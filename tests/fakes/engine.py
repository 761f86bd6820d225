"""A scripted fake vLLM: a real HTTP server whose answers, delays and deaths a test decides.

It records every request and sees every disconnect:

    with FakeEngine() as engine:
        engine.script(text="one two three", delay=0.01)       # every request from now on
        engine.script(times=1, status=500, error=...)          # but the next one fails
        ... requests to engine.url ...
        engine.requests[0].json["messages"]
        engine.wait_for(lambda e: e.disconnects, timeout=5)    # no sleeping; `await engine.until(...)` in a coroutine

Theory of operation: the server runs in a thread of its own with its own event loop, so that a blocked test cannot stop
it. Scripts with ``times`` are used up in the order they were given; after them the newest script without ``times`` that
matches decides. Everything recorded is changed under one condition variable, which ``wait_for`` waits on.

As a program: ``python -m tests.fakes.engine --port 8000 --delay 0.02 --text "..."``.
"""

from __future__ import annotations

import argparse
import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

from tests.fakes.connection import Connection
from tests.fakes.script import Disconnect, Gate, Request, Script, ToolCall

__all__ = ["Disconnect", "FakeEngine", "Gate", "Request", "Script", "ToolCall"]

Found = TypeVar("Found")


class FakeEngine:
    """See the module. ``sequences`` limits how many requests run at once, the others wait as they do in vLLM."""

    def __init__(
        self,
        model: str | Sequence[str] = "fake-model",
        *,
        port: int = 0,
        host: str = "127.0.0.1",
        api_key: str | None = None,
        max_model_len: int = 8192,
        sequences: int | None = None,
        any_model: bool = False,
    ) -> None:
        self.models = (model,) if isinstance(model, str) else tuple(model)
        self.host, self.port, self.api_key = host, port, api_key
        self.max_model_len, self.any_model = max_model_len, any_model
        self.healthy = True
        self.requests: list[Request] = []
        self.disconnects: list[Disconnect] = []
        self.connections: set[Connection] = set()
        self.connections_made = 0
        self.running = self.waiting = self.most_running = 0
        self.totals = {"input": 0, "cached": 0, "output": 0}
        self.kv_cache_usage = 0.0
        self.preemptions = 0
        self.changed = threading.Condition()
        self.loop = asyncio.new_event_loop()
        self.slots = asyncio.Semaphore(sequences or 1_000_000)
        self._scripts: list[Script] = [Script()]
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._run, name="fake-engine", daemon=True)

    # --- life ---

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self.crash()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    async def _listen(self) -> None:
        self._server = await self.loop.create_server(lambda: Connection(self), self.host, self.port, reuse_address=True)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _crash(self) -> None:
        if self._server:
            self._server.close()
            self._server = None
        tasks = [connection.task for connection in self.connections if connection.task]
        for connection in tuple(self.connections):
            connection.kill()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)

    def crash(self) -> None:
        """The engine dies: nothing listens any more, and every connection is reset."""
        self._call(self._crash())

    def restart(self) -> None:
        """The engine is back, at the same address."""
        self._call(self._listen())

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    # --- what it does ---

    def script(self, script: Script | None = None, **behaviour: Any) -> Script:
        """Add a script, given whole or as the fields of one."""
        script = script or Script(**behaviour)
        with self.changed:
            self._scripts.append(script)
        return script

    def gate(self) -> Gate:
        """A door for ``gate=``: requests wait at it until the test calls its ``open``."""
        return Gate(self.loop)

    def choose(self, request: Request) -> Script:
        with self.changed:
            for script in self._scripts:
                if script.times is not None and script.matches(request):
                    script.times -= 1
                    return script
            return next(s for s in reversed(self._scripts) if s.times is None and s.matches(request))

    # --- what it saw ---

    def note(self, change: Callable[[], object]) -> None:
        with self.changed:
            change()
            self.changed.notify_all()

    def count(self, waiting: int = 0, running: int = 0) -> None:
        def change() -> None:
            self.waiting += waiting
            self.running += running
            self.most_running = max(self.most_running, self.running)

        self.note(change)

    def spent(self, request: Request, input_tokens: int = 0, cached_tokens: int = 0, output_tokens: int = 0) -> None:
        def change() -> None:
            request.tokens_sent += output_tokens
            for name, tokens in (("input", input_tokens), ("cached", cached_tokens), ("output", output_tokens)):
                self.totals[name] += tokens

        self.note(change)

    def wait_for(self, predicate: Callable[[FakeEngine], Found], timeout: float = 5.0) -> Found:
        """Wait until ``predicate(engine)`` is true, and return what it returned."""
        with self.changed:
            self.changed.wait_for(lambda: predicate(self), timeout)
            if found := predicate(self):
                return found
            raise TimeoutError(f"not seen within {timeout} s: {self!r}")

    async def until(self, predicate: Callable[[FakeEngine], Found], timeout: float = 5.0) -> Found:
        """``wait_for`` for coroutines."""
        return await asyncio.to_thread(self.wait_for, predicate, timeout)

    def to(self, route: str) -> list[Request]:
        """The requests to one route (without ``/v1``)."""
        return [request for request in self.requests if request.route == route]

    def clear(self) -> None:
        """Forget scripts, requests and disconnects."""
        with self.changed:
            self._scripts[:] = [Script()]
            self.requests.clear()
            self.disconnects.clear()

    def __repr__(self) -> str:
        seen = [f"{r.method} {r.path} {r.status} {r.tokens_sent} tokens" for r in self.requests[-5:]]
        return f"<FakeEngine {self.url} running={self.running} disconnects={len(self.disconnects)} last={seen}>"

    def metrics(self) -> str:
        label = f'{{engine="0",model_name="{self.models[0]}"}}'
        queries, hits = self.totals["input"], self.totals["cached"]
        values = [
            ("num_requests_running", "gauge", self.running),
            ("num_requests_waiting", "gauge", self.waiting),
            ("kv_cache_usage_perc", "gauge", self.kv_cache_usage),
            ("prefix_cache_queries_total", "counter", queries),
            ("prefix_cache_hits_total", "counter", hits),
            ("prompt_tokens_total", "counter", queries),
            ("generation_tokens_total", "counter", self.totals["output"]),
            ("num_preemptions_total", "counter", self.preemptions),
            ("request_success_total", "counter", len(self.requests)),
        ]
        lines = []
        for name, kind, value in values:
            lines += [f"# HELP vllm:{name} {name}.", f"# TYPE vllm:{name} {kind}", f"vllm:{name}{label} {float(value)}"]
        for name in ("time_to_first_token_seconds", "inter_token_latency_seconds"):
            count, inside = len(self.requests), label[:-1]
            buckets = [f'vllm:{name}_bucket{inside},le="{bound}"}} {count}' for bound in ("0.1", "1.0", "+Inf")]
            lines += [f"# HELP vllm:{name} {name}.", f"# TYPE vllm:{name} histogram", *buckets]
            lines += [f"vllm:{name}_sum{label} {count * 0.05}", f"vllm:{name}_count{label} {count}"]
        return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fakes.engine", description="A fake vLLM.")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--model", default="fake-model")
    parser.add_argument("--api-key")
    parser.add_argument("--sequences", type=int)
    parser.add_argument("--text")
    parser.add_argument("--reasoning", default="")
    parser.add_argument("--first-delay", type=float, default=0.0)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--cached-tokens", type=int)
    given = parser.parse_args()
    engine = FakeEngine(given.model, port=given.port, host=given.host, api_key=given.api_key, sequences=given.sequences)
    engine.script(
        text=given.text,
        reasoning=given.reasoning,
        first_delay=given.first_delay,
        delay=given.delay,
        cached_tokens=given.cached_tokens,
    )
    with engine:
        print(f"fake engine {given.model!r} on {engine.url}", flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
