"""``/v1/models``: one object per persona that satisfies every client that reads it.

OpenAI's fields, vLLM's ``max_model_len`` (Frigate, Continue), Anthropic's ``display_name``/``created_at`` and page
fields (Claude Code), LiteLLM's ``max_input_tokens``, and Codex's separate ``models`` array.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple


class ModelCard(NamedTuple):
    """What may be told about a persona."""

    name: str
    description: str
    max_model_len: int | None
    created: int


def entry(card: ModelCard) -> dict[str, Any]:
    """One model as ``GET /v1/models/{id}`` answers it."""
    fields: dict[str, Any] = {
        "id": card.name,
        "object": "model",
        "type": "model",
        "created": card.created,
        "created_at": datetime.fromtimestamp(card.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "owned_by": "lmtower",
        "display_name": card.name,
        "description": card.description,
    }
    if card.max_model_len is not None:
        fields |= dict.fromkeys(
            ("max_model_len", "context_window", "context_length", "max_input_tokens"), card.max_model_len
        )
        fields["meta"] = {"n_ctx": card.max_model_len}  # llama.cpp's own place
    return fields


def codex_entry(card: ModelCard, priority: int) -> dict[str, Any]:
    """The same model as Codex's ``ModelInfo`` (codex-rs/protocol/src/openai_models.rs)."""
    return {
        "slug": card.name,
        "display_name": card.name,
        "description": card.description,
        "supported_reasoning_levels": [],
        "shell_type": "shell_command",
        "visibility": "list",
        "supported_in_api": True,
        "priority": priority,
        "base_instructions": "",
        "supports_reasoning_summaries": False,
        "support_verbosity": False,
        "truncation_policy": {"mode": "bytes", "limit": 10_000},
        "supports_parallel_tool_calls": True,
        "experimental_supported_tools": [],
        "context_window": card.max_model_len,
    }


def listing(cards: Iterable[ModelCard]) -> dict[str, Any]:
    """``GET /v1/models``, in the order of the tower file: clients take the first one as default."""
    cards = list(cards)
    return {
        "object": "list",
        "data": [entry(card) for card in cards],
        "models": [codex_entry(card, number) for number, card in enumerate(cards)],
        "has_more": False,
        "first_id": cards[0].name if cards else None,
        "last_id": cards[-1].name if cards else None,
    }
