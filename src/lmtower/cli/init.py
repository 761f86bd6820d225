"""``lmtower init``: write an annotated tower file and its prompts. The presets are the repository's examples."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated

import typer

from lmtower.cli.globals import Globals
from lmtower.cli.output import print_json
from lmtower.errors import Refused

PRESETS = ("laptop", "dgx-spark")


def init(
    ctx: typer.Context,
    preset: Annotated[str, typer.Option(help=f"What to start from: {' or '.join(PRESETS)}.")] = PRESETS[0],
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")] = False,
) -> None:
    """Write an annotated tower file and its prompts, to the place that -c names (default ./tower.yaml)."""
    options: Globals = ctx.obj
    if preset not in PRESETS:
        raise Refused(f"no preset {preset!r}. There is {', '.join(PRESETS)}.")
    folder = options.config.parent
    sources = _files(files("lmtower") / "presets" / preset, Path())
    targets = {
        (options.config if path == Path("tower.yaml") else folder / path): text for path, text in sources.items()
    }
    there = [str(path) for path in targets if path.exists()]
    if there and not force:
        raise Refused(f"{', '.join(there)} is there already. Choose another place with -c, or overwrite with --force.")
    for path, text in targets.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
        except OSError as exc:
            raise Refused(f"cannot write {path}: {(exc.strerror or str(exc)).lower()}.") from exc
    if options.json:
        print_json({"preset": preset, "written": [str(path) for path in targets]})
        return
    print("\n".join(f"wrote {path}" for path in targets))
    flag = "" if options.config == Path("tower.yaml") else f" -c {options.config}"
    print(f"Next: lmtower check{flag}, then lmtower plan{flag}, then lmtower up{flag}")


def _files(folder: Traversable, path: Path) -> dict[Path, str]:
    found: dict[Path, str] = {}
    for item in sorted(folder.iterdir(), key=lambda item: (item.is_dir(), item.name)):
        if item.is_dir():
            found |= _files(item, path / item.name)
        elif item.name.endswith((".yaml", ".md")):
            found[path / item.name] = item.read_text("utf-8")
    return found
