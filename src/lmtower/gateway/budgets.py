"""What runs out: limits of keys and personas, and the certificate. For metrics."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Iterator, Mapping

from lmtower.config.types import Tls
from lmtower.ledger.accounts import Account
from lmtower.telemetry.state import BudgetState


def budgets(accounts: Iterable[Account], names: Mapping[str, str], now: float) -> tuple[BudgetState, ...]:
    """Used shares. ``names`` maps ids of keys to their clients; a persona's own limits are ``persona:NAME``."""
    found = []
    for account in accounts:
        name = names.get(account.name) if account.scope == "key" else f"persona:{account.name}"
        if name is not None:
            found += [BudgetState(name, limit, share) for limit, share in _shares(account, now)]
    return tuple(found)


def _shares(account: Account, now: float) -> Iterator[tuple[str, float]]:
    limits = account.limits
    for limit, allowed, used in (
        ("requests_per_minute", limits.requests_per_minute, account.requests_minute.used(now)),
        ("tokens_per_minute", limits.tokens_per_minute, account.tokens_minute.used(now)),
        ("tokens_per_day", limits.tokens_per_day, account.tokens_day.used(now)),
        ("images_per_day", limits.images_per_day, account.images_day.used(now)),
        ("money_per_month", limits.money_per_month, account.spent_in_month(now)),
    ):
        if allowed is not None:
            yield limit, used / allowed if allowed else 1.0


def certificate_expiry(tls: Tls | None) -> float | None:
    """When the certificate runs out, in seconds since the epoch. Read at each scrape: a renewed file shows at once."""
    if tls is None:
        return None
    try:
        # The standard library decodes a certificate file only here; tests hold that it still does.
        decoded = ssl._ssl._test_decode_cert(tls.cert)  # type: ignore[attr-defined]
    except (OSError, ssl.SSLError):
        return None
    return float(ssl.cert_time_to_seconds(decoded["notAfter"]))
