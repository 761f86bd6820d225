"""``lmtower import``: other gateways' configuration as a tower file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lmtower.cli.files import as_text
from lmtower.cli.globals import group
from lmtower.errors import Refused

app = group()


@app.callback()
def _sub_commands() -> None:
    """Read the configuration of another gateway."""


@app.command()
def litellm(
    file: Annotated[Path, typer.Argument(help="LiteLLM's config.yaml.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Tower file to write. Default: print.")] = None,
) -> None:
    """Turn models, parameters, aliases, limits and prices into engines and personas.

    What the tower file cannot carry is listed on stderr, each line with what to do about it.
    """
    from lmtower.render import litellm_import

    imported = litellm_import.read(_read(file))
    if not imported.tower["personas"]:
        raise Refused("\n".join([f"{file}: nothing in it is an engine of yours.", *imported.lost]))
    text = as_text("tower.yaml", imported.tower, f"From {file.name}, by `lmtower import litellm`.")
    if out is None:
        print(text, end="")
    elif out.exists():
        raise Refused(f"{out} is there already; choose another --out.")
    else:
        out.write_text(text, "utf-8")
        count = len(imported.tower["personas"])
        print(f"{out}: {count} persona{'' if count == 1 else 's'}. Next: lmtower check --config {out}")
    for line in imported.lost:
        print(f"not carried: {line}", file=sys.stderr)


def _read(file: Path) -> dict[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        found = YAML(typ="safe").load(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise Refused(f"{file} cannot be read: {exc}.") from exc
    except YAMLError as exc:
        raise Refused(f"{file} is not YAML: {exc}") from exc
    if not isinstance(found, dict):
        raise Refused(f"{file}: not a LiteLLM configuration (a mapping with model_list).")
    return found
