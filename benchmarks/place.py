"""Where the benchmarks keep what they build, and which cores and ports they use."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PROJECT = ROOT.parent
WORK = ROOT / ".work"
RESULTS = ROOT / "RESULTS.md"
MOCK_PORT = 19100
PORT = 19200  # contestants; the next ones are for their admin and metrics listeners

# The contestant has a core of its own; load generator and mock share another, or have one each when there are three.
CORES = sorted(os.sched_getaffinity(0))
LOAD_CORE, MOCK_CORE, CONTESTANT_CORE = (
    CORES[0],
    CORES[min(1, len(CORES) - 2)] if len(CORES) > 2 else CORES[0],
    CORES[-1],
)
