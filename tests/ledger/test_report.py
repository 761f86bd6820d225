"""Usage reports: groups, sums, totals, times."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmtower.errors import Refused
from lmtower.ledger import drain
from lmtower.ledger.database import Database
from lmtower.ledger.journal import Journal
from lmtower.ledger.report import GROUPS, Row, checked, report
from tests.ledger.records import NOW, record

_DAY = 86_400


@pytest.fixture
def filled(database: Database, tmp_path: Path) -> Database:
    """Seven requests of two clients over three days and two months."""
    written = Journal(tmp_path / "journal")
    for found in (
        record(0, client="alice", persona="plan", cached_tokens=50, ttft_seconds=0.2, cost=0.5),
        record(1, client="alice", persona="plan", retry=True, outcome="ok", ttft_seconds=0.4),
        record(2, client="alice", persona="code", output_tokens=1000, tool_calls_valid=3, tool_calls_repaired=1),
        record(3, client="bob", persona="plan", end_user="eve", images=2, image_tokens=60, reasoning_tokens=5),
        record(4, client="bob", persona="plan", outcome="cancelled", status=499, time=NOW + _DAY),
        record(5, client="bob", persona="plan", input_tokens=0, output_tokens=0, outcome="error", time=NOW + _DAY),
        record(6, client="bob", persona="plan", time=NOW + 10 * _DAY, queue_seconds=1.5, duration_seconds=3.0),
    ):
        written.append(found)
    written.close()
    drain.drain(database, tmp_path / "journal")
    return database


def _requests(database: Database, *by: str, since: float | None = None, until: float | None = None) -> list[object]:
    return [(*row.group.values(), row.requests) for row in report(database, by, since, until).rows]


def test_groups_are_counted(filled: Database) -> None:
    """By every kind of column; most tokens first, times in order."""
    assert _requests(filled, "client") == [("alice", 2), ("bob", 4)]
    assert _requests(filled, "client", "persona") == [("alice", "code", 1), ("bob", "plan", 4), ("alice", "plan", 1)]
    assert _requests(filled, "day") == [("2026-11-23", 3), ("2026-11-24", 2), ("2026-12-03", 1)]
    assert _requests(filled, "month") == [("2026-11", 5), ("2026-12", 1)]
    assert _requests(filled, "hour") == [("2026-11-23 12:00", 3), ("2026-11-24 12:00", 2), ("2026-12-03 12:00", 1)]
    assert _requests(filled, "client", "month") == [
        ("alice", "2026-11", 2), ("bob", "2026-11", 3), ("bob", "2026-12", 1),
    ]  # fmt: skip
    assert _requests(filled, "outcome") == [("ok", 4), ("cancelled", 1), ("error", 1)]
    assert _requests(filled, "status") == [("200", 5), ("499", 1)]
    assert _requests(filled, "end_user") == [("", 5), ("eve", 1)]


@pytest.mark.parametrize("name", GROUPS)
def test_rows_of_every_group_add_up_to_the_same_total(filled: Database, name: str) -> None:
    """However it is cut, the total is the total."""
    found = report(filled, (name,), None, None)
    summed = Row()
    for row in found.rows:
        summed.add(row)
    assert found.total == summed
    assert found.total == report(filled, (), None, None).total


def test_total_holds_every_sum(filled: Database) -> None:
    """Retries are not requests; their tokens are tokens."""
    total = report(filled, (), None, None).total
    assert total == Row(
        requests=6, retries=1, input_tokens=600, cached_tokens=50, image_tokens=60, output_tokens=1050,
        reasoning_tokens=5, images=2, tool_calls_valid=3, tool_calls_repaired=1, queue_seconds=1.5,
        duration_seconds=3.0, ttft_seconds=pytest.approx(0.6), ttft_count=2, cost=0.5,
    )  # fmt: skip
    assert total.hit_rate == pytest.approx(50 / 600)
    assert total.ttft_mean == pytest.approx(0.3)


def test_period_includes_its_begin_and_not_its_end(filled: Database) -> None:
    """So that periods can be put side by side."""
    assert _requests(filled, "client", since=NOW + 2, until=NOW + 3) == [("alice", 1)]
    assert _requests(filled, "client", since=NOW + 3, until=NOW + _DAY + 1) == [("bob", 3)]
    assert _requests(filled, since=NOW + 20 * _DAY) == []


def test_empty_database_has_an_empty_report(database: Database) -> None:
    """No rows, a total of zero, no rate of nothing."""
    found = report(database, ("client",), None, None)
    assert (found.rows, found.total) == ((), Row())
    assert found.total.hit_rate is None
    assert found.total.ttft_mean is None
    assert report(database, (), None, None).rows == ()


def test_unknown_group_is_refused_with_a_suggestion() -> None:
    """Exit code 2 and the name that was meant, or all names."""
    with pytest.raises(Refused, match="Did you mean 'client'"):
        checked(["clients"])
    with pytest.raises(Refused, match="Known: client, "):
        checked(["zzz"])
    assert checked(["client", "day", "client"]) == ("client", "day")
