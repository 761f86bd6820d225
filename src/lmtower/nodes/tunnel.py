"""A node's Docker socket, brought here by ssh: one connection, with the person's own keys and ssh configuration.

``ssh -L`` forwards the remote socket to one in a temporary folder. ssh runs ``cat`` there with our pipe as its input,
so it ends with us even on ``kill -9``; keep-alives end it a quarter of a minute after the link was cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path
from urllib.parse import urlsplit

from lmtower.nodes.reach import ssh_words

DOCKER_SOCKET = "/var/run/docker.sock"
_OPTIONS = ("ExitOnForwardFailure=yes", "ServerAliveInterval=5", "ServerAliveCountMax=3", "ControlMaster=no")
_OPEN_SECONDS = 20.0


class Tunnel:
    """Forwards one node's Docker socket while it is open. ``address`` may name the socket: ``ssh://host/run/x.sock``."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._folder: str | None = None
        self._process: Process | None = None

    @property
    def alive(self) -> bool:
        """False before it was opened and after the link has ended."""
        return self._process is not None and self._process.returncode is None

    async def open(self) -> str:
        """Open it; the URL of the local end. Raises OSError with what ssh said."""
        await self.close()
        self._folder = tempfile.mkdtemp(prefix="lmtower-")
        local = Path(self._folder, "docker.sock")
        remote = urlsplit(self._address).path or DOCKER_SOCKET
        options = [word for option in _OPTIONS for word in ("-o", option)]
        argv = ["ssh", *options, "-L", f"{local}:{remote}", *ssh_words(self._address), "cat"]
        self._process = await asyncio.create_subprocess_exec(*argv, stdin=PIPE, stdout=DEVNULL, stderr=PIPE)
        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                while not os.path.exists(local):  # noqa: ASYNC240 - a stat of a local folder
                    if self._process.returncode is not None:
                        raise OSError(await self._said())
                    await asyncio.sleep(0.02)
        except TimeoutError as error:
            await self.close()
            raise OSError("connection timed out") from error
        return f"unix://{local}"

    async def close(self) -> None:
        """End ssh and remove the local end."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            self._process = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    async def _said(self) -> str:
        assert self._process is not None
        assert self._process.stderr is not None
        return (await self._process.stderr.read()).decode("utf-8", "replace").strip() or "ssh ended"
