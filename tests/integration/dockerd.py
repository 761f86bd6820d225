"""A Docker engine of our own for tests: private socket and data, no bridge, images made from a tiny tar.

Containers use the host's network and see the host's programs and libraries read-only, so that nothing is pulled.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from lmtower.nodes.bundled import bundled_model

REPOSITORY = Path(__file__).parents[2]
IMAGE = "lmtower-test:1"
_FLAGS = ("--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver", "vfs")


def missing() -> str | None:
    """Why no Docker engine can be started here; None when one can."""
    if os.geteuid() != 0:
        return "needs root"
    if shutil.which("dockerd") is None:
        return "needs dockerd (Debian's docker.io)"
    return None


class Dockerd:
    """A running Docker engine. ``socket`` is a unix:// URL."""

    def __init__(self, folder: Path, command: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.socket = f"unix://{folder}/docker.sock"
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        places = [f"--{name}={self.folder}/{name}" for name in ("data-root", "exec-root")]
        argv = [*self._command, "dockerd", *_FLAGS, "-H", self.socket, *places, f"--pidfile={self.folder}/pid"]
        with (self.folder / "dockerd.log").open("ab") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 30
        while self.docker("version", check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "dockerd.log").read_text()[-2000:])
            time.sleep(0.1)

    def restart(self, with_signal: int) -> None:
        """End it as the signal does, containers as they are, and start it again."""
        assert self._process is not None
        self._process.send_signal(with_signal)
        self._process.wait(60)
        # killed, it leaves its containerd dead; where nobody reaps that one, its pid would look alive
        (self.folder / "exec-root/containerd/containerd.pid").unlink(missing_ok=True)
        self.start()

    def stop(self) -> None:
        """Remove every container, then end the engine."""
        if self._process is None:
            return
        names = self.docker("ps", "-aq", check=False).stdout.split()
        if names:
            self.docker("rm", "-f", *names, check=False)
        self._process.terminate()
        self._process.wait(30)
        self._process = None
        # the namespace of containers with the host's network stays mounted, and a killed engine's data folder
        mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for place in reversed([each for each in mounted if each.startswith(f"{self.folder}/")]):
            subprocess.run(["umount", "--lazy", place], check=False, capture_output=True)

    def docker(
        self, *arguments: str, check: bool = True, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the docker command line against this engine."""
        done = subprocess.run(["docker", "-H", self.socket, *arguments], input=stdin, capture_output=True, check=False)
        if check and done.returncode:
            raise RuntimeError(done.stderr.decode())
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    def import_image(self, name: str = IMAGE) -> None:
        """An image that holds nothing but empty folders and links; the host's files are mounted over them."""
        self.docker("import", "-", name, stdin=tiny_tar())

    def load_image(self, name: str, architecture: str) -> None:
        """The same image, said to be built for another processor."""
        self.docker("load", stdin=saved_image(name, architecture))


def tiny_tar() -> bytes:
    """Folders and links of a root file system, a few hundred bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for folder in ("dev", "etc", "proc", "root", "sys", "tmp", "usr", "var"):
            info = tarfile.TarInfo(folder)
            info.type, info.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(info)
        for name in ("bin", "lib", "lib64", "sbin"):
            if Path("/", name).is_symlink():
                info = tarfile.TarInfo(name)
                info.type, info.linkname = tarfile.SYMTYPE, os.readlink(f"/{name}")
            else:
                info = tarfile.TarInfo(name)
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
        serve = '#!/bin/sh\nshift\nexec python3 -m vllm.entrypoints.openai.api_server --model "$@"\n'
        info = tarfile.TarInfo("usr-bin/vllm")  # the CPU wheel's own script looks for a package named vllm
        info.size, info.mode = len(serve), 0o755
        tar.addfile(info, io.BytesIO(serve.encode()))
        for name, text in {"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "etc/group": "root:x:0:\n"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


def saved_image(name: str, architecture: str) -> bytes:
    """An image as ``docker save`` writes it."""
    layer = tiny_tar()
    layers = [f"sha256:{hashlib.sha256(layer).hexdigest()}"]
    config = {"architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": layers}}
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    files = {
        "layer.tar": layer,
        "config.json": json.dumps(config).encode(),
        "manifest.json": json.dumps(manifest).encode(),
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, content in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def host_mounts(*more: Path) -> tuple[str, ...]:
    """The host's programs, this Python, the repository and its environments, all read-only."""
    places = ["/usr", "/etc/ssl", *(f"/{name}" for name in ("lib", "lib64", "bin") if not Path("/", name).is_symlink())]
    places += [sys.base_prefix, str(REPOSITORY), str(bundled_model("smollm2").parents[1]), *map(str, more)]
    unique = [place for place in dict.fromkeys(places) if Path(place).exists() and not place.startswith("/usr/")]
    return tuple(f"{place}:{place}:ro" for place in unique)
