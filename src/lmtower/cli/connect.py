"""``lmtower connect CLIENT``: the exact configuration that a client needs to use this tower."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import Annotated

import typer

from lmtower.cli.globals import Globals
from lmtower.cli.output import print_json
from lmtower.config import Tower
from lmtower.errors import Refused

ALIASES = {
    "claude": "claude-code",
    "llama.vscode": "llama-vscode",
    "llama.vim": "llama-vscode",
    "roo": "cline",
    "openwebui": "open-webui",
    "homeassistant": "home-assistant",
    "ha": "home-assistant",
    "llamaindex": "langchain",
    "llama-index": "langchain",
    "openai": "sdk",
    "anthropic": "sdk",
    "curl": "sdk",
}


@dataclass(frozen=True, slots=True)
class Page:
    """One client's page: its title, which kind of persona it wants most, and the text with places to fill in."""

    name: str
    title: str
    needs: str
    text: str


@dataclass(frozen=True, slots=True)
class Values:
    """What goes into the places. ``base`` has no ``/v1``."""

    base: str
    key: str
    persona: str
    fast: str
    fim: str
    fim_format: str
    """Zed's name of the autocomplete model's markup."""
    embed: str
    vision: str
    context: int

    def fill(self, text: str) -> str:
        """The text with every place filled in."""
        places = {
            "@BASE_V1@": f"{self.base}/v1",
            "@BASE@": self.base,
            "@KEY@": self.key,
            "@PERSONA@": self.persona,
            "@FAST@": self.fast,
            "@FIM@": self.fim,
            "@FIM_FORMAT@": self.fim_format,
            "@EMBED@": self.embed,
            "@VISION@": self.vision,
            "@CONTEXT@": str(self.context),
        }
        for place, value in places.items():
            text = text.replace(place, value)
        return text


EXAMPLE = Values(
    "http://tower.lan:8080",
    "sk-lmt-...",
    "nemotron-code",
    "nemotron-fast",
    "qwen2.5-coder",
    "qwen",
    "nomic-embed-query",
    "qwen3-vl",
    200_000,
)
"""The tower of docs/clients: the personas of examples/dgx-spark."""


def pages() -> dict[str, Page]:
    """Every client's page by its name."""
    found = {}
    for file in sorted(files("lmtower.cli.clients").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".md"):
            title, needs, text = file.read_text("utf-8").split("\n", 2)
            name = file.name.removesuffix(".md")
            found[name] = Page(name, title.removeprefix("# "), needs.removeprefix("needs: "), text.strip())
    return found


def document(page: Page) -> str:
    """The page of docs/clients."""
    made = f"`lmtower connect {page.name}` prints this with the address, key and personas of your tower."
    return f"# {page.title}\n\n{made}\n\n{EXAMPLE.fill(page.text)}\n"


def connect(
    ctx: typer.Context,
    client: Annotated[str, typer.Argument(help="Client, such as claude-code; without one they are listed.")] = "",
    persona: Annotated[str, typer.Option(help="Persona to use. Default: the first that suits the client.")] = "",
    url: Annotated[str, typer.Option(help="Address that the client reaches the tower at, without /v1.")] = "",
    key: Annotated[str, typer.Option(help="Key to put in. Default: a placeholder.", envvar="LMTOWER_KEY")] = "",
) -> None:
    """Print the exact configuration that a client needs to use this tower."""
    options: Globals = ctx.obj
    known = pages()
    name = ALIASES.get(client.lower(), client.lower())
    if not client:
        print("\n".join(f"{page.name:<15} {page.title}" for page in known.values()))
        return
    if name not in known:
        raise Refused(f"no client {client!r}. There is {', '.join(known)}.")
    values = values_of(options.load().tower, known[name].needs, persona, url, key)
    text = values.fill(known[name].text)
    if options.json:
        print_json({"client": name, "base_url": values.base, "persona": values.persona, "text": text})
    else:
        print(f"# {known[name].title}\n\n{text}")


def values_of(tower: Tower, needs: str, persona: str, url: str, key: str) -> Values:
    """What to fill in for this tower. Raises Refused when the persona does not exist."""
    if persona and persona not in tower.personas:
        raise Refused(f"no persona {persona!r}. There is {', '.join(tower.personas)}.")
    kinds = {kind: _first(tower, kind) for kind in ("chat", "agent", "fast", "fim", "embed", "vision")}
    if persona:
        kinds |= {needs: persona, "chat": persona}
    chosen = kinds["agent"] if needs == "agent" else kinds["chat"]
    context = tower.personas[chosen].context
    return Values(
        base=(url or _base(tower)).rstrip("/").removesuffix("/v1"),
        key=key or "KEY (make one: lmtower key create NAME)",
        persona=chosen,
        fast=kinds["fast"],
        fim=kinds["fim"],
        fim_format=_zed_format(tower.personas[kinds["fim"]].fim or ""),
        embed=kinds["embed"],
        vision=kinds["vision"],
        context=context or _engine_context(tower, tower.personas[chosen].engine),
    )


_ZED_FORMATS = (
    ("qwen", "qwen"),
    ("starcoder", "star_coder"),
    ("codellama", "code_llama"),
    ("deepseek-coder", "deepseek_coder"),
    ("codegemma", "code_gemma"),
    ("codestral", "codestral"),
)
"""Family of a ``fim`` template -> ``prompt_format`` of Zed (EditPredictionPromptFormatContent, snake case)."""


def _zed_format(family: str) -> str:
    return next((name for start, name in _ZED_FORMATS if family.startswith(start)), "infer")


def _first(tower: Tower, kind: str) -> str:
    """The first persona that suits a kind of client; the first of all when none does."""

    def suits(name: str) -> bool:
        persona = tower.personas[name]
        model = f"{name} {tower.engines[persona.engine].model}".lower()
        vision = persona.images.max_count is not None or "-vl" in model or "vision" in model
        embed = persona.prefix is not None or "embed" in model
        plain = persona.fim is None and not embed and not vision
        return {
            "fim": persona.fim is not None,
            "embed": embed,
            "vision": vision,
            "fast": plain and ("fast" in name or persona.thinking in ("low", "off")),
            "agent": plain and (persona.tools == "strict" or persona.lane == "agent"),
        }.get(kind, plain)

    return next((name for name in tower.personas if suits(name)), next(iter(tower.personas)))


def _engine_context(tower: Tower, engine: str) -> int:
    context = tower.engines[engine].context
    return context if isinstance(context, int) else 32_768


def _base(tower: Tower) -> str:
    """The tower's address as its own machine sees it; what other machines use is for a person to know."""
    host, _, port = tower.gateway.listen.rpartition(":")
    if host in ("", "0.0.0.0", "::", "[::]"):
        host = "127.0.0.1"
    return f"{'https' if tower.gateway.tls else 'http'}://{host}:{port}"
