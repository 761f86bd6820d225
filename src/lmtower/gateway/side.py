"""What clients ask about the tower itself: which models there are, and llama.cpp's ``/props``."""

from __future__ import annotations

import msgspec

from lmtower.gateway.snapshot import Snapshot
from lmtower.ledger import Client
from lmtower.personas import CompiledPersona
from lmtower.wire import models
from lmtower.wire.faults import Fault


def models_of(snapshot: Snapshot, client: Client, wanted: str) -> bytes:
    """All models that the key may use, or the wanted one, also by an alias. Raises Fault(404)."""
    if not wanted:
        shown = [p for p in snapshot.personas.values() if client.may_use(p.name) and not p.hidden]
        return msgspec.json.encode(models.listing([_card(p, p.name, snapshot.created) for p in shown]))
    persona = snapshot.find(wanted)
    if not client.may_use(persona.name):
        raise Fault(404, "model_not_found", f"The model {wanted[:100]!r} does not exist.", param="model")
    return msgspec.json.encode(models.entry(_card(persona, wanted, snapshot.created)))


def _card(persona: CompiledPersona, name: str, created: int) -> models.ModelCard:
    return models.ModelCard(name, persona.description, persona.max_model_len, created)


def props(snapshot: Snapshot, client: Client) -> bytes:
    """llama.cpp's ``/props`` of the first model that fills in the middle: editors read its context and name."""
    usable = [p for p in snapshot.personas.values() if client.may_use(p.name)]
    persona = next((p for p in usable if p.fim), usable[0] if usable else None)
    if persona is None:
        raise Fault(404, "model_not_found", "This API key may use no model.", param="model")
    return msgspec.json.encode(
        {
            "default_generation_settings": {"n_ctx": persona.max_model_len, "params": {}},
            "total_slots": 1,
            "model_alias": persona.name,
            "model_path": persona.name,
            "chat_template": "",
            "modalities": {"vision": persona.recipe.image_tokens is not None, "audio": False},
            "build_info": "lmtower",
        }
    )
