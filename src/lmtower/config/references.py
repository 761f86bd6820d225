"""``env:NAME`` and ``file:PATH`` become what they stand for; secrets that are written inline are refused.

A reference may stand wherever the tower file takes text, except in texts that are sent to models as they
are. Paths are relative to the tower file; so are those of files that are used where they lie. The end of a file
that is read is trimmed, so that the newline that editors add never changes a prompt's bytes or spoils a key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

from lmtower.config.source import Path, Source
from lmtower.config.watched import Stamp, stamp

_ENV = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)$")
_FILE = re.compile(r"file:\s*(\S.*)$")
_VERBATIM = {"prefix", "stop", "description"}
_PATHS: tuple[Path, ...] = (("gateway", "tls", "cert"), ("gateway", "tls", "key"))
_SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY)$", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"^[a-z][a-z0-9+.-]*://[^/@:\s]*:[^/@\s]+@", re.IGNORECASE)
_MAX_FILE_BYTES = 4 * 1024**2


def resolve(source: Source, folder: FilePath, environ: Mapping[str, str]) -> dict[FilePath, Stamp]:
    """Replace references in ``source.data`` in place and return the files that they name. Problems go to ``source``."""
    resolver = _Resolver(source, folder, environ)
    resolver.walk(source.data, ())
    return resolver.files


class _Resolver:
    def __init__(self, source: Source, folder: FilePath, environ: Mapping[str, str]) -> None:
        self.source, self.folder, self.environ = source, folder, environ
        self.files: dict[FilePath, Stamp] = {}

    def walk(self, value: Any, path: Path) -> None:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in list(pairs):
            here = (*path, key)
            if isinstance(item, dict | list):
                self.walk(item, here)
            elif isinstance(item, str) and here in _PATHS:
                value[key] = self._path(item)
            elif isinstance(item, str) and not _VERBATIM.intersection(here):
                value[key] = self._text(item, here)

    def _path(self, text: str) -> str:
        file = self.folder / FilePath(text.removeprefix("file:").strip()).expanduser()
        self.files[file] = stamp(file)
        return str(file)

    def _text(self, text: str, path: Path) -> str | None:
        if match := _ENV.match(text):
            return self._from_environment(match[1], path)
        if match := _FILE.match(text):
            return self._from_file(match[1].strip(), path)
        if inline := _inline_secret(path, text):
            self.source.problems.append(self.source.problem(path, inline))
            return None
        return text

    def _from_environment(self, name: str, path: Path) -> str | None:
        value = self.environ.get(name, "").strip()
        if not value:
            state = "empty" if name in self.environ else "not set"
            self._refuse(path, f"the environment variable {name} is {state}. Set it before lmtower starts.")
        return value or None

    def _from_file(self, name: str, path: Path) -> str | None:
        file = self.folder / FilePath(name).expanduser()
        self.files[file] = stamp(file)
        try:
            if file.stat().st_size > _MAX_FILE_BYTES:
                return self._refuse(path, f"{file} is larger than {_MAX_FILE_BYTES // 1024**2} MiB.")
            text = file.read_text("utf-8-sig").rstrip()
        except UnicodeDecodeError as exc:
            return self._refuse(path, f"{file} is not UTF-8 text (byte {exc.start}).")
        except OSError as exc:
            return self._refuse(path, f"cannot read {file}: {(exc.strerror or str(exc)).lower()}.")
        return text or self._refuse(path, f"{file} is empty.")

    def _refuse(self, path: Path, message: str) -> str | None:
        """Note the problem; the value is then None."""
        self.source.problems.append(self.source.problem(path, message))
        return None


def _inline_secret(path: Path, text: str) -> str | None:
    """What to say when this text is a secret in clear; never the text itself."""
    key = str(path[-1])
    if key == "api_key" or (_SECRET_NAME.search(key) and "env" in path):
        name = key.upper() if "env" in path else f"{str(path[1]).upper().replace('-', '_')}_API_KEY"
        return f"secrets are never written into the tower file. Write {key}: env:{name} or {key}: file:PATH"
    if _URL_PASSWORD.match(text):
        return f"there is a password in this URL. Write {key}: env:{key.upper()}_URL or {key}: file:PATH"
    return None
