"""``lmtower up --detach``: the same command in the background, waited for until it serves."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

from lmtower.cli.globals import Globals
from lmtower.cli.running import running_tower

_LOOK_SECONDS = 0.2
_KEY = re.compile(rb"(?<=sk-lmt-)[\w-]{20,}")


def start_detached(options: Globals, port: int | None, *, yes: bool) -> int:
    """Start ``lmtower up`` in a session of its own and print its output until it stands. Returns an exit code."""
    log = options.data_dir / "logs" / "tower.log"
    options.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    log.parent.mkdir(exist_ok=True)
    argv = [sys.executable, "-c", "import sys; from lmtower.cli import main; sys.exit(main())"]
    argv += ["-c", str(options.config.resolve()), "--data-dir", str(options.data_dir.resolve()), "up"]
    argv += ["--port", str(port)] if port is not None else []
    argv += ["--yes"] if yes else []
    with log.open("wb") as out:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    shown = 0
    while True:
        shown = _show(log, shown)
        if process.poll() is not None:
            shown = _show(log, shown)
            if not shown:
                print(f"lmtower ended (exit {process.returncode}) and wrote nothing to {log}: is that disk full?")
            return process.returncode
        state = running_tower(options.data_dir)
        time.sleep(_LOOK_SECONDS)
        if state is not None and state.get("pid") == process.pid:
            _show(log, shown)  # the page with the first key is written right after the state
            hide_keys(log)
            print(f"lmtower runs in the background (process {process.pid}); its log is {log}. Stop it: lmtower down")
            return 0


def _show(log: Path, shown: int) -> int:
    """Print what the log holds beyond ``shown`` bytes; how many it holds now."""
    text = log.read_bytes()
    sys.stdout.write(text[shown:].decode("utf-8", "replace"))
    sys.stdout.flush()
    return len(text)


def hide_keys(log: Path) -> None:
    """The first key was shown to the person; the file keeps only where it stood."""
    with log.open("r+b") as file:
        for found in _KEY.finditer(file.read()):
            file.seek(found.start())
            file.write(b"*" * len(found[0]))
