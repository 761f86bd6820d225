"""One loaded configuration, immutable: personas compiled for their engines, and how model names lead to them."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from lmtower import recipes
from lmtower.config.types import LANES, Lane, Tower
from lmtower.gateway.engine import Engine
from lmtower.gateway.upstreams import Upstream
from lmtower.personas import CompiledPersona, compile_persona
from lmtower.wire.faults import Fault
from lmtower.wire.top import encoded


class Snapshot(NamedTuple):
    """What a request sees from its first byte to its last, whatever is reloaded meanwhile."""

    version: int
    tower: Tower
    personas: Mapping[str, CompiledPersona]
    patterns: Sequence[tuple[str, CompiledPersona]]
    engines: Mapping[str, Engine]
    created: int
    """Seconds since the epoch; the ``created`` of every model in ``/v1/models``."""

    def find(self, model: str | None, *, fim: bool = False) -> CompiledPersona:
        """The persona that a model name leads to; without a name the first one (of FIM personas, if ``fim``).

        Raises Fault(404) with the nearest names.
        """
        if model is None or not model:
            return next((p for p in self.personas.values() if p.fim or not fim), next(iter(self.personas.values())))
        persona = self.personas.get(model)
        if persona is not None:
            return persona
        lowered = model.lower()
        for pattern, candidate in self.patterns:
            if fnmatch.fnmatchcase(lowered, pattern):
                return candidate
        raise Fault(404, "model_not_found", f"The model {model[:100]!r} does not exist.", param="model")


def build(
    version: int, tower: Tower, upstreams: Sequence[Upstream], engines: Mapping[str, Engine], created: int
) -> Snapshot:
    """Compile every persona for the engine that it runs on. ``engines`` are live and may outlive the snapshot."""
    by_engine: dict[str, Upstream] = {}
    for upstream in upstreams:
        by_engine.setdefault(upstream.engine, upstream)
    personas: dict[str, CompiledPersona] = {}
    for name, persona in tower.personas.items():
        personas[name] = compiled(tower, name, by_engine[persona.engine])
    patterns = [(alias.lower(), persona) for persona in personas.values() for alias in persona.aliases]
    # an exact alias wins over a pattern, a longer pattern over a shorter one
    patterns.sort(key=lambda entry: ("*" in entry[0] or "?" in entry[0], -len(entry[0])))
    return Snapshot(version, tower, personas, patterns, engines, created)


def compiled(tower: Tower, name: str, upstream: Upstream) -> CompiledPersona:
    """A persona of the tower file as requests meet it on the engine behind this upstream."""
    persona = tower.personas[name]
    found = compile_persona(
        name,
        persona,
        served=upstream.model,
        recipe=recipes.get(upstream.recipe),
        max_model_len=upstream.max_model_len,
        runtime=upstream.runtime,
        image_hosts=tower.gateway.image_urls,
        allowed_fields=frozenset(tower.gateway.dangerous_fields),
    )
    if upstream.priorities:
        found = msgspec.structs.replace(found, enforced=found.enforced | {"priority": _priority(persona.lane)})
    return found


def _priority(lane: Lane) -> msgspec.Raw:
    """vLLM runs lower numbers first."""
    return encoded(LANES.index(lane))
