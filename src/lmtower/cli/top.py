"""``lmtower top``: the running tower, live, on a terminal."""

from __future__ import annotations

import http.client
import json
import select
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from lmtower.cli.globals import Globals
from lmtower.errors import NodeError

if TYPE_CHECKING:
    from lmtower.cli.admin import Admin
    from lmtower.cli.top_data import Look, Memory

_AGENT_SECONDS = 1.0
_RATE_SECONDS = 10.0


def top(
    ctx: typer.Context,
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.2)] = 1.0,
    once: Annotated[bool, typer.Option(help="Print one screen and end.")] = False,
) -> None:
    """Engines, personas, tokens per second, queues, hit rates and memory, live.

    The queue column counts interactive/agent/default/batch. Rates are over ten seconds. Memory comes from the node
    agents; without one it is this machine's. `q` ends it.
    """
    from rich.console import Console
    from rich.live import Live

    from lmtower.cli.top_data import frame
    from lmtower.cli.top_view import screen

    options: Globals = ctx.obj
    admin = options.admin()
    last = look(admin)
    console = Console()
    if once or not console.is_terminal:
        time.sleep(every)  # a rate needs two looks
        console.print(screen(frame(last, look(admin)), console.height))
        return
    looks = deque([last])
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        live.update(screen(frame(None, last), console.height), refresh=True)
        while pressed(every) not in ("q", "Q", "\x03"):
            looks.append(look(admin))
            # tokens are counted when an answer ends: over a moment, rates would be zero and then huge
            while len(looks) > 2 and looks[1].at <= looks[-1].at - _RATE_SECONDS:
                looks.popleft()
            live.update(screen(frame(looks[0], looks[-1]), console.height), refresh=True)


def look(admin: Admin) -> Look:
    """Ask the tower once. Raises AdminError when it is gone."""
    from lmtower.cli.top_data import Look, read_counters

    status, page, targets = admin.get("/admin/status"), admin.get("/metrics"), admin.get("/admin/targets")
    agents = [
        (each["labels"]["node"], each["targets"][0]) for each in targets if each["labels"].get("job") == "lmtower-node"
    ]
    memory = [found for node, address in agents if (found := _memory(node, address)) is not None]
    return Look(time.monotonic(), status, read_counters(page), tuple(memory) or _own_memory(admin.address))


def _memory(node: str, address: str) -> Memory | None:
    """What a node agent says; None when it does not answer at once."""
    from lmtower.cli.top_data import Memory

    parts = urlsplit(f"//{address}")
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_AGENT_SECONDS)
    try:
        connection.request("GET", "/facts")
        facts = json.loads(connection.getresponse().read())
        return Memory(node, facts["memory_total_bytes"], facts["memory_available_bytes"], facts.get("reserve_bytes"))
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        return None
    finally:
        connection.close()


def _own_memory(address: str) -> tuple[Memory, ...]:
    """This machine's, when the tower runs on it and no node agent tells more."""
    from lmtower.cli.top_data import Memory
    from lmtower.nodes.agent_memory import read_memory

    if address.rpartition(":")[0].strip("[]") not in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::", ""):
        return ()
    try:
        found = read_memory()
    except NodeError:  # no /proc here
        return ()
    return (Memory("this host", found.total_bytes, found.available_bytes),)


class _Keyboard:
    """Waits for a key, at most so many seconds."""

    def __call__(self, seconds: float) -> str:
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
        return sys.stdin.read(1) if ready else ""


class _NoKeyboard:
    """Standard input is no terminal: only wait."""

    def __call__(self, seconds: float) -> str:
        time.sleep(seconds)
        return ""


@contextmanager
def _keys() -> Iterator[_Keyboard | _NoKeyboard]:
    """Single key presses without Enter while the screen is up; the terminal is put back afterwards."""
    if not sys.stdin.isatty():
        yield _NoKeyboard()
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield _Keyboard()
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
