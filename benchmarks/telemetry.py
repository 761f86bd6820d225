"""What the metrics cost: small chats through lmtower as it is, scraped every second, and with the counting taken out.

``python -m benchmarks telemetry``. There is no switch for this in the product; the run without telemetry starts
lmtower with the methods that requests call replaced by nothing (``python -m benchmarks.telemetry`` is that
program). Compared is the CPU time per request, because a rate on a shared machine says less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import threading
import urllib.request
from collections import defaultdict
from collections.abc import Sequence

from benchmarks import bodies, native
from benchmarks.contestants import lmtower
from benchmarks.gateway import start, wait_for_port
from benchmarks.native import Mock, load
from benchmarks.place import LOAD_CORE, PORT, WORK

CLIENTS = 32
MOST_PERCENT = 5.0


def run(argv: Sequence[str]) -> int:
    """Measure both in turns and print a table. Returns 1 when telemetry costs more than it may."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks telemetry", description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    given = parser.parse_args(argv)
    WORK.mkdir(exist_ok=True)
    native.build()
    os.sched_setaffinity(0, {LOAD_CORE})
    cpu: dict[str, list[float]] = defaultdict(list)
    mock = Mock((bodies.SYSTEM_MARK, bodies.PARAMETER_MARK, bodies.END_MARK))
    try:
        wait_for_port(mock.process)
        for _ in range(given.runs):
            for name in ("on", "off"):
                cpu[name].append(measure(name, mock, given.seconds))
    finally:
        mock.process.stop()
    middle = {name: statistics.median(found) for name, found in cpu.items()}
    percent = (middle["on"] / middle["off"] - 1) * 100
    print(f"small chat, {CLIENTS} clients, median of {given.runs} runs of {given.seconds:g} s\n")
    print("| telemetry | CPU µs a request |\n|---|---|")
    for name, words in (("on", "on, scraped every second"), ("off", "off")):
        print(f"| {words} | {middle[name]:.1f} |")
    print(f"\nTelemetry costs {percent:.1f} % (at most {MOST_PERCENT:g} % is allowed).")
    return int(percent > MOST_PERCENT)


def measure(name: str, mock: Mock, seconds: float) -> float:
    """CPU microseconds per request of one fresh lmtower."""
    contestant = lmtower()
    if name == "off":
        contestant.argv = [sys.executable, "-m", "benchmarks.telemetry", *contestant.argv[1:]]
    running, _ = start(contestant, mock, seconds)
    assert running.process is not None
    stop = threading.Event()
    scraper = threading.Thread(target=scrape, args=(stop,))
    try:
        load("closed", contestant.port, running.request("small"), CLIENTS, 1.0)
        if name == "on":
            scraper.start()
        result = running.measure("closed", "small", CLIENTS)
        return float(result["cpu"] / result["good"] * 1e6)
    finally:
        stop.set()
        if scraper.ident is not None:
            scraper.join()
        running.process.stop()


def scrape(stop: threading.Event) -> None:
    """What Prometheus does, more often than it does it."""
    while not stop.wait(1.0):
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT + 1}/metrics", timeout=10) as page:
            page.read()


def without_telemetry(argv: Sequence[str]) -> None:
    """lmtower with nothing counted."""
    from lmtower.cli import main
    from lmtower.telemetry.metrics import Metrics

    for method in ("finished", "count"):
        setattr(Metrics, method, lambda *_, **__: None)
    sys.argv = ["lmtower", *argv]
    main()


if __name__ == "__main__":
    without_telemetry(sys.argv[1:])
