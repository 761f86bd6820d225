"""A folder on disk against a store: which files are new, changed or gone. Pure but for reading the files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SKIPPED = frozenset(("node_modules", "__pycache__", "site-packages"))


@dataclass(frozen=True, slots=True)
class Local:
    """A file on disk; ``name`` is what it is called in the store."""

    path: Path
    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Difference:
    """``stale`` are ids of store files whose content is no longer on disk; ``same`` counts what needs nothing."""

    upload: tuple[Local, ...]
    stale: tuple[str, ...]
    same: int


def files_under(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Files with their names: those of a folder are named relative to it. Hidden ones and links are left out."""
    for path in paths:
        if path.is_file():
            yield path, path.name
        for base, folders, names in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in SKIPPED)
            for name in sorted(names):
                file = Path(base, name)
                if not name.startswith(".") and file.is_file() and not file.is_symlink() and file.stat().st_size:
                    yield file, file.relative_to(path).as_posix()


def local(found: Iterable[tuple[Path, str]]) -> list[Local]:
    files = []
    for path, name in found:
        with path.open("rb") as file:
            files.append(Local(path, name, hashlib.file_digest(file, "sha256").hexdigest()))
    return files


def compare(files: Sequence[Local], entries: Sequence[Mapping[str, Any]]) -> Difference:
    """``entries`` are the store's files, which carry ``path`` and ``sha256`` as attributes since they were added."""
    known: dict[str, list[tuple[str, str, str]]] = {}
    for entry in entries:
        attributes = entry.get("attributes") or {}
        if "path" in attributes and "sha256" in attributes:
            item = (str(attributes["sha256"]), str(entry["id"]), str(entry["status"]))
            known.setdefault(str(attributes["path"]), []).append(item)
    upload = []
    stale = []
    same = 0
    for file in files:
        old = known.pop(file.name[:512], [])
        current = [one for one in old if one[0] == file.sha256 and one[2] not in ("failed", "cancelled")]
        stale += [one[1] for one in old if one not in current[:1]]
        same += bool(current)
        if not current:
            upload.append(file)
    gone = [one[1] for items in known.values() for one in items]
    return Difference(tuple(upload), tuple(stale + gone), same)
