"""The two C programs of the benchmarks: compiled here, the mock engine controlled, the load generator run."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.place import LOAD_CORE, MOCK_CORE, MOCK_PORT, ROOT, WORK
from benchmarks.processes import BenchError, Process

Result = dict[str, Any]


def build() -> None:
    """Compile ``mock`` and ``load`` when their source is newer."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    (WORK / "bin").mkdir(parents=True, exist_ok=True)
    for name in ("mock", "load"):
        source, binary = ROOT / "native" / f"{name}.c", WORK / "bin" / name
        if binary.exists() and binary.stat().st_mtime > source.stat().st_mtime:
            continue
        if compiler is None:
            raise BenchError("the benchmarks need a C compiler for the mock engine: apt-get install gcc libc6-dev")
        made = subprocess.run([compiler, "-O2", "-o", binary, source], capture_output=True, text=True, check=False)
        if made.returncode:
            raise BenchError(f"cannot compile {source.name}:\n{made.stderr}")


class Mock:
    """The mock engine. ``markers`` are texts that it looks for in every body, and counts."""

    def __init__(self, markers: tuple[str, ...]) -> None:
        argv = [str(WORK / "bin" / "mock"), str(MOCK_PORT), *markers]
        self.process = Process(argv, core=MOCK_CORE, log=WORK / "mock.log")

    def _get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", MOCK_PORT, timeout=10)
        try:
            connection.request("GET", path)
            return connection.getresponse().read()
        finally:
            connection.close()

    def streams(self, chunks: int, interval_us: int) -> None:
        """The form of every stream from now on; interval 0 sends as fast as the reader reads."""
        self._get(f"/_set?chunks={chunks}&interval_us={interval_us}")

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._get("/_stats"))
        return found

    def last_body(self) -> Any:
        return json.loads(self._get("/_last"))


def load(mode: str, port: int, request: Path, number: float, seconds: float, ramp: float = 0.0) -> Result:
    """Run the load generator (see native/load.c for the modes) and return what it printed."""
    argv = ["taskset", "-c", str(LOAD_CORE), str(WORK / "bin" / "load")]
    argv += [mode, str(port), str(request), str(number), str(seconds), str(ramp)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + 60, check=False)
    if done.returncode:
        raise BenchError(f"load generator: {done.stderr}")
    result: Result = json.loads(done.stdout)
    return result
