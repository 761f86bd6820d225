"""Reasons read from logs that real engines wrote: the right kind, one sentence, the value that works."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmtower.engines.failures import recognise

OBSERVED = Path(__file__).parents[1] / "data/observed"
CASES = [
    (
        "ValueError: Free memory on device cuda:0 (20.58/139.8 GiB) on startup is less than desired GPU memory "
        "utilization (0.2, 27.96 GiB).",
        "admission",
        "20.58 of 139.8 GiB were free, and a utilisation of 0.2",
    ),
    (
        "ValueError: Available memory on node 0 (3.1/23.0 GiB) on startup is less than desired CPU memory utilization",
        "admission",
        "only 3.1 of 23.0 GiB",
    ),
    (
        "ValueError: To serve at least one request with the model's max seq len (204800), (13.73 GiB KV cache is "
        "needed, which is larger than the available KV cache memory (6.0 GiB). Based on it, the estimated "
        "maximum model length is 89424.",
        "kv_cache",
        "context: 89424 or less",
    ),
    (
        "ValueError: Free memory on device (3.22/4.0 GiB) on startup is less than desired GPU memory utilization "
        "(0.9, 3.6 GiB). Decrease GPU memory utilization",
        "admission",
        "3.22 of 4.0 GiB were free, and a utilisation of 0.9",
    ),
    (
        "ValueError: To serve at least one request with the model's max seq len (204800), (13.73 GiB KV cache is "
        "needed, which is larger than the available KV cache memory (0.01 GiB). Try increasing",
        "kv_cache",
        "needs 13.73 GiB of KV cache, and it has 0.01",
    ),
    (
        "INFO Free memory on device (79.0/79.1 GiB) on startup. Desired GPU memory utilization is (0.3, 23.7 GiB).\n"
        "torch.OutOfMemoryError: CUDA out of memory.",
        "out_of_memory",
        "ran out of memory",
    ),
    ("error: ambiguous option: --max-num could match --max-num-seqs, --max-num-x", "bad_flag", "in full"),
    ("a/b contains custom code which must be executed to correctly load", "own_code", "{trust-remote-code: true}"),
    ("Model architectures ['NewForCausalLM'] are not supported for now.", "unknown_model", "newer version"),
    ("has model type `qwen9` but Transformers does not recognize", "unknown_model", "newer version"),
    ("unknown or invalid runtime name: nvidia", "no_gpu", "container toolkit"),
    ("nvidia-container-cli: initialization error: nvml error: driver not loaded", "no_gpu", "nvidia-smi"),
    (
        "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.9",
        "driver_mismatch",
        "newer GPU driver",
    ),
    ("You are trying to access a gated repo.\nMake sure to have access to it", "gated", "HF_TOKEN"),
    ("ValueError: No available memory for the cache blocks. Try increasing", "kv_cache", "no memory was left"),
    ("max_num_seqs (256) exceeds available Mamba cache blocks (184)", "mamba_blocks", "sequences: 184 or less"),
    ("AssertionError: Error in memory profiling. Initial free memory", "memory_changed", "one at a time"),
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "out_of_memory", "ran out of memory"),
    ("OSError: [Errno 98] Address already in use", "port_taken", "port 8100 is taken"),
    ("OSError: [Errno 28] No space left on device", "disk_full", "disk is full"),
    ("huggingface_hub.errors.GatedRepoError: 401 Client Error.", "gated", "HF_TOKEN"),
    (
        "OSError: no/such is not a local folder and is not a valid model identifier listed on",
        "weights_missing",
        "spelling",
    ),
    (
        "RepositoryNotFoundError: 404 Client Error.\nIf you are trying to access a private or gated repo, make sure",
        "weights_missing",
        "could not be fetched",
    ),
    ("embedded engine: model file '/m/x.gguf' does not exist", "weights_missing", "weights are missing"),
    ("api_server.py: error: unrecognized arguments: --prefix-match-unit 64", "bad_flag", "--prefix-match-unit 64"),
    ("api_server.py: error: argument --kv-cache-dtype: invalid choice: 'fp9'", "bad_flag", "--kv-cache-dtype"),
    (
        "RuntimeError: The NVIDIA driver on your system is too old (found version 12020)",
        "driver_mismatch",
        "newer GPU driver",
    ),
    ('could not select device driver "" with capabilities: [[gpu]]', "no_gpu", "container toolkit"),
    ("no matching manifest for linux/arm64/v8 in the manifest list entries", "wrong_architecture", "arm64"),
    ("unauthorized: authentication required", "registry_login", "docker login"),
    ("pull access denied for a/b, repository does not exist or may require login", "registry_login", "name"),
    ("toomanyrequests: You have reached your pull rate limit.", "registry_limit", "Wait"),
    ("exec /usr/bin/vllm: exec format error", "wrong_architecture", "another processor"),
]


@pytest.mark.parametrize(("log", "kind", "words"), CASES)
def test_log_is_recognised(log: str, kind: str, words: str) -> None:
    """Each known text gives its kind and a sentence with the numbers in it."""
    failure = recognise(f"INFO starting\n{log}\n", 1, port=8100, engine="coder")
    assert failure.kind == kind
    assert words in str(failure)


def test_dead_rank_is_not_taken_for_an_orderly_end() -> None:
    """A killed worker of two (vLLM 0.25.1 on two H100) makes vLLM end with status 0; the log says which one died."""
    log = (OBSERVED / "vllm-0.25.1-2xh100-qwen3-8b-tp2.log").read_text("utf-8")
    failure = recognise(log, 0, engine="wide")
    assert failure.kind == "worker_died"
    assert "one of its own processes (VllmWorker-1) crashed or was killed" in str(failure)


def test_earlier_run_in_the_same_log_does_not_count() -> None:
    """Each start begins with a line of the process driver; what stands before it has been told already."""
    log = "--- lmtower starts lmtower-one\ntorch.OutOfMemoryError: CUDA out of memory\n--- lmtower starts lmtower-one\n"
    assert recognise(log + "error: unrecognized arguments: --x", 2).kind == "bad_flag"


def test_kill_from_outside_is_told_as_such() -> None:
    """No log line explains a SIGKILL; the exit code does."""
    assert recognise("INFO serving\n", 137).kind == "killed"
    assert recognise("INFO serving\n", None, out_of_memory=True).kind == "killed"


def test_unknown_failure_gives_its_own_last_words() -> None:
    """Nothing is guessed: the last line that looks like an error is shown."""
    failure = recognise("INFO a\nTypeError: something new\nINFO bye\n", 1)
    assert (failure.kind, "TypeError: something new" in str(failure)) == ("unknown", True)
    assert "nothing" in str(recognise("", 1))


def test_end_without_an_error_was_asked_for() -> None:
    """A Docker engine that restarts ends its containers with exit 0; their last line is no reason."""
    failure = recognise("INFO: Application startup complete.", 0)
    assert (failure.kind, "from outside" in str(failure)) == ("ended", True)
    assert recognise("ValueError: a reason", 1).kind == "unknown"
