"""The parent's side of extraction: one child process, asked one file at a time, killed when it takes too long."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from lmtower.stores.extract.document import Limits, Unreadable

_FILES_PER_CHILD = 500


class ChunkRow(msgspec.Struct):
    """One chunk as the child sends it; see ``chunk.Chunk``."""

    number: int
    text: str
    lead: int
    page: int | None
    heading: str
    start: int
    end: int
    tokens: int
    hash: str


class _Refusal(msgspec.Struct):
    code: str
    message: str


class _Answer(msgspec.Struct):
    chunks: list[ChunkRow] = []
    error: _Refusal | None = None


class Extractor:
    """Not for several threads at once. The child is started when needed and replaced now and then."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._child: subprocess.Popen[bytes] | None = None
        self._files = 0
        self._decoder = msgspec.json.Decoder(_Answer)

    def extract(self, path: Path, filename: str, chunk_tokens: int, overlap_tokens: int) -> list[ChunkRow]:
        """Raises Unreadable with the reason that the file's owner sees."""
        child = self._start()
        request = {
            "path": str(path),
            "filename": filename,
            "chunk_tokens": chunk_tokens,
            "overlap_tokens": overlap_tokens,
        }
        line = self._ask(child, msgspec.json.encode(request) + b"\n")
        answer = self._decoder.decode(line)
        if answer.error is not None:
            if "memory" in answer.error.message:
                self.close()
            raise Unreadable(answer.error.message, answer.error.code)
        return answer.chunks

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                if pipe is not None:
                    pipe.close()
            self._child = None

    def _start(self) -> subprocess.Popen[bytes]:
        if self._child is not None and (self._files >= _FILES_PER_CHILD or self._child.poll() is not None):
            self.close()
        if self._child is None:
            self._files = 0
            limits = msgspec.json.encode(self._limits).decode()
            self._child = subprocess.Popen(
                [sys.executable, "-m", "lmtower.stores.extract.child", limits],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # no proxy, key or token of the tower is known to the process that opens strangers' files
                env={"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "LC_ALL": "C.UTF-8"},
            )
        self._files += 1
        return self._child

    def _ask(self, child: subprocess.Popen[bytes], request: bytes) -> bytes:
        assert child.stdin is not None
        assert child.stdout is not None
        deadline = time.monotonic() + self._limits.seconds
        try:
            child.stdin.write(request)
            child.stdin.flush()
        except BrokenPipeError as exc:
            self.close()
            raise Unreadable("The process that reads files died.", "server_error") from exc
        parts: list[bytes] = []
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while not parts or not parts[-1].endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self.close()
                    raise Unreadable(f"Reading the file took longer than {self._limits.seconds:g} s.")
                part = os.read(child.stdout.fileno(), 1 << 20)
                if not part:
                    self.close()
                    raise Unreadable("The file crashed the process that was reading it.")
                parts.append(part)
        return b"".join(parts)
