"""Engines as the gateway sees them: the one place where control plane and data plane meet, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from lmtower import recipes
from lmtower.config.types import Engine, Node, Runtime, Tower
from lmtower.gateway.upstreams import Upstream

if TYPE_CHECKING:
    from lmtower.plan.types import EnginePlan

FIRST_PORT = 8100
_DEFAULT_SLOTS = 4


def upstreams_of(
    tower: Tower, plans: Mapping[str, EnginePlan] | None = None, engine_key: str | None = None
) -> tuple[Upstream, ...]:
    """Every replica of every engine. With ``plans`` lengths and slots are what the engines were really started with.

    ``engine_key`` is asked for by engines that other machines could reach (see ``engines.Outside``).
    """
    plans = plans or {}
    found: list[Upstream] = []
    for name, port in ports(tower).items():
        engine, plan = tower.engines[name], plans.get(name)
        for replica, node, url in _replicas(name, engine, tower.nodes, (plan and plan.port) or port):
            found.append(_upstream(tower, name, replica, node, url, plan, engine_key))
    return tuple(found)


def ports(tower: Tower) -> dict[str, int]:
    """Port of every engine: as written, else counted up from 8100 in the order of the file."""
    taken = {engine.port for engine in tower.engines.values() if engine.port}
    free = (port for port in range(FIRST_PORT, 65536) if port not in taken)
    return {name: engine.port or next(free) for name, engine in tower.engines.items()}


def _replicas(name: str, engine: Engine, nodes: Mapping[str, Node], port: int) -> list[tuple[str, str, str]]:
    """(replica, node, url) of each copy of an engine."""
    urls = (engine.url,) if engine.url else engine.urls
    if urls:
        places = [urlsplit(url).netloc for url in urls]
        bases = [url.rstrip("/").removesuffix("/v1") for url in urls]
        return [
            (f"{name}@{place}" if len(urls) > 1 else name, "", base) for place, base in zip(places, bases, strict=True)
        ]
    from lmtower.engines import bind_of  # the whole control plane, which external engines never need
    from lmtower.plan.hardware import gpus_of

    placed = engine.nodes or ((engine.node,) if engine.node else tuple(nodes)[:1]) or ("local",)
    if engine.tensor_parallel > max(gpus_of(nodes.get(node, Node()).hardware) for node in placed):
        placed = placed[:1]  # one copy over all of them answers on its head
    rows = []
    for node in placed:
        host = bind_of(nodes.get(node, Node()))
        host = f"[{host}]" if ":" in host else host
        rows.append((f"{name}@{node}" if len(placed) > 1 else name, node, f"http://{host}:{port}"))
    return rows


def _upstream(
    tower: Tower, name: str, replica: str, node: str, url: str, plan: EnginePlan | None, engine_key: str | None
) -> Upstream:
    engine = tower.engines[name]
    external = is_external(engine)
    runtime: Runtime = "external" if external else engine.runtime or runtime_of(engine.model)
    own_key = engine.api_key.get_secret_value() if engine.api_key else None
    private = (urlsplit(url).hostname or "") in ("127.0.0.1", "::1", "localhost")
    written = engine.context if isinstance(engine.context, int) else None
    return Upstream(
        engine=name,
        replica=replica,
        url=url,
        model=engine.model,
        api_key=own_key or (None if private or external else engine_key),
        slots=engine.slots or (plan.max_num_seqs if plan else None) or engine.sequences or _DEFAULT_SLOTS,
        runtime=runtime,
        recipe=(plan.recipe if plan else None) or engine.recipe or recipes.find(engine.model).name,
        max_model_len=plan.max_model_len if plan else written,
        node=node,
        priorities=runtime != "llamacpp" and _by_priority(engine),
        lanes=engine.lanes,
    )


def _by_priority(engine: Engine) -> bool:
    """Whether the tower file says that vLLM schedules by priority; it refuses requests that have one if it does not."""
    flags = {name.removeprefix("--"): value for name, value in engine.args.items()}
    return flags.get("scheduling-policy") == "priority"


def runtime_of(model: str) -> Runtime:
    """``llamacpp`` for bundled and GGUF models, else ``vllm``."""
    return "llamacpp" if model.startswith("bundled:") or model.lower().endswith(".gguf") else "vllm"


def is_external(engine: Engine) -> bool:
    """Whether somebody else runs it."""
    return bool(engine.url or engine.urls)
