"""Each persona's prefix as a request of one output token, so that the first user hits a warm cache."""

from __future__ import annotations

import msgspec

from lmtower import recipes
from lmtower.config.types import Persona, Tower
from lmtower.engines.shapes import WarmRequest
from lmtower.personas import compile_persona, explain
from lmtower.plan.types import EnginePlan

_ASK = {"messages": [{"role": "user", "content": "."}], "max_tokens": 1, "stream": False}


def prefix_requests(tower: Tower, row: EnginePlan) -> tuple[WarmRequest, ...]:
    """The requests of every persona on this engine that has a system prompt. They hold prompts: never print a body."""
    return tuple(
        _request(name, persona, row)
        for name, persona in tower.personas.items()
        if persona.engine == row.name and persona.system and not row.pooling
    )


def _request(name: str, persona: Persona, row: EnginePlan) -> WarmRequest:
    compiled = compile_persona(name, persona, served=row.model, recipe=recipes.get(row.recipe))
    explained = explain("chat", msgspec.json.encode({"model": name, **_ASK}), compiled, engine_url="")
    return WarmRequest(f"prefix of {name}", explained.url, {**explained.body, "max_tokens": 1, "stream": False})
