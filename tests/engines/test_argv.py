"""The whole command line of every preset, for three versions of vLLM, against files that a person can read.

``LMTOWER_WRITE_GOLDEN=1 pytest tests/engines`` writes them anew; look at the diff before you commit it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from lmtower.engines import LaunchSpec, Outside, build_specs
from tests.engines.plans import FAMILIES, plan_of, tower_of

GOLDEN = Path(__file__).parents[1] / "data" / "argv"
VERSIONS = ("0.20.2", "0.27.1", "0.33.0")


def written(spec: LaunchSpec) -> str:
    """A spec as text: a line per flag, then the environment, then what the container gets."""
    lines: list[str] = []
    for word in spec.argv:
        if word.startswith("--") or not lines or not lines[-1].startswith("--") or " " in lines[-1]:
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    lines += ["", f"image {spec.image}"]
    lines += [f"env {name}={value}" for name, value in sorted(spec.env.items())]
    lines += [f"mount {mount.source} {mount.target}{' ro' * mount.read_only}" for mount in spec.mounts]
    lines += [f"ulimit {name}={value}" for name, value in spec.ulimits.items()]
    lines += [f"devices {','.join(spec.devices)}", f"shm {spec.shm_bytes}", f"restart {spec.restart}"]
    lines += [f"url {spec.url}{spec.health_path}", f"label {' '.join(sorted(spec.labels))}"]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_preset_has_exactly_this_command(family: str, version: str) -> None:
    """Every flag, variable and mount of a preset is written down and reviewed."""
    row = replace(FAMILIES[family], version=version)
    (spec,) = build_specs(plan_of(row), tower_of(row), Outside(engine_key="secret-key"))
    path = GOLDEN / f"{family}-{version}.txt"
    if os.environ.get("LMTOWER_WRITE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(written(spec), "utf-8")
    assert written(spec) == path.read_text("utf-8")


def test_every_golden_file_has_its_preset() -> None:
    """No stale file stays behind when a preset goes."""
    expected = {f"{family}-{version}.txt" for family in FAMILIES for version in VERSIONS}
    assert {path.name for path in GOLDEN.iterdir()} == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_engine_key_is_never_on_the_command_line(family: str) -> None:
    """The key travels in the environment only, and not even there by repr."""
    row = FAMILIES[family]
    (spec,) = build_specs(plan_of(row), tower_of(row), Outside(engine_key="secret-key"))
    assert spec.secrets["VLLM_API_KEY"] == "secret-key"
    assert "secret-key" not in repr(spec)
    assert "secret-key" not in " ".join(spec.argv)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "nomic-embed"])
def test_prefix_caching_is_always_on(family: str) -> None:
    """The golden rule holds for every family with a KV cache."""
    row = FAMILIES[family]
    (spec,) = build_specs(plan_of(row), tower_of(row), Outside())
    assert "--enable-prefix-caching" in spec.argv
    assert "--enable-prompt-tokens-details" in spec.argv
