"""Clients (keys), budgets and usage: a journal on disk first, then SQL in batches.

Importing the package loads nothing: the process that moves records (``mover``) pays for no limits and no tower file.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmtower.ledger.accounts import LimitRefusal
    from lmtower.ledger.client import Client, KeyRow, NewKey
    from lmtower.ledger.ledger import Ledger
    from lmtower.ledger.limits import LocalLimits, Reservation
    from lmtower.ledger.record import OUTCOMES, Outcome, UsageRecord
else:
    _HOMES = {
        "accounts": ("LimitRefusal",),
        "client": ("Client", "KeyRow", "NewKey"),
        "ledger": ("Ledger",),
        "limits": ("LocalLimits", "Reservation"),
        "record": ("OUTCOMES", "Outcome", "UsageRecord"),
    }

    def __getattr__(name: str) -> object:
        for home, names in _HOMES.items():
            if name in names:
                return getattr(import_module(f"lmtower.ledger.{home}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
