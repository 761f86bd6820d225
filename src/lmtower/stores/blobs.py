"""The bytes of uploaded files, named by their SHA-256, so that the same content is kept once."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pyarrow import fs

_PART = 1 << 20


class Blobs:
    """A folder, or a bucket next to the vectors when several towers share them.

    ``spool`` is a local folder for what is on its way; it is emptied at start.
    """

    def __init__(self, uri: str, spool: Path) -> None:
        self._filesystem: fs.FileSystem = fs.LocalFileSystem()
        self._root = uri
        if "://" in uri:
            self._filesystem, self._root = fs.FileSystem.from_uri(uri)
        self._local = isinstance(self._filesystem, fs.LocalFileSystem)
        self._spool = spool
        self._arriving: Counter[str] = Counter()
        self._lock = threading.Lock()
        shutil.rmtree(spool, ignore_errors=True)
        spool.mkdir(parents=True)
        self._filesystem.create_dir(self._root, recursive=True)

    @contextmanager
    def put(self, source: IO[bytes]) -> Iterator[tuple[str, int]]:
        """Hash and length of what was stored. Complete or not there at all, whenever the process dies.

        It is not deleted before the context ends: enter in the catalogue there that it is needed.
        """
        digest = hashlib.sha256()
        with tempfile.NamedTemporaryFile(dir=self._spool, delete=False) as target:
            while part := source.read(_PART):
                digest.update(part)
                target.write(part)
            size = target.tell()
            target.flush()
            os.fsync(target.fileno())
        name = digest.hexdigest()
        with self._lock:
            self._arriving[name] += 1
        try:
            self._store(Path(target.name), name)
            yield name, size
        finally:
            with self._lock:
                self._arriving[name] -= 1
                self._arriving += Counter()  # forget those that count nothing

    def _store(self, file: Path, name: str) -> None:
        place = self._place(name)
        if self._local:
            Path(place).parent.mkdir(parents=True, exist_ok=True)
            file.replace(place)
            return
        fs.copy_files(str(file), place, source_filesystem=fs.LocalFileSystem(), destination_filesystem=self._filesystem)
        file.unlink()

    @contextmanager
    def path(self, name: str) -> Iterator[Path]:
        """A local path of the content, for as long as the context lasts. Raises FileNotFoundError."""
        if self._local:
            yield Path(self._place(name))
            return
        with tempfile.NamedTemporaryFile(dir=self._spool) as copy:
            with self._filesystem.open_input_stream(self._place(name)) as source:
                shutil.copyfileobj(source, copy, _PART)
            copy.flush()
            yield Path(copy.name)

    def parts(self, name: str) -> Iterator[bytes]:
        with self._filesystem.open_input_stream(self._place(name)) as source:
            while part := source.read(_PART):
                yield part

    def delete(self, name: str, needed: Callable[[str], bool]) -> None:
        """Unless it is ``needed``, or just arrives once more."""
        with self._lock:
            if not self._arriving[name] and not needed(name):
                self._delete(name)

    def _delete(self, name: str) -> None:
        if self._filesystem.get_file_info(self._place(name)).type is not fs.FileType.NotFound:
            self._filesystem.delete_file(self._place(name))

    def _place(self, name: str) -> str:
        return f"{self._root}/{name[:2]}/{name}"
