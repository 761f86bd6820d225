"""What metrics say about limits and certificates."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from lmtower.config.types import Limits, Tls
from lmtower.gateway.budgets import budgets, certificate_expiry
from lmtower.ledger.accounts import Account
from lmtower.telemetry.state import BudgetState
from tests.gateway.support import make_certificate

NOW = 1_800_000_000.0


def account(scope: str, name: str, **limits: float) -> Account:
    """An account that used 50 tokens, 2 images and 3 money."""
    made = Account(scope, name, Limits.model_validate(limits))
    made.book(NOW, 50, 2, 3.0)
    return made


def test_used_shares_are_told_per_limit() -> None:
    """Only limits that are set, under the client's name."""
    key = account("key", "id-1", tokens_per_day=200, images_per_day=2, money_per_month=4)
    assert budgets([key], {"id-1": "alice"}, NOW) == (
        BudgetState("alice", "tokens_per_day", 0.25),
        BudgetState("alice", "images_per_day", 1.0),
        BudgetState("alice", "money_per_month", 0.75),
    )


def test_persona_has_a_name_of_its_own() -> None:
    """A persona and a client of the same name do not mix."""
    assert budgets([account("persona", "plan", tokens_per_day=100)], {}, NOW) == (
        BudgetState("persona:plan", "tokens_per_day", 0.5),
    )


def test_revoked_key_is_left_out() -> None:
    """Nobody needs an alert about a key that is gone."""
    assert budgets([account("key", "gone", tokens_per_day=1)], {}, NOW) == ()


def test_limit_of_zero_is_spent() -> None:
    """No division by zero."""
    assert budgets([account("key", "i", tokens_per_day=0)], {"i": "a"}, NOW)[0].used_ratio == 1.0


def test_certificate_expiry_is_read_from_the_file(tmp_path: Path) -> None:
    """A certificate for ten days runs out in ten days."""
    cert, key = make_certificate(tmp_path, "tower")
    expires = certificate_expiry(Tls(cert=str(cert), key=str(key)))
    assert expires == pytest.approx(time.time() + 10 * 86400, abs=120)


def test_no_certificate_has_no_expiry(tmp_path: Path) -> None:
    """Plain HTTP, or a file that cannot be read."""
    assert certificate_expiry(None) is None
    assert certificate_expiry(Tls(cert=str(tmp_path / "none"), key="k")) is None
