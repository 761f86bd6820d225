"""systemd units: the tower, the engines of each node, the node agent."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmtower.engines.spec import LaunchSpec
from lmtower.render.secrets import env_example, variable

_HARDENING = """\
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes
LockPersonality=yes
"""


@dataclass(frozen=True, slots=True)
class Paths:
    """Where things are installed on the tower and on the nodes."""

    program: str = "/opt/lmtower/bin/lmtower"
    config: str = "/etc/lmtower/tower.yaml"
    secrets: str = "/etc/lmtower/secrets.env"
    data: str = "/var/lib/lmtower"
    compose: str = "/etc/lmtower/compose.yaml"
    admin_key: str = "/etc/lmtower/admin.key"


def files(
    specs: Sequence[LaunchSpec],
    reserves: Mapping[str, int | None],
    importance: Mapping[str, int],
    admin_url: str,
    paths: Paths | None = None,
    *,
    up: bool = False,
) -> dict[str, Any]:
    """``tower/*.service`` for the tower VM, ``NODE/*.service`` for each node. ``reserves`` names every node.

    With ``up`` the tower starts the engines itself, over ssh, and the nodes only get their agents.
    """
    paths = paths or Paths()
    found: dict[str, Any] = {"tower/lmtower.service": tower_unit(paths, up=up)}
    for node, reserve in reserves.items():
        here = [spec for spec in specs if spec.node == node]
        ranks = {spec.engine: importance[spec.engine] for spec in here if spec.engine in importance}
        found[f"{node}/lmtower-node-agent.service"] = agent_unit(node, reserve, ranks, admin_url, paths)
        if up:
            continue
        if any(spec.image for spec in here):
            found[f"{node}/lmtower-engines.service"] = compose_unit(paths)
        before: str | None = None
        processes = [spec for spec in here if spec.image is None]
        for spec in processes:
            found[f"{node}/{spec.name}.service"] = process_unit(spec, before, paths)
            before = spec.name
        example = env_example(processes)
        if example:
            found[f"{node}/secrets.env.example"] = example
    return found


def tower_unit(paths: Paths, *, up: bool = False) -> str:
    """The gateway, and with ``up`` the engines, too. A reload (SIGHUP) reads the tower file again; requests in flight
    finish before a stop.
    """
    # A start of all engines may take an hour; containers run on when the tower stops, and are found again.
    verb, hardening = ("up --yes", _HARDENING.replace("PrivateDevices=yes\n", "")) if up else ("serve", _HARDENING)
    return f"""\
[Unit]
Description=lmtower {"tower" if up else "gateway"}
Documentation=file://{paths.config}
Wants=network-online.target
After=network-online.target

[Service]
Type=exec
User=lmtower
Group=lmtower
ExecStartPre={paths.program} check --config {paths.config}
ExecStart={paths.program} {verb} --config {paths.config} --data-dir {paths.data}
ExecReload=/bin/kill -HUP $MAINPID
EnvironmentFile=-{paths.secrets}
StateDirectory=lmtower
StateDirectoryMode=0700
Restart=always
RestartSec={10 if up else 2}
TimeoutStopSec=45
LimitNOFILE=65536
AmbientCapabilities=CAP_NET_BIND_SERVICE
{hardening}
[Install]
WantedBy=multi-user.target
"""


def agent_unit(
    node: str, reserve_bytes: int | None, importance: Mapping[str, int], admin_url: str, paths: Paths
) -> str:
    """The node agent. Root, because the watchdog stops containers and reads every process's cgroup."""
    words = [paths.program, "node-agent", "--node", node]
    if reserve_bytes:
        words += ["--reserve", str(reserve_bytes)]
    words += ["--tower", admin_url, "--key-file", paths.admin_key]
    for engine, rank in importance.items():
        words += ["--importance", f"{engine}={rank}"]
    return f"""\
[Unit]
Description=lmtower node agent of {node}
Wants=network-online.target
After=network-online.target docker.service

[Service]
Type=exec
ExecStart={_command(words)}
Restart=always
RestartSec=5
# The watchdog must run when memory does not: never swapped out, never chosen by the kernel.
OOMScoreAdjust=-1000
LimitMEMLOCK=infinity
Nice=-10

[Install]
WantedBy=multi-user.target
"""


def compose_unit(paths: Paths) -> str:
    """The containers of a node, as ``lmtower render compose`` wrote them."""
    return f"""\
[Unit]
Description=lmtower engines
Requires=docker.service
Wants=network-online.target
After=network-online.target docker.service

[Service]
Type=oneshot
RemainAfterExit=yes
EnvironmentFile=-{paths.secrets}
ExecStart=/usr/bin/docker compose -f {paths.compose} up --detach --wait --wait-timeout 7200
ExecStop=/usr/bin/docker compose -f {paths.compose} down
TimeoutStartSec=7200

[Install]
WantedBy=multi-user.target
"""


def process_unit(spec: LaunchSpec, before: str | None, paths: Paths) -> str:
    """An engine that runs as a process. It starts after the one before it in the plan."""
    argv = [*spec.argv, "--stay"] if "lmtower.nodes.embedded" in spec.argv else list(spec.argv)
    names = {name: variable(spec, name) for name in spec.secrets}
    if names:
        # Environment= cannot refer to a variable of the file, so a shell hands the secret over under its real name.
        handed = " ".join(f'{name}="${own}"' for name, own in names.items())
        command = f"/bin/sh -c {_quote(f'exec env {handed} {_shell(argv)}')}"
    else:
        command = _command(argv)
    environment = "".join(f"Environment={_quote(f'{name}={value}')}\n" for name, value in spec.env.items())
    after = f" {before}.service" if before else ""
    return f"""\
[Unit]
Description=lmtower engine {spec.engine}
Wants=network-online.target
After=network-online.target{after}

[Service]
Type=exec
User=lmtower
Group=lmtower
ExecStart={command}
{environment}EnvironmentFile=-{paths.secrets}
StateDirectory=lmtower
Restart={"on-failure" if spec.restart != "always" else "always"}
RestartSec=10
LimitMEMLOCK=infinity

[Install]
WantedBy=multi-user.target
"""


def _command(words: Sequence[str]) -> str:
    return " ".join(_quote(word) for word in words)


def _quote(word: str) -> str:
    """One word of a unit file: ``%`` and ``$`` mean themselves, spaces and quotes are kept."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    plain = all(c.isalnum() or c in "-_./:=,@+" for c in escaped)
    return escaped if plain and escaped else f'"{escaped}"'


def _shell(words: Sequence[str]) -> str:
    return " ".join(shlex.quote(word) for word in words)
