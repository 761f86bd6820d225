"""Limits over HTTP: refused before the engine is touched, exact under concurrency, told in the client's dialect."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.engine import FakeEngine
from tests.gateway.support import PERSONAS, Running, running

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def personas(**fields: Any) -> dict[str, Any]:
    """The usual ones; ``fields`` go to ``fast``."""
    return {**PERSONAS, "fast": {**PERSONAS["fast"], **fields}}


async def many(tower: Running, count: int, **fields: Any) -> list[httpx.Response]:
    """So many requests at once."""
    return list(await asyncio.gather(*(tower.chat("fast", max_tokens=5, **fields) for _ in range(count))))


@pytest.mark.parametrize("scope", ["tower", "persona"])
async def test_requests_per_minute_are_exact_under_concurrency(tmp_path: Path, scope: str) -> None:
    """Forty at once against a limit of seven: seven reach the engine, the rest are refused before it."""
    limits = {"requests_per_minute": 7}
    parts: dict[str, Any] = {"limits": limits} if scope == "tower" else {"personas": personas(limits=limits)}
    with FakeEngine() as engine:
        engine.script(text="x", delay=0.01)
        async with running(tmp_path, engine, **parts) as tower:
            answers = await many(tower, 40)
            sent = engine.to("/chat/completions").copy()
            assert (await tower.chat("code")).status_code == (429 if scope == "tower" else 200)
    assert Counter(answer.status_code for answer in answers) == {200: 7, 429: 33}
    assert len(sent) == 7
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert "x-should-retry" not in refused.headers


async def test_tokens_never_pass_their_limit_however_many_ask(tmp_path: Path) -> None:
    """What is used in the end is within the limit, and close to it: room that was held too much is used later."""
    with FakeEngine() as engine:
        engine.script(text="a b c d e", delay=0.002, input_tokens=15)
        async with running(tmp_path, engine, limits={"tokens_per_day": 1000}) as tower:
            for _ in range(8):
                await many(tower, 12)
            total = sum(record.input_tokens + record.output_tokens for record in tower.gateway.recent)
            last = await tower.chat("fast", max_tokens=600)
    assert 900 <= total <= 1000
    assert last.json()["error"]["code"] == "insufficient_quota"


async def test_spent_budget_says_not_to_retry_and_the_engine_rests(tmp_path: Path) -> None:
    """Money of the month is gone: insufficient_quota, x-should-retry: false, in the words of both dialects."""
    priced = personas(price={"input": 1000, "output": 1000}, limits={"money_per_month": 0.05})
    with FakeEngine() as engine:
        engine.script(text="a b", input_tokens=40)
        async with running(tmp_path, engine, personas=priced) as tower:
            assert (await tower.chat("fast", max_tokens=5)).status_code == 200
            before = len(engine.to("/chat/completions")) + len(engine.to("/messages"))
            openai = await tower.chat("fast", max_tokens=5)
            body = {"model": "fast", "max_tokens": 5, "messages": [{"role": "user", "content": "hello"}]}
            anthropic = await tower.client.post("/v1/messages", json=body)
            assert len(engine.to("/chat/completions")) + len(engine.to("/messages")) == before
            free = await tower.chat("code", max_tokens=5)
            records = list(tower.gateway.recent)
    assert records[0].cost == pytest.approx(0.042)
    assert (openai.status_code, openai.json()["error"]["code"]) == (429, "insufficient_quota")
    assert (openai.headers["x-should-retry"], anthropic.headers["x-should-retry"]) == ("false", "false")
    assert (anthropic.status_code, anthropic.json()["type"]) == (429, "error")
    assert anthropic.json()["error"]["type"] == "rate_limit_error"
    assert free.status_code == 200


async def test_images_per_day_count_images(tmp_path: Path) -> None:
    """Two images fit, the third does not; text goes on."""
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    content = [{"type": "text", "text": "what is this?"}, picture]
    with FakeEngine() as engine:
        async with running(tmp_path, engine, limits={"images_per_day": 2}) as tower:
            body = {"model": "fast", "messages": [{"role": "user", "content": content}], "max_tokens": 5}
            answers = await asyncio.gather(*(tower.client.post("/v1/chat/completions", json=body) for _ in range(5)))
            last = await tower.client.post("/v1/chat/completions", json=body)
            assert (await tower.chat("fast")).status_code == 200
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429]
    assert last.json()["error"]["code"] == "insufficient_quota"


async def test_headers_tell_what_is_left_in_both_dialects(tmp_path: Path) -> None:
    """OpenAI's names with Go durations, Anthropic's with RFC 3339; on answers, streams and refusals alike."""
    limits = {"requests_per_minute": 3, "tokens_per_minute": 5000}
    body = {"model": "fast", "max_tokens": 5, "messages": [{"role": "user", "content": "hello"}]}
    with FakeEngine() as engine:
        engine.script(text="a b", input_tokens=40)
        async with running(tmp_path, engine, limits=limits) as tower:
            first = (await tower.client.post("/v1/chat/completions", json=body)).headers
            second = (await tower.client.post("/v1/chat/completions", json={**body, "stream": True})).headers
            third = (await tower.client.post("/v1/messages", json=body)).headers
            refused = await tower.client.post("/v1/messages", json=body)
    for unit, limit in (("requests", "3"), ("tokens", "5000")):
        assert first[f"x-ratelimit-limit-{unit}"] == limit
        assert re.fullmatch(r"(\d+m)?[\d.]+m?s", first[f"x-ratelimit-reset-{unit}"])
        assert third[f"anthropic-ratelimit-{unit}-limit"] == limit
        reset = datetime.strptime(third[f"anthropic-ratelimit-{unit}-reset"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        assert 0 <= (reset - datetime.now(UTC)).total_seconds() + 1.5 <= 63
    assert [answer["x-ratelimit-remaining-requests"] for answer in (first, second)] == ["2", "1"]
    assert third["anthropic-ratelimit-requests-remaining"] == "0"
    assert int(first["x-ratelimit-remaining-tokens"]) > int(second["x-ratelimit-remaining-tokens"]) > 0
    assert refused.status_code == 429
    assert refused.headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert int(refused.headers["retry-after"]) >= 1


async def test_repeat_of_an_sdk_counts_once(tmp_path: Path) -> None:
    """The SDK's retry header marks a repeat: no second request in the limit, one retry in ledger and metrics."""
    with FakeEngine() as engine:
        engine.script(text="x")
        async with running(tmp_path, engine, limits={"requests_per_minute": 2}) as tower:
            body = {"model": "fast", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
            codes = []
            for count in ("0", "1", "2"):
                headers = {"x-stainless-retry-count": count}
                codes.append((await tower.client.post("/v1/chat/completions", json=body, headers=headers)).status_code)
            codes += [(await tower.chat("fast", "other", max_tokens=5)).status_code for _ in range(2)]
            page = (await tower.operator.get("/metrics")).text
            usage = (await tower.operator.get("/admin/usage?by=outcome")).json()["rows"]
    assert codes == [200, 200, 200, 200, 429]
    assert re.search(r'lmtower_retried_requests_total\{persona="fast".*\} 2\n', page)
    assert next(row["retries"] for row in usage if row["outcome"] == "ok") == 2


async def test_request_that_never_ran_takes_nothing(tmp_path: Path) -> None:
    """The engine is away: what was held for the request is given back."""
    with FakeEngine() as engine:
        async with running(tmp_path, engine, limits={"requests_per_minute": 2, "tokens_per_day": 5000}) as tower:
            engine.crash()
            assert {(await tower.chat("fast", max_tokens=5)).status_code for _ in range(4)} <= {502, 503}
            (account,) = tower.gateway.ledger.limits.accounts()
            assert (account.running, account.held_tokens, account.requests_minute.total) == (0, 0, 0)


async def test_changed_limit_holds_from_the_next_request(tmp_path: Path) -> None:
    """PATCH on a key: what it used today counts against its new limit; taken away, the key is free again."""
    with FakeEngine() as engine:
        engine.script(text="a b", input_tokens=400)
        async with running(tmp_path, engine) as tower:
            key = (await tower.operator.get("/admin/keys")).json()["keys"][0]["id"]
            assert (await tower.chat("fast", max_tokens=5)).status_code == 200
            changed = await tower.operator.patch(f"/admin/keys/{key}", json={"limits": {"tokens_per_day": "410"}})
            assert changed.json()["limits"] == {"tokens_per_day": 410}
            refused = await tower.chat("fast", max_tokens=5)
            await tower.operator.patch(f"/admin/keys/{key}", json={"limits": {"tokens_per_day": None}})
            free = await tower.chat("fast", max_tokens=5)
    assert (refused.status_code, "402 are used" in refused.text) == (429, True)
    assert free.status_code == 200


async def test_prompt_of_the_persona_counts_in_the_estimate(tmp_path: Path) -> None:
    """A long system prompt is held too, so that it cannot carry a key over its limit."""
    long = {**PERSONAS, "fast": {**PERSONAS["fast"], "system": "word " * 2000}}
    with FakeEngine() as engine:
        async with running(tmp_path, engine, personas=long, limits={"tokens_per_minute": 1000}) as tower:
            answer = await tower.chat("fast", max_tokens=5)
            assert not engine.to("/chat/completions")
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "insufficient_quota")


async def test_engine_that_refuses_used_nothing(tmp_path: Path) -> None:
    """A 400 of the engine is on record without tokens: the engine counted none either."""
    with FakeEngine() as engine:
        engine.script(status=400, error={"error": {"message": "no such thing"}})
        async with running(tmp_path, engine) as tower:
            await tower.chat("fast")
            (record,) = await tower.records(1)
    assert (record.outcome, record.input_tokens, record.output_tokens) == ("refused", 0, 0)
