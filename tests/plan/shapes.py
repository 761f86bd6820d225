"""Short ways to models, estimates and towers for the planner's tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lmtower.config.types import Tower
from lmtower.plan.estimate import Estimate, Options, estimate
from lmtower.plan.model import ModelFiles
from lmtower.plan.sources import read_path

MODELS = Path(__file__).parent.parent / "data" / "models"
GIB = 1024**3

SUPER = "nvidia__NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4"
NANO = "nvidia__NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4"
QWEN = "Qwen__Qwen3-8B"


def files(name: str) -> ModelFiles:
    """The files of a model of tests/data/models."""
    return read_path(MODELS / f"{name}.json")


def config(name: str) -> dict[str, Any]:
    """Its config.json, to change."""
    found: dict[str, Any] = json.loads((MODELS / f"{name}.json").read_text("utf-8"))
    return found


def estimated(name: str, **options: Any) -> Estimate:
    """Its estimate under some flags."""
    return estimate(files(name), Options(**options))


def tower(
    engines: dict[str, Any], *, hardware: str = "dgx-spark", personas: dict[str, Any] | None = None, **node: Any
) -> Tower:
    """A tower with one node ``box``."""
    return Tower.model_validate(
        {
            "nodes": {"box": {"hardware": hardware, **node}},
            "engines": engines,
            "personas": personas or {name: {"engine": name} for name in engines},
        }
    )


PRESET: dict[str, Any] = {
    "nemotron": {"model": "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4", "context": "200k", "sequences": 4},
    "eyes": {"model": "Qwen/Qwen3-VL-8B-Instruct-FP8", "context": "20k", "sequences": 2},
    "coder": {"model": "Qwen/Qwen2.5-Coder-1.5B", "context": "8k", "sequences": 4},
    "embed": {"model": "nomic-ai/nomic-embed-text-v1.5"},
}
"""The engine set of the DGX Spark preset."""


def preset(**changes: dict[str, Any]) -> Tower:
    """The preset with changes by engine."""
    return tower({name: {**engine, **changes.get(name, {})} for name, engine in PRESET.items()}, reserve="12 GiB")
