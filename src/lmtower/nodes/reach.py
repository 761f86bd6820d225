"""Why a node cannot be reached, in words that say what to do. ssh is asked once more, because only it knows."""

from __future__ import annotations

import asyncio
import getpass
import re
import shlex
from asyncio.subprocess import DEVNULL, PIPE
from urllib.parse import urlsplit

_CONNECT_SECONDS = 5

_SSH_REASONS = (
    ("could not resolve hostname", "its name is not known here. Check nodes.{node}.address, or write the IP address"),
    ("permission denied", "ssh was refused. Put your key there: ssh-copy-id {target}"),
    ("host key verification failed", "its ssh host key is unknown or has changed. Log in once: ssh {target}"),
    ("connection refused", "nothing listens for ssh there. Start sshd on the node, or check the port"),
    ("timed out", "it does not answer. Is it on, and on this network?"),
    ("no route to host", "there is no way to it. Is it on, and on this network?"),
    ("network is unreachable", "there is no way to it. Is this machine on the network?"),
    ("connection closed", "it closed the ssh connection. Look at sshd's log there"),
)


async def explain_unreachable(node: str, address: str, said: str) -> str:
    """One sentence about a Docker engine that could not be asked. ``said`` is what the client library reported."""
    if address == "local":
        return f"node {node!r}: {_local_reason(said)}"
    socket = urlsplit(address).path
    at = f" -H unix://{socket}" if socket else ""
    status, stderr = await ssh(address, f"docker{at} version --format '{{{{.Server.Version}}}}'")
    text = f"{stderr}\n{said if status == 0 else ''}".lower()
    target = ssh_target(address)
    if status == 255 or status is None:
        for pattern, reason in _SSH_REASONS:
            if pattern in text or (status is None and pattern == "timed out"):
                return f"node {node!r} ({target}) cannot be reached: {reason.format(node=node, target=target)}"
        return f"node {node!r} ({target}) cannot be reached: {stderr.strip() or said}"
    if "permission denied" in text:
        user = urlsplit(address).username or "the user"
        return f"node {node!r} ({target}): {user!r} may not use Docker there. Run there: sudo usermod -aG docker {user}"
    if status == 127 or "not found" in text:
        return f"node {node!r} ({target}): Docker is not installed there"
    if status == 0:
        return f"node {node!r} ({target}): the connection to its Docker engine broke: {said}"
    return f"node {node!r} ({target}): its Docker engine does not run. Run there: sudo systemctl start docker"


def _local_reason(said: str) -> str:
    text = said.lower()
    if "permission denied" in text:
        return f"you may not use Docker here. Run: sudo usermod -aG docker {getpass.getuser()}, then log in again"
    if "no such file" in text or "connection refused" in text or "connection aborted" in text:
        return "no Docker engine runs here. Start it (sudo systemctl start docker), or write driver: process"
    return f"its Docker engine cannot be asked: {said}"


def ssh_target(address: str) -> str:
    """``ssh://ops@spark.lan:2222`` -> ``ops@spark.lan -p 2222``, as one types it."""
    parts = urlsplit(address)
    target = f"{parts.username}@{parts.hostname}" if parts.username else str(parts.hostname)
    return f"{target} -p {parts.port}" if parts.port else target


async def occupant(address: str, port: int) -> str:
    """Who listens on a port of a node: ``python3 (process 123)``; ``another program`` when it does not tell."""
    said = await output(address, ("ss", "-Hltnp", f"sport = :{port}"))
    # LISTEN 0 5 127.0.0.1:8100 0.0.0.0:* users:(("python3",pid=123,fd=3))
    found = re.search(r'users:\(\("([^"]+)",pid=(\d+)', said)
    return f"{found[1]} (process {found[2]})" if found else "another program"


async def output(address: str, command: tuple[str, ...]) -> str:
    """Standard output of a command on a node (``local`` or ``ssh://``); empty when it cannot be run."""
    if address != "local":
        _, text, _ = await ssh_output(address, shlex.join(command))
        return text
    try:
        process = await asyncio.create_subprocess_exec(*command, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL)
    except FileNotFoundError:
        return ""
    text_bytes, _ = await process.communicate()
    return text_bytes.decode("utf-8", "replace")


async def ssh(address: str, command: str, timeout_seconds: float = 15.0) -> tuple[int | None, str]:
    """Run a command on the node. Returns its status (None: no answer in time) and its standard error."""
    status, _, stderr = await ssh_output(address, command, timeout_seconds)
    return status, stderr


async def ssh_output(address: str, command: str, timeout_seconds: float = 15.0) -> tuple[int | None, str, str]:
    """Run a command on the node. Returns status, standard output and standard error."""
    words = [*ssh_words(address), command]
    try:
        process = await asyncio.create_subprocess_exec("ssh", *words, stdin=DEVNULL, stdout=PIPE, stderr=PIPE)
    except FileNotFoundError:
        return None, "", "this machine has no ssh client"
    try:
        out, err = await asyncio.wait_for(process.communicate(), timeout_seconds)
    except TimeoutError:
        process.kill()
        await process.wait()
        return None, "", "connection timed out"
    return process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace")


def ssh_words(address: str) -> list[str]:
    """Options and target of an ``ssh`` that never asks a question."""
    parts = urlsplit(address)
    target = f"{parts.username}@{parts.hostname}" if parts.username else str(parts.hostname)
    port = ["-p", str(parts.port)] if parts.port else []
    return ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_SECONDS}", *port, target]
