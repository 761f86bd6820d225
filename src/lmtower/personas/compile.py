"""A persona made ready for the hot path: every rule as the bytes that it will put into a body."""

from __future__ import annotations

from typing import Any

import msgspec

from lmtower.config.types import Images, Lane, Limits, Persona, Price, Runtime, Sampling, ToolMode
from lmtower.recipes import Recipe
from lmtower.wire.stops import ENGINE_LIMIT
from lmtower.wire.top import encoded

_encode = msgspec.json.encode


class CompiledPersona(msgspec.Struct, frozen=True):
    """One persona on one engine. ``*_fields`` map a body field to its JSON text."""

    name: str
    engine: str
    served: str
    """The model's name at the engine."""
    model_json: msgspec.Raw
    """``served`` as JSON text."""
    lane: Lane
    tools: ToolMode
    recipe: Recipe
    prompt: str | None
    prompt_json: bytes | None
    """The prompt as the inside of a JSON string, escaped, without quotes."""
    defaults: dict[str, msgspec.Raw]
    """Sampling fields that the client may override."""
    enforced: dict[str, msgspec.Raw]
    """Sampling fields in which the persona wins."""
    thinking: dict[str, Any]
    """Body fields that switch the model's thinking, merged over the client's; empty: the client decides."""
    prefix: str | None
    fim: str | None
    images: Images
    image_hosts: tuple[str, ...]
    allowed_fields: frozenset[str]
    """Engine extras that the tower file lets through."""
    canonical_tools: bool
    stores: tuple[str, ...]
    limits: Limits
    price: Price | None
    max_model_len: int | None
    description: str = ""
    hidden: bool = False
    aliases: tuple[str, ...] = ()
    ttft_target: float | None = None
    runtime: Runtime = "vllm"

    @property
    def most_stops(self) -> int | None:
        """Stop strings that the engine takes; None: any number. Of an unknown engine the least is expected."""
        return None if self.runtime == "llamacpp" else ENGINE_LIMIT

    @property
    def secrets(self) -> tuple[str, ...]:
        """Texts that must never appear in an answer or an error."""
        return (self.prompt,) if self.prompt else ()


def compile_persona(
    name: str,
    persona: Persona,
    *,
    served: str,
    recipe: Recipe,
    max_model_len: int | None = None,
    runtime: Runtime = "vllm",
    image_hosts: tuple[str, ...] = (),
    allowed_fields: frozenset[str] = frozenset(),
) -> CompiledPersona:
    """Bring a persona of the tower file and its model's recipe together.

    ``served`` is the model's name at the engine; ``max_model_len`` (tokens) what the engine was started with.
    """
    defaults = _sampling(persona) | {key: encoded(value) for key, value in persona.extra.items()}
    thinking = {} if persona.thinking in (None, "auto") else recipe.thinking.get(persona.thinking, {})
    return CompiledPersona(
        name=name,
        engine=persona.engine,
        served=served,
        model_json=encoded(served),
        lane=persona.lane,
        tools=persona.tools,
        recipe=recipe,
        prompt=persona.system,
        prompt_json=_encode(persona.system)[1:-1] if persona.system else None,
        defaults=defaults,
        enforced=_sampling(persona.enforce),
        thinking=thinking,
        prefix=persona.prefix,
        fim=persona.fim,
        images=persona.images,
        image_hosts=image_hosts,
        allowed_fields=allowed_fields,
        canonical_tools=persona.canonical_tools,
        stores=persona.stores,
        limits=persona.limits,
        price=persona.price,
        max_model_len=persona.context or max_model_len,
        description=persona.description,
        hidden=persona.hidden,
        aliases=persona.aliases,
        ttft_target=persona.ttft_target,
        runtime=runtime,
    )


def _sampling(sampling: Sampling) -> dict[str, msgspec.Raw]:
    """The sampling keys that are set, as JSON text."""
    values = ((key, getattr(sampling, key)) for key in Sampling.model_fields)
    return {key: encoded(value) for key, value in values if value is not None}
