"""What the nodes said of themselves, kept in the data folder: the plan of the next call is made from the same facts.

Memory is measured while no engine of ours runs on the node; beside running engines the last such measurement stands,
so that a second ``up`` plans the same and changes nothing. What cannot be asked is planned from the catalogue, and that
is told.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmtower.config.types import Engine, Node, Tower
from lmtower.plan.measured import Measured, SeenGpu, merged, summary
from lmtower.plan.versions import of_image

if TYPE_CHECKING:
    from lmtower.cli.globals import Globals
    from lmtower.nodes.drivers import Driver
    from lmtower.plan.types import NodeFacts

_FILE = "nodes.json"


@dataclass(slots=True)
class Known:
    """Looks at nodes and versions of images, as they were written down."""

    looks: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, data_dir: Path) -> Known:
        """What the data folder holds; nothing when there is no such file or it cannot be read."""
        try:
            value = json.loads((data_dir / _FILE).read_text("utf-8"))
            return cls(dict(value["looks"]), dict(value["versions"]))
        except (OSError, ValueError, KeyError, TypeError):
            return cls()

    def write(self, data_dir: Path) -> None:
        """Write it down, whole or not at all."""
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = data_dir / _FILE
        part = path.with_suffix(".part")
        part.write_text(json.dumps({"looks": self.looks, "versions": self.versions}, indent=1) + "\n", "utf-8")
        part.replace(path)

    def look(self, name: str, node: Node) -> tuple[Measured, bool] | None:
        """The last look at a node and whether it was idle; None when its address or hardware changed since."""
        try:
            row = self.looks[name]
            seen = dict(row["seen"])
            gpus = tuple(SeenGpu(**gpu) for gpu in seen.pop("gpus"))
            same = [row["address"], row["hardware"]] == [node.address, node.hardware]
            return (Measured(**seen, gpus=gpus), bool(row["idle"])) if same else None
        except (KeyError, TypeError, ValueError):  # nobody has looked, or another version of ours wrote it
            return None

    def facts(self, tower: Tower) -> tuple[dict[str, NodeFacts], list[str]]:
        """Facts of the nodes that were measured, and what differs there from the tower file."""
        from lmtower.plan.hardware import facts

        found: dict[str, NodeFacts] = {}
        notes: list[str] = []
        for name, node in tower.nodes.items():
            look = self.look(name, node) if _has_hardware(node) else None
            if look is not None and node.hardware is not None:
                declared = facts(node.hardware, name=name, reserve_bytes=node.reserve)
                found[name], said = merged(declared, look[0], idle=look[1])
                notes += said
        return found, notes

    def engines(self, tower: Tower) -> Tower:
        """The tower with the version of vLLM that each image was found to hold, where the file names none."""
        changed = {
            name: engine.model_copy(update={"version": found})
            for name, engine in tower.engines.items()
            if _open_version(engine) and (found := self.versions.get(_key(engine, tower)))
        }
        return tower.model_copy(update={"engines": {**tower.engines, **changed}}) if changed else tower


async def measure(options: Globals, tower: Tower, *, fetch: bool = False) -> None:
    """Look at every node with a GPU and write down what it says; tell what a person should know of it.

    With ``fetch`` an image whose version nobody knows is pulled first: flags depend on it.
    """
    from lmtower.cli.desired import drivers_of, observe

    known = Known.read(options.data_dir)
    names = [name for name, node in tower.nodes.items() if _has_hardware(node)]
    if not names and not any(_runtime(engine) == "vllm" for engine in tower.engines.values()):
        return
    drivers = drivers_of(options, tower)
    try:
        found, unreachable = await observe(drivers)
        busy = {each.node for each in found if each.running}
        said = await asyncio.gather(
            *(
                _look(name, tower.nodes[name], known, options, busy=name in busy, away=name in unreachable)
                for name in names
            )
        )
        there = {name: each for name, each in drivers.items() if name not in unreachable}
        said += await _versions(tower, there, known, fetch=fetch)
    finally:
        await asyncio.gather(*(driver.close() for driver in drivers.values()))
    known.write(options.data_dir)
    for line in (*filter(None, said), *known.facts(tower)[1]):
        print(line, file=sys.stderr, flush=True)


async def _look(name: str, node: Node, known: Known, options: Globals, *, busy: bool, away: bool) -> str:
    from lmtower.nodes.memory import look_at, settled_look

    before = known.look(name, node)
    if busy and before is not None and before[1]:
        return ""
    elsewhere = options.environ.get("DOCKER_HOST", "")
    remote = node.address == "local" and elsewhere and not elsewhere.startswith("unix://")
    seen = None
    if not away and not remote:
        expected = before[0].free_bytes if before is not None and before[1] else None
        seen = await (look_at(node.address) if busy else settled_look(node.address, expected))
    if seen is None:
        source = "the catalogue" if before is None else f"what it said on {known.looks[name]['at']}"
        return f"node {name!r} could not be asked for its memory and GPUs: planned from {source}"
    at = time.strftime("%Y-%m-%d %H:%M")
    row = {"address": node.address, "hardware": node.hardware, "at": at, "idle": not busy, "seen": asdict(seen)}
    known.looks[name] = row
    return summary(name, seen, idle=not busy)


async def _versions(tower: Tower, drivers: Mapping[str, Driver], known: Known, *, fetch: bool) -> list[str]:
    """Ask every image that is written without a version; a version that is written and wrong is told."""
    from lmtower.errors import TowerError

    said = []
    for name, engine in tower.engines.items():
        driver = drivers.get(_node(engine, tower))
        image = engine.image or _own_python(engine, tower)
        if driver is None or image is None or _runtime(engine) != "vllm" or of_image(image):
            continue
        try:
            found = await driver.version(image)
            if found is None and fetch and engine.version is None:
                await _fetch(name, image, driver)
                found = await driver.version(image)
        except TowerError:  # the start says it again, and better
            continue
        if found is None:
            continue
        known.versions[_key(engine, tower)] = found
        if engine.version and found != engine.version.removeprefix("v"):
            said.append(
                f"engines.{name}.version: {engine.version} is written, but {image!r} holds vLLM {found}. "
                "Remove the key, or correct it"
            )
    return said


async def _fetch(engine: str, image: str, driver: Driver) -> None:
    from lmtower.cli.progress import Printer
    from lmtower.engines import LaunchSpec
    from lmtower.nodes.apply import Event

    printer = Printer()
    spec = LaunchSpec(engine, driver.node, "vllm", image=image)
    await driver.pull(spec, lambda at: printer(Event(engine, driver.node, "fetch", progress=at)))


def _own_python(engine: Engine, tower: Tower) -> str | None:
    """A child process without ``image`` runs under this very Python; a container without one has our default."""
    from lmtower.engines import driver_of

    return sys.executable if driver_of(tower.nodes.get(_node(engine, tower), Node())) == "process" else None


def _has_hardware(node: Node) -> bool:
    return node.hardware not in (None, "cpu")


def _open_version(engine: Engine) -> bool:
    return engine.version is None and _runtime(engine) == "vllm" and of_image(engine.image) is None


def _runtime(engine: Engine) -> str:
    from lmtower.cli.upstreams import is_external, runtime_of

    return "external" if is_external(engine) else engine.runtime or runtime_of(engine.model)


def _node(engine: Engine, tower: Tower) -> str:
    return engine.node or next(iter(engine.nodes or tower.nodes), "local")


def _key(engine: Engine, tower: Tower) -> str:
    return f"{_node(engine, tower)} {engine.image or ''}"
