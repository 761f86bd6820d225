"""cloud-init for the tower VM: a small Debian that installs lmtower and serves, without a hand on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmtower.render.systemd import Paths, tower_unit

HEADER = "#cloud-config"


def user_data(
    tower_file: str,
    files: Mapping[str, str],
    *,
    requirement: str,
    secrets: Sequence[str] = (),
    ssh_keys: Sequence[str] = (),
    hostname: str = "lmtower",
) -> dict[str, Any]:
    """The document; write it under ``HEADER``. ``files`` are the prompts that the tower file names, by relative path.

    ``secrets`` are names of environment variables that the tower file reads: they get an empty line in
    ``/etc/lmtower/secrets.env`` to be filled in, because user-data can be read by everybody on the VM.
    """
    paths = Paths()
    folder = paths.config.rpartition("/")[0]
    written: list[dict[str, Any]] = [
        {"path": paths.config, "content": tower_file, "owner": "root:lmtower", "permissions": "0640", "defer": True}
    ]
    for path, text in files.items():
        written.append(
            {"path": f"{folder}/{path}", "content": text, "owner": "root:lmtower", "permissions": "0640", "defer": True}
        )
    empty = "".join(f"{name}=\n" for name in secrets)
    written.append(
        {"path": paths.secrets, "content": empty, "owner": "root:root", "permissions": "0600", "defer": True}
    )
    written.append({"path": "/etc/systemd/system/lmtower.service", "content": tower_unit(paths), "permissions": "0644"})
    document: dict[str, Any] = {
        "hostname": hostname,
        "package_update": True,
        "package_upgrade": True,
        "packages": ["python3-venv", "ca-certificates", "qemu-guest-agent", "unattended-upgrades"],
        "users": ["default", {"name": "lmtower", "system": True, "homedir": paths.data, "shell": "/usr/sbin/nologin"}],
        "write_files": written,
        "runcmd": [
            ["python3", "-m", "venv", "/opt/lmtower"],
            ["/opt/lmtower/bin/pip", "install", "--no-cache-dir", requirement],
            [paths.program, "check", "--config", paths.config],
            ["systemctl", "daemon-reload"],
            ["systemctl", "enable", "--now", "qemu-guest-agent", "lmtower"],
        ],
    }
    if ssh_keys:
        document["ssh_authorized_keys"] = list(ssh_keys)
    return document
