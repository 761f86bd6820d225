"""What prefix caching is worth: TTFT of a persona's prompt cold and warm, through the gateway, on a real engine.

``python -m benchmarks prefix`` runs vLLM on CPU where its environment is (tests/integration/vllm_env.sh), else the
embedded engine. Cold: the first line differs from everything before. Warm: the same prompt again. Cached tokens are
taken from usage, from our metrics and from the engine's own counter; the three must agree.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import statistics
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from tests.integration.tower import Tower

from benchmarks.processes import BenchError

ROOT = Path(__file__).parents[1]
LINE = "The quick brown fox jumps over the lazy dog near the river bank. "
COUNTERS = {"vllm": "vllm:prefix_cache_hits_total", "llamacpp": "llamacpp:prompt_tokens_cached_total"}


def run(argv: list[str]) -> int:
    """Start a tower, measure, print a table. Returns an exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks prefix", description=__doc__)
    parser.add_argument("--engine", choices=("vllm", "llamacpp"), default="vllm" if vllm_python() else "llamacpp")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--lines", type=int, default=80, help="length of the prompt, 14 tokens each")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        tower = Tower(Path(folder), free_port(), {})
        port = free_port()
        tower.write(tower_file(options.engine, port))
        try:
            tower.up()
            measure(tower, f"http://127.0.0.1:{port}", options)
        finally:
            tower.run("down", "--yes")
    return 0


def measure(tower: Tower, engine: str, options: argparse.Namespace) -> None:
    """Cold and warm requests, one after the other."""
    before = counter(engine, COUNTERS[options.engine]), counter_of_ours(tower)
    cold, warm, cached, prompt = [], [], 0, 0
    for number in range(options.runs):
        text = f"Report {time.time_ns()}-{number}. " + LINE * options.lines
        seconds, usage = ttft(tower, text)
        cold.append(seconds)
        cached += usage["prompt_tokens_details"]["cached_tokens"]
        seconds, usage = ttft(tower, text)
        warm.append(seconds)
        cached += usage["prompt_tokens_details"]["cached_tokens"]
        prompt = usage["prompt_tokens"]
    theirs = counter(engine, COUNTERS[options.engine]) - before[0]
    ours = counter_of_ours(tower) - before[1]
    middle = {"cold": statistics.median(cold), "warm": statistics.median(warm)}
    print(f"prefix caching, {options.engine}, SmolLM2-135M, {os.cpu_count()} cores, {options.runs} runs, median\n")
    print("| prompt tokens | TTFT cold | TTFT warm | times | cached: usage | our metrics | engine's counter |")
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {prompt} | {middle['cold']:.3f} s | {middle['warm']:.3f} s | {middle['cold'] / middle['warm']:.1f} "
        f"| {cached} | {ours:.0f} | {theirs:.0f} |"
    )


def ttft(tower: Tower, text: str) -> tuple[float, Any]:
    """Seconds to the first event of a streamed answer, and its usage."""
    body = {
        "model": "persona",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection = http.client.HTTPConnection("127.0.0.1", tower.port, timeout=600)
    headers = {"authorization": f"Bearer {tower.key}", "content-type": "application/json"}
    begun = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", json.dumps(body).encode(), headers)
    reply = connection.getresponse()
    first, usage = 0.0, None
    for line in reply:
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            first = first or time.perf_counter() - begun
            usage = event.get("usage") or usage
    connection.close()
    if reply.status != 200 or usage is None:
        raise BenchError(f"the tower answered {reply.status}")
    return first, usage


def tower_file(engine: str, port: int) -> dict[str, Any]:
    """One engine on this machine, one persona."""
    shared = {"node": "here", "context": 4096, "sequences": 2, "port": port}
    if engine == "vllm":
        model = {"model": str(ROOT / ".cache/smollm2"), "runtime": "vllm", "version": "0.32.0", "recipe": "smollm2"}
        shared |= {"image": str(vllm_python()), "kv_cache_memory": "1 GiB", **model}
    else:
        shared |= {"model": "bundled:smollm2"}
    return {
        "nodes": {"here": {"driver": "process", "hardware": "cpu"}},
        "engines": {"engine": shared},
        "personas": {"persona": {"engine": "engine", "system": "You are a careful assistant."}},
    }


def vllm_python() -> Path | None:
    """The Python of the vLLM environment, when environment and model are there."""
    path = Path(os.environ.get("LMTOWER_TEST_VLLM") or ROOT / ".venv-vllm/bin/python")
    return path if path.exists() and (ROOT / ".cache/smollm2/.ready").exists() else None


def counter(url: str, name: str) -> float:
    """Sum of a counter's series at /metrics."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def counter_of_ours(tower: Tower) -> float:
    """Cached tokens as the gateway counts them."""
    return counter(f"http://127.0.0.1:{tower.port + 1}", "lmtower_cached_tokens_total")


def free_port() -> int:
    """A port whose successor is most likely free too."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
