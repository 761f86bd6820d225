"""A LiteLLM ``config.yaml`` -> the beginning of a tower file, and a line for everything that has no place in it.

Every ``model_list`` entry with an address becomes an external engine and a persona; entries of one name with one
model and several addresses become one engine with replicas. Entries of cloud vendors (no ``api_base``) are not
engines of ours and are named as such.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_SAMPLING = {
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "max_tokens",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "reasoning_effort",
}
_PROVIDERS = {
    "hosted_vllm",
    "openai",
    "vllm",
    "custom_openai",
    "litellm_proxy",
    "openai_like",
    "text-completion-openai",
}
_NOT_PARAMETERS = {"model", "api_base", "base_url", "api_key", "rpm", "tpm"}
_NOT_CARRIED = {
    "timeout": "lmtower waits as long as gateway.first_token_timeout and idle_timeout say",
    "stream_timeout": "see gateway.first_token_timeout",
    "max_retries": "lmtower retries only what is safe to send again",
    "drop_params": "lmtower drops what an engine does not take by itself",
    "tags": "lmtower has no tags",
    "max_budget": "set limits.money_per_month on keys or personas",
    "budget_duration": "lmtower's budgets are per calendar month",
    "itpm": "use limits.tokens_per_minute",
    "otpm": "use limits.tokens_per_minute",
    "keepalive_seconds": "see gateway.keepalive",
    "merge_reasoning_content_in_choices": "clients get reasoning in its own field",
    "vector_store_id": "see stores",
}
_SECTIONS = {
    "router_settings": {"model_group_alias"},
    "litellm_settings": {"drop_params"},
    "general_settings": set[str](),
}
_CONTEXT_KEYS = ("max_input_tokens", "max_tokens")


@dataclass(frozen=True, slots=True)
class Imported:
    """``tower`` is a tower file as plain data; ``lost`` says what it does not carry, and what to do about it."""

    tower: dict[str, Any]
    lost: tuple[str, ...]


@dataclass(slots=True)
class _Import:
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)
    personas: dict[str, dict[str, Any]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    prompts: dict[str, str] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)


def read(config: Mapping[str, Any]) -> Imported:
    """Read a parsed ``config.yaml``."""
    work = _Import()
    work.prompts = _prompts(config, work.lost)
    for index, entry in enumerate(config.get("model_list") or ()):
        _entry(work, index, entry)
    _aliases(work, (config.get("router_settings") or {}).get("model_group_alias") or {})
    _leftovers(work, config)
    tower = {"engines": work.engines, "personas": work.personas}
    return Imported(tower, tuple(work.lost))


def _entry(work: _Import, index: int, entry: Mapping[str, Any]) -> None:
    where, shown = f"model_list[{index}]", str(entry.get("model_name") or f"model-{index}")
    parameters = dict(entry.get("litellm_params") or {})
    provider, _, model = str(parameters.get("model", "")).partition("/")
    base = parameters.get("api_base") or parameters.get("base_url")
    if provider not in _PROVIDERS:
        provider, model = "", str(parameters.get("model", ""))
    if not base or not model:
        work.lost.append(
            f"{where} {shown!r}: model {parameters.get('model')!r} has no api_base, so it is no engine here"
        )
        return
    if "*" in shown or "*" in model:
        work.lost.append(f"{where} {shown!r}: a wildcard; write one persona per model, or aliases with *")
        return
    if not str(base).startswith(("http://", "https://")):
        work.lost.append(f"{where} {shown!r}: api_base {base!r} is no address; write the engine's url yourself")
        return
    name = _name(shown)
    known = work.personas.get(name)
    engine = _engine(work, model, _base(str(base)), parameters.get("api_key"), known["engine"] if known else None)
    if known is not None:
        if known["engine"] != engine:
            work.lost.append(f"{where} {shown!r}: balances over different models; only {known['engine']!r} is kept")
        return
    work.names[shown] = name
    work.personas[name] = _persona(work, where, shown, engine, parameters, entry.get("model_info") or {})


def _engine(work: _Import, model: str, url: str, key: object, known: str | None) -> str:
    """The engine with this model and address, made if it is new; a further address of ``known`` becomes a replica."""
    for name, engine in work.engines.items():
        if engine["model"] == model and url in (engine.get("url"), *engine.get("urls", ())):
            return name
    if known is not None and work.engines[known]["model"] == model:
        engine = work.engines[known]
        engine["urls"] = [*engine.get("urls", [engine.pop("url", None)]), url]
        return known
    name = _free(_name(model.rpartition("/")[2].lower()), work.engines)
    work.engines[name] = {"url": url, "model": model} | _key(work, name, key)
    return name


def _key(work: _Import, engine: str, key: object) -> dict[str, str]:
    if key in (None, "", "none", "None", "EMPTY", "dummy"):
        return {}
    if str(key).startswith("os.environ/"):
        return {"api_key": f"env:{str(key).removeprefix('os.environ/')}"}
    variable = re.sub(r"[^A-Z0-9]", "_", engine.upper()) + "_KEY"
    work.lost.append(f"engines.{engine}.api_key: was written in the file; set the environment variable {variable}")
    return {"api_key": f"env:{variable}"}


def _persona(
    work: _Import, where: str, shown: str, engine: str, parameters: dict[str, Any], information: Mapping[str, Any]
) -> dict[str, Any]:
    persona: dict[str, Any] = {"engine": engine}
    if shown != _name(shown):
        persona["aliases"] = [shown]
    extra = dict(parameters.get("extra_body") or {})
    for name, value in parameters.items():
        if name in _SAMPLING:
            persona[name] = value
        elif name == "prompt_id":
            _system(work, persona, where, shown, value)
        elif name in _NOT_CARRIED:
            work.lost.append(f"{where} {shown!r} {name}: {_NOT_CARRIED[name]}")
        elif name not in _NOT_PARAMETERS and name != "extra_body":
            extra[name] = value
    persona |= {name: extra.pop(name) for name in tuple(extra) if name in _SAMPLING}
    if extra:
        persona["extra"] = extra
    limits = {ours: parameters[theirs] for theirs, ours in _LIMITS if parameters.get(theirs) is not None}
    if limits:
        persona["limits"] = limits
    _describe(work, persona, where, shown, information)
    return persona


_LIMITS = (("rpm", "requests_per_minute"), ("tpm", "tokens_per_minute"))


def _describe(work: _Import, persona: dict[str, Any], where: str, shown: str, information: Mapping[str, Any]) -> None:
    price = {
        ours: round(float(information[theirs]) * 1e6, 6)
        for theirs, ours in (("input_cost_per_token", "input"), ("output_cost_per_token", "output"))
        if information.get(theirs) is not None
    }
    if price:
        persona["price"] = price
    context = next((information[name] for name in _CONTEXT_KEYS if information.get(name)), None)
    if context:
        persona["context"] = int(context)
    carried = {"mode", "id", "base_model", "input_cost_per_token", "output_cost_per_token", *_CONTEXT_KEYS}
    lost = sorted(set(information) - carried - {name for name in information if name.startswith("supports_")})
    if lost:
        work.lost.append(f"{where} {shown!r} model_info: {', '.join(lost)}")


def _system(work: _Import, persona: dict[str, Any], where: str, shown: str, prompt: object) -> None:
    text = work.prompts.get(str(prompt))
    if text is None:
        work.lost.append(
            f"{where} {shown!r} prompt_id {prompt!r}: its text is not in this file; write it under system:"
        )
    else:
        persona["system"] = text


def _prompts(config: Mapping[str, Any], lost: list[str]) -> dict[str, str]:
    """Inline dotprompts without variables: their ``System:`` part, or the whole text."""
    found = {}
    for entry in config.get("prompts") or ():
        content = str((entry.get("litellm_params") or {}).get("dotprompt_content") or "")
        body = re.sub(r"\A---\n.*?\n---\n", "", content, flags=re.DOTALL).strip()
        if not body or "{{" in body:
            lost.append(f"prompts {entry.get('prompt_id')!r}: has variables or lives elsewhere; write it under system:")
            continue
        match = re.match(r"System:\s*(.*?)(?=\n(?:User|Assistant):|\Z)", body, flags=re.DOTALL)
        found[str(entry.get("prompt_id"))] = (match[1] if match else body).strip()
    return found


def _aliases(work: _Import, aliases: Mapping[str, Any]) -> None:
    for alias, target in aliases.items():
        name = work.names.get(str(target.get("model") if isinstance(target, Mapping) else target))
        if name is None:
            work.lost.append(f"router_settings.model_group_alias {alias!r}: leads to nothing that was carried")
        else:
            persona = work.personas[name]
            persona["aliases"] = [*persona.get("aliases", ()), alias]


def _leftovers(work: _Import, config: Mapping[str, Any]) -> None:
    known = {"model_list", "prompts", *_SECTIONS}
    for section, carried in _SECTIONS.items():
        for name in config.get(section) or {}:
            if name == "master_key":
                work.lost.append(
                    "general_settings.master_key: lmtower has an admin key of its own (admin.key in its data)"
                )
            elif name == "database_url":
                work.lost.append(
                    "general_settings.database_url: keys stay there; make new ones with lmtower key create"
                )
            elif name not in carried:
                work.lost.append(f"{section}.{name}: has no counterpart")
    for name in config:
        if name not in known:
            work.lost.append(f"{name}: has no counterpart")


def _base(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1")


def _name(text: str) -> str:
    """A name that the tower file accepts."""
    return re.sub(r"[^A-Za-z0-9._:-]", "-", text).strip("-._:")[:63] or "model"


def _free(name: str, taken: Mapping[str, Any]) -> str:
    number, free = 2, name
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    return free
