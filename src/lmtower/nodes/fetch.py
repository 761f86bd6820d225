"""Fetching a model's weights ahead: a program for the engine's own Python, which knows the hub and its cache.

It prints lines ``DONE TOTAL`` in bytes while files arrive. A model that lies in the cache completely costs a second.
"""

from __future__ import annotations

from lmtower.engines.spec import LaunchSpec

PROGRAM = r"""
import os, sys, threading, time
from pathlib import Path
from huggingface_hub import HfApi, constants, snapshot_download
model = sys.argv[1]
try:
    snapshot_download(model, local_files_only=True)
    sys.exit(0)
except OSError:
    pass
info = HfApi().model_info(model, files_metadata=True)
wanted = [f for f in info.siblings if not f.rfilename.startswith(("original/", "metal/"))]
total = sum(f.size or 0 for f in wanted)
folder = Path(constants.HF_HUB_CACHE) / ("models--" + model.replace("/", "--")) / "blobs"
def watch():
    while True:
        done = sum(f.stat().st_size for f in folder.glob("*")) if folder.is_dir() else 0
        print(min(done, total), total, flush=True)
        time.sleep(1)
threading.Thread(target=watch, daemon=True).start()
snapshot_download(model, ignore_patterns=["original/*", "metal/*"])
print(total, total, flush=True)
"""


def is_hub_model(model: str) -> bool:
    """``organisation/name``, and neither a path nor bundled."""
    return model.count("/") == 1 and not model.startswith(("/", ".", "~", "bundled:")) and not model.endswith(".gguf")


def needs_weights(spec: LaunchSpec) -> bool:
    """True for vLLM with a hub model, on each node that loads it; dummy weights are made, not fetched."""
    dummy = "--load-format" in spec.argv and spec.argv[spec.argv.index("--load-format") + 1] == "dummy"
    return spec.runtime == "vllm" and is_hub_model(spec.served_model) and not dummy


def fetch_command(python: str, model: str) -> tuple[str, ...]:
    """The command that fetches a hub model into the cache of the environment it runs in."""
    return (python, "-c", PROGRAM, model)


def parse_progress(line: str) -> tuple[int, int] | None:
    """``DONE TOTAL`` as bytes; None for any other line."""
    words = line.split()
    return (int(words[0]), int(words[1])) if len(words) == 2 and all(word.isdigit() for word in words) else None
