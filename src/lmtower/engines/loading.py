"""How far a start has come, by the engine's own log: what to show while a large model loads for minutes. Pure."""

from __future__ import annotations

import re

# in the order in which vLLM and llama.cpp do them; of a log the stage that was reached last counts
_STAGES = (
    (re.compile(r"Downloading|Time spent downloading weights"), "fetching weights"),
    (re.compile(r"Starting to load model|load_tensors: loading model"), "reading weights"),
    (re.compile(r"Loading \w+ checkpoint shards:\s+(?P<share>\d+)%"), "reading weights, {share} %"),
    (re.compile(r"(?:Model l|L)oading (?:model )?(?:weights )?took"), "weights are read"),
    (re.compile(r"Start compiling|Compiling a graph|Dynamo bytecode transform"), "compiling"),
    (re.compile(r"Memory profiling takes|Available KV cache memory|GPU KV cache size"), "KV cache is there"),
    (re.compile(r"autotun", re.IGNORECASE), "tuning kernels"),
    (re.compile(r"Capturing CUDA graphs?[^\n]*?(?P<share>\d+)%"), "capturing CUDA graphs, {share} %"),
    (re.compile(r"Graph capturing finished|init engine .{0,80}took"), "almost ready"),
)


def stage(log: str) -> str:
    """A few words for the last stage that the log tells of; empty when it tells of none."""
    last = log.rpartition("--- lmtower starts")[2]
    found = [(match.start(), words, match) for pattern, words in _STAGES for match in pattern.finditer(last)]
    if not found:
        return ""
    _, words, match = max(found, key=lambda each: each[0])
    return words.format(**match.groupdict())
