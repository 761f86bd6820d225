"""What a tower's process sets for itself before it serves."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

_SHOW = "import resource; from lmtower.cli.serving import raise_file_limit; "


@pytest.mark.parametrize(("soft", "hard", "expected"), [(256, 2048, 2048), (256, 256, 256), (2048, 4096, 4096)])
def test_tower_may_open_as_many_files_as_the_system_allows(soft: int, hard: int, expected: int) -> None:
    """Shells start programs with a soft limit that a few hundred streams reach."""
    program = f"{_SHOW} raise_file_limit(); print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)),
    )
    assert int(done.stdout) == expected
