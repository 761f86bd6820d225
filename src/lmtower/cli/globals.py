"""Options that every command takes, before or after the verb: the tower file, the data folder, JSON output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmtower.errors import Refused

if TYPE_CHECKING:
    import typer

    from lmtower.cli.admin import Admin
    from lmtower.config import Loaded

_VALUED = {"-c": "config", "--config": "config", "--data-dir": "data_dir"}


@dataclass(frozen=True, slots=True)
class Globals:
    """What a command knows about this call besides its own arguments (``ctx.obj``)."""

    config: Path
    data_dir: Path
    json: bool = False
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)

    def load(self, overrides: Mapping[str, Any] | None = None) -> Loaded:
        """The tower file of this call. Raises ConfigError with every problem in it."""
        from lmtower.config import load

        return load(self.config, overrides or {}, environ=self.environ)

    def admin(self) -> Admin:
        """The admin API of the tower that runs on this data folder. Raises AdminError when none does."""
        from lmtower.cli.admin import Admin

        return Admin.of_running_tower(self.data_dir)


def take_globals(argv: Sequence[str], environ: Mapping[str, str]) -> tuple[Globals, list[str]]:
    """Split the global options, wherever they stand, from the rest. Nothing after ``--`` is looked at."""
    found: dict[str, str] = {}
    rest: list[str] = []
    json = False
    words = iter(argv)
    for word in words:
        option, equals, value = word.partition("=")
        if word == "--":
            rest += [word, *words]
        elif word == "--json":
            json = True
        elif option in _VALUED and equals:
            found[_VALUED[option]] = value
        elif word in _VALUED:
            found[_VALUED[word]] = _value_of(word, next(words, None))
        else:
            rest.append(word)
    config = found.get("config") or environ.get("LMTOWER_CONFIG") or "tower.yaml"
    data_dir = found.get("data_dir") or environ.get("LMTOWER_DATA_DIR") or "tower-data"
    return Globals(Path(config), Path(data_dir), json, environ), rest


def _value_of(option: str, value: str | None) -> str:
    if value is None:
        raise Refused(f"lmtower: {option} needs a value.")
    return value


def group() -> typer.Typer:
    """A ``Typer`` for a verb with sub-commands (``key``, ``store``): plain text help, no completion, no tracebacks."""
    import typer

    return typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True
    )
