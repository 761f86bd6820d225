"""The gateway beside its neighbours: every contestant does the same work, interleaved, and the work is checked."""

from __future__ import annotations

import argparse
import json
import os
import socket
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from benchmarks import bodies, native, report
from benchmarks.contestants import EVERYBODY, Contestant, recorded
from benchmarks.native import Mock
from benchmarks.place import LOAD_CORE, MOCK_PORT, PORT, RESULTS, WORK
from benchmarks.processes import BenchError, Process
from benchmarks.workloads import CURVES, WORKLOADS, Numbers, Running, body_of

# contestant -> workload -> the numbers of each run
Table = dict[str, dict[str, list[Numbers]]]


def answers(contestant: Contestant, request: bytes) -> bool:
    """Whether it answers one request with 200 now."""
    try:
        with socket.create_connection(("127.0.0.1", contestant.port), timeout=5) as client:
            client.sendall(request)
            return client.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def start(contestant: Contestant, mock: Mock, seconds: float) -> tuple[Running, Numbers]:
    """Start it and wait for its first answer. The numbers: cold start and idle memory."""
    run = Running(contestant, None, mock, seconds)
    request = run.request("small").read_bytes()
    run.process = process = contestant.start()
    if process is None:
        return run, {}
    while not answers(contestant, request):
        if not process.alive or time.monotonic() - process.began > 120:
            raise BenchError(f"{contestant.name} does not answer:\n{process.tail()}")
        time.sleep(0.002)
    cold = time.monotonic() - process.began
    process.settle()
    return run, {"cold": cold, "idle_mb": process.rss_bytes() / 1e6}


def one_round(contestant: Contestant, mock: Mock, given: argparse.Namespace, table: Table, notes: set[str]) -> None:
    """All workloads on one contestant, started afresh."""
    before = recorded() if contestant.merges else {}
    came = mock.stats()["requests"]
    run, first = start(contestant, mock, given.seconds)
    try:
        numbers = table[contestant.name]
        for name in given.only or WORKLOADS:
            if name not in WORKLOADS:
                continue
            print(f"  {contestant.name:14} {name:18}", end="", flush=True)
            try:
                found = WORKLOADS[name](run)
            except BenchError as error:
                print(f"FAILED: {error}", flush=True)
                notes.add(str(error))
                continue
            numbers[name].append(found)
            print("  ".join(f"{key}={value:.4g}" for key, value in found.items()), flush=True)
        for kind in ("small", "agent", "image"):
            answers(contestant, run.request(kind).read_bytes())
            for changed in run.compare_body(kind):
                notes.add(f"{contestant.name} changes the {changed} of the {kind} body")
        if run.process:
            run.process.settle()
            numbers["life"].append(first | {"loaded_mb": run.process.rss_bytes() / 1e6})
    finally:
        if run.process:
            run.process.stop()
    if contestant.merges:
        try:
            check_usage(run, before, mock.stats()["requests"] - came)
        except BenchError as error:
            notes.add(str(error))


def curves(contestant: Contestant, mock: Mock, given: argparse.Namespace, table: Table, notes: set[str]) -> None:
    """How the cost grows with bytes, streams and clients."""
    run, _ = start(contestant, mock, given.seconds)
    try:
        for name, points in CURVES.items():
            for size, workload in points.items():
                try:
                    table[contestant.name][f"curve-{name}-{size}"].append(workload(run))
                except BenchError as error:
                    notes.add(str(error))
            print(f"  {contestant.name:14} curve over {name}", flush=True)
    finally:
        if run.process:
            run.process.stop()


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short run of each; for a look, not for RESULTS.md")
    parser.add_argument("--runs", type=int, help="interleaved runs (default 3; quick 1)")
    parser.add_argument("--seconds", type=float, help="of each measurement (default 4; quick 1)")
    parser.add_argument("--only", action="append", help=f"one of {', '.join(WORKLOADS)}, curves; may be repeated")
    parser.add_argument(
        "--contestants", help=f"comma-separated (default: {','.join(EVERYBODY)}, those that can be had)"
    )
    parser.add_argument("--keep", type=Path, help="a file: its numbers count too, and this call's are added to it")
    parser.add_argument("--output", default=str(RESULTS), help="where the tables are written (default: RESULTS.md)")
    given = parser.parse_args(argv)
    given.runs = given.runs or (1 if given.quick else 3)
    given.seconds = given.seconds or (1.0 if given.quick else 4.0)
    given.names = given.contestants.split(",") if given.contestants else list(EVERYBODY)
    for name in [*given.names, *(given.only or [])]:
        if name not in EVERYBODY and name not in WORKLOADS and name != "curves":
            parser.error(f"unknown name {name!r}")
    return given


def run(argv: Sequence[str]) -> int:
    given = parse(argv)
    WORK.mkdir(exist_ok=True)
    for port in (MOCK_PORT, PORT):
        check_free(port)
    native.build()
    os.sched_setaffinity(0, {LOAD_CORE})
    table: Table = defaultdict(lambda: defaultdict(list))
    notes: set[str] = set()
    contestants = set_up(given, notes)
    if given.keep and given.keep.exists():
        restore(given.keep, table, notes)
    mock = Mock((bodies.SYSTEM_MARK, bodies.PARAMETER_MARK, bodies.END_MARK))
    try:
        wait_for_port(mock.process)
        for kind in ("small", "stream", "agent", "image"):
            body_of(kind)
        for number in range(given.runs):
            print(f"run {number + 1} of {given.runs}", flush=True)
            for contestant in tuple(contestants):
                try:
                    one_round(contestant, mock, given, table, notes)
                except BenchError as error:
                    without(contestant.name, given, error, notes)
                    contestants.remove(contestant)
        if not given.only or "curves" in given.only:
            for contestant in contestants:
                if contestant.name in ("nginx", "vllm-router", "lmtower"):
                    curves(contestant, mock, given, table, notes)
    finally:
        mock.process.stop()
    if given.keep:
        given.keep.write_text(json.dumps({"table": table, "notes": sorted(notes)}))
    text = report.render(table, contestants, notes, given)
    print("\n" + text)
    if given.keep or not (given.quick or given.only):
        with open(given.output, "w") as out:
            out.write(text)
    return 0


def set_up(given: argparse.Namespace, notes: set[str]) -> list[Contestant]:
    """Everybody who takes part, installed and configured."""
    found = []
    for name in given.names:
        try:
            found.append(EVERYBODY[name]())
        except BenchError as error:
            without(name, given, error, notes)
    return found


def without(name: str, given: argparse.Namespace, error: BenchError, notes: set[str]) -> None:
    """Go on without a neighbour, unless it was asked for by name. Raises the error then, and for our own."""
    if given.contestants or name in ("direct", "lmtower"):
        raise error
    print(f"  {name:14} is left out: {error}", flush=True)
    notes.add(f"{name} is left out: {error}")


def check_free(port: int) -> None:
    """Raises BenchError when somebody listens there, such as a benchmark that still runs."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as exc:
            raise BenchError(f"port {port} is taken ({exc.strerror}): is another benchmark running?") from exc


def restore(kept: Path, table: Table, notes: set[str]) -> None:
    """Take the numbers of an earlier call over: a full run is longer than some machines stay quiet."""
    found = json.loads(kept.read_text())
    notes.update(found["notes"])
    for name, workloads in found["table"].items():
        for workload, numbers in workloads.items():
            table[name][workload] += numbers


def check_usage(run: Running, before: dict[str, int], came: int) -> None:
    """Every answer that a client got, and every request that reached the engine, has its record."""
    after = recorded()
    ok = after.get("ok", 0) - before.get("ok", 0)
    total = sum(after.values()) - sum(before.values())
    if ok < run.good or total < came:
        run.complain("usage", f"{ok} records for {run.good} answers, {total} for {came} requests to the engine")


def wait_for_port(process: Process) -> None:
    while True:
        try:
            socket.create_connection(("127.0.0.1", MOCK_PORT), timeout=1).close()
        except OSError:
            if not process.alive:
                raise BenchError(f"the mock engine does not run: {process.tail()}") from None
            time.sleep(0.01)
        else:
            return
