"""The work that every contestant is given, and the numbers taken from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from benchmarks import bodies
from benchmarks.contestants import Contestant
from benchmarks.native import Mock, Result, load
from benchmarks.processes import BenchError, Process

Numbers = dict[str, float]
SIZES = (1_000, 10_000, 100_000, 1_000_000, 4_000_000)
MAKERS: dict[str, Callable[[], bodies.Body]] = {
    "small": bodies.small_chat,
    "stream": bodies.stream_chat,
    "agent": bodies.agent_chat,
    "agent-new": bodies.new_agent_chat,
    "image": bodies.image_chat,
} | {f"text-{size}": partial(bodies.text_chat, size) for size in SIZES}


@cache
def body_of(kind: str) -> bodies.Body:
    return MAKERS[kind]()


@dataclass
class Running:
    """A contestant that has been started, the mock behind it, and how long to measure."""

    contestant: Contestant
    process: Process | None
    mock: Mock
    seconds: float
    good: int = 0

    def request(self, kind: str) -> Path:
        """The file with the request of this kind, with the contestant's model and key in it."""
        name = f"{self.contestant.name}-{kind}"
        return bodies.write_request(name, body_of(kind), model=self.contestant.model, key=self.contestant.key)

    def measure(self, mode: str, kind: str, number: float, seconds: float | None = None, ramp: float = 0.0) -> Result:
        """One run of the load generator, with the CPU seconds that the contestant spent, and its work checked."""
        request = self.request(kind)
        before, cpu = self.mock.stats(), self.process.cpu_seconds() if self.process else 0.0
        result = load(mode, self.contestant.port, request, number, seconds or self.seconds, ramp)
        self.good += result["good"]
        result["cpu"] = (self.process.cpu_seconds() if self.process else 0.0) - cpu
        if self.process:
            self.process.settle()
        self._check(kind, before, result)
        return result

    def _check(self, kind: str, before: Result, result: Result) -> None:
        """Everything that reached the mock was whole; for us: with the persona's prompt, parameters and engine key."""
        if result["bad"] or result["refused"]:
            self.complain(
                kind, f"{result['bad']} bad answers, {result['refused']} refused connections: {result['why']}"
            )
        after = self.mock.stats()
        came = after["requests"] - before["requests"]
        system, parameter, end = (new - old for new, old in zip(after["marked"], before["marked"], strict=True))
        if end != came or not came:
            self.complain(kind, f"{came - end} of {came} bodies were not whole")
        if self.contestant.merges:
            keyed = after["authorized"] - before["authorized"]
            if (system, parameter, keyed) != (came, came, came):
                self.complain(kind, f"of {came}: {system} with prompt, {parameter} with parameter, {keyed} with key")

    def complain(self, kind: str, what: str) -> None:
        raise BenchError(f"{self.contestant.name}, {kind}: {what}")

    def compare_body(self, kind: str) -> list[str]:
        """What the contestant changed in messages and tools, besides what it must change."""
        sent, got = body_of(kind), self.mock.last_body()
        messages = got.get("messages", [])
        changed = []
        if self.contestant.merges:
            first = messages[0]
            if bodies.SYSTEM_MARK not in str(first.get("content")):
                changed.append("no persona prompt")
            had_system = sent["messages"][0]["role"] == "system"
            if had_system and not str(first["content"]).endswith(sent["messages"][0]["content"]):
                changed.append("system message")
            messages = (sent["messages"][:1] if had_system else []) + messages[1:]
        if messages != sent["messages"]:
            changed.append("messages")
        if got.get("tools") != sent.get("tools"):
            changed.append("tools")
        return changed


def small(run: Running) -> Numbers:
    """Small chat, 32 clients that each ask again at once."""
    run.good += load("closed", run.contestant.port, run.request("small"), 32, min(1.0, run.seconds))["good"]  # warm
    result = run.measure("closed", "small", 32)
    latency = result["latency"]
    return {
        "rps": result["rps"],
        "p50": latency["p50"],
        "p99": latency["p99"],
        "cpu_ms": result["cpu"] * 1e3 / result["good"],
    }


def at_rate(kind: str, rate: float) -> Callable[[Running], Numbers]:
    """Requests at fixed times, whether or not the last one is answered."""

    def measured(run: Running) -> Numbers:
        result = run.measure("open", kind, rate, seconds=max(run.seconds, 20 / rate))
        latency = result["latency"] or {"p50": float("nan"), "p99": float("nan")}
        return {"p50": latency["p50"], "p99": latency["p99"], "cpu_ms": result["cpu"] * 1e3 / max(1, result["good"])}

    return measured


def streams(count: int, interval_ms: float) -> Callable[[Running], Numbers]:
    """So many streams at once, a chunk each every ``interval_ms``; opened over half the first second."""

    def measured(run: Running) -> Numbers:
        seconds = max(run.seconds, 1.0) + 0.5
        run.mock.streams(round(2 * seconds * 1000 / interval_ms), round(interval_ms * 1000))
        result = run.measure("streams", "stream", count, seconds=seconds, ramp=0.5)
        if not result["delay"]:
            return dict.fromkeys(("ttft", "ttft_p99", "delay", "delay_p99", "growth", "cpu", "chunks"), float("nan"))
        halves = [result[f"delay_{half}_half"] for half in ("first", "second")]
        growth = halves[1]["p50"] - halves[0]["p50"] if all(halves) else float("nan")
        return {
            "ttft": result["ttft"]["p50"],
            "ttft_p99": result["ttft"]["p99"],
            "delay": result["delay"]["p50"],
            "delay_p99": result["delay"]["p99"],
            "growth": growth,
            "cpu": result["cpu"] / result["seconds"] * 100,
            "chunks": result["chunks"] / result["seconds"],
        }

    return measured


def flat_out(run: Running) -> Numbers:
    """One stream, as fast as it goes."""
    run.mock.streams(20_000, 0)
    result = run.measure("streams", "stream", 1)
    return {"chunks": result["chunks"] / result["seconds"], "mbytes": result["bytes"] / result["seconds"] / 1e6}


WORKLOADS: dict[str, Callable[[Running], Numbers]] = {
    "small": small,
    "rate-100": at_rate("small", 100),
    "rate-200": at_rate("small", 200),
    "agent": at_rate("agent", 20),
    "agent-new": at_rate("agent-new", 20),
    "image": at_rate("image", 5),
    "streams-100-20ms": streams(100, 20),
    "streams-100-5ms": streams(100, 5),
    "streams-1000-20ms": streams(1000, 20),
    "streams-1000-5ms": streams(1000, 5),
    "flat-out": flat_out,
}
CURVES: dict[str, dict[float, Callable[[Running], Numbers]]] = {
    "bytes": {size: at_rate(f"text-{size}", 10) for size in SIZES},
    "streams": {count: streams(count, 20) for count in (50, 100, 200, 400, 800)},
    "clients": {},
}


def _clients(count: int) -> Callable[[Running], Numbers]:
    def measured(run: Running) -> Numbers:
        result = run.measure("closed", "small", count)
        return {"rps": result["rps"], "p50": result["latency"]["p50"], "cpu_ms": result["cpu"] * 1e3 / result["good"]}

    return measured


CURVES["clients"] = {count: _clients(count) for count in (1, 4, 16, 64, 256, 1000)}
