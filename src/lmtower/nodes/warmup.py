"""Warm-up: an engine that has just become healthy is asked everything once, before its first user asks.

First one request per shape class (compilation is paid here), then each persona's prefix with one output token, so
that it lies in the prefix cache. A warm-up request that fails is told and does not stop the start.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lmtower.engines.shapes import WarmRequest
from lmtower.engines.spec import LaunchSpec
from lmtower.nodes.http import request

_LONGEST_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class WarmUp:
    """``problems`` names each request that was refused or not answered."""

    requests: int
    seconds: float
    problems: tuple[str, ...] = ()


async def warm_up(
    spec: LaunchSpec, requests: Sequence[WarmRequest], report: Callable[[str], None] = lambda _: None
) -> WarmUp:
    """Send the requests one after the other."""
    begun = time.monotonic()
    problems = []
    for each in requests:
        report(each.what)
        answer = await request(spec.url, each.path, body=each.body, key=spec.api_key, timeout_seconds=_LONGEST_SECONDS)
        if answer is None:
            problems.append(f"{each.what}: no answer")
        elif answer.status >= 400:
            problems.append(f"{each.what}: {answer.status} {answer.body[:200].decode('utf-8', 'replace')}")
    return WarmUp(len(requests), time.monotonic() - begun, tuple(problems))
