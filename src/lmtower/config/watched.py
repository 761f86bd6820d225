"""Whether a file has changed: what the file system says of it, taken before it is read."""

from __future__ import annotations

from pathlib import Path

Stamp = tuple[int, ...]
"""Empty for a file that is not there."""


def stamp(path: Path) -> Stamp:
    """Another one when the file is written, replaced by another, or gone.

    Symbolic links are followed: Kubernetes swaps one to change all files of a ConfigMap at once. The time alone says
    too little: all files of some packagers have the same.
    """
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev
