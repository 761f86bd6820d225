"""How vLLM versions differ in memory. Cut-offs from the sources of 0.14.1, 0.20.2, 0.25.1, 0.27.1 and 0.33.0."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lmtower.errors import PlanError

DEFAULT_VERSION = "0.27.1"
"""Used where neither the tower file, the recipe nor the command line names one."""

_NUMBER = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")


_TAG = re.compile(r"v?(0\.\d+(?:\.\d+)?)(?![\d.])")


@dataclass(frozen=True, slots=True)
class Rules:
    """What one version of vLLM does. ``number`` is (major, minor, patch)."""

    version: str
    number: tuple[int, int, int]

    @property
    def logs_blocks(self) -> bool:
        """ "GPU KV cache size" means blocks // groups × block (≤ 0.20.0), not concurrency × max_model_len (later)."""
        return self.number <= (0, 20, 0)

    @property
    def in_flight_batches(self) -> int:
        """Batches that a sliding window must hold back: 2 with async scheduling since 0.27 (0.25.1: still 1)."""
        return 2 if self.number >= (0, 27, 0) else 1

    @property
    def whole_blocks(self) -> bool:
        """Weights are loaded with ``max_split_size_mb:20`` (0.21 on): large blocks are not cut."""
        return self.number >= (0, 21, 0)

    @property
    def has_mode_all(self) -> bool:
        """``--mamba-cache-mode all`` was removed in 0.33, where the mode follows prefix caching."""
        return self.number < (0, 33, 0)

    @property
    def align_needs_batch(self) -> bool:
        """``align`` asserts block ≤ max_num_batched_tokens (0.20.2, 0.25.1; gone in 0.27.1)."""
        return self.number < (0, 27, 0)

    @property
    def has_match_unit(self) -> bool:
        """``--prefix-match-unit`` lets hybrids hit inside a block."""
        return self.number >= (0, 27, 1)

    @property
    def prefill_checkpoint(self) -> bool:
        """One more state page a request in ``align`` (Mamba-2, and gated delta nets on Hopper and Blackwell)."""
        return self.number >= (0, 33, 0)

    @property
    def estimates_graphs(self) -> bool:
        """The CUDA-graph estimate is subtracted from the KV cache's memory (0.21 on)."""
        return self.number >= (0, 21, 0)

    @property
    def group_ratio(self) -> float:
        """Buckets this close in size share the larger group size. 1.25 before 0.22, 1.5 since."""
        return 1.5 if self.number >= (0, 22, 0) else 1.25


def rules(version: str | None) -> Rules:
    """The rules of a version as people write it: ``0.27.1``, ``v0.20``, ``~0.28``, ``nightly``. Raises PlanError."""
    text = (version or DEFAULT_VERSION).strip()
    if text.lower() in ("nightly", "latest", "main") or "nightly" in text.lower():
        return Rules(text, (0, 33, 0))
    match = _NUMBER.search(text)
    if match is None:
        raise PlanError(f"vllm version {version!r} is not a version. Write it as 0.27.1", field="version")
    return Rules(text, (int(match[1]), int(match[2]), int(match[3] or 0)))


def of_image(image: str | None) -> str | None:
    """The version that an image's tag names: ``vllm/vllm-openai:v0.20.2-aarch64`` -> ``0.20.2``. None: it names none.

    NVIDIA's images count years (``nvcr.io/nvidia/vllm:26.02-py3``), so only 0.x is taken for a version of vLLM.
    """
    repository, colon, tag = (image or "").rpartition(":")
    match = _TAG.match(tag) if colon and "vllm" in repository else None
    return match[1] if match else None


_OPERATORS = re.compile(r"^\s*(>=|<=|==|!=|<|>)?\s*(\S+)\s*$")


def in_range(known: Rules, specifier: str) -> bool:
    """True when the version lies in a recipe's range, such as ``>=0.27,<0.33``. Empty: any version."""
    for part in filter(str.strip, specifier.split(",")):
        match = _OPERATORS.match(part)
        if match is None:
            raise PlanError(f"recipe: {specifier!r} is not a range of versions", field="versions")
        bound = rules(match[2]).number
        held = {
            ">=": known.number >= bound,
            "<=": known.number <= bound,
            ">": known.number > bound,
            "<": known.number < bound,
            "!=": known.number != bound,
        }.get(match[1] or "==", known.number == bound)
        if not held:
            return False
    return True
