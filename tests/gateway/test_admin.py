"""The admin listener: who may ask, and what it answers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from tests.fakes.engine import FakeEngine
from tests.gateway.support import Running, running, until, upstream


async def test_admin_wants_its_key_and_a_known_host(tmp_path: Path) -> None:
    """Without the admin key only metrics, targets and health answer; a strange Host header gets nothing."""
    with FakeEngine() as engine:
        async with running(tmp_path, engine) as tower:
            get = tower.operator.get
            nobody = {"authorization": f"Bearer {tower.key}"}
            for path in ("/admin/status", "/admin/keys", "/admin/usage", "/admin/requests"):
                assert (await get(path, headers=nobody)).status_code == 401
                assert (await get(path)).status_code == 200
            for path in ("/metrics", "/admin/targets", "/healthz"):
                assert (await get(path, headers=nobody)).status_code == 200
                assert (await get(path, headers={"host": "evil.example"})).status_code == 403
            assert (await get("/admin/nothing")).status_code == 404


async def test_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    """A key made by the admin API works at once and stops working when it is revoked."""
    with FakeEngine() as engine:
        async with running(tmp_path, engine) as tower:
            made = (await tower.operator.post("/admin/keys", json={"name": "frigate", "personas": ["fast"]})).json()
            assert made["key"].startswith("sk-lmt-")
            headers = {"authorization": f"Bearer {made['key']}"}
            assert (await tower.client.get("/v1/models", headers=headers)).status_code == 200
            listed = (await tower.operator.get("/admin/keys")).text
            assert "frigate" in listed
            assert made["key"] not in listed
            assert (await tower.operator.delete(f"/admin/keys/{made['id']}")).status_code == 200
            assert (await tower.client.get("/v1/models", headers=headers)).status_code == 401
            wrong = await tower.operator.post(
                "/admin/keys", json={"name": "x", "limits": {"requests_per_minute": "many"}}
            )
            assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "invalid_limits")


async def test_revoked_key_opens_no_connection_that_says_the_same(tmp_path: Path) -> None:
    """A head is known on other connections, and what it was allowed: until a key changes."""

    async def ask(tower: Running, key: str) -> int:
        body = {"model": "fast", "messages": [{"role": "user", "content": "hi"}]}
        async with httpx.AsyncClient(base_url=tower.base, headers={"authorization": f"Bearer {key}"}) as anew:
            return (await anew.post("/v1/chat/completions", json=body)).status_code

    with FakeEngine() as engine:
        async with running(tmp_path, engine) as tower:
            made = (await tower.operator.post("/admin/keys", json={"name": "curl"})).json()
            assert [await ask(tower, made["key"]) for _ in range(2)] == [200, 200]
            assert (await tower.operator.delete(f"/admin/keys/{made['id']}")).status_code == 200
            assert await ask(tower, made["key"]) == 401


async def test_status_of_an_engine_that_is_away_is_its_supervisors(tmp_path: Path) -> None:
    """From outside a stopped engine looks like a failed one; whoever stopped it knows better, and why."""

    class Control:
        def absent(self, url: str) -> bool:
            """Everything runs."""
            return False

        def states(self) -> dict[str, tuple[str, str]]:
            return {"big": ("stopped", "the node was short of memory")}

    with FakeEngine() as engine:
        async with running(tmp_path, engine) as tower:
            tower.gateway.admin._control = Control()
            (row,) = (await tower.operator.get("/admin/status")).json()["engines"]
            assert (row["state"], row.get("detail")) == ("ready", None)
            for replica in tower.gateway.snapshot.engines["big"].replicas:
                replica.healthy = False
            (row,) = (await tower.operator.get("/admin/status")).json()["engines"]
    assert (row["state"], row["detail"]) == ("stopped", "the node was short of memory")


async def test_engine_that_an_operator_started_answers_the_next_request(tmp_path: Path) -> None:
    """Not only after its next health check; one that was stopped is refused at once."""

    class Control:
        runs = True

        def absent(self, url: str) -> bool:
            return not self.runs

        async def start(self, engine: str) -> None:
            self.runs = True

        async def stop(self, engine: str) -> None:
            self.runs = False

        restart = start

    with FakeEngine() as engine:
        control = Control()
        async with running(tmp_path, engine) as tower:
            tower.gateway.admin._control = control
            for each in tower.gateway.snapshot.engines.values():
                each._absent = control.absent
            for action, status in (("stop", 502), ("start", 200)) * 3:
                assert (await tower.operator.post(f"/admin/engines/big/{action}")).status_code == 200
                assert (await tower.chat()).status_code == status


async def test_key_is_changed_by_what_a_patch_names(tmp_path: Path) -> None:
    """Merge patch: named limits are set, null takes away, the rest stays; its secret goes on working."""
    with FakeEngine() as engine:
        async with running(tmp_path, engine) as tower:
            body = {"name": "frigate", "personas": ["fast"], "limits": {"tokens_per_day": "2m", "parallel": 4}}
            made = (await tower.operator.post("/admin/keys", json=body)).json()
            path = f"/admin/keys/{made['id']}"
            patched = (
                await tower.operator.patch(path, json={"limits": {"parallel": None, "images_per_day": 9}})
            ).json()
            assert patched["limits"] == {"tokens_per_day": 2_000_000, "images_per_day": 9}
            assert (patched["name"], patched["personas"]) == ("frigate", ["fast"])
            more = {"personas": None, "limits": None, "expires_at": 4e9, "name": "cameras"}
            patched = (await tower.operator.patch(path, json=more)).json()
            assert {name: patched[name] for name in more} == more
            headers = {"authorization": f"Bearer {made['key']}"}
            assert (await tower.client.get("/v1/models", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"limits": {"tokens_per_day": "many"}}, "invalid_limits"),
        ({"limits": {"tokens_per_dya": 1}}, "invalid_limits"),
        ({"limits": [1]}, "invalid_limits"),
        ({"personas": "fast"}, "invalid_field"),
        ({"personas": ["fsat"]}, "unknown_persona"),
        ({"expires_at": "tomorrow"}, "invalid_field"),
        ({"name": ""}, "invalid_field"),
        ({"secret": "x"}, "unknown_field"),
    ],
)
async def test_wrong_change_is_refused_by_name(tmp_path: Path, body: dict[str, object], code: str) -> None:
    """400 for making and for changing; nothing is changed."""
    with FakeEngine() as engine:
        async with running(tmp_path, engine) as tower:
            before = (await tower.operator.get("/admin/keys")).json()["keys"]
            for answer in (
                await tower.operator.patch(f"/admin/keys/{before[0]['id']}", json=body),
                await tower.operator.post("/admin/keys", json={"name": "x", **body}),
            ):
                assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
            assert (await tower.operator.get("/admin/keys")).json()["keys"] == before


async def test_unknown_key_and_bad_numbers_are_the_callers_fault(tmp_path: Path) -> None:
    """404 and 400, never 500."""
    with FakeEngine() as engine:
        async with running(tmp_path, engine) as tower:
            assert (await tower.operator.delete("/admin/keys/nobody")).status_code == 404
            assert (await tower.operator.patch("/admin/keys/nobody", json={"limits": None})).status_code == 404
            for path in ("/admin/usage?since=yesterday", "/admin/usage?until=nan", "/admin/requests?limit=all"):
                answer = await tower.operator.get(path)
                assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_query")
            assert (await tower.operator.get("/admin/requests?limit=0")).json() == {"requests": []}


async def test_status_usage_and_metrics_agree(tmp_path: Path) -> None:
    """What the engine said it used is what the status, the ledger and the metrics say."""
    with FakeEngine() as engine:
        engine.script(text="a b", input_tokens=100, cached_tokens=64)
        async with running(tmp_path, engine) as tower:
            for _ in range(3):
                await tower.chat("code")
            status = (await tower.operator.get("/admin/status")).json()
            usage = (await tower.operator.get("/admin/usage?by=persona")).json()
            recent = (await tower.operator.get("/admin/requests?limit=2")).json()
            metrics = (await tower.operator.get("/metrics")).text
    persona = next(p for p in status["personas"] if p["name"] == "code")
    assert (persona["requests"], persona["hit_rate"]) == (3, 0.64)
    assert status["engines"][0]["state"] == "ready"
    assert status["supervised"] is False
    row = usage["rows"][0]
    assert (row["persona"], row["requests"], row["input_tokens"], row["cached_tokens"]) == (
        "code",
        3,
        300,
        192,
    )
    assert [r["persona"] for r in recent["requests"]] == ["code", "code"]
    assert 'lmtower_input_tokens_total{persona="code",client="tester",engine="big",lane="default"} 300' in metrics


async def test_explain_masks_the_prompt_unless_asked(tmp_path: Path) -> None:
    """The admin sees the body that would be sent; the persona's prompt only when it asks for it."""
    with FakeEngine() as engine:
        async with running(tmp_path, engine) as tower:
            ask = {"persona": "plan", "request": {"messages": [{"role": "user", "content": "x"}]}}
            masked = (await tower.operator.post("/admin/explain", json=ask)).json()
            shown = (await tower.operator.post("/admin/explain", json={**ask, "mask": False})).json()
    assert masked["body"]["messages"][0]["content"] == "<persona prompt, 9 characters>"
    assert shown["body"]["messages"][0]["content"] == "You plan."
    assert ["temperature", "default of the persona"] in masked["rules"]


async def test_hold_stops_lanes_on_a_node_and_lets_them_go(tmp_path: Path) -> None:
    """The watchdog's request keeps a lane off the engines of its node until it is taken back."""
    with FakeEngine() as engine:
        async with running(tmp_path, engine, upstreams=[upstream(engine, node="spark")]) as tower:
            hold = {"node": "spark", "lanes": ["default"], "on": True}
            held = (await tower.operator.post("/admin/hold", json=hold)).json()
            refused = await tower.chat("plan")
            other = await tower.chat("agent")
            await tower.operator.post("/admin/hold", json={**hold, "on": False})
            again = await tower.chat("plan")
    assert held == {"engines": [{"engine": "big", "held": ["default"]}]}
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "lane_held")
    assert (other.status_code, again.status_code) == (200, 200)


async def test_shutdown_lets_streams_finish_and_refuses_new_work(tmp_path: Path) -> None:
    """A stream that is under way ends properly; a new request on a kept connection is told to come back."""
    with FakeEngine() as engine:
        gate = engine.gate()
        engine.script(gate=gate, gate_after=1)
        async with running(tmp_path, engine) as tower:
            kept = await asyncio.open_connection("127.0.0.1", tower.port)
            stream = asyncio.create_task(tower.chat(stream=True))
            await until(lambda: engine.running == 1)
            stopping = asyncio.create_task(tower.gateway.stop())
            await until(lambda: tower.gateway.draining)
            gate.open()
            answer = await stream
            await stopping
            assert await kept[0].read() == b""
            kept[1].close()
    assert answer.text.endswith("data: [DONE]\n\n")
