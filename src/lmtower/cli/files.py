"""Rendered files: plain data becomes YAML or JSON by the path's ending, and goes to a folder or to stdout."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmtower.errors import TowerError

_LONG = 4096  # never fold long lines: argv and PromQL stay readable and greppable


def as_text(path: str, content: Any, header: str = "") -> str:
    """The content of one file. Strings are written as they are; a list under ``.yaml`` is several documents."""
    if isinstance(content, str):
        return content
    if path.endswith(".json"):
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    documents = content if isinstance(content, list) else [content]
    comment = "".join(f"# {line}\n" for line in header.splitlines())
    return comment + "---\n".join(_yaml(document) for document in documents)


def _yaml(document: Any) -> str:
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = _LONG
    yaml.default_flow_style = False
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.ignore_aliases = lambda _: True
    stream = io.StringIO()
    yaml.dump(_readable(document), stream)
    return stream.getvalue()


def _readable(value: Any) -> Any:
    """Text of several lines as a block, so that a rendered unit or prompt can be read and compared."""
    from ruamel.yaml.scalarstring import LiteralScalarString

    if isinstance(value, Mapping):
        return {name: _readable(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_readable(each) for each in value]
    return LiteralScalarString(value) if isinstance(value, str) and "\n" in value else value


def emit(files: Mapping[str, Any], out: Path | None, header: str = "") -> None:
    """Write the files under ``out`` and name them, or print them all. Raises TowerError when writing fails."""
    for path, content in files.items():
        text = as_text(path, content, header)
        if out is None:
            print(f"# ==> {path} <==\n{text}" if len(files) > 1 else text, end="" if text.endswith("\n") else "\n")
            continue
        target = out / path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, "utf-8")
        except OSError as exc:
            raise TowerError(f"{target} cannot be written: {exc.strerror or exc}.") from exc
        print(target)
