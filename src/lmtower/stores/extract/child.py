"""The extraction process: reads one request a line, answers one line. ``python -m lmtower.stores.extract.child``.

Theory of operation. Files come from strangers and format libraries have bugs, so they are opened only here: a process
with a memory limit set by the kernel, no file that it can write, no descriptor but its pipes. The parent kills it when
a file takes too long; what it was reading then fails alone. Standard error is left to the parent's log.
"""

from __future__ import annotations

import dataclasses
import resource
import sys
from pathlib import Path
from typing import Any

import msgspec

from lmtower.stores.extract.chunk import Chunker
from lmtower.stores.extract.document import Limits, Unreadable
from lmtower.stores.extract.read import read


class Request(msgspec.Struct):
    path: str
    filename: str
    chunk_tokens: int
    overlap_tokens: int


def confine(memory_bytes: int) -> None:
    """Address space on top of what the interpreter and its libraries have mapped already; files of no size at all."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    mapped = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + memory_bytes, mapped + memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def answer(request: Request, limits: Limits, chunkers: dict[tuple[int, int], Chunker]) -> dict[str, Any]:
    size = (request.chunk_tokens, request.overlap_tokens)
    try:
        if size not in chunkers:
            chunkers[size] = Chunker(*size)
        document = read(Path(request.path), request.filename, limits)
        return {"chunks": [dataclasses.asdict(chunk) for chunk in chunkers[size].chunks(document)]}
    except Unreadable as exc:
        return {"error": {"code": exc.code, "message": str(exc)}}
    except MemoryError:
        mebibytes = limits.memory_bytes // 1024**2
        return {"error": {"code": "invalid_file", "message": f"Reading it needs more than {mebibytes} MiB of memory."}}


def main() -> None:
    limits = msgspec.json.decode(sys.argv[1], type=Limits)
    decoder = msgspec.json.Decoder(Request)
    chunkers: dict[tuple[int, int], Chunker] = {}
    confine(limits.memory_bytes)
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(msgspec.json.encode(answer(decoder.decode(line), limits, chunkers)) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
