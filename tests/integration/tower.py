"""A tower run by its own command line, as a person runs it: a file, a data folder, verbs, requests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_MAIN = "import sys; from lmtower.cli import main; sys.exit(main())"


class Tower:
    """One tower file and data folder in ``folder``. ``prefix`` is put before every command (``ip netns exec ...``)."""

    def __init__(self, folder: Path, port: int, environ: Mapping[str, str], prefix: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._environ = {**os.environ, **environ}
        self._prefix = prefix
        self.key = ""

    def write(self, content: Mapping[str, Any]) -> None:
        """Write the tower file (JSON is YAML)."""
        gateway = {"listen": f"127.0.0.1:{self.port}", "admin": f"127.0.0.1:{self.port + 1}"}
        (self.folder / "tower.yaml").write_text(json.dumps({"gateway": gateway, **content}, indent=1), "utf-8")

    def run(self, *verb: str, timeout: float = 400) -> subprocess.CompletedProcess[str]:
        """Run a verb and return what it printed."""
        where = ["-c", str(self.folder / "tower.yaml"), "--data-dir", str(self.folder / "data")]
        return subprocess.run(
            [*self._prefix, sys.executable, "-c", _MAIN, *where, *verb],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def ok(self, *verb: str) -> str:
        """Run a verb that must succeed; its standard output and error."""
        done = self.run(*verb)
        assert done.returncode == 0, f"{verb}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def up(self) -> str:
        """``up --detach --yes``, then a key."""
        text = self.ok("up", "--detach", "--yes")
        if not self.key:
            self.key = self.ok("key", "create", "test").strip().splitlines()[-1]
            # a running tower sees a new key within a second; this route checks the key and leaves no record
            self.until("the new key", lambda: self._fetch("/v1/files", b"{}", 30)[0] != 401, 30)
        return text

    def post(self, path: str, body: Mapping[str, Any], timeout: float = 120) -> tuple[int, Any]:
        """POST through the gateway; status and JSON."""
        return self._fetch(path, json.dumps(body).encode(), timeout)

    def chat(self, persona: str, text: str = "Say hello.", **fields: Any) -> tuple[int, Any]:
        """A short chat request."""
        messages = [{"role": "user", "content": text}]
        return self.post("/v1/chat/completions", {"model": persona, "messages": messages, "max_tokens": 4, **fields})

    def admin(self, path: str) -> Any:
        """GET on the admin listener, with the admin key."""
        key = (self.folder / "data/admin.key").read_text("utf-8").strip()
        url = f"http://127.0.0.1:{self.port + 1}{path}"
        with urllib.request.urlopen(urllib.request.Request(url, headers={"authorization": f"Bearer {key}"})) as reply:
            return json.load(reply)

    def until(self, what: str, true: Callable[[], bool], seconds: float = 120) -> None:
        """Wait for something that another process does."""
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, f"{what}: not within {seconds} s\n{self.log()}"
            time.sleep(0.2)

    def log(self) -> str:
        """What the tower in the background has printed."""
        path = self.folder / "data/logs/tower.log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def _fetch(self, path: str, body: bytes, timeout: float) -> tuple[int, Any]:
        """Straight from here, or with ``curl`` inside the tower's network namespace."""
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        if self._prefix:
            options = [word for name, value in headers.items() for word in ("-H", f"{name}: {value}")]
            argv = [*self._prefix, "curl", "-s", "-w", "\n%{http_code}", *options, "-d", body.decode(), self.url + path]
            out = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False).stdout
            text, _, status = out.rpartition("\n")
            return int(status or 0), json.loads(text) if text else None
        request = urllib.request.Request(self.url + path, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)
