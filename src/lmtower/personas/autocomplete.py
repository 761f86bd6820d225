"""Autocomplete made ready: three protocols' ways to ask for the text at the cursor become one plain completion.

Persona prompts and thinking never apply here. Sampling defaults do, except that an answer is short by default.
"""

from __future__ import annotations

import msgspec

from lmtower import recipes
from lmtower.personas.compile import CompiledPersona
from lmtower.personas.prepared import Prepared
from lmtower.personas.rules import Trace, apply_common, ask_for_usage
from lmtower.personas.stopping import limit_stops, stop_strings
from lmtower.recipes.load import FimTemplate
from lmtower.wire import fim, infill
from lmtower.wire import top as tops
from lmtower.wire.completions import CompletionReply
from lmtower.wire.faults import Fault
from lmtower.wire.top import Top

_encode = msgspec.json.encode
# fields of llama.cpp's /infill that mean the same in a completion
_INFILL_SAME = ("temperature", "top_p", "top_k", "min_p", "seed", "stream", "model", "stop")


def template_of(persona: CompiledPersona) -> FimTemplate | None:
    """The markup of the persona's model: what the tower file names, else what the recipe of its model has."""
    if persona.fim is None:
        return persona.recipe.fim
    try:
        return recipes.get(persona.fim).fim
    except KeyError:
        return recipes.find(persona.fim).fim


def prepare_completions(
    top: Top, persona: CompiledPersona, asked: str, request_id: str, trace: Trace | None
) -> Prepared:
    """``/v1/completions``: a raw prompt; with ``suffix`` the hole is marked up here."""
    if "prompt" not in top:
        raise Fault(400, "missing_field", "The field 'prompt' is missing.", param="prompt")
    template = template_of(persona)
    if tops.given(top, "suffix") and tops.text(top, "suffix"):
        prompt = tops.text(top, "prompt") or ""
        hole = fim.Hole(prompt, tops.text(top, "suffix") or "")
        _render(top, persona, asked, hole, trace)
        return _completion(top, persona, trace, CompletionReply(persona.served, asked, request_id))
    top.pop("suffix", None)
    if persona.fim and template is not None and _holds_markup(top, template):
        _add_stops(top, template, trace)
    return _completion(top, persona, trace, CompletionReply(persona.served, asked, request_id))


def prepare_fim(top: Top, persona: CompiledPersona, asked: str, request_id: str, trace: Trace | None) -> Prepared:
    """Mistral's ``/v1/fim/completions``."""
    hole = fim.Hole(tops.text(top, "prompt") or "", tops.text(top, "suffix") or "")
    for theirs in ("random_seed", "min_tokens"):
        value = top.pop(theirs, None)
        if value is not None and theirs == "random_seed":
            top["seed"] = value
    _render(top, persona, asked, hole, trace)
    return _completion(top, persona, trace, infill.FimReply(persona.served, asked, request_id))


def prepare_infill(top: Top, persona: CompiledPersona, asked: str, request_id: str, trace: Trace | None) -> Prepared:
    """llama.cpp's ``/infill``. Asking for zero tokens is how editors warm a cache; the answer is immediate."""
    wanted = tops.whole(top, "n_predict")
    named = tops.value(top, "response_fields")
    fields = tuple(str(field) for field in named) if isinstance(named, list) else ()
    prefix = (tops.text(top, "input_prefix") or "") + (tops.text(top, "prompt") or "")
    hole = fim.Hole(prefix, tops.text(top, "input_suffix") or "", _files(tops.value(top, "input_extra")))
    kept: Top = {name: top[name] for name in _INFILL_SAME if tops.given(top, name)}
    if wanted is not None and wanted > 0:
        kept["max_tokens"] = tops.encoded(wanted)
    if wanted == 0:
        reply = infill.InfillReply(persona.served, asked, request_id)
        return Prepared("", [], False, reply, local=infill.PREWARMED)
    truncated = _render(kept, persona, asked, hole, trace)
    top.clear()
    top.update(kept)
    reply = infill.InfillReply(persona.served, asked, request_id, fields=fields, truncated=truncated)
    return _completion(top, persona, trace, reply)


def _files(extra: object) -> tuple[fim.File, ...]:
    return tuple(
        fim.File(str(entry.get("filename", "")), str(entry["text"]))
        for entry in (extra if isinstance(extra, list) else ())
        if isinstance(entry, dict) and isinstance(entry.get("text"), str)
    )


def _render(top: Top, persona: CompiledPersona, asked: str, hole: fim.Hole, trace: Trace | None) -> bool:
    """Put the marked-up prompt into the body. Returns whether anything had to be cut off. Raises Fault."""
    template = template_of(persona)
    if template is None:
        raise Fault(
            400,
            "fim_not_supported",
            f"The model {asked!r} cannot fill in the middle: give its persona a 'fim:' template.",
            param="suffix",
        )
    top.pop("suffix", None)
    _cap_answer(top)
    if fim.tokens_in(hole.prefix, template):
        top["prompt"] = tops.encoded(hole.prefix)
        _note(trace, "prompt", "already holds the model's own fill-in-the-middle tokens: passed as it is")
        return False
    budget = fim.budget_tokens(persona.max_model_len, tops.whole(top, "max_tokens"))
    fitted = fim.fit(hole, budget)
    top["prompt"] = tops.encoded(fim.render(template, fitted))
    _note(trace, "prompt", f"fill-in-the-middle markup of {persona.fim or persona.recipe.name}")
    _add_stops(top, template, trace)
    return fitted != hole


def _cap_answer(top: Top) -> None:
    if not tops.given(top, "max_tokens"):
        top["max_tokens"] = tops.encoded(fim.DEFAULT_ANSWER_TOKENS)


def _holds_markup(top: Top, template: FimTemplate) -> bool:
    prompt = tops.value(top, "prompt")
    return isinstance(prompt, str) and fim.tokens_in(prompt, template)


def _add_stops(top: Top, template: FimTemplate, trace: Trace | None) -> None:
    top["stop"] = tops.encoded(fim.stops(template, stop_strings(top, "stop")))
    _note(trace, "stop", "the client's stop strings and the family's own")


def _completion(top: Top, persona: CompiledPersona, trace: Trace | None, reply: CompletionReply) -> Prepared:
    stream = tops.flag(top, "stream")
    apply_common(top, msgspec.structs.replace(persona, thinking={}) if persona.thinking else persona, trace)
    reply.wants_usage = ask_for_usage(top, trace) if stream else False
    limited = limit_stops(top, reply, persona.most_stops, trace)
    return Prepared("/v1/completions", tops.join(top), stream, limited)


def _note(trace: Trace | None, field: str, rule: str) -> None:
    if trace is not None:
        trace.append((field, rule))
