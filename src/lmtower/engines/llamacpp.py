"""llama.cpp: the embedded engine of ``xllamacpp`` as a child process, or ``llama-server`` in a container."""

from __future__ import annotations

from lmtower.config.types import Engine
from lmtower.engines.flags import Flags, as_argv, merged
from lmtower.engines.spec import Mount
from lmtower.plan.types import EnginePlan
from lmtower.recipes import Recipe

IMAGE = "ghcr.io/ggml-org/llama.cpp:server"
EMBEDDED_IMAGE = "ghcr.io/lmtower/lmtower:latest"
GPU_IMAGE = "ghcr.io/ggml-org/llama.cpp:server-cuda"
KEY_VARIABLE = "LMTOWER_ENGINE_KEY"
_SERVER_KEY_VARIABLE = "LLAMA_API_KEY"

_SEQUENCES = 4
_CONTEXT = 4096


def embedded_command(
    plan: EnginePlan, engine: Engine, *, python: str, host: str, keyed: bool, stay: bool
) -> tuple[str, ...]:
    """The command of the embedded engine; ``args`` of the tower file are its own flags."""
    flags: Flags = {
        "model": plan.model,
        "host": host,
        "port": plan.port,
        "context": plan.max_model_len or _CONTEXT,
        "sequences": plan.max_num_seqs or _SEQUENCES,
        "embedding": True if plan.pooling else None,
        "stay": True if stay else None,
        "api-key-env": KEY_VARIABLE if keyed else None,
    }
    return (python, "-m", "lmtower.nodes.embedded", *as_argv(merged(flags, engine.args)))


def server_command(plan: EnginePlan, engine: Engine, recipe: Recipe, *, host: str) -> tuple[str, ...]:
    """``llama-server`` for a container. Its context is shared by its sequences, so it is multiplied."""
    sequences = plan.max_num_seqs or _SEQUENCES
    remote = not plan.model.startswith(("/", "~", "."))
    flags: Flags = {
        "hf-repo" if remote else "model": plan.model,
        "alias": plan.model,
        "host": host,
        "port": plan.port,
        "ctx-size": (plan.max_model_len or _CONTEXT) * sequences,
        "parallel": sequences,
        "metrics": True,
        "jinja": True,
        "embeddings": True if plan.pooling else None,
    }
    rules = [part.flags for part in recipe.engine if part.runtime == "llamacpp"]
    return ("/app/llama-server", *as_argv(merged(flags, *rules, engine.args)))


def model_mounts(model: str) -> tuple[Mount, ...]:
    """A model file or folder of the node is mounted where it is, read-only."""
    return (Mount(model, model, read_only=True),) if model.startswith("/") else ()


def secret_name(embedded: bool) -> str:
    """Variable in which this kind of llama.cpp server looks for its key."""
    return KEY_VARIABLE if embedded else _SERVER_KEY_VARIABLE
