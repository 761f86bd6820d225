"""One engine over several nodes: vLLM's tensor parallelism over Ray, as a head and workers.

The head starts Ray and, in the same container, vLLM, whose placement group waits until enough GPUs have joined.
Workers only join. Every container must know its own address (``VLLM_HOST_IP``), and on machines with several
network cards NCCL must be told which one to use: ``engines.X.env: {NCCL_SOCKET_IFNAME: enp1s0f1np1}``.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

PORT = 6379


def environment(address: str) -> Mapping[str, str]:
    """What Ray and vLLM need on each node. Ray's own memory monitor would kill a worker on unified memory."""
    return {"VLLM_HOST_IP": address, "RAY_memory_monitor_refresh_ms": "0", "RAY_USAGE_STATS_ENABLED": "0"}


def head_command(serve: Sequence[str], address: str, gpus: int = 1) -> tuple[str, ...]:
    """Ray's head, then vLLM in its place, so that a stop reaches vLLM itself."""
    ray = ["ray", "start", "--head", f"--node-ip-address={address}", f"--port={PORT}", f"--num-gpus={gpus}"]
    return ("bash", "-c", f"{shlex.join(ray)} && exec {shlex.join(serve)}")


def worker_command(address: str, head: str, gpus: int = 1) -> tuple[str, ...]:
    """A worker joins the head and stays; it leaves, and is started again, when the head goes."""
    joined = ("ray", "start", f"--address={head}:{PORT}", f"--node-ip-address={address}")
    return (*joined, f"--num-gpus={gpus}", "--block")
