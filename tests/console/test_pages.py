"""Every page over a real gateway: keys, trials, explanations, engines, requests, and a tower that is gone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tests.console.support import consoled
from tests.fakes.engine import FakeEngine
from tests.gateway.support import until


async def test_key_is_shown_once_and_works_until_it_is_revoked(tmp_path: Path) -> None:
    """Created by the form, shown on one page, gone from the next; revoked, it is refused."""
    with FakeEngine() as engine:
        async with consoled(tmp_path, engine) as console:
            await console.login()
            assert (await console.post("/clients", name="frigate", tokens_per_day="1000")).status_code == 303
            page = (await console.web.get("/clients")).text
            match = re.search(r"sk-lmt-[\w-]{43}", page)
            assert match is not None
            assert match[0] not in (await console.web.get("/clients")).text
            assert "1,000 tokens a day" in page
            headers = {"authorization": f"Bearer {match[0]}"}
            assert (await console.tower.client.get("/v1/models", headers=headers)).status_code == 200
            keys = (await console.tower.operator.get("/admin/keys")).json()["keys"]
            identity = next(key["id"] for key in keys if key["name"] == "frigate")
            assert "frigate" in (await console.web.get(f"/clients/{identity}")).text
            await console.post(f"/clients/{identity}/revoke")
            assert "The key is revoked." in (await console.web.get("/clients")).text
            assert (await console.tower.client.get("/v1/models", headers=headers)).status_code == 401


async def test_limits_of_a_key_are_changed_by_its_form(tmp_path: Path) -> None:
    """Set, refused by them at once, wrong input said, and taken away again; the key stays the same."""
    with FakeEngine() as engine:
        async with consoled(tmp_path, engine) as console:
            await console.login()
            key = (await console.tower.operator.get("/admin/keys")).json()["keys"][0]["id"]
            path = f"/clients/{key}"
            assert (await console.post(path, name="tester", requests_per_minute="1")).status_code == 303
            page = (await console.web.get(path)).text
            assert "It holds from the next request on." in page
            assert "1 requests a minute" in page
            assert [(await console.tower.chat("fast")).status_code for _ in range(2)] == [200, 429]
            await console.post(path, name="tester", parallel="-1")
            assert "At the same time: -1 is not a limit" in (await console.web.get(path)).text
            await console.post(path, name="tester", personas="code", expires="2099-01-31")
            page = (await console.web.get(path)).text
            assert "those of the tower" in page
            assert "2099-01-31" in page
            assert (await console.tower.chat("code")).status_code == 200
            assert (await console.tower.chat("fast")).status_code in (403, 404)


async def test_wrong_form_is_said_on_the_next_page(tmp_path: Path) -> None:
    """No key is made."""
    with FakeEngine() as engine:
        async with consoled(tmp_path, engine) as console:
            await console.login()
            await console.post("/clients", name="x", parallel="many")
            assert "is not a number" in (await console.web.get("/clients")).text


async def test_trial_streams_counts_and_is_in_the_ledger(tmp_path: Path) -> None:
    """The console's own client asks; its key lies in the data folder, for the owner only; content is kept nowhere."""
    with FakeEngine() as engine:
        engine.script(text="tall and narrow", input_tokens=100, cached_tokens=64)
        async with consoled(tmp_path, engine) as console:
            await console.login()
            lines = await _try(console.web, console.base, "fast", "What is a tower?")
            key_file = console.folder / "console.key"
            assert key_file.stat().st_mode & 0o777 == 0o600
            await console.tower.records(1)
            requests = (await console.web.get("/requests")).text
    done = next(line["done"] for line in lines if "done" in line)
    assert "".join(line.get("text", "") for line in lines) == "tall and narrow"
    assert (done["input_tokens"], done["cached_tokens"]) == (100, 64)
    assert list(lines[0]) == ["ttft"]
    assert "console" in requests
    assert "What is a tower?" not in requests


async def test_revoked_console_key_is_made_again(tmp_path: Path) -> None:
    """Somebody revoked the key of the console: the next trial makes another one."""
    with FakeEngine() as engine:
        async with consoled(tmp_path, engine) as console:
            await console.login()
            await _try(console.web, console.base, "fast", "x")
            first = (console.folder / "console.key").read_text()
            await console.tower.operator.delete("/admin/keys/console")
            lines = await _try(console.web, console.base, "fast", "x")
            assert "done" in lines[-1]
            assert (console.folder / "console.key").read_text() != first


async def test_refused_trial_says_why(tmp_path: Path) -> None:
    """The engine's refusal is a line, not a broken page."""
    with FakeEngine() as engine:
        engine.script(status=400, error={"error": {"message": "too long for me"}})
        async with consoled(tmp_path, engine) as console:
            await console.login()
            lines = await _try(console.web, console.base, "fast", "x")
    assert "too long for me" in lines[-1]["error"]


async def test_explanation_masks_the_prompt_unless_asked(tmp_path: Path) -> None:
    """The persona's page shows how long the prompt is; the prompt itself only on request."""
    with FakeEngine() as engine:
        async with consoled(tmp_path, engine) as console:
            await console.login()
            assert "You plan." not in (await console.web.get("/personas/plan")).text
            headers = {"origin": console.base}
            ask = {"prompt": "x"}
            masked = (await console.web.post("/personas/plan/explain", json=ask, headers=headers)).json()
            shown = await console.web.post("/personas/plan/explain", json={**ask, "reveal": True}, headers=headers)
    assert "You plan." not in masked["body"]
    assert "You plan." in shown.json()["body"]
    assert any("temperature" in rule for rule in masked["rules"])


async def test_engines_page_shows_plan_and_refuses_what_nobody_supervises(tmp_path: Path) -> None:
    """The planner's numbers beside the state; stop is refused in words by a tower without a supervisor."""
    with FakeEngine() as engine:
        async with consoled(tmp_path, engine) as console:
            await console.login()
            page = (await console.web.get("/engines")).text
            assert "60.0 GiB" in page
            assert "does not run its engines itself" in page
            await console.post("/engines/big/stop")
            assert "does not run its engines" in (await console.web.get("/engines")).text
            assert (await console.post("/engines/big/explode")).status_code == 404


async def test_supervised_engine_is_stopped_and_its_log_shown(tmp_path: Path) -> None:
    """What the page asks for reaches the supervisor."""
    done: list[str] = []

    class Control:
        async def start(self, engine: str) -> None:
            done.append(f"start {engine}")

        stop = restart = start

        async def logs(self, engine: str, lines: int) -> str:
            return f"the last words of {engine}"

        def absent(self, url: str) -> bool:
            """Everything runs."""
            return False

        def states(self) -> dict[str, tuple[str, str]]:
            return {}

    with FakeEngine() as engine:
        async with consoled(tmp_path, engine) as console:
            console.tower.gateway.admin._control = Control()
            await console.login()
            assert "Restart big" in (await console.web.get("/engines")).text
            await console.post("/engines/big/stop")
            assert "big is stopped." in (await console.web.get("/engines")).text
            assert (await console.web.get("/engines/big/log")).text == "the last words of big"
    assert done == ["start big"]


async def test_csv_has_a_line_for_every_day_client_and_persona(tmp_path: Path) -> None:
    """The download is the ledger's own sum."""
    with FakeEngine() as engine:
        async with consoled(tmp_path, engine) as console:
            await console.tower.chat("code")
            await console.tower.records(1)
            await console.login()
            answer = await console.web.get("/clients/usage.csv")
    lines = answer.text.splitlines()
    assert lines[0].startswith("day,client,persona,requests")
    assert ",tester,code,1," in lines[1]


async def test_tower_that_is_gone_is_said_and_the_console_stays(tmp_path: Path) -> None:
    """A page says that no tower answers; the overview keeps its last numbers."""
    with FakeEngine() as engine:
        async with consoled(tmp_path, engine) as console:
            await console.login()
            assert (await console.web.get("/")).status_code == 200
            await console.tower.gateway.stop()
            answer = await console.web.get("/personas")
            assert (answer.status_code, "no tower answers" in answer.text) == (502, True)
            assert (await console.web.get("/")).status_code == 200


async def test_store_page_shows_files_hits_and_reasons(tmp_path: Path) -> None:
    """As the operator, over the store service's own API."""
    with FakeEngine() as engine:
        async with consoled(tmp_path, engine, stores_url="http://stores") as console:
            (console.folder / "internal.key").write_text("inner\n")
            console.console.web = httpx.AsyncClient(transport=httpx.ASGITransport(store_service()))
            await console.login()
            assert "handbook" in (await console.web.get("/stores")).text
            page = (await console.web.get("/stores/vs_1?q=pump")).text
    for wanted in ("docs/pump.md", "encrypted", "Setup · page 2", "meaning 0.810", "words 3.100"):
        assert wanted in page


def store_service() -> Starlette:
    """A stand-in with one store, a failed file and a hit."""
    counts = {"in_progress": 0, "completed": 1, "failed": 1, "cancelled": 0, "total": 2}
    store = {
        "id": "vs_1", "name": "handbook", "status": "completed", "usage_bytes": 5000, "file_counts": counts,
        "embedding_model": "nomic",
    }  # fmt: skip
    files = [
        {"id": "file_1", "status": "completed", "usage_bytes": 10, "attributes": {"path": "docs/pump.md"}},
        {"id": "file_2", "status": "failed", "last_error": {"code": "unsupported_file", "message": "encrypted"}},
    ]
    hit = {
        "filename": "pump.md", "score": 0.9, "content": [{"type": "text", "text": "Prime the pump."}],
        "provenance": {"page": 2, "heading": "Setup", "start": 0, "end": 15},
        "scores": {"similarity": 0.81, "words": 3.1},
    }  # fmt: skip

    async def stores(request: Request) -> JSONResponse:
        assert request.headers["x-lmtower-internal"] == "inner"
        assert request.headers["x-lmtower-client"] == "lmtower:operator"
        return JSONResponse({"data": [store], "has_more": False})

    async def answer(request: Request) -> JSONResponse:
        return JSONResponse(
            {
                "/v1/vector_stores/vs_1": store,
                "/v1/vector_stores/vs_1/files": {"data": files, "has_more": False},
                "/v1/vector_stores/vs_1/search": {"data": [hit]},
                "/v1/files": {"data": [{"id": "file_2", "filename": "locked.pdf"}]},
            }[request.url.path]
        )

    return Starlette(
        routes=[Route("/v1/vector_stores", stores), Route("/{path:path}", answer, methods=["GET", "POST"])]
    )


async def _try(web: httpx.AsyncClient, origin: str, persona: str, prompt: str) -> list[dict[str, object]]:
    answer = await web.post(f"/personas/{persona}/try", json={"prompt": prompt}, headers={"origin": origin})
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_browser_that_leaves_ends_the_upstream_request(tmp_path: Path) -> None:
    """The engine sees that the try-it box was closed."""
    with FakeEngine() as engine:
        engine.script(text="a b c d", stall_after=1)
        async with consoled(tmp_path, engine) as console:
            await console.login()
            ask = {"json": {"prompt": "x"}, "headers": {"origin": console.base}}
            async with console.web.stream("POST", "/personas/fast/try", **ask) as answer:
                async for _ in answer.aiter_lines():
                    break
            await until(lambda: any(record.outcome == "cancelled" for record in console.tower.gateway.recent))
