"""The tables of the gateway benchmark, as markdown."""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.contestants import Contestant
from benchmarks.workloads import CURVES, Numbers

Rows = Mapping[str, Mapping[str, Sequence[Numbers]]]
Value = Callable[[str], str]


class Medians:
    """The median over the runs of one number of one contestant; NaN where there is none."""

    def __init__(self, table: Rows) -> None:
        self.table = table

    def __call__(self, name: str, workload: str, key: str) -> float:
        found = [
            run[key] for run in self.table.get(name, {}).get(workload, ()) if key in run and not math.isnan(run[key])
        ]
        return statistics.median(found) if found else math.nan

    def added(self, name: str, workload: str, key: str) -> float:
        """What the contestant adds to the mock alone."""
        return self(name, workload, key) - self("direct", workload, key)


def figure(value: float) -> str:
    if math.isnan(value):
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def machine() -> str:
    text = Path("/proc/cpuinfo").read_text()
    model = next(
        (line.partition(": ")[2] for line in text.splitlines() if line.startswith("model name")), "unknown CPU"
    )
    return f"{os.cpu_count()} × {model}, Linux {platform.release()}, CPython {sys.version}"


def main_table(median: Medians, names: Sequence[str]) -> str:
    head = ["contestant", "small chat RPS", "p50 / p99 ms at 100 rps", "p50 / p99 ms at 200 rps"]
    head += [
        "900 KB agent body: added p50 ms / CPU ms",
        "the same, first of its conversation",
        "4 MB image body: added p50 ms / CPU ms",
    ]
    head += ["flat-out stream chunks/s", "RSS idle / loaded MB", "cold start s"]

    def row(name: str) -> list[str]:
        def pair(workload: str, one: str, two: str) -> str:
            return f"{figure(median(name, workload, one))} / {figure(median(name, workload, two))}"

        def body(workload: str) -> str:
            return f"{figure(median.added(name, workload, 'p50'))} / {figure(median(name, workload, 'cpu_ms'))}"

        rates = [pair("rate-100", "p50", "p99"), pair("rate-200", "p50", "p99")]
        ends = [pair("life", "idle_mb", "loaded_mb"), figure(median(name, "life", "cold"))]
        flat = figure(median(name, "flat-out", "chunks"))
        return [
            name,
            figure(median(name, "small", "rps")),
            *rates,
            body("agent"),
            body("agent-new"),
            body("image"),
            flat,
            *ends,
        ]

    return markdown(head, map(row, names))


def stream_table(median: Medians, names: Sequence[str]) -> str:
    forms = [("streams-100-20ms", "100 × 20 ms"), ("streams-100-5ms", "100 × 5 ms")]
    forms += [("streams-1000-20ms", "1,000 × 20 ms"), ("streams-1000-5ms", "1,000 × 5 ms")]
    head = [
        "contestant",
        "streams",
        "added TTFT p50 / p99 ms",
        "chunk delay p50 / p99 ms",
        "delay: 2nd half − 1st, ms",
        "chunks/s",
        "CPU %",
    ]

    def row(name: str, workload: str, title: str) -> list[str]:
        ttft = f"{figure(median.added(name, workload, 'ttft'))} / {figure(median.added(name, workload, 'ttft_p99'))}"
        delay = f"{figure(median(name, workload, 'delay'))} / {figure(median(name, workload, 'delay_p99'))}"
        rest = [figure(median(name, workload, key)) for key in ("growth", "chunks", "cpu")]
        return [name, title, ttft, delay, *rest]

    rows = [row(name, workload, title) for workload, title in forms for name in names]
    return markdown(head, [found for found in rows if any(character.isdigit() for character in "".join(found[2:]))])


RATIOS = [
    ("small chat RPS", "small", "rps"),
    ("CPU per small chat", "small", "cpu_ms"),
    ("p50 at 100 rps", "rate-100", "p50"),
    ("p50 at 200 rps", "rate-200", "p50"),
    ("900 KB agent body, added p50", "agent", "+p50"),
    ("900 KB agent body, CPU", "agent", "cpu_ms"),
    ("900 KB, first of its conversation, added p50", "agent-new", "+p50"),
    ("900 KB, first of its conversation, CPU", "agent-new", "cpu_ms"),
    ("4 MB image body, added p50", "image", "+p50"),
    ("4 MB image body, CPU", "image", "cpu_ms"),
    ("100 streams × 20 ms, CPU", "streams-100-20ms", "cpu"),
    ("100 streams × 20 ms, chunk delay p50", "streams-100-20ms", "delay"),
    ("flat-out stream chunks/s", "flat-out", "chunks"),
    ("RSS idle", "life", "idle_mb"),
    ("cold start", "life", "cold"),
]


def ratio_table(median: Medians, others: Sequence[str]) -> str:
    def value(name: str, workload: str, key: str) -> float:
        return median.added(name, workload, key[1:]) if key.startswith("+") else median(name, workload, key)

    def ratio(other: str, workload: str, key: str) -> str:
        divisor = value(other, workload, key)
        return figure(value("lmtower", workload, key) / divisor) + " ×" if divisor else "–"

    rows = [[title, *(ratio(other, workload, key) for other in others)] for title, workload, key in RATIOS]
    return markdown(["lmtower divided by", *others], rows)


def curve_tables(median: Medians, names: Sequence[str]) -> str:
    forms = {
        "bytes": ("body bytes", "p50", "cpu_ms"),
        "streams": ("streams × 20 ms", "delay", "cpu"),
        "clients": ("clients", "rps", "p50"),
    }
    units = {"p50": "p50 ms", "cpu_ms": "CPU ms", "delay": "chunk delay ms", "cpu": "CPU %", "rps": "RPS"}
    parts = []
    for curve, points in CURVES.items():
        title, one, two = forms[curve]
        head = [title, *(f"{name}: {units[one]} / {units[two]}" for name in names)]
        rows = []
        for size in points:
            where = f"curve-{curve}-{size}"
            cells = [f"{figure(median(name, where, one))} / {figure(median(name, where, two))}" for name in names]
            rows.append([f"{int(size):,}", *cells])
        parts.append(markdown(head, rows))
    return "\n".join(parts)


def _runs(table: Rows) -> str:
    """How often everybody ran, and what ran less often: of a contestant, and of the curves, the fewest runs."""
    counts: dict[str, int] = {}
    for name, found in table.items():
        for workload, runs in found.items():
            key = "curves" if workload.startswith("curve-") else name
            counts[key] = min(counts.get(key, len(runs)), len(runs))
    most = max(counts.values(), default=0)
    fewer = [f", {name} {count}" for name, count in counts.items() if count < most]
    return f"{most} interleaved runs{''.join(fewer)}"


def render(table: Rows, contestants: Sequence[Contestant], notes: set[str], given: argparse.Namespace) -> str:
    median = Medians(table)
    names = [contestant.name for contestant in contestants]
    versions = ", ".join(f"{c.name} {c.version}" for c in contestants if c.version)
    others = [name for name in ("nginx", "vllm-router", "sglang-router", "litellm") if name in names]
    parts = [
        "# The gateway beside its neighbours\n",
        f"{time.strftime('%Y-%m-%d')} · {machine()}.\nContestant on one core, load and mock on another. "
        f"Medians of {_runs(table)}, of {given.seconds:g} s each. Versions: {versions}.\n"
        "lmtower works with every feature on: keys, persona merge, admission, journal, metrics, usage, cancel. "
        "The others forward (LiteLLM: with a master key, no database). Reproduce with `make bench`.\n",
        main_table(median, names),
        "Streams (`direct` is the mock engine without anybody in front; added TTFT is against it):\n",
        stream_table(median, names),
    ]
    if "lmtower" in names and others:
        parts += ["Ratios of medians:\n", ratio_table(median, others)]
    curved = [name for name in names if any(key.startswith("curve-") for key in table.get(name, {}))]
    if curved:
        parts += ["How the cost grows:\n", curve_tables(median, curved)]
    if notes:
        parts += ["Seen on the way:\n", "\n".join(f"- {note}" for note in sorted(notes)) + "\n"]
    return "\n".join(parts)
