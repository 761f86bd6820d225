"""``python -m benchmarks [NAME] [options]``: one entry point of all benchmarks. Without a name: the gateway.

Names are the modules of this folder that have a ``run(argv) -> int``: gateway, planner, retrieval, prefix, telemetry.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys

from benchmarks.processes import BenchError

NAMES = ("gateway", "planner", "retrieval", "prefix", "telemetry")


def main(argv: list[str]) -> int:
    there = [name for name in NAMES if importlib.util.find_spec(f"benchmarks.{name}")]
    name = "gateway"
    if argv and not argv[0].startswith("-"):
        name, argv = argv[0], argv[1:]
    if name not in there:
        print(f"unknown benchmark {name!r}; there are: {', '.join(there)}", file=sys.stderr)
        return 2
    try:
        return int(importlib.import_module(f"benchmarks.{name}").run(argv))
    except BenchError as error:
        print(f"benchmark {name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"benchmark {name}: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
