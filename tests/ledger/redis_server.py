"""A Redis for tests."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path


class Server:
    """A Redis of our own on a unix socket."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, empty."""
        command = ["redis-server", "--port", "0", "--unixsocket", self.socket, "--save", "", "--dir", self._folder]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        until = time.monotonic() + 10
        while subprocess.run(["redis-cli", "-s", self.socket, "ping"], capture_output=True).stdout != b"PONG\n":
            assert time.monotonic() < until
            time.sleep(0.02)

    def command(self, *words: str) -> str:
        """The answer to one command."""
        done = subprocess.run(["redis-cli", "-s", self.socket, *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def stop(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
