"""Who takes part: how each gateway is set up in front of the mock engine, and what counts as having done its work."""

from __future__ import annotations

import compileall
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import bodies
from benchmarks.place import CONTESTANT_CORE, MOCK_PORT, PORT, PROJECT, WORK
from benchmarks.processes import BenchError, Process

UPSTREAM = f"http://127.0.0.1:{MOCK_PORT}"
# Versions that RESULTS.md was measured with; nginx is Debian's.
PINS = {
    "vllm-router": "vllm-router==0.1.17",
    "sglang-router": "sglang-router==0.3.2",
    "litellm": "litellm[proxy]==1.106.2",
}
UPSTREAM_KEY = "upstream-secret"


@dataclass
class Contestant:
    """A gateway that can be started. ``merges``: it must inject the persona and the engine's key, and record usage."""

    name: str
    argv: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    port: int = PORT
    model: str = "bench-model"
    key: str = "sk-bench"
    merges: bool = False
    version: str = ""

    def start(self) -> Process | None:
        """None for the mock itself."""
        if not self.argv:
            return None
        return Process(self.argv, core=CONTESTANT_CORE, log=WORK / f"{self.name}.log", env=self.env)


def _output(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip()


def direct() -> Contestant:
    return Contestant("direct", port=MOCK_PORT, version="the mock engine alone")


def nginx() -> Contestant:
    program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if program is None:
        raise BenchError("nginx is not installed: apt-get install nginx-light")
    folder = WORK / "nginx"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = "\n".join(
        f"  {kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(f"""daemon off; worker_processes 1; {user} pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 8192; }}
http {{
  access_log off; tcp_nodelay on; keepalive_requests 100000000; client_max_body_size 100m; client_body_buffer_size 8m;
{temporary}
  upstream engine {{ server 127.0.0.1:{MOCK_PORT}; keepalive 2048; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{PORT} backlog=4096;
    location / {{
      proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_request_buffering off;
    }}
  }}
}}
""")
    version = _output(program, "-v").rpartition("/")[2]
    return Contestant("nginx", [program, "-c", str(folder / "nginx.conf"), "-p", str(folder)], version=version)


def _venv(name: str) -> Path:
    """The neighbour's own virtual environment, made on first use with the pinned version."""
    folder = WORK / "venvs" / name
    mark = folder / ".pinned"
    if mark.exists() and mark.read_text() == PINS[name]:
        return folder / "bin"
    print(f"installing {PINS[name]} into {folder} (once)", flush=True)
    pip = [str(folder / "bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    for argv in ([sys.executable, "-m", "venv", "--clear", str(folder)], [*pip, PINS[name]]):
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise BenchError(f"cannot install {PINS[name]}: {reason}")
    mark.write_text(PINS[name])
    return folder / "bin"


def vllm_router() -> Contestant:
    argv = [str(_venv("vllm-router") / "vllm-router"), "--host", "127.0.0.1", "--port", str(PORT)]
    argv += ["--worker-urls", UPSTREAM, "--policy", "round_robin", "--log-level", "error"]
    argv += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(PORT + 1)]
    return Contestant("vllm-router", argv, version=PINS["vllm-router"].partition("==")[2])


def sglang_router() -> Contestant:
    argv = [str(_venv("sglang-router") / "sglang-router"), "launch", "--host", "127.0.0.1", "--port", str(PORT)]
    argv += ["--worker-urls", UPSTREAM, "--policy", "round_robin", "--log-level", "error"]
    argv += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(PORT + 1)]
    return Contestant("sglang-router", argv, version=PINS["sglang-router"].partition("==")[2])


def litellm() -> Contestant:
    programs = _venv("litellm")
    config = WORK / "litellm.json"  # JSON is YAML
    parameters = {"model": "hosted_vllm/bench-model", "api_base": f"{UPSTREAM}/v1", "api_key": UPSTREAM_KEY}
    config.write_text(json.dumps({
        "model_list": [{"model_name": "bench-model", "litellm_params": parameters}],
        "general_settings": {"master_key": "sk-bench"},
        "litellm_settings": {"telemetry": False, "set_verbose": False},
    }))  # fmt: skip
    argv = [str(programs / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(PORT)]
    env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "NO_DOCS": "True"}
    return Contestant("litellm", argv, env, version=PINS["litellm"].partition("==")[2])


def lmtower() -> Contestant:
    """Our own, with everything on: keys, persona merge, admission, journal, metrics, usage, cancel."""
    folder = WORK / "lmtower"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    engine = {"url": UPSTREAM, "model": "bench-model", "api_key": "env:BENCH_UPSTREAM_KEY", "slots": 4096}
    persona = {"engine": "mock", "system": "file:system.md", "temperature": 0.3, "enforce": {"top_k": 17}}
    (folder / "system.md").write_text(bodies.SYSTEM)
    (folder / "tower.yaml").write_text(json.dumps({
        "gateway": {"listen": f"127.0.0.1:{PORT}", "admin": f"127.0.0.1:{PORT + 1}"},
        "engines": {"mock": engine | {"lanes": {"queue": 4096}}},
        "personas": {"bench-persona": persona},
    }))  # fmt: skip
    # as pip leaves an installed package; an editable one may have no bytecode when its start is timed
    compileall.compile_dir(PROJECT / "src" / "lmtower", quiet=1)
    made = _tower("key", "create", "bench")
    key = made.stdout.strip()
    if made.returncode or not key.startswith("sk-"):
        raise BenchError(f"lmtower key create: {made.stderr or made.stdout}")
    commit = _output("git", "-C", str(PROJECT), "rev-parse", "--short", "HEAD")
    argv, env = [*_command("serve")], {"BENCH_UPSTREAM_KEY": UPSTREAM_KEY}
    return Contestant("lmtower", argv, env, model="bench-persona", key=key, merges=True, version=commit)


def _command(*words: str) -> list[str]:
    folder = WORK / "lmtower"
    program = str(Path(sys.executable).parent / "lmtower")
    return [program, *words, "-c", str(folder / "tower.yaml"), "--data-dir", str(folder / "data")]


def _tower(*words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "BENCH_UPSTREAM_KEY": UPSTREAM_KEY}
    return subprocess.run(_command(*words), capture_output=True, text=True, env=env, check=False)


def recorded() -> dict[str, int]:
    """Requests in lmtower's ledger by outcome."""
    done = _tower("usage", "--by", "outcome", "--format", "json")
    if done.returncode:
        raise BenchError(f"lmtower usage: {done.stderr}")
    rows = json.loads(done.stdout)
    return {row["outcome"]: int(row["requests"]) for row in (rows if isinstance(rows, list) else rows["rows"])}


EVERYBODY = {
    "direct": direct,
    "nginx": nginx,
    "vllm-router": vllm_router,
    "sglang-router": sglang_router,
    "lmtower": lmtower,
    "litellm": litellm,
}
