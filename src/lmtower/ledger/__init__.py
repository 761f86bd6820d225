"""Clients (keys), budgets and usage: a journal on disk first, then SQL in batches."""

from lmtower.ledger.accounts import LimitRefusal
from lmtower.ledger.ledger import Ledger
from lmtower.ledger.limits import LocalLimits, Reservation
from lmtower.ledger.types import OUTCOMES, Client, KeyRow, NewKey, Outcome, UsageRecord

__all__ = [
    "OUTCOMES",
    "Client",
    "KeyRow",
    "Ledger",
    "LimitRefusal",
    "LocalLimits",
    "NewKey",
    "Outcome",
    "Reservation",
    "UsageRecord",
]
