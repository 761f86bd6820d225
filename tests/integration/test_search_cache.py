"""``file_search`` and prefix caching on real vLLM: passages stand behind the persona's prefix, which stays cached."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.tower import Tower
from tests.stores.embedding import EmbeddingGateway

pytestmark = pytest.mark.vllm
RULES = "You are the librarian of this house and answer in one short sentence, with the number of the passage. " * 20
BLOCK = 128  # tokens of a cache block of vLLM on CPU: only whole blocks are found again
LEAVE = "Leave: every employee has thirty days of leave in a year, to be asked for two weeks before. "
TRAVEL = "Travel: trains are booked second class, hotels up to ninety euros a night, receipts are handed in. "


@pytest.fixture
def tower(vllm: str, tmp_path: Path, ports: Callable[[], int]) -> Iterator[Tower]:
    """A persona with a store of two files on vLLM, and the same persona without one."""
    engine = EmbeddingGateway()
    engine.start()
    made = Tower(tmp_path, ports(), {})
    made.write(
        {
            "stores": {"listen": f"127.0.0.1:{ports()}"},
            "engines": {
                "real": {"url": vllm, "model": "smol", "recipe": "smollm2", "slots": 4},
                "embed": {"url": engine.url, "model": "m"},
            },
            "personas": {
                "librarian": {"engine": "real", "system": RULES, "stores": ["handbook"]},
                "plain": {"engine": "real", "system": RULES},
                "embed-document": {"engine": "embed", "lane": "batch"},
                "embed-query": {"engine": "embed"},
            },
        }
    )
    handbook = tmp_path / "handbook"
    handbook.mkdir()
    (handbook / "leave.md").write_text(LEAVE * 4)
    (handbook / "travel.md").write_text(TRAVEL * 4)
    made.up()
    try:
        made.until("the store service", lambda: made.run("store", "create", "handbook").returncode == 0)
        made.ok("store", "add", "handbook", str(handbook))
        yield made
    finally:
        made.run("down", "--yes")
        engine.stop()


def asked(tower: Tower, persona: str, question: str) -> tuple[int, int]:
    """Tokens of the prompt, and how many of them vLLM had in its cache."""
    status, answer = tower.chat(persona, question)
    assert status == 200, answer
    usage = answer["usage"]
    return usage["prompt_tokens"], (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0


def test_another_question_finds_the_persona_in_the_cache(tower: Tower) -> None:
    """Other passages, same prefix: all whole blocks of the persona's prompt are cached at the second question."""
    persona, _ = asked(tower, "plain", "Hi")
    first, _ = asked(tower, "librarian", "How many days of leave are there?")
    second, cached = asked(tower, "librarian", "Which hotels may be booked?")
    again, whole = asked(tower, "librarian", "Which hotels may be booked?")
    assert min(first, second) > persona + 80, "the passages are in the prompt"
    assert cached >= (persona - 16) // BLOCK * BLOCK > 0
    # the same question finds the same passages in the same order: everything but the last block is cached
    assert again == second
    assert whole >= (second - 1) // BLOCK * BLOCK
