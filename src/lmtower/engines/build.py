"""A plan and a tower file -> the LaunchSpecs of every engine, in start order. Pure: keys and paths come in."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from lmtower.config.types import Engine, Node, Tower
from lmtower.engines import llamacpp, ray, vllm
from lmtower.engines.spec import LaunchSpec, Mount
from lmtower.errors import PlanError
from lmtower.plan.types import EnginePlan, NodeFacts, Plan
from lmtower.recipes import Recipe, get

MODELS_VOLUME = "lmtower-models"
CACHES_VOLUME = "lmtower-caches"
_ULIMITS = {"memlock": -1, "stack": 67_108_864}
_SHM_BYTES = 2 * 1024**3
_SHM_PARALLEL_BYTES = 10 * 1024**3
_CACHES = {
    "HF_HOME": "/models",
    "VLLM_CACHE_ROOT": "/caches/vllm",
    "FLASHINFER_WORKSPACE_BASE": "/caches",
    "TRITON_CACHE_DIR": "/caches/triton",
    "TORCHINDUCTOR_CACHE_DIR": "/caches/inductor",
}


@dataclass(frozen=True, slots=True)
class Outside:
    """What the builder cannot know by itself: keys and the Python that runs child processes."""

    engine_key: str | None = None
    hf_token: str | None = None
    python: str = "python3"


def driver_of(node: Node) -> str:
    """``docker`` or ``process``, as the tower file says or by default."""
    return node.driver or ("process" if node.address == "local" and node.hardware is None else "docker")


def bind_of(node: Node) -> str:
    """Address on which the node's engines listen and the tower reaches them."""
    if node.bind:
        return node.bind
    return "127.0.0.1" if node.address == "local" else urlsplit(node.address).hostname or "127.0.0.1"


def listen_on(host: str) -> str:
    """Address for the engine's own ``--host``. A name often means 127.0.1.1 on its own machine: then all addresses."""
    return host if _is_ip(host) or host == "localhost" else "0.0.0.0"


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def without_gpu(node: Node, facts: NodeFacts | None) -> bool:
    """True for a machine of which neither the tower file nor a probe knows a GPU."""
    return node.hardware in (None, "cpu") and (facts is None or facts.capability == 0)


def build_specs(plan: Plan, tower: Tower, outside: Outside) -> tuple[LaunchSpec, ...]:
    """One spec a copy of every engine that lmtower starts; external engines have none. In the order of starting."""
    facts = {node.facts.name: node.facts for node in plan.nodes}
    specs: list[LaunchSpec] = []
    for row in sorted(plan.engines, key=lambda engine: engine.start_order):
        if row.runtime != "external":
            specs += _engine_specs(row, tower, facts, outside)
    return tuple(specs)


def spans_nodes(plan: EnginePlan, facts: Mapping[str, NodeFacts]) -> bool:
    """True when one copy needs the GPUs of several nodes; False when each node holds a replica."""
    gpus = max((facts[node].gpus for node in plan.nodes if node in facts), default=1)
    return len(plan.nodes) > 1 and plan.tensor_parallel > gpus


def _engine_specs(plan: EnginePlan, tower: Tower, facts: Mapping[str, NodeFacts], outside: Outside) -> list[LaunchSpec]:
    engine = tower.engines[plan.name]
    recipe = get(plan.recipe)
    nodes = {name: tower.nodes.get(name, Node()) for name in plan.nodes}
    if spans_nodes(plan, facts):
        return _spanning_specs(plan, engine, recipe, nodes, outside)
    return [_single_spec(plan, engine, recipe, name, node, facts.get(name), outside) for name, node in nodes.items()]


def _single_spec(
    plan: EnginePlan,
    engine: Engine,
    recipe: Recipe,
    name: str,
    node: Node,
    facts: NodeFacts | None,
    outside: Outside,
) -> LaunchSpec:
    if plan.port is None:
        raise PlanError(f"engines.{plan.name}.port: the plan gives no port", field="port")
    cpu = without_gpu(node, facts)
    driver = driver_of(node)
    common = LaunchSpec(
        engine=plan.name,
        node=name,
        runtime=plan.runtime,
        host=bind_of(node),
        port=plan.port,
        served_model=plan.model,
        restart="no" if driver == "process" else "on-failure:3",
    )
    build = _vllm_spec if plan.runtime == "vllm" else _llamacpp_spec
    spec = build(common, plan, engine, recipe, node, outside, cpu=cpu)
    return (_contained(spec, node, plan, engine, cpu=cpu) if driver == "docker" else spec).sealed()


def _vllm_spec(
    spec: LaunchSpec, plan: EnginePlan, engine: Engine, recipe: Recipe, node: Node, outside: Outside, *, cpu: bool
) -> LaunchSpec:
    flags = vllm.flags_of(plan, engine, recipe, host=listen_on(spec.host), cpu=cpu)
    process = driver_of(node) == "process"
    python = (engine.image or outside.python) if process else None
    env = dict(vllm.environment(plan, engine, recipe, cpu=cpu))
    if process and (devices := plan.devices.get(spec.node)):
        # a container is given its GPUs; a process sees all of them unless it is told
        env.setdefault("CUDA_VISIBLE_DEVICES", ",".join(map(str, devices)))
    return replace(
        spec,
        argv=vllm.command(plan, flags, python=python),
        image=None if process else vllm.image_of(plan, engine, recipe),
        env=env,
        secrets=_secrets("VLLM_API_KEY", spec, engine, outside),
    )


def _llamacpp_spec(
    spec: LaunchSpec, plan: EnginePlan, engine: Engine, recipe: Recipe, node: Node, outside: Outside, *, cpu: bool
) -> LaunchSpec:
    process = driver_of(node) == "process"
    # A bundled model comes with lmtower's own image, and so does the engine that runs it.
    embedded = process or plan.model.startswith("bundled:")
    secrets = _secrets(llamacpp.secret_name(embedded), spec, engine, outside)
    if embedded:
        python = (engine.image or outside.python) if process else "python3"
        argv = llamacpp.embedded_command(
            plan, engine, python=python, host=listen_on(spec.host), keyed=bool(secrets), stay=not process
        )
        image = None if process else engine.image or llamacpp.EMBEDDED_IMAGE
        return replace(spec, argv=argv, image=image, env=dict(engine.env), secrets=secrets)
    image = engine.image or (llamacpp.IMAGE if cpu else llamacpp.GPU_IMAGE)
    argv = llamacpp.server_command(plan, engine, recipe, host=listen_on(spec.host))
    return replace(spec, argv=argv, image=image, env=dict(engine.env), secrets=secrets)


def _contained(spec: LaunchSpec, node: Node, plan: EnginePlan, engine: Engine, *, cpu: bool) -> LaunchSpec:
    """What a container needs beside the command: volumes, GPUs, limits, a restart policy."""
    models = Mount(node.models or MODELS_VOLUME, "/models")
    caches = Mount(f"{node.models}/caches" if node.models else CACHES_VOLUME, "/caches")
    return replace(
        spec,
        env={**_CACHES, **spec.env},
        mounts=(models, caches, *llamacpp.model_mounts(plan.model), *map(_mount, engine.mounts)),
        devices=() if cpu else tuple(map(str, plan.devices.get(spec.node, ()))) or ("all",),
        # pinned memory and deep stacks are for CUDA and NCCL; without a GPU a plain container will do
        ulimits={} if cpu else _ULIMITS,
        shm_bytes=_SHM_PARALLEL_BYTES if plan.tensor_parallel > 1 else _SHM_BYTES,
    )


def _mount(text: str) -> Mount:
    source, _, rest = text.partition(":")
    target, _, mode = rest.partition(":")
    if not source or not target or mode not in ("", "ro", "rw"):
        raise PlanError(f"mounts: {text!r} is not a mount. Write it as /source:/target or /source:/target:ro")
    return Mount(source, target, read_only=mode == "ro")


def _spanning_specs(
    plan: EnginePlan, engine: Engine, recipe: Recipe, nodes: Mapping[str, Node], outside: Outside
) -> list[LaunchSpec]:
    addresses = {name: bind_of(node) for name, node in nodes.items()}
    for name, address in addresses.items():
        if not _is_ip(address):
            raise PlanError(
                f"nodes.{name}.bind: Ray needs IP addresses. Write bind: with the node's address on the fast link"
            )
    first, *others = nodes
    flags = vllm.flags_of(plan, engine, recipe, host=addresses[first], cpu=False)
    flags["distributed-executor-backend"] = "ray"
    serve = vllm.command(plan, flags, python=None)
    gpus = max(1, plan.tensor_parallel // len(nodes))
    head = LaunchSpec(
        engine=plan.name,
        node=first,
        runtime="vllm",
        host=addresses[first],
        port=plan.port or 0,
        served_model=plan.model,
        role="head",
        argv=ray.head_command(serve, addresses[first], gpus),
        image=vllm.image_of(plan, engine, recipe),
        env={**ray.environment(addresses[first]), **vllm.environment(plan, engine, recipe, cpu=False)},
    )
    head = replace(head, secrets=_secrets("VLLM_API_KEY", head, engine, outside))
    workers = [
        replace(
            head,
            node=name,
            host=addresses[name],
            port=0,
            role="worker",
            health_path=None,
            argv=ray.worker_command(addresses[name], addresses[first], gpus),
            env={**ray.environment(addresses[name]), **vllm.environment(plan, engine, recipe, cpu=False)},
        )
        for name in others
    ]
    return [_contained(spec, nodes[spec.node], plan, engine, cpu=False).sealed() for spec in (head, *workers)]


def _secrets(variable: str, spec: LaunchSpec, engine: Engine, outside: Outside) -> dict[str, str]:
    """The engine key, unless only this machine can reach the engine; and the token for gated models."""
    key = engine.api_key.get_secret_value() if engine.api_key else None
    if key is None and spec.host not in ("127.0.0.1", "::1", "localhost"):
        key = outside.engine_key
    secrets = {variable: key} if key else {}
    return secrets | ({"HF_TOKEN": outside.hf_token} if outside.hf_token else {})
