"""Pages of docs/ that are written from the code: every key of the tower file, every command.

``make docs`` writes them; ``tests/test_docs.py`` fails when one is not current.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from unittest.mock import patch

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from lmtower.cli import main
from lmtower.cli.commands import COMMANDS, GROUPS
from lmtower.config.translate import sections
from lmtower.config.types import Section, Tower

DOCS = Path(__file__).resolve().parents[1] / "docs"
_INTRODUCTIONS = {
    "the top level": "The sections of the file. `engines` and `personas` are needed; everything else has a default.",
}


def pages() -> dict[Path, str]:
    """Every generated page with its text."""
    return {DOCS / "tower-yaml.md": tower_page(), DOCS / "commands.md": commands_page()}


def tower_page() -> str:
    """The reference of tower.yaml, from the descriptions of its types."""
    lines = [
        "# tower.yaml",
        "",
        "<!-- written by `make docs` from src/lmtower/config/types.py; edit the descriptions there -->",
        "",
        "Every key. `lmtower schema` prints the same as JSON Schema for editors, `lmtower check` reads your file",
        "and names everything wrong in it at once. YAML 1.2: `on`, `off` and `no` are words. Counts are written as",
        "`4096`, `32k` or `128Ki`, sizes as `12 GiB`, durations as `30s`, `20min`, `12h`. Any text may be `env:NAME`",
        "or `file:PATH` (relative to the tower file); secrets must be. Personas may share keys with YAML anchors and",
        "`<<`.",
    ]
    seen: set[type[Section]] = set()
    for place, section in sections():
        title = "Top level" if section is Tower else f"`{place}`"
        lines += ["", f"## {title}", ""]
        if section in seen:
            first = next(where for where, other in sections() if other is section)
            lines.append(f"The same keys as [`{first}`](#{_anchor(first)}).")
            continue
        seen.add(section)
        lines += [*_introduction(place), "| key | takes | default | what it does |", "|---|---|---|---|"]
        lines += [_row(name, field) for name, field in section.model_fields.items()]
    return "\n".join(lines) + "\n"


def _introduction(place: str) -> list[str]:
    text = _INTRODUCTIONS.get(place)
    return [text, ""] if text else []


def _anchor(place: str) -> str:
    return place.lower().replace(".", "")


def _row(name: str, field: FieldInfo) -> str:
    cells = (f"`{name}`", kind_of(field.annotation, field.metadata), _default(field), field.description or "")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None or value == () or value == {} or isinstance(value, Section):
        return ""
    if isinstance(value, int) and kind_of(field.annotation, field.metadata) == "size":
        return f"`{value // 1024**2} MiB`"
    shown = {True: "on", False: "off"}[value] if isinstance(value, bool) else value
    return f"`{shown:g}`" if isinstance(shown, float) else f"`{shown}`"


def kind_of(annotation: Any, metadata: list[Any] | None = None) -> str:
    """What a key takes, in a person's words."""
    names = {_unit(item) for item in metadata or ()} - {None}
    if names:
        return str(names.pop())
    origin = get_origin(annotation)
    if origin is Annotated:
        return kind_of(get_args(annotation)[0], list(get_args(annotation)[1:]))
    if origin is Literal:
        return ", ".join(f"`{word}`" for word in get_args(annotation))
    if origin in (Union, UnionType):
        return " or ".join(kind_of(part) for part in get_args(annotation) if part is not NoneType)
    if origin is tuple:
        return "list"
    if origin is dict:
        inner = get_args(annotation)[1]
        return "`NAME:` keys below" if isinstance(inner, type) and issubclass(inner, Section) else "names and values"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "keys below"
    return {str: "text", bool: "on, off", int: "number", float: "number", SecretStr: "secret"}.get(annotation, "value")


def _unit(item: object) -> str | None:
    parser = getattr(getattr(item, "func", None), "__name__", "")
    return {"parse_count": "count", "parse_size": "size", "parse_duration": "duration"}.get(parser)


def commands_page() -> str:
    """The reference of the command line, from the commands' own help."""
    lines = [
        "# Commands",
        "",
        "<!-- written by `make docs` from the help texts in src/lmtower/cli/ -->",
        "",
        "```text",
        help_of(()),
        "```",
    ]
    for group in GROUPS:
        for name in (name for name, verb in COMMANDS.items() if verb.group == group):
            for words in _commands(name):
                lines += ["", f"## lmtower {' '.join(words)}", "", "```text", help_of(words), "```"]
    return "\n".join(lines) + "\n"


def _commands(name: str) -> Iterator[tuple[str, ...]]:
    from lmtower.cli.app import build

    yield (name,)
    for sub in getattr(build(name, COMMANDS[name]), "commands", {}):
        yield (name, sub)


def help_of(words: tuple[str, ...]) -> str:
    """What ``lmtower WORDS --help`` prints."""
    out = StringIO()
    with redirect_stdout(out), patch.dict("os.environ", {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1"}):
        main([*words, "--help"])
    return out.getvalue().strip()


if __name__ == "__main__":
    for path, text in pages().items():
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
            print(f"wrote {path.name}")
    sys.exit(0)
