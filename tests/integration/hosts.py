"""Two machines on one: a network namespace each, a cable between them, sshd and a Docker engine on the far one."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from tests.integration.dockerd import Dockerd
from tests.integration.dockerd import missing as docker_missing

NEAR, FAR = "10.77.0.1", "10.77.0.2"
SSH_PORT = 2222


def missing() -> str | None:
    """Why two machines cannot be made here; None when they can."""
    if reason := docker_missing():
        return reason
    for program in ("ip", "nsenter", "sshd", "ssh", "ssh-keygen", "curl"):
        if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") is None:
            return f"needs {program}"
    return None


class Hosts:
    """The near machine runs the tower, the far one the engines. ``address`` is the far one's in a tower file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = (f"lmt-near-{os.getpid()}", f"lmt-far-{os.getpid()}")
        self.dockerd = Dockerd(folder / "docker", command=self.inside("far"))
        socket = self.dockerd.socket.removeprefix("unix://")
        self.address = f"ssh://root@{FAR}:{SSH_PORT}{socket}"
        self._sshd: subprocess.Popen[bytes] | None = None

    def inside(self, which: str) -> tuple[str, ...]:
        """Command prefix that runs in a machine's network. Not ``ip netns exec``: that hides the cgroups."""
        name = self.names[0] if which == "near" else self.names[1]
        return ("nsenter", f"--net=/run/netns/{name}")

    def environ(self) -> dict[str, str]:
        """Environment of the near machine: an ``ssh`` that knows its key, as a person's would."""
        return {"PATH": f"{self.folder}/bin:{os.environ['PATH']}"}

    def start(self) -> None:
        """Lay the cable, start sshd and the Docker engine."""
        near, far = self.names
        for name in self.names:
            _run("ip", "netns", "add", name)
        _run("ip", "link", "add", "lmt0", "netns", near, "type", "veth", "peer", "name", "lmt1", "netns", far)
        for name, link, address in ((near, "lmt0", NEAR), (far, "lmt1", FAR)):
            _run("ip", "-n", name, "address", "add", f"{address}/24", "dev", link)
            _run("ip", "-n", name, "link", "set", link, "up")
            _run("ip", "-n", name, "link", "set", "lo", "up")
        self._start_sshd()
        self.dockerd.start()

    def cut(self) -> None:
        """Pull the cable."""
        _run("ip", "-n", self.names[0], "link", "set", "lmt0", "down")

    def mend(self) -> None:
        """Plug it in again."""
        _run("ip", "-n", self.names[0], "link", "set", "lmt0", "up")

    def stop(self) -> None:
        """End everything that was started, and take the machines away."""
        self.dockerd.stop()
        if self._sshd is not None:
            self._sshd.terminate()
            self._sshd.wait(10)
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    def _start_sshd(self) -> None:
        folder = self.folder / "ssh"
        folder.mkdir(mode=0o700)
        for name in ("host", "client"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
        shutil.copy(folder / "client.pub", folder / "authorized_keys")
        Path("/run/sshd").mkdir(exist_ok=True)
        settings = (
            f"Port {SSH_PORT}\nListenAddress {FAR}\nHostKey {folder}/host\n"
            f"AuthorizedKeysFile {folder}/authorized_keys\n"
            f"StrictModes no\nPermitRootLogin yes\nUsePAM no\nPidFile none\nMaxStartups 50\n"
        )
        (folder / "sshd_config").write_text(settings)
        client = (
            f"IdentityFile {folder}/client\nUserKnownHostsFile {folder}/known_hosts\n"
            "StrictHostKeyChecking accept-new\nLogLevel ERROR\n"
        )
        (folder / "config").write_text(client)
        wrapper = self.folder / "bin/ssh"
        wrapper.parent.mkdir()
        wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/config "$@"\n')
        wrapper.chmod(0o755)
        argv = [*self.inside("far"), "/usr/sbin/sshd", "-D", "-e", "-f", str(folder / "sshd_config")]
        with (folder / "sshd.log").open("wb") as log:
            self._sshd = subprocess.Popen(argv, stdout=log, stderr=log)
        probe = [*self.inside("near"), str(wrapper), "-p", str(SSH_PORT), f"root@{FAR}", "true"]
        deadline = time.monotonic() + 20
        while subprocess.run(probe, check=False, capture_output=True).returncode:
            if time.monotonic() > deadline:
                raise RuntimeError((folder / "sshd.log").read_text())
            time.sleep(0.1)


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)
