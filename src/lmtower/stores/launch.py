"""Whether a tower has vector stores, and the command that serves them. Light: the CLI asks this at every start."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from lmtower.config.types import Tower


@dataclass(frozen=True, slots=True)
class Personas:
    """Model names of the gateway. ``model`` is what a person calls the embedding model behind ``document``."""

    document: str
    query: str
    rerank: str | None = None
    model: str = ""


def choose_personas(tower: Tower) -> Personas | None:
    """Those of ``stores:``, else those whose names or prefixes say so. None when the tower has no embedding persona."""
    names = {name: persona for name, persona in tower.personas.items() if "embed" in name or persona.prefix is not None}

    def pick(word: str) -> str | None:
        return next((name for name in names if word in f"{name} {names[name].prefix or ''}".lower()), None)

    document = tower.stores.document_persona or pick("document") or pick("passage") or next(iter(names), None)
    if document is None or document not in tower.personas:
        return None
    query = tower.stores.query_persona or pick("query") or document
    model = tower.engines[tower.personas[document].engine].model
    return Personas(document, query, tower.stores.rerank_persona, model)


def installed() -> bool:
    """The extra ``rag`` is there."""
    return all(find_spec(name) is not None for name in ("lancedb", "starlette", "uvicorn", "semantic_text_splitter"))


def wanted(tower: Tower) -> bool:
    """``lmtower up`` and ``serve`` start the service when it could answer."""
    return installed() and choose_personas(tower) is not None


def command(config: Path, data_dir: Path, gateway: str, listen: str) -> list[str]:
    """The argv of the service. It ends when its standard input closes. LMTOWER_STORES_KEY may hold its gateway key."""
    argv = [sys.executable, "-m", "lmtower.stores.server", "--config", str(config), "--data-dir", str(data_dir)]
    return [*argv, "--gateway", gateway, "--listen", listen]
