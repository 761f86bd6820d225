"""Why an engine did not start, in one sentence with the fix, read from its log and exit status. Pure.

Each rule is a pattern seen in the log of a real engine; the first that matches wins, so the specific ones come
first. What nobody recognises is told with the engine's own last words: never a guess.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Failure:
    """``kind`` is stable (tests, docs); ``what`` is one sentence; ``fix`` is what to do."""

    kind: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.what}. {self.fix}." if self.fix else f"{self.what}."


@dataclass(frozen=True, slots=True)
class _Rule:
    kind: str
    pattern: re.Pattern[str]
    what: str
    fix: str


def _rule(kind: str, pattern: str, what: str, fix: str) -> _Rule:
    return _Rule(kind, re.compile(pattern, re.IGNORECASE | re.DOTALL), what, fix)


_RULES = (
    _rule(
        "admission",
        # not the INFO line of a good start, which begins alike; versions before 0.20 name no device
        r"Free memory on device (?:\S+ )?\((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup\s+is less than"
        r".{0,120}?\((?P<util>[\d.]+)",
        "vLLM's start-up check refused it: {free} of {total} GiB were free, and a utilisation of {util} asks for more",
        "Stop what else uses the node's memory, or run lmtower plan to see what fits",
    ),
    _rule(
        "admission",
        r"Available memory on node .{0,30}?\((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on (?:startup|kv)",
        "its start-up check refused it: only {free} of {total} GiB were available",
        "Stop what else uses the node's memory, or make kv_cache_memory smaller",
    ),
    _rule(
        "kv_cache",
        r"max seq len \((?P<len>\d+)\).{0,80}?\(?(?P<need>[\d.]+) GiB\)? KV cache is needed.{0,300}?"
        r"estimated maximum model length is (?P<fit>\d+)",
        "one request of {len} tokens needs {need} GiB of KV cache, more than it has",
        "Write context: {fit} or less, or give it more kv_cache_memory",
    ),
    _rule(
        "kv_cache",
        r"max seq len \((?P<len>\d+)\).{0,80}?\(?(?P<need>[\d.]+) GiB\)? KV cache is needed.{0,80}?"
        r"KV cache\s+memory \((?P<have>[\d.]+) GiB",
        "one request of {len} tokens needs {need} GiB of KV cache, and it has {have}",
        "Write a shorter context, or give it more kv_cache_memory",
    ),
    _rule(
        "kv_cache",
        r"No available memory for the cache blocks",
        "no memory was left for the KV cache after the weights were loaded",
        "Give it more memory, a smaller model, or fewer neighbours on the node",
    ),
    _rule(
        "mamba_blocks",
        r"max_num_seqs \((?P<seqs>\d+)\) exceeds available Mamba cache blocks \((?P<blocks>\d+)\)",
        "{seqs} sequences need more state blocks than the {blocks} that fit",
        "Write sequences: {blocks} or less",
    ),
    _rule(
        "memory_changed",
        r"Error in memory profiling|other processes .{0,60}release GPU memory while profiling",
        "another process freed memory while vLLM was measuring",
        "Start engines one at a time: lmtower restart {engine}",
    ),
    _rule(
        "out_of_memory",
        r"CUDA out of memory|CUDA error: out of memory|OutOfMemoryError|NV_ERR_NO_MEMORY|cudaErrorMemoryAllocation"
        r"|std::bad_alloc|Cannot allocate memory|unable to mmap|failed to allocate|MemoryError",
        "it ran out of memory",
        "Make context, sequences or kv_cache_memory smaller; lmtower plan shows what fits",
    ),
    _rule(
        "port_taken",
        r"address already in use|EADDRINUSE|couldn't bind|Failed to bind|bind HTTP server socket",
        "port {port} is taken by another program",
        "Stop that program, or write another port: for this engine",
    ),
    _rule(
        "disk_full",
        r"no space left on device|ENOSPC|disk quota exceeded|not enough free disk space",
        "the node's disk is full",
        "Free space on the node: docker system df, and the models folder",
    ),
    _rule(
        "gated",
        r"GatedRepoError|Cannot access gated repo|trying to access a gated repo|Access to model .{0,120} is restricted",
        "the model is gated and the token is missing or has no access",
        "Accept the model's terms on its page, and set HF_TOKEN where lmtower runs",
    ),
    _rule(
        "weights_missing",
        r"RepositoryNotFoundError"
        r"|is not a local folder and is not a valid model identifier"
        r"|Cannot find any model weights"
        r"|model file '[^']*' does not exist|LocalEntryNotFoundError|We couldn't connect to|couldn't find them in the"
        r"|Invalid repository ID or local directory|gguf_init_from_file: failed to open|no bundled model"
        r"|bind source path does not exist|HFValidationError|EntryNotFoundError|Can't load the configuration of",
        "the model's weights are missing on the node and could not be fetched",
        "Check the spelling of model, the node's network, or put the folder there: lmtower pull",
    ),
    _rule(
        "bad_flag",
        r"error: unrecognized arguments: (?P<flag>[^\n]+)",
        "this version does not know the flag {flag}",
        "Remove it from args, or choose another version",
    ),
    _rule(
        "bad_flag",
        r"error: argument (?P<flag>[^\n]+)",
        "a flag has a value that this version refuses: {flag}",
        "Correct it under args, or choose another version",
    ),
    _rule(
        "bad_flag",
        r"error: ambiguous option: (?P<flag>[^\n]+)",
        "a flag is cut short and means several: {flag}",
        "Write it in full under args",
    ),
    _rule(
        "own_code",
        r"requires you to execute|contains custom code which must be executed|trust[-_]remote[-_]code=True",
        "the model brings Python code of its own, and that is not allowed to run",
        "If you trust its publisher, write args: {{trust-remote-code: true}}",
    ),
    _rule(
        "unknown_model",
        r"Model architectures \[[^\]]*\] are not supported|has model type `[^`]*` but Transformers does not recognize",
        "this version of the engine does not know the model's architecture",
        "Choose a newer version or image, or another model",
    ),
    _rule(
        "driver_mismatch",
        r"CUDA driver version is insufficient|driver on your system is too old|forward compatibility was attempted"
        r"|unsatisfied condition: cuda|no kernel image is available",
        "the image needs a newer GPU driver, or was built for another GPU",
        "Update the node's driver, or choose an image for its version",
    ),
    _rule(
        "no_gpu",
        r"could not select device driver|No CUDA GPUs are available|Failed to infer device type|NVML Shared Library"
        r"|no known GPU vendor|unknown or invalid runtime name|nvidia-container-cli: |libcuda\.so\.1: cannot open",
        "the engine sees no GPU",
        "Is the driver loaded (nvidia-smi)? For containers, install the NVIDIA container toolkit: "
        "nvidia-ctk runtime configure",
    ),
    _rule(
        "registry_login",
        r"no basic auth credentials|authentication required|pull access denied|denied: requested access",
        "the image's registry does not know who asks, or there is no such image",
        "Correct the image's name, or run docker login for its registry where lmtower runs",
    ),
    _rule(
        "registry_limit",
        r"toomanyrequests|pull rate limit",
        "the image's registry gives no more for now",
        "Wait, or run docker login for it where lmtower runs",
    ),
    _rule(
        "wrong_architecture",
        r"exec format error|exec user process caused|no matching manifest for"
        r"|does not match the (?:detected|specified) (?:host )?platform",
        "the image was built for another processor",
        "Choose an image for the node's processor (a Spark is arm64)",
    ),
    _rule(
        "worker_died",
        # vLLM itself then ends with status 0, as if it had been asked to
        r"(?:Worker|Engine core) proc (?P<worker>\S+) died unexpectedly|EngineDeadError",
        "one of its own processes ({worker}) crashed or was killed",
        "Look at the lines before in its log, and at dmesg on the node",
    ),
)
_START = "--- lmtower starts"
"""The process driver writes it into the log before each start; what stands before belongs to an earlier run."""


def recognise(log: str, exit_code: int | None, *, out_of_memory: bool = False, **facts: object) -> Failure:
    """The failure that a log and an exit status tell of. ``facts`` (port, engine) fill the sentences.

    A log with several starts is read from the last one on.
    """
    log = log.rpartition(_START)[2]
    known = {"port": "?", "engine": "ENGINE", "worker": "EngineCore"} | facts
    for rule in _RULES:
        if match := rule.pattern.search(log):
            words = {**known, **{name: value.strip() for name, value in match.groupdict().items() if value}}
            return Failure(rule.kind, rule.what.format(**words), rule.fix.format(**words))
    if out_of_memory or exit_code in (137, -9):
        return Failure(
            "killed",
            "it was killed from outside, most likely by the kernel for memory",
            "Look at dmesg on the node; lmtower plan shows what fits",
        )
    if exit_code in (0, 143, -15):
        what = f"it was asked to end from outside (exit {exit_code})"
        return Failure("ended", what, "Perhaps Docker or the node restarted")
    return Failure("unknown", f"it said last: {_last_words(log)!r}", "")


def _last_words(log: str) -> str:
    """The last line that looks like an error, else the last line, cut to what one can read at a glance."""
    lines = [line.strip() for line in log.splitlines() if line.strip() and not line.startswith("--- lmtower")]
    errors = [line for line in lines if re.search(r"error|exception|refused|denied|fatal", line, re.IGNORECASE)]
    return (errors or lines or ["nothing"])[-1][:300]
