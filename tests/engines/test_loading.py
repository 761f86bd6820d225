"""What is shown while an engine loads, from lines that real engines wrote."""

from __future__ import annotations

import pytest

from lmtower.engines.loading import stage

START = "INFO 11-25 13:59:45 [gpu_model_runner.py:4012] Starting to load model nvidia/X...\n"
SHARDS = "Loading safetensors checkpoint shards:  45% Completed | 9/20 [04:31<05:31, 30.1s/it]\n"
TOOK = "INFO [gpu_model_runner.py:4112] Model loading took 69.3 GiB memory and 612.4 seconds\n"
GRAPHS = "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  33%|###   | 1/3 [00:00<00:01]\n"
READY = "INFO [core.py:281] init engine (profile, create kv cache, warmup model) took 61.1 seconds\n"


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("", ""),
        ("some line\n", ""),
        (START, "reading weights"),
        (START + SHARDS, "reading weights, 45 %"),
        (START + SHARDS + TOOK, "weights are read"),
        (START + SHARDS + TOOK + GRAPHS, "capturing CUDA graphs, 33 %"),
        (START + SHARDS + TOOK + GRAPHS + READY, "almost ready"),
        (TOOK + READY + "--- lmtower starts lmtower-x\n" + START, "reading weights"),
    ],
)
def test_last_stage_of_the_log_counts(log: str, words: str) -> None:
    """What an earlier start wrote into the same file does not."""
    assert stage(log) == words
