"""``lmtower connect``: configurations that parse, and documents that are made of the same source."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from lmtower.cli.connect import EXAMPLE, document, pages, values_of
from lmtower.config.types import Tower
from lmtower.errors import Refused

DOCS = Path(__file__).parents[2] / "docs" / "clients"
FENCE = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
TOWER = Tower.model_validate(
    {
        "gateway": {"listen": "0.0.0.0:9000"},
        "engines": {"big": {"model": "m", "context": "200k"}, "eyes": {"model": "Qwen/Qwen3-VL-8B"}},
        "personas": {
            "plan": {"engine": "big"},
            "quick": {"engine": "big", "thinking": "low"},
            "act": {"engine": "big", "tools": "strict"},
            "cam": {"engine": "eyes"},
            "coder": {"engine": "big", "fim": "qwen2.5-coder"},
            "query": {"engine": "big", "prefix": "search_query: "},
        },
    }
)


@pytest.mark.parametrize("name", pages())
def test_every_block_of_a_page_is_valid_in_its_language(name: str) -> None:
    """What a person pastes must at least parse; no place is left to fill in."""
    filled = EXAMPLE.fill(pages()[name].text)
    assert "@BASE" not in filled
    assert not re.search(r"@[A-Z_0-9]+@", filled)
    for language, text in FENCE.findall(filled):
        if language == "json":
            json.loads(text)
        elif language == "toml":
            tomllib.loads(text)
        elif language == "yaml":
            YAML(typ="safe").load(text)
        elif language == "python":
            ast.parse(text)


@pytest.mark.parametrize("name", pages())
def test_document_of_a_client_is_made_of_its_page(name: str) -> None:
    """docs/clients is generated: python -m lmtower.cli.client_docs docs/clients."""
    assert (DOCS / f"{name}.md").read_text("utf-8") == document(pages()[name])


def test_persona_that_suits_the_client_is_chosen() -> None:
    """A coding agent gets the strict persona, autocomplete the one with a template, a camera the vision one."""
    agent, chat = values_of(TOWER, "agent", "", "", ""), values_of(TOWER, "chat", "", "http://h:1/v1/", "sk")
    assert (agent.persona, agent.fast, agent.fim, agent.embed, agent.vision) == (
        "act",
        "quick",
        "coder",
        "query",
        "cam",
    )
    assert (agent.fim_format, values_of(TOWER, "fim", "plan", "", "").fim_format) == ("qwen", "infer")
    assert (agent.base, agent.context) == ("http://127.0.0.1:9000", 200_000)
    assert (chat.persona, chat.base, chat.key) == ("plan", "http://h:1", "sk")
    assert values_of(TOWER, "fim", "plan", "", "").fim == "plan"


def test_unknown_persona_is_refused_with_the_known_ones() -> None:
    """A typo is answered with the names that exist."""
    with pytest.raises(Refused, match="plan, quick"):
        values_of(TOWER, "chat", "plann", "", "")
