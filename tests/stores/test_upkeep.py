"""When a table is tended."""

from __future__ import annotations

import pytest

from lmtower.stores.upkeep import LITTER_SECONDS, TAIL_ROWS, WRITES, Upkeep


@pytest.mark.parametrize(
    ("written", "table_rows", "idle", "due"),
    [
        (1, 40, True, True),  # small: at once, but not while more is on its way
        (1, 40, False, False),
        (500, 1_000_000, True, False),  # a few rows of many are compared one by one
        (TAIL_ROWS, 1_000_000, True, True),
        (TAIL_ROWS, 1_000_000, False, False),
        (250_000, 1_000_000, False, True),
        (TAIL_ROWS, 20_000, False, True),
    ],
)
def test_a_round_is_due_when_it_is_worth_it(written: int, table_rows: int, idle: bool, due: bool) -> None:
    """It depends on what changed, how large the table is, and whether more is coming."""
    upkeep = Upkeep()
    upkeep.wrote("t", written)
    assert upkeep.due("t", table_rows, idle=idle) is due


def test_many_small_writes_are_worth_a_round() -> None:
    """Hundreds of small files slow every search down, however few rows they hold."""
    upkeep = Upkeep()
    for _ in range(WRITES):
        assert not upkeep.due("t", 1_000_000, idle=True) if upkeep.changed() else True
        upkeep.wrote("t", 1)
    assert upkeep.due("t", 1_000_000, idle=True)


def test_rounds_follow_until_nothing_is_left_to_do() -> None:
    """What a round replaced is removed by a later one; one that changes nothing is the last."""
    upkeep = Upkeep()
    upkeep.wrote("t", 5)
    upkeep.tended("t", 0.0, changed=True)
    assert upkeep.changed() == []
    assert list(upkeep.littered(LITTER_SECONDS)) == []
    assert list(upkeep.littered(LITTER_SECONDS + 1)) == ["t"]
    upkeep.wrote("t", 5)
    assert list(upkeep.littered(LITTER_SECONDS + 1)) == []
    upkeep.tended("t", 200.0, changed=False)
    assert list(upkeep.littered(1000.0)) == []
    upkeep.wrote("t", 1)
    upkeep.forget("t")
    assert upkeep.changed() == []
