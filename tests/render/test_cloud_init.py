"""User-data of the tower VM: checked by cloud-init itself."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lmtower.cli.files import as_text
from lmtower.render import cloud_init

TOWER = "engines:\n  mine: {url: 'http://10.0.0.5:8100', model: m, api_key: env:ENGINE_KEY}\n"


def document(**more: Any) -> dict[str, Any]:
    """User-data with a tower file, a prompt and a secret."""
    return cloud_init.user_data(
        TOWER,
        {"prompts/plan.md": "Plan first.\nThen act: 100 %.\n"},
        requirement="lmtower==0.1.0",
        secrets=["ENGINE_KEY"],
        **more,
    )


def written(path: str) -> dict[str, Any]:
    """The entry of ``write_files``."""
    (found,) = [each for each in document()["write_files"] if each["path"] == path]
    return found


def test_tower_file_and_prompts_arrive_unchanged() -> None:
    """Content is text, not a template; the service's group may read it, the world may not."""
    assert written("/etc/lmtower/tower.yaml")["content"] == TOWER
    assert written("/etc/lmtower/prompts/plan.md")["content"] == "Plan first.\nThen act: 100 %.\n"
    assert written("/etc/lmtower/tower.yaml")["permissions"] == "0640"


def test_secrets_are_lines_to_fill_in() -> None:
    """User-data is no place for a key."""
    assert written("/etc/lmtower/secrets.env")["content"] == "ENGINE_KEY=\n"
    assert written("/etc/lmtower/secrets.env")["permissions"] == "0600"


def test_files_of_the_group_are_written_after_the_user_exists() -> None:
    """cloud-init writes files before it makes users, unless they are deferred."""
    assert all(each.get("defer") for each in document()["write_files"] if "lmtower" in each.get("owner", ""))


def test_ssh_keys_are_optional() -> None:
    """Proxmox can give them, too."""
    assert "ssh_authorized_keys" not in document()
    assert document(ssh_keys=["ssh-ed25519 AAAA me"])["ssh_authorized_keys"] == ["ssh-ed25519 AAAA me"]


def test_tower_file_is_checked_before_it_is_served() -> None:
    """A wrong file shows in the VM's log, not as a service that restarts for ever."""
    commands = document()["runcmd"]
    assert (
        commands.index(["/opt/lmtower/bin/lmtower", "check", "--config", "/etc/lmtower/tower.yaml"]) < len(commands) - 1
    )


@pytest.mark.tools
def test_cloud_init_accepts_the_document(tmp_path: Path) -> None:
    """``cloud-init schema`` of Debian reads what ``lmtower render cloud-init`` writes."""
    program = shutil.which("cloud-init")
    if program is None:
        pytest.skip("cloud-init is not installed")
    path = tmp_path / "user-data"
    path.write_text(cloud_init.HEADER + "\n" + as_text("user-data.yaml", document(ssh_keys=["ssh-ed25519 AAAA me"])))
    done = subprocess.run([program, "schema", "--config-file", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    path.write_text(cloud_init.HEADER + "\n" + json.dumps({"packages": {"not": "a list"}}))
    done = subprocess.run([program, "schema", "--config-file", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
