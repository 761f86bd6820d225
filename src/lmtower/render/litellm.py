"""Personas as a LiteLLM ``config.yaml``. What LiteLLM has no word for is named, not silently dropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmtower.config.types import Engine, Persona, Tower
from lmtower.recipes import Recipe

_SAMPLING = (
    "temperature",
    "top_p",
    "max_tokens",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "reasoning_effort",
)
_EXTRA_SAMPLING = ("top_k", "min_p", "repetition_penalty")
_LOST = (
    ("system", "system prompt"),
    ("lane", "lane"),
    ("fim", "fill-in-the-middle template"),
    ("prefix", "embedding prefix"),
    ("stores", "vector stores"),
    ("ttft_target", "TTFT target"),
    ("canonical_tools", "sorted tools"),
    ("images", "image limits"),
    ("hidden", "hidden"),
)


@dataclass(frozen=True, slots=True)
class Served:
    """Where an engine answers. ``urls`` are base addresses without ``/v1``; ``key_variable`` names its key."""

    urls: tuple[str, ...]
    model: str
    recipe: Recipe
    context: int | None = None
    key_variable: str | None = None


@dataclass(frozen=True, slots=True)
class Rendered:
    """The document, and one line for everything that it does not carry."""

    document: dict[str, Any]
    lost: tuple[str, ...]


def render(tower: Tower, engines: Mapping[str, Served]) -> Rendered:
    """One ``model_list`` entry per persona and replica, aliases as ``model_group_alias``."""
    models: list[dict[str, Any]] = []
    aliases: dict[str, str] = {}
    lost: list[str] = []
    for name, persona in tower.personas.items():
        served = engines[persona.engine]
        parameters = _parameters(persona, served, tower.engines[persona.engine])
        information = _information(persona, served, tower.engines[persona.engine])
        for url in served.urls:
            entry = {"model": f"hosted_vllm/{served.model}", "api_base": f"{url}/v1", **parameters}
            models.append({"model_name": name, "litellm_params": entry, "model_info": dict(information)})
        lost += _lost(name, persona)
        for alias in persona.aliases:
            if "*" in alias:
                lost.append(f"personas.{name}.aliases: the pattern {alias!r}")
            else:
                aliases[alias] = name
    document: dict[str, Any] = {"model_list": models}
    if aliases:
        document["router_settings"] = {"model_group_alias": aliases}
    document["litellm_settings"] = {"drop_params": True}
    document["general_settings"] = {"master_key": "os.environ/LITELLM_MASTER_KEY"}
    lost.append("keys and usage of clients: make keys in LiteLLM (it needs a PostgreSQL)")
    return Rendered(document, tuple(lost))


def _parameters(persona: Persona, served: Served, engine: Engine) -> dict[str, Any]:
    values = {**_sampling(persona), **_sampling(persona.enforce)}
    found = {name: values[name] for name in _SAMPLING if name in values}
    body: dict[str, Any] = {name: values[name] for name in _EXTRA_SAMPLING if name in values}
    if persona.thinking and persona.thinking != "auto":
        body |= served.recipe.thinking.get(persona.thinking, {})
    body |= persona.extra
    if body:
        found["extra_body"] = body
    # hosted_vllm refuses to send without any key; an engine that asks for none ignores it
    found["api_key"] = f"os.environ/{served.key_variable}" if served.key_variable else "none"
    limits = persona.limits
    if limits.requests_per_minute is not None:
        found["rpm"] = limits.requests_per_minute
    if limits.tokens_per_minute is not None:
        found["tpm"] = limits.tokens_per_minute
    return found


def _sampling(section: Any) -> dict[str, Any]:
    names = (*_SAMPLING, *_EXTRA_SAMPLING)
    values = {name: getattr(section, name) for name in names if getattr(section, name) is not None}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _information(persona: Persona, served: Served, engine: Engine) -> dict[str, Any]:
    found: dict[str, Any] = {"mode": _mode(persona, served)}
    context = persona.context or served.context
    if context:
        found["max_input_tokens"] = context
    if persona.price is not None:
        found["input_cost_per_token"] = persona.price.input / 1e6
        found["output_cost_per_token"] = persona.price.output / 1e6
    return found


def _mode(persona: Persona, served: Served) -> str:
    if persona.fim:
        return "completion"
    embeds = persona.prefix is not None or "embed" in served.recipe.name or "embed" in served.model.lower()
    return "embedding" if embeds else "chat"


def _lost(name: str, persona: Persona) -> list[str]:
    lost = [
        f"personas.{name}.{field}: {what}"
        for field, what in _LOST
        if getattr(persona, field) != type(persona).model_fields[field].get_default(call_default_factory=True)
    ]
    if _sampling(persona.enforce):
        lost.append(f"personas.{name}.enforce: rendered as defaults; LiteLLM's clients may override them")
    if persona.tools != "auto":
        lost.append(f"personas.{name}.tools: {persona.tools}")
    limits = persona.limits
    for field in ("tokens_per_day", "images_per_day", "money_per_month", "parallel"):
        if getattr(limits, field) is not None:
            lost.append(f"personas.{name}.limits.{field}: set it on LiteLLM's keys")
    return lost
