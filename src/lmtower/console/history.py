"""Longer history from Prometheus, when the tower file names one."""

from __future__ import annotations

from dataclasses import dataclass

import httpx

from lmtower.console.settings import Json
from lmtower.errors import AdminError

RANGES = {"1h": 3600, "24h": 86_400, "7d": 604_800}
POINTS = 120
_TTFT = "histogram_quantile({share}, sum by (le) (rate(lmtower_ttft_seconds_bucket[{step}s])))"
_RATE = "sum(rate(lmtower_{name}_total[{step}s]))"


@dataclass(frozen=True, slots=True)
class Past:
    """Series over the same times; None where Prometheus has nothing."""

    times: list[float]
    requests: list[float | None]
    output_tokens: list[float | None]
    hit_rate: list[float | None]
    ttft_p50: list[float | None]
    ttft_p95: list[float | None]


def queries(step: int) -> dict[str, str]:
    """PromQL of every series."""
    cached, prompt = (_RATE.format(name=name, step=step) for name in ("cached_tokens", "input_tokens"))
    return {
        "requests": _RATE.format(name="requests", step=step),
        "output_tokens": _RATE.format(name="output_tokens", step=step),
        "hit_rate": f"{cached} / ({prompt} > 0)",
        "ttft_p50": _TTFT.format(share=0.5, step=step),
        "ttft_p95": _TTFT.format(share=0.95, step=step),
    }


def aligned(times: list[float], answer: Json) -> list[float | None]:
    """The values of a ``query_range`` answer at the times that were asked for."""
    series = answer["data"]["result"]
    found = {round(float(at)): float(value) for at, value in series[0]["values"]} if series else {}
    values = (found.get(round(at)) for at in times)
    return [None if value is None or value != value else value for value in values]


async def past(client: httpx.AsyncClient, url: str, span: int, now: float) -> Past:
    """The last ``span`` seconds. Raises AdminError when Prometheus does not answer."""
    step = max(15, span // POINTS)
    end = int(now) // step * step
    times = [float(at) for at in range(end - span, end + 1, step)]
    found: dict[str, list[float | None]] = {}
    for name, query in queries(max(60, step)).items():
        asked: dict[str, str | float] = {"query": query, "start": times[0], "end": times[-1], "step": step}
        try:
            reply = await client.get(f"{url.rstrip('/')}/api/v1/query_range", params=asked)
            found[name] = aligned(times, reply.raise_for_status().json())
        except (httpx.HTTPError, ValueError, KeyError, IndexError) as exc:
            raise AdminError(f"Prometheus at {url} does not answer as expected ({exc or type(exc).__name__}).") from exc
    return Past(times, **found)
