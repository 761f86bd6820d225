"""LaunchSpecs of a Spark with three engines, as the builder makes them, and one that runs as a process."""

from __future__ import annotations

from dataclasses import replace

from lmtower.config.types import Node
from lmtower.engines import LaunchSpec, Outside, build_specs
from tests.engines.plans import FAMILIES, SPARK, plan_of, tower_of

OUTSIDE = Outside(engine_key="secret-engine-key", hf_token="hf_secret", python="/opt/lmtower/bin/python")
_ROWS = (
    FAMILIES["nemotron3-super"],
    replace(FAMILIES["qwen3-vl"], port=8101, start_order=1),
    replace(FAMILIES["qwen2.5-coder"], port=8102, start_order=2),
)
_EMBEDDED = replace(
    FAMILIES["generic"], name="mini", model="bundled:smollm2", runtime="llamacpp", nodes=("local",), port=8103
)


def containers() -> tuple[LaunchSpec, ...]:
    """Three engines of one node, in start order."""
    return build_specs(plan_of(*_ROWS), tower_of(*_ROWS), OUTSIDE)


def process() -> LaunchSpec:
    """An embedded engine on the tower itself."""
    (spec,) = build_specs(plan_of(_EMBEDDED), tower_of(_EMBEDDED, nodes={"local": Node()}), OUTSIDE)
    return spec


def spanning() -> tuple[LaunchSpec, ...]:
    """One model over two nodes: a Ray head and a worker."""
    wide = replace(FAMILIES["llama"], nodes=("one", "two"), tensor_parallel=2)
    addresses = {"one": "10.0.0.1", "two": "10.0.0.2"}
    facts = tuple(replace(SPARK, name=name) for name in addresses)
    nodes = {
        name: Node(address=f"ssh://ops@{name}.lan", hardware="dgx-spark", bind=bind) for name, bind in addresses.items()
    }
    return build_specs(plan_of(wide, nodes=facts), tower_of(wide, nodes=nodes), OUTSIDE)
