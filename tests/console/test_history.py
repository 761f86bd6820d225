"""History from Prometheus: what is asked, what becomes of the answers, and a Prometheus that is away."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from lmtower.console.history import RANGES, past
from lmtower.errors import AdminError
from tests.console.support import consoled
from tests.fakes.engine import FakeEngine


async def test_day_is_asked_in_even_steps_and_aligned() -> None:
    """Every series over the same times; what Prometheus does not have is a gap."""
    asked: list[dict[str, str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        query = dict(request.url.params)
        asked.append(query)
        values = [[float(query["start"]), "2"], [float(query["end"]), "NaN"]]
        return httpx.Response(200, json={"data": {"result": [{"values": values}]}})

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        found = await past(client, "http://prom/", RANGES["24h"], 1_000_000.5)
    assert {query["step"] for query in asked} == {"720"}
    assert found.times[-1] - found.times[0] == RANGES["24h"]
    assert (found.requests[0], found.requests[1], found.hit_rate[-1]) == (2.0, None, None)
    assert any("lmtower_cached_tokens_total[720s]" in query["query"] for query in asked)


@pytest.mark.parametrize(
    "reply", [httpx.Response(503), httpx.Response(200, text="hello"), httpx.Response(200, json={})]
)
async def test_strange_answer_of_prometheus_is_said(reply: httpx.Response) -> None:
    """With its address, so that the tower file can be set right."""
    async with httpx.AsyncClient(transport=httpx.MockTransport(lambda _: reply)) as client:
        with pytest.raises(AdminError, match="Prometheus at http://prom"):
            await past(client, "http://prom", 3600, 0.0)


async def test_overview_falls_back_to_its_own_samples(tmp_path: Path) -> None:
    """A Prometheus that is away is a notice above live charts, not a broken page."""
    with FakeEngine() as engine:
        async with consoled(tmp_path, engine, prometheus_url="http://127.0.0.1:1") as console:
            await console.login()
            page = (await console.web.get("/?range=24h")).text
    assert "Prometheus at http://127.0.0.1:1 does not answer" in page
    assert "Requests per minute" in page
