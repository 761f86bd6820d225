"""The lock holds what pyproject.toml asks for: nothing pinned by hand can be forgotten, and the four sets agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
BASE = PROJECT["project"]["dependencies"]
EXTRAS = PROJECT["project"]["optional-dependencies"]
GROUPS = PROJECT["dependency-groups"]
WANTED = {
    "base": BASE,
    "demo": [*BASE, *EXTRAS["demo"]],
    "test": [*BASE, *(line for lines in EXTRAS.values() for line in lines), *GROUPS["dev"], *GROUPS["test"]],
    "build": [line for line in (ROOT / "requirements/build.in").read_text("utf-8").splitlines() if line],
}


def pins(name: str) -> dict[str, set[str]]:
    """Package -> versions pinned in a set; some are pinned twice, for different Pythons."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / f"requirements/{name}.txt").read_text("utf-8").splitlines():
        if match := re.match(r"([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?==([^ ;\\]+)", line):
            found.setdefault(canonicalize_name(match[1]), set()).add(match[2])
    return found


@pytest.mark.parametrize("name", WANTED)
def test_every_requirement_is_pinned_to_a_version_that_it_allows(name: str) -> None:
    """Otherwise: make lock."""
    found = pins(name)
    for line in WANTED[name]:
        wanted = Requirement(line)
        versions = found.get(canonicalize_name(wanted.name), set())
        assert versions, f"{line} is not pinned in requirements/{name}.txt: make lock"
        assert all(wanted.specifier.contains(version, prereleases=True) for version in versions), (line, versions)


@pytest.mark.parametrize("name", ["base", "demo"])
def test_smaller_sets_agree_with_the_largest(name: str) -> None:
    """What `make up` installs is what the tests ran with."""
    tested = pins("test")
    assert {package: versions for package, versions in pins(name).items() if versions != tested.get(package)} == {}


@pytest.mark.parametrize("name", WANTED)
def test_every_pin_has_a_hash_and_names_no_place(name: str) -> None:
    """pip refuses what was exchanged; where packages come from is the machine's own setting."""
    text = (ROOT / f"requirements/{name}.txt").read_text("utf-8")
    blocks = re.split(r"\n(?=[A-Za-z0-9])", text.strip())
    assert [block.splitlines()[0] for block in blocks if "==" in block and "--hash=sha256:" not in block] == []
    assert re.findall(r"^--\S+|\S*://\S*|^/\S*", text, re.MULTILINE) == []
