"""The documents are true: generated pages are current, every example loads, every link and command exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmtower.cli.commands import COMMANDS
from lmtower.config import load
from lmtower.config.translate import sections
from tests.docs_pages import pages

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_generated_page_is_current(path: Path) -> None:
    """`make docs` was run after the last change."""
    assert path.read_text("utf-8") == pages()[path], f"run `make docs`: docs/{path.name} is not current"


def test_every_key_has_a_description() -> None:
    """A key that nobody explained does not exist for a user."""
    bare = [
        f"{place}.{name}"
        for place, section in sections()
        for name, f in section.model_fields.items()
        if not f.description
    ]
    assert bare == []


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/**/tower.yaml")), ids=lambda path: path.parent.name)
def test_every_example_loads(path: Path) -> None:
    """Examples are copied by people: they are right."""
    assert load(path).tower.personas


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    """Every relative link names a file of the repository."""
    broken = [link for link in _links(path.read_text("utf-8")) if not (path.parent / link).exists()]
    assert broken == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_documents_exist(path: Path) -> None:
    """`lmtower VERB` in a document is a verb that there is."""
    verbs = re.findall(r"(?:^|[`$] ?)lmtower ([a-z][a-z-]*)", path.read_text("utf-8"), re.MULTILINE)
    assert sorted({verb for verb in verbs if verb not in COMMANDS}) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_yaml_in_documents_has_only_known_sections(path: Path) -> None:
    """A block of tower.yaml in a document uses sections that exist."""
    known = set(next(section for place, section in sections()).model_fields)
    found = set()
    for block in re.findall(r"```yaml\n(.*?)```", path.read_text("utf-8"), re.DOTALL):
        keys = re.findall(r"^([A-Za-z_]+):", block, re.MULTILINE)
        if {"engines", "personas", "gateway"} & set(keys):
            found |= set(keys)
    assert sorted(found - known) == []


def test_every_decision_is_short() -> None:
    """A record says what was decided and why, on one screen."""
    long = [path.name for path in ROOT.glob("docs/decisions/*.md") if len(path.read_text("utf-8").splitlines()) > 45]
    assert long == []


def _links(text: str) -> Iterator[str]:
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        target = link.partition("#")[0]
        if target and "://" not in target and not target.startswith("mailto:"):
            yield target
