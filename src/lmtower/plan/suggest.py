"""The smallest changes that make a set fit, each tried on the solver itself and given as a number to write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from lmtower.plan.estimate import Options, estimate
from lmtower.plan.quantisation import Layout
from lmtower.plan.solve import Outcome, solve
from lmtower.plan.types import NodeFacts
from lmtower.plan.wants import Want

_GIB = 1024**3
_CONTEXT_STEP = 1024
_MOST = 8


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one engine, in words."""

    text: str
    want: Want


def suggestions(outcome: Outcome, nodes: Mapping[str, NodeFacts]) -> tuple[str, ...]:
    """Single changes that are enough; when there is none, a combination that is."""
    wants = outcome.wants
    found = []
    for index, want in enumerate(wants):
        for change in _changes(want, nodes, lambda changed, at=index: _fits(wants, at, changed, nodes)):  # type: ignore[misc]
            if _fits(wants, index, change.want, nodes):
                found.append(change.text)
    if found:
        return tuple(found[:_MOST])
    return _together(wants, nodes)


def _fits(wants: tuple[Want, ...], index: int, changed: Want | None, nodes: Mapping[str, NodeFacts]) -> bool:
    rest = (*wants[:index], *((changed,) if changed else ()), *wants[index + 1 :])
    return solve(rest, nodes).fits


def _changes(want: Want, nodes: Mapping[str, NodeFacts], fits: Callable[[Want], bool]) -> Iterator[Change]:
    """Changes of one engine, from harmless to painful."""
    node = nodes[want.nodes[0]]
    yield from _without_draft(want, node)
    yield from _smaller_cache_dtype(want, node)
    yield from _shorter_context(want, fits)
    yield from _fewer_sequences(want, fits)
    yield from _smaller_weights(want, node)


def _changed(want: Want, node: NodeFacts, options: Options) -> Want:
    return replace(
        want, options=options, estimate=estimate(want.estimate.files, options, node), sequences=options.max_num_seqs
    )


def _without_draft(want: Want, node: NodeFacts) -> Iterator[Change]:
    if want.options.speculative_tokens:
        changed = _changed(want, node, replace(want.options, speculative_tokens=0))
        saved = want.estimate.fixed_bytes - changed.estimate.fixed_bytes
        yield Change(
            f"engines.{want.name}.speculative_tokens: 0 fits (−{saved / _GIB:.1f} GiB of weights, and its cache)",
            changed,
        )


def _smaller_cache_dtype(want: Want, node: NodeFacts) -> Iterator[Change]:
    if (
        want.runtime == "vllm"
        and want.estimate.has_cache
        and want.estimate.kv_cache_dtype in ("bf16", "bfloat16", "fp16")
        and "fp8" in node.supports
    ):
        yield Change(
            f"engines.{want.name}.kv_cache_dtype: fp8 fits",
            _changed(want, node, replace(want.options, kv_cache_dtype="fp8")),
        )


def _shorter_context(want: Want, fits: Callable[[Want], bool]) -> Iterator[Change]:
    """The longest context, in steps of 1024 tokens, that fits; powers of two read better when they are near."""
    if not isinstance(want.context, int) or not want.estimate.has_cache:
        return
    low, high = 0, max(0, (want.context - 1) // _CONTEXT_STEP)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(replace(want, context=middle * _CONTEXT_STEP)) else (low, middle - 1)
    if low:
        yield Change(
            f"engines.{want.name}.context: {low * _CONTEXT_STEP} fits", replace(want, context=low * _CONTEXT_STEP)
        )


def _fewer_sequences(want: Want, fits: Callable[[Want], bool]) -> Iterator[Change]:
    for sequences in range(want.sequences - 1, 0, -1):
        changed = replace(want, sequences=sequences)
        if fits(changed):
            yield Change(f"engines.{want.name}.sequences: {sequences} fits (drop from {want.sequences})", changed)
            return


def _smaller_weights(want: Want, node: NodeFacts) -> Iterator[Change]:
    layout: Layout | None = want.estimate.layout
    if layout is None or layout.is_quantised or "fp8" not in node.supports or want.estimate.files.tensors:
        return
    changed = _changed(want, node, replace(want.options, quantization="fp8"))
    saved = want.estimate.weights.bytes - changed.estimate.weights.bytes
    if saved > _GIB // 10:
        yield Change(f"engines.{want.name}.model: use the FP8 checkpoint, −{saved / _GIB:.1f} GiB", changed)


def _together(wants: tuple[Want, ...], nodes: Mapping[str, NodeFacts]) -> tuple[str, ...]:
    """Harmless changes first, then contexts halved from the largest cache down, until the set fits."""
    current, texts = list(wants), []
    for index, want in enumerate(wants):
        node = nodes[want.nodes[0]]
        for change in (*_without_draft(want, node), *_smaller_cache_dtype(current[index], node)):
            current[index] = change.want
            texts.append(change.text.replace(" fits", ""))
            if solve(tuple(current), nodes).fits:
                return ("together: " + "; ".join(texts),)
    halved = _halve(current, nodes)
    if halved is not None:
        return ("together: " + "; ".join([*texts, *halved]),)
    return _without_one(wants, nodes)


def _halve(current: list[Want], nodes: Mapping[str, NodeFacts]) -> list[str] | None:
    for _ in range(64):
        sizes = [
            (_pool(want), index)
            for index, want in enumerate(current)
            if isinstance(want.context, int) and want.context > 2 * _CONTEXT_STEP
        ]
        if not sizes or max(sizes)[0] == 0:
            return None
        index = max(sizes)[1]
        want = current[index]
        assert isinstance(want.context, int)
        current[index] = replace(
            want, context=want.context // 2 // _CONTEXT_STEP * _CONTEXT_STEP, sequences=max(1, want.sequences)
        )
        if solve(tuple(current), nodes).fits:
            return [f"engines.{want.name}.context: {want.context}" for want in current if isinstance(want.context, int)]
    return None


def _pool(want: Want) -> int:
    assert isinstance(want.context, int)
    return 0 if want.pool_bytes is not None else want.estimate.pool_bytes(want.context, want.sequences)


def _without_one(wants: tuple[Want, ...], nodes: Mapping[str, NodeFacts]) -> tuple[str, ...]:
    for index, want in sorted(enumerate(wants), key=lambda pair: pair[1].engine.importance):
        if len(wants) > 1 and _fits(wants, index, None, nodes):
            return (
                f"leave out engines.{want.name} (−{want.estimate.fixed_bytes / _GIB:.1f} GiB), or put "
                "it on another node",
            )
    return ("no change of contexts, sequences or cache dtype is enough: choose smaller models or another node",)
