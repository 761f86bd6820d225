"""The error tree. Every error that a person may see is one of these.

    TowerError                  exit 1   something failed
    ├── Refused                 exit 2   nothing was touched: the request itself cannot be granted
    │   ├── ConfigError                  the tower file is wrong; carries every Problem found
    │   └── PlanError                    it does not fit, or the model cannot be understood
    ├── EngineError                      an engine did not start, stopped, or cannot be reached
    ├── NodeError                        a node, its Docker engine or its agent cannot be reached
    │   └── NodeAway                     it does not answer now; later it may
    ├── LedgerError                      keys or usage cannot be read or written
    │   └── UnknownKey                   no active key is meant, or more than one
    ├── StoreError                       a vector store or a document cannot be read or written
    └── AdminError                       no tower runs there, or its admin listener refused us

Foreign errors (Docker, SQL, HTTP) are translated once, at the border of the room that talks to them,
with ``raise … from exc``. Messages say what happened, where in the YAML, and what to do; they never
hold a secret or a persona's prompt. Errors that travel to a *client* of the gateway are not exceptions
of this tree but ``lmtower.wire.errors.Fault`` values, rendered in the client's protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


class TowerError(Exception):
    """Base of everything lmtower raises on purpose. ``exit_code`` is what the CLI returns for it."""

    exit_code = 1


class Refused(TowerError):
    """Nothing was touched, because what was asked for cannot be granted."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a tower file: where it is, what is wrong and what to write instead.

    ``line`` and ``column`` count from 1; 0 means that the place is not known (a value from the command line).
    """

    path: str
    message: str
    file: str = "tower.yaml"
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{place}   {self.path}: {self.message}" if self.path else f"{place}   {self.message}"


class ConfigError(Refused):
    """The tower file cannot be used. ``problems`` holds all of them, in the order of the file; ``watched`` the files
    of which one must change before it can (see ``config.Loaded``)."""

    def __init__(self, problems: Sequence[Problem], watched: Mapping[Path, tuple[int, ...]] | None = None) -> None:
        self.problems = tuple(problems)
        self.watched = watched or {}
        super().__init__("\n".join(str(problem) for problem in self.problems))


class PlanError(Refused):
    """A model cannot be planned or a set does not fit. ``field``: the config.json field or YAML path at fault."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        self.field = field
        super().__init__(message)


class EngineError(TowerError):
    """An engine did not start, stopped, or cannot be reached."""


class NodeError(TowerError):
    """A node, its Docker engine or its agent cannot be reached or refused what was asked."""


class NodeAway(NodeError):
    """A node or its Docker engine does not answer now; later it may."""


class LedgerError(TowerError):
    """Keys or usage cannot be read or written."""


class UnknownKey(LedgerError):
    """What was named is no active key, or several."""


class StoreError(TowerError):
    """A vector store or a document cannot be read or written."""


class AdminError(TowerError):
    """No tower runs at that address, or its admin listener refused the request."""
