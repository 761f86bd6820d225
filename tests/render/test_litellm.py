"""LiteLLM out and in: what is carried, what is named as lost, and that a rendered file comes back as it was."""

from __future__ import annotations

from typing import Any

import pytest

from lmtower.config.types import Tower
from lmtower.recipes import get
from lmtower.render import litellm, litellm_import
from lmtower.render.litellm import Served

TOWER = Tower.model_validate(
    {
        "engines": {
            "nemotron": {"url": "http://10.0.0.5:8100", "model": "nemo"},
            "embed": {"url": "http://e", "model": "nomic"},
        },
        "personas": {
            "plan": {
                "engine": "nemotron",
                "system": "Be brief.",
                "thinking": "low",
                "temperature": 0.6,
                "top_k": 20,
                "stop": ["END"],
                "aliases": ["claude-plan", "claude-*"],
                "limits": {"requests_per_minute": 60, "tokens_per_minute": 10000, "images_per_day": 5},
                "price": {"input": 3, "output": 15},
                "context": 100000,
            },
            "agent": {
                "engine": "nemotron",
                "thinking": "off",
                "enforce": {"temperature": 0},
                "tools": "strict",
                "lane": "agent",
            },
            "query": {"engine": "embed", "prefix": "search_query: "},
        },
    }
)
ENGINES = {
    "nemotron": Served(("http://10.0.0.5:8100",), "nemo", get("nemotron3"), 200000, "ENGINE_KEY"),
    "embed": Served(("http://e",), "nomic", get("nomic-embed")),
}


def entry(name: str) -> dict[str, Any]:
    """The entry of a persona."""
    (found,) = [each for each in litellm.render(TOWER, ENGINES).document["model_list"] if each["model_name"] == name]
    return found


def test_persona_is_an_entry_with_its_sampling() -> None:
    """Sampling, thinking switch, key by name, limits."""
    found = entry("plan")["litellm_params"]
    assert (found["model"], found["api_base"]) == ("hosted_vllm/nemo", "http://10.0.0.5:8100/v1")
    assert (found["temperature"], found["stop"], found["rpm"], found["tpm"]) == (0.6, ["END"], 60, 10000)
    assert found["api_key"] == "os.environ/ENGINE_KEY"
    assert found["extra_body"]["top_k"] == 20
    assert "chat_template_kwargs" in found["extra_body"]


def test_prices_are_per_token() -> None:
    """Ours are per million."""
    assert entry("plan")["model_info"] == {
        "mode": "chat",
        "max_input_tokens": 100000,
        "input_cost_per_token": 3e-6,
        "output_cost_per_token": 15e-6,
    }


def test_embedding_persona_has_its_mode() -> None:
    """LiteLLM routes by mode."""
    assert entry("query")["model_info"]["mode"] == "embedding"


def test_replicas_are_entries_of_one_name() -> None:
    """That is LiteLLM's way of balancing."""
    served = ENGINES | {"nemotron": Served(("http://a", "http://b"), "nemo", get("nemotron3"))}
    bases = [
        e["litellm_params"]["api_base"]
        for e in litellm.render(TOWER, served).document["model_list"]
        if e["model_name"] == "plan"
    ]
    assert bases == ["http://a/v1", "http://b/v1"]


@pytest.mark.parametrize(
    "line",
    [
        "personas.plan.system: system prompt",
        "personas.plan.aliases: the pattern 'claude-*'",
        "personas.plan.limits.images_per_day: set it on LiteLLM's keys",
        "personas.agent.lane: lane",
        "personas.agent.tools: strict",
        "personas.agent.enforce: rendered as defaults; LiteLLM's clients may override them",
        "personas.query.prefix: embedding prefix",
    ],
)
def test_losses_are_named(line: str) -> None:
    """Nothing is dropped in silence."""
    assert line in litellm.render(TOWER, ENGINES).lost


def test_system_prompt_is_not_in_the_file() -> None:
    """LiteLLM has no place for it, so it does not leave the tower."""
    assert "Be brief" not in str(litellm.render(TOWER, ENGINES).document)


def test_round_trip_keeps_engines_and_personas() -> None:
    """Render, import: the same addresses, models, sampling, limits, prices and aliases."""
    imported = litellm_import.read(litellm.render(TOWER, ENGINES).document).tower
    back = Tower.model_validate(
        {**imported, "engines": {n: {**e, "api_key": None} for n, e in imported["engines"].items()}}
    )
    plan, was = back.personas["plan"], TOWER.personas["plan"]
    assert back.engines[plan.engine].url == "http://10.0.0.5:8100"
    assert back.engines[plan.engine].model == "nemo"
    for field in ("temperature", "top_k", "stop", "context", "price"):
        assert getattr(plan, field) == getattr(was, field)
    assert plan.aliases == ("claude-plan",)
    assert (plan.limits.requests_per_minute, plan.limits.tokens_per_minute) == (60, 10000)
    assert back.personas["agent"].engine == plan.engine


def imported(**config: Any) -> litellm_import.Imported:
    """Import a config."""
    return litellm_import.read(config)


def model(name: str, model: str, base: str | None = "http://10.0.0.5:8100/v1", **parameters: Any) -> dict[str, Any]:
    """An entry of ``model_list``."""
    given = {"model": model, **({"api_base": base} if base else {}), **parameters}
    return {"model_name": name, "litellm_params": given}


def test_two_entries_of_one_engine_share_it() -> None:
    """Two names over one server are two personas of one engine."""
    tower = imported(model_list=[model("a", "hosted_vllm/m", temperature=0.1), model("b", "openai/m")]).tower
    assert tower == {
        "engines": {"m": {"url": "http://10.0.0.5:8100", "model": "m"}},
        "personas": {"a": {"engine": "m", "temperature": 0.1}, "b": {"engine": "m"}},
    }


def test_entries_of_one_name_are_replicas() -> None:
    """The same model at two addresses is one engine with two urls."""
    tower = imported(
        model_list=[model("a", "hosted_vllm/m", "http://x"), model("a", "hosted_vllm/m", "http://y")]
    ).tower
    assert tower["engines"] == {"m": {"model": "m", "urls": ["http://x", "http://y"]}}


def test_same_name_over_different_models_is_told() -> None:
    """A persona has one engine."""
    found = imported(model_list=[model("a", "hosted_vllm/m"), model("a", "hosted_vllm/n")])
    assert found.tower["personas"] == {"a": {"engine": "m"}}
    assert any("balances over different models" in line for line in found.lost)


def test_models_with_slashes_keep_their_name() -> None:
    """The provider is one word; the rest is the served model."""
    tower = imported(model_list=[model("team/big model", "hosted_vllm/Qwen/Qwen3-8B")]).tower
    assert tower["engines"] == {"qwen3-8b": {"url": "http://10.0.0.5:8100", "model": "Qwen/Qwen3-8B"}}
    assert tower["personas"] == {"team-big-model": {"engine": "qwen3-8b", "aliases": ["team/big model"]}}


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        (model("gpt", "gpt-5", None), "no api_base"),
        (model("claude", "anthropic/claude-x", None), "no api_base"),
        (model("*", "hosted_vllm/*"), "a wildcard"),
        (model("a", "hosted_vllm/m", "os.environ/BASE"), "is no address"),
    ],
    ids=["openai", "anthropic", "wildcard", "environment"],
)
def test_entry_that_is_no_engine_is_told(entry: dict[str, Any], word: str) -> None:
    """Cloud models and patterns are named, with what to do."""
    found = imported(model_list=[entry])
    assert found.tower == {"engines": {}, "personas": {}}
    assert any(word in line for line in found.lost)


def test_keys_become_references() -> None:
    """A key in the file is not copied; the variable to set is named."""
    found = imported(
        model_list=[
            model("a", "hosted_vllm/m", api_key="os.environ/MINE"),
            model("b", "hosted_vllm/n", api_key="sk-written"),
            model("c", "hosted_vllm/o", api_key="none"),
        ]
    )
    keys = {name: engine.get("api_key") for name, engine in found.tower["engines"].items()}
    assert keys == {"m": "env:MINE", "n": "env:N_KEY", "o": None}
    assert "sk-written" not in str(found)
    assert any("N_KEY" in line for line in found.lost)


def test_further_parameters_are_kept_as_extra() -> None:
    """Whatever LiteLLM would pass to the engine, the persona passes too."""
    entry = model(
        "a", "hosted_vllm/m", top_k=5, guided_json={}, extra_body={"chat_template_kwargs": {"x": True}, "min_p": 0.1}
    )
    persona = imported(model_list=[entry]).tower["personas"]["a"]
    assert persona == {
        "engine": "m",
        "top_k": 5,
        "min_p": 0.1,
        "extra": {"chat_template_kwargs": {"x": True}, "guided_json": {}},
    }


@pytest.mark.parametrize("name", ["timeout", "tags", "max_budget", "vector_store_id"])
def test_parameters_without_a_counterpart_are_told(name: str) -> None:
    """With a hint at what lmtower does instead."""
    found = imported(model_list=[model("a", "hosted_vllm/m", **{name: 5})])
    assert any(f"'a' {name}: " in line for line in found.lost)


def test_prompts_become_system_prompts() -> None:
    """Inline dotprompts without variables are carried."""
    prompt = {
        "prompt_id": "p",
        "litellm_params": {"dotprompt_content": "---\nmodel: x\n---\nSystem: Be brief.\nUser: hi"},
    }
    found = imported(model_list=[model("a", "hosted_vllm/m", prompt_id="p")], prompts=[prompt])
    assert found.tower["personas"]["a"]["system"] == "Be brief."


def test_prompts_with_variables_are_told() -> None:
    """A template is not a byte-stable prefix."""
    prompt = {"prompt_id": "p", "litellm_params": {"dotprompt_content": "System: Hello {{name}}"}}
    found = imported(model_list=[model("a", "hosted_vllm/m", prompt_id="p")], prompts=[prompt])
    assert "system" not in found.tower["personas"]["a"]
    assert len(found.lost) == 2


def test_aliases_are_carried() -> None:
    """Both forms of ``model_group_alias``."""
    aliases = {"x": "a", "y": {"model": "a", "hidden": True}, "z": "nothing"}
    found = imported(model_list=[model("a", "hosted_vllm/m")], router_settings={"model_group_alias": aliases})
    assert found.tower["personas"]["a"]["aliases"] == ["x", "y"]
    assert any("'z'" in line for line in found.lost)


def test_other_sections_are_told() -> None:
    """Fallbacks, callbacks, guardrails and keys have no place in a tower file."""
    found = imported(
        model_list=[],
        router_settings={"fallbacks": []},
        litellm_settings={"callbacks": ["x"], "drop_params": True},
        general_settings={"master_key": "sk-1", "database_url": "postgresql://u:p@h/d"},
        guardrails=[],
    )
    assert sorted(line.partition(":")[0] for line in found.lost) == [
        "general_settings.database_url",
        "general_settings.master_key",
        "guardrails",
        "litellm_settings.callbacks",
        "router_settings.fallbacks",
    ]
    assert "sk-1" not in str(found.lost)
    assert "postgresql://u" not in str(found.lost)


def test_empty_config_is_an_empty_tower() -> None:
    """Sections that are there but empty do no harm."""
    assert imported(model_list=None, router_settings=None).tower == {"engines": {}, "personas": {}}
