"""Real clients in places of their own, for the tests of this folder: ``python -m tests.e2e.clients [NAME ...]``.

Every Python client gets a virtual environment in ``.cache/clients``, because they want different versions of the same
libraries; the ones from npm share a folder. Tests skip a client that was not installed.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

CACHE = Path(__file__).parents[2] / ".cache" / "clients"
PYTHON = {
    "openai165": ["openai==1.65.5", "httpx<0.28"],
    "openai2": ["openai>=2,<3"],
    "frameworks": ["langchain-openai", "llama-index-llms-openai-like", "llama-index-embeddings-openai-like"],
    "litellm": ["litellm"],
}
NPM = ["@anthropic-ai/claude-code", "@openai/codex", "opencode-ai", "openai@6", "ai", "@ai-sdk/openai-compatible"]


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


def install(names: list[str]) -> None:
    """Install the named clients, or all."""
    CACHE.mkdir(parents=True, exist_ok=True)
    for name in names or [*PYTHON, "npm"]:
        if name == "npm":
            (CACHE / "npm").mkdir(exist_ok=True)
            subprocess.run(["npm", "init", "-y"], cwd=CACHE / "npm", check=True, stdout=subprocess.DEVNULL)
            subprocess.run(["npm", "install", "--no-audit", "--no-fund", *NPM], cwd=CACHE / "npm", check=True)
            continue
        place = CACHE / name
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        subprocess.run([place / "bin" / "python", "-m", "pip", "install", "-q", *PYTHON[name]], check=True)


if __name__ == "__main__":
    install(sys.argv[1:])
