"""Models that come with lmtower: planning them needs no network, no cache and no disk but the package's own data."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from lmtower.plan.gguf_shape import GgufLayer, GgufModel
from lmtower.plan.model import ModelFiles

ORIGIN = "the bundled catalogue"


def bundled(name: str) -> ModelFiles | None:
    """The bundled files of a model (compared without case), or None."""
    listed = _listed()
    if name in listed.get("gguf", {}):
        return ModelFiles(name=name, gguf=_gguf(listed["gguf"][name]), origin=ORIGIN)
    alias: dict[str, Any] = next((entry for key, entry in listed["aliases"].items() if key.lower() == name.lower()), {})
    base = alias.get("like", name)
    text = _text(base)
    if text is None:
        return None
    found = json.loads(text)
    config = dict(found["config"])
    if "quantization" in alias:
        config["quantization_config"] = alias["quantization"]
    return ModelFiles(
        name=name,
        config=config,
        quant_file=found.get("quantization"),
        total_size=listed["sizes"].get(found["name"]),
        origin=ORIGIN,
    )


def names() -> tuple[str, ...]:
    """Every model that can be planned offline."""
    own = [
        entry.name.removesuffix(".json").replace("__", "/", 1)
        for entry in _folder().iterdir()
        if entry.name.endswith(".json")
    ]
    listed = _listed()
    return tuple(sorted([*own, *listed["aliases"], *listed["gguf"]]))


def _folder() -> Any:
    return files("lmtower.plan").joinpath("data", "models")


def _text(name: str) -> str | None:
    wanted = f"{name.replace('/', '__', 1)}.json".lower()
    for entry in _folder().iterdir():
        if entry.name.lower() == wanted:
            return str(entry.read_text("utf-8"))
    return None


@cache
def _listed() -> dict[str, Any]:
    from ruamel.yaml import YAML

    listed: dict[str, Any] = YAML(typ="safe").load(
        files("lmtower.plan").joinpath("data", "catalogue.yaml").read_text("utf-8")
    )
    return listed


def _gguf(entry: dict[str, Any]) -> GgufModel:
    layer = GgufLayer(entry["kv_heads"], entry["head_dim"], entry["head_dim"])
    return GgufModel(
        architecture=entry["architecture"],
        name=entry["name"],
        file_bytes=entry["file_bytes"],
        layers=(layer,) * entry["layers"],
        hidden_size=entry["hidden_size"],
        intermediate=entry["intermediate"],
        vocab_size=entry["vocab_size"],
        context_length=entry["context_length"],
        active_bytes=entry["file_bytes"],
    )
