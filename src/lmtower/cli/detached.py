"""``lmtower up --detach``: the same command in the background, waited for until it serves."""

from __future__ import annotations

import subprocess
import sys
import time

from lmtower.cli.globals import Globals
from lmtower.cli.running import running_tower

_LOOK_SECONDS = 0.2


def start_detached(options: Globals, port: int | None, *, yes: bool) -> int:
    """Start ``lmtower up`` in a session of its own and print its output until it stands. Returns an exit code."""
    log = options.data_dir / "logs" / "tower.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-c", "import sys; from lmtower.cli import main; sys.exit(main())"]
    argv += ["-c", str(options.config.resolve()), "--data-dir", str(options.data_dir.resolve()), "up"]
    argv += ["--port", str(port)] if port is not None else []
    argv += ["--yes"] if yes else []
    with log.open("wb") as out:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    shown = 0
    while True:
        text = log.read_bytes()
        sys.stdout.write(text[shown:].decode("utf-8", "replace"))
        sys.stdout.flush()
        shown = len(text)
        if process.poll() is not None:
            return process.returncode
        state = running_tower(options.data_dir)
        if state is not None and state.get("pid") == process.pid:
            print(f"lmtower runs in the background (process {process.pid}); its log is {log}. Stop it: lmtower down")
            return 0
        time.sleep(_LOOK_SECONDS)
