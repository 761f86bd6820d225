"""Warnings: a tower file that is right, but that a client or a person will trip over.

Clients guess from a model's name. Cline, Roo, Continue, Frigate and Open WebUI treat any name that contains
``o1``, ``o3``, ``o4`` or ``gpt-`` as OpenAI's and change the request; Claude Code cannot select a name with a
slash; Continue and Zed choose the fill-in-the-middle template by the family in the name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmtower.config.source import Source
from lmtower.errors import Problem

_OPENAI = ("o1", "o3", "o4", "gpt")
_FIM_FAMILIES = ("qwen", "codestral", "starcoder", "deepseek", "codellama", "codegemma", "granite", "stable-code")


def warnings(source: Source) -> list[Problem]:
    """Everything about this tower file that works but surprises."""
    found: list[Problem] = []
    personas = source.data.get("personas")
    for name, persona in personas.items() if isinstance(personas, Mapping) else ():
        if isinstance(persona, Mapping):
            messages = [*_name(str(name), persona), *_rules(persona)]
            found += [source.problem(("personas", name), message) for message in messages]
    engines = source.data.get("engines")
    for name, engine in engines.items() if isinstance(engines, Mapping) else ():
        if isinstance(engine, Mapping):
            found += [source.problem(("engines", name, key), message) for key, message in _engine(engine)]
    return found


def _name(name: str, persona: Mapping[str, Any]) -> list[str]:
    found = []
    if "/" in name:
        found.append("Claude Code cannot select a name with '/'. Add an alias without one, or rename it.")
    if trap := next((part for part in _OPENAI if part in name.lower()), None):
        found.append(
            f"the name contains {trap!r}: Cline, Roo, Continue, Frigate and Open WebUI take it for an OpenAI "
            "model and change what they send. Rename it."
        )
    names = " ".join([name, *map(str, persona.get("aliases") or ())]).lower()
    if persona.get("fim") and not any(family in names for family in _FIM_FAMILIES):
        found.append(
            "Continue and Zed choose the fill-in-the-middle template by the model's name. "
            f"Put the family into it, such as {persona['fim']!r}, or add an alias."
        )
    return found


def _rules(persona: Mapping[str, Any]) -> list[str]:
    found = []
    enforced = persona.get("enforce")
    for key in sorted(set(enforced) & set(persona)) if isinstance(enforced, Mapping) else ():
        found.append(f"{key} is under enforce: too, which wins; drop the default.")
    if persona.get("fim") and persona.get("system"):
        found.append("system: is not sent with fill-in-the-middle requests.")
    return found


def _engine(engine: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = []
    if engine.get("prefix_caching") in (False, "off", "no", "false"):
        found.append(
            ("prefix_caching", "every request is prefilled from its first token. Leave it on unless you measure.")
        )
    for url in [engine.get("url"), *(engine.get("urls") or ())]:
        if isinstance(url, str) and url.rstrip("/").endswith("/v1"):
            found.append(("url" if engine.get("url") else "urls", "leave out /v1; the gateway adds the path."))
    return found
