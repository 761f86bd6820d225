"""The rules that every protocol shares: model name, sampling, thinking, engine extras.

Each rule edits the body's top level in place and, when a trace is asked for, says which field it set and why;
``lmtower explain`` prints that trace, and because it is the same code, what it prints is what is sent.
"""

from __future__ import annotations

from typing import Any

from lmtower.personas.compile import CompiledPersona
from lmtower.wire import top as tops
from lmtower.wire.top import Top

Trace = list[tuple[str, str]]
"""(field, rule that set or removed it)."""

DANGEROUS = frozenset(
    (
        # vLLM takes these from any client; each lets a client reach past its own request
        "add_special_tokens",
        "allowed_local_media_path",
        "allowed_media_domains",
        "cache_salt",
        "data_parallel_rank",
        "ec_transfer_params",
        "kv_transfer_params",
        "lora_request",
        "media_io_kwargs",
        "mm_payload",
        "mm_processor_kwargs",
        "priority",
        "prompt_embeds",
        "request_id",
        "return_mm_kwargs",
        "routed_experts_prompt_start",
        "session_id",
        "vllm_xargs",
        # llama.cpp
        "id_slot",
        "lora",
        "grammar_triggers",
        "preserved_tokens",
    )
)
DANGEROUS_TO_PROMPTS = DANGEROUS | {
    # they put another prompt in place of the persona's, or cut it off
    "chat_template",
    "documents",
    "previous_input_messages",
    "truncate_prompt_tokens",
    "truncation_side",
    # they make vLLM say the prompt, the persona's included
    "enable_response_messages",
    "prompt_logprobs",
    "return_prompt_text",
    "return_token_ids",
    "return_token_offsets",
}
"""The same, and what would replace, cut or reveal a persona's prompt. Embeddings and rerank have none."""
_OUTPUT = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_SAME = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}


def apply_common(top: Top, persona: CompiledPersona, trace: Trace | None = None) -> None:
    """Model name, dangerous extras, sampling defaults and enforced values, thinking switch."""
    top["model"] = persona.model_json
    if trace is not None:
        rule = f"persona {persona.name!r} runs on engine {persona.engine!r}, which serves {persona.served!r}"
        _note(trace, "model", rule)
    if not DANGEROUS_TO_PROMPTS.isdisjoint(top):
        drop_dangerous(top, persona, trace, DANGEROUS_TO_PROMPTS)
    for key, default in persona.defaults.items():
        given = tops.given(top, key) or ((twin := _SAME.get(key)) is not None and tops.given(top, twin))
        if not given:
            top[key] = default
        if trace is not None:
            mine, theirs = "default of the persona", "the client's value (the persona only has a default)"
            _note(trace, key, theirs if given else mine)
    for key, forced in persona.enforced.items():
        if (twin := _SAME.get(key)) is not None:
            top.pop(twin, None)
        top[key] = forced
        if trace is not None:
            _note(trace, key, "enforced by the persona")
    if persona.max_model_len is not None:
        _limit_output(top, persona.max_model_len, trace)
    if persona.thinking:
        merge_thinking(top, persona.thinking, trace)


def _limit_output(top: Top, most: int, trace: Trace | None) -> None:
    """vLLM refuses ``max_tokens`` above the whole context (Claude Code asks for 32000 of any model), and fits less."""
    for key in _OUTPUT:
        raw = top.get(key)
        if raw is not None and len(raw) >= len(str(most)):
            wanted = tops.value(top, key)
            if isinstance(wanted, int | float) and wanted > most:
                top[key] = tops.encoded(most)
                _note(trace, key, f"at most the context of the model, {most}")


def drop_dangerous(
    top: Top, persona: CompiledPersona, trace: Trace | None = None, fields: frozenset[str] = DANGEROUS
) -> None:
    """Remove engine extras that would let a client reach past its own request."""
    for key in fields.intersection(top):
        if key not in persona.allowed_fields:
            del top[key]
            _note(trace, key, "dropped: engine extras are not for clients (gateway.dangerous_fields)")


def merge_thinking(top: Top, fields: dict[str, Any], trace: Trace | None = None) -> None:
    """Put the recipe's thinking fields over the client's; objects are merged key by key."""
    for key, wanted in fields.items():
        value = wanted
        if isinstance(wanted, dict):
            mine = tops.value(top, key)
            value = {**mine, **wanted} if isinstance(mine, dict) else wanted
        top[key] = tops.encoded(value)
        _note(trace, key, "thinking mode of the persona, by the model's recipe")


def ask_for_usage(top: Top, trace: Trace | None = None) -> bool:
    """Make a stream end with usage. Returns whether the client had asked for it."""
    options = tops.value(top, "stream_options")
    options = options if isinstance(options, dict) else {}
    asked = options.get("include_usage") is True
    # usage in every chunk would be added up by clients that read it
    if not asked or options.pop("continuous_usage_stats", None) is not None:
        top["stream_options"] = tops.encoded({**options, "include_usage": True})
        _note(trace, "stream_options", "usage is always recorded; it is forwarded only if the client asks")
    return asked


def _note(trace: Trace | None, field: str, rule: str) -> None:
    if trace is not None:
        trace.append((field, rule))
