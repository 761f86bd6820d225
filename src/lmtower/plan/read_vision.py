"""The vision tower of a vision-language model, from ``vision_config``: how many parameters it has.

Towers stay in 16 bit in every quantised release that we know, so elements are enough. Counts of Qwen3-VL agree
with the safetensors of 2B, 4B, 8B, 30B-A3B and 32B (0.41, 0.41, 0.58, 0.54, 0.60 billion).
"""

from __future__ import annotations

from lmtower.plan.fields import Fields
from lmtower.plan.shape import Vision


def read_vision(top: Fields, model_type: str, text_hidden: int) -> Vision | None:
    """The tower, or None for a text model. Raises PlanError naming the field."""
    section = top.section("vision_config")
    if section is None:
        thinker = top.section("thinker_config")
        section = thinker.section("vision_config") if thinker else None
    if section is None or not section.has("hidden_size", "embed_dim"):
        return None
    hidden = (
        section.whole("embed_dim", "hidden_size", most=2**20)
        if section.has("embed_dim")
        else section.whole("hidden_size", most=2**20)
    )
    depth = section.whole("depth", "num_hidden_layers", most=2000)
    intermediate = section.whole("intermediate_size", default=4 * hidden, most=2**24)
    gated = "gemma4" in model_type or "qwen2_5" in model_type or section.text("model_type") == "pixtral"
    up = (2 if gated else 1) * (hidden * intermediate + intermediate)
    block = (3 * hidden * (hidden + 1), hidden * (hidden + 1), up, hidden * intermediate + hidden, 4 * hidden)
    patch = section.whole("patch_size", default=14, most=4096)
    channels = section.whole("in_channels", "num_channels", default=3, most=64)
    embed = hidden * channels * patch * patch * section.whole("temporal_patch_size", default=1, most=64)
    positions = (
        section.whole("num_position_embeddings", "position_embedding_size", default=0, least=0, most=2**24) * hidden
    )
    if "gemma4" in model_type:
        positions *= 2  # one table a direction
    parameters = depth * sum(block) + embed + positions + _merger(section, hidden, text_hidden)
    levels = len(section.numbers("deepstack_visual_indexes"))
    return Vision(parameters, hidden, depth, intermediate, block, levels)


def _merger(section: Fields, hidden: int, text_hidden: int) -> int:
    """What maps patches to the language model: one merger, and one more for each deepstack level (Qwen3-VL)."""
    if not section.has("spatial_merge_size"):
        return hidden * text_hidden
    merged = hidden * section.whole("spatial_merge_size", most=64) ** 2
    out = section.whole("out_hidden_size", default=text_hidden, most=2**20)
    one = merged * merged + merged + merged * out + out
    return one * (1 + len(section.numbers("deepstack_visual_indexes"))) + 2 * merged
