"""Coding agents from npm, headless, against a scripted engine: a tool call, its result, a final answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.clients import npm_program, run
from tests.fakes.engine import FakeEngine, Request, ToolCall
from tests.gateway.support import Running, running

PERSONAS = {
    "claude-local": {"engine": "big", "tools": "strict", "context": 200_000, "system": "You are of this house."}
}
QUESTION = "What is the word in note.txt?"
ANSWER = "The word is marmalade."


def scripted(engine: FakeEngine, tool: str, arguments: dict[str, str]) -> None:
    """The engine calls the tool once (its JSON slightly broken), then answers."""
    engine.script(text=ANSWER)
    broken = json.dumps(arguments)[:-1]
    engine.script(times=1, when=lambda request: bool(request.json.get("tools")), tool_calls=[ToolCall(tool, broken)])


def turns(engine: FakeEngine) -> list[Request]:
    """The requests of the conversation itself: those that offer tools."""
    return [request for request in engine.requests if request.method == "POST" and request.json.get("tools")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with a note in it."""
    found = tmp_path / "work"
    found.mkdir()
    (found / "note.txt").write_text("the secret word is marmalade\n")
    return found


async def claude(tower: Running, folder: Path) -> str:
    env = {
        "ANTHROPIC_BASE_URL": tower.base,
        "ANTHROPIC_AUTH_TOKEN": tower.key,
        "ANTHROPIC_MODEL": "claude-local",
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": "claude-local",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
    }
    program = npm_program("claude")
    ran = await run(
        program, "-p", QUESTION, "--output-format", "json", "--allowedTools", "Read", folder=folder, env=env
    )
    assert ran.status == 0, ran.output
    return str(json.loads(ran.output.strip().splitlines()[-1])["result"])


async def codex(tower: Running, folder: Path) -> str:
    home = folder / ".codex"
    home.mkdir()
    provider = f'name = "lmtower"\nbase_url = "{tower.base}/v1"\nenv_key = "K"\nwire_api = "responses"\n'
    text = f'model = "claude-local"\nmodel_provider = "lmtower"\n[model_providers.lmtower]\n{provider}'
    (home / "config.toml").write_text(text)
    flags = ("--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox")
    env = {"K": tower.key, "CODEX_HOME": str(home)}
    ran = await run(npm_program("codex"), "exec", *flags, QUESTION, folder=folder, env=env)
    assert ran.status == 0, ran.output
    return ran.output


async def opencode(tower: Running, folder: Path) -> str:
    model = {"claude-local": {"name": "local", "limit": {"context": 100_000, "output": 1000}}}
    options = {"baseURL": f"{tower.base}/v1", "apiKey": tower.key}
    provider = {"npm": "@ai-sdk/openai-compatible", "name": "lmtower", "options": options, "models": model}
    settings = {
        "model": "lmtower/claude-local",
        "small_model": "lmtower/claude-local",
        "autoupdate": False,
        "share": "disabled",
        "provider": {"lmtower": provider},
    }
    (folder / "opencode.json").write_text(json.dumps(settings))
    ran = await run(npm_program("opencode"), "run", QUESTION, folder=folder, env={})
    assert ran.status == 0, ran.output
    return ran.output


async def test_claude_code_reads_a_file_and_answers(tmp_path: Path, folder: Path) -> None:
    """The persona's prompt comes first, the attribution block is gone, the tool result goes back."""
    with FakeEngine() as engine:
        scripted(engine, "Read", {"file_path": str(folder / "note.txt")})
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            said = await claude(tower, folder)
            records = list(tower.gateway.recent)
        first, second = turns(engine)
    assert said == ANSWER
    assert first.path == second.path == "/v1/messages"
    assert first.json["system"][0]["text"].startswith("You are of this house.")
    assert b"x-anthropic-billing-header" not in first.raw + second.raw
    results = [block for message in second.json["messages"] for block in message["content"] if isinstance(block, dict)]
    assert "marmalade" in json.dumps([block for block in results if block.get("type") == "tool_result"])
    assert sum(record.tool_calls_repaired for record in records) == 1
    assert all(record.session for record in records)


async def test_codex_runs_a_command_and_answers(tmp_path: Path, folder: Path) -> None:
    """Responses only; items are taken from output_item.done, completed is the end."""
    with FakeEngine() as engine:
        scripted(engine, "exec_command", {"cmd": "cat note.txt"})
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            said = await codex(tower, folder)
        first, second = turns(engine)
    assert ANSWER in said
    assert "Reconnecting" not in said
    assert first.path == "/v1/responses"
    assert first.json["instructions"].startswith("You are of this house.")
    outputs = [item for item in second.json["input"] if item.get("type") == "function_call_output"]
    assert "marmalade" in json.dumps(outputs)


async def test_opencode_reads_a_file_and_answers(tmp_path: Path, folder: Path) -> None:
    """Chat completions through the AI SDK; the persona's prompt joins OpenCode's own."""
    with FakeEngine() as engine:
        scripted(engine, "read", {"filePath": str(folder / "note.txt")})
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            said = await opencode(tower, folder)
        first, second = turns(engine)
    assert ANSWER in said
    assert first.path == "/v1/chat/completions"
    systems = [message for message in first.json["messages"] if message["role"] == "system"]
    assert len(systems) == 1
    assert json.dumps(systems[0]).count("You are of this house.") == 1
    assert "marmalade" in json.dumps([m for m in second.json["messages"] if m["role"] == "tool"])
