"""Desired against observed, as a table of cases."""

from __future__ import annotations

import pytest

from lmtower.engines.spec import LaunchSpec
from lmtower.nodes.diff import diff
from lmtower.nodes.drivers import Observed

SPEC = LaunchSpec("coder", "spark", "vllm", ("vllm",), port=8100).sealed()


def found(spec_hash: str = SPEC.spec_hash, **fields: object) -> Observed:
    """The engine as a node reports it."""
    return Observed(SPEC.name, SPEC.engine, SPEC.node, spec_hash, **{"running": True, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("observed", "action"),
    [
        ((), "start"),
        ((found(),), "keep"),
        ((found("other"),), "replace"),
        ((found(running=False, exit_code=1),), "start"),
        ((found(running=False, exit_code=1, returns=True),), "keep"),
        ((Observed(SPEC.name, SPEC.engine, "elsewhere", SPEC.spec_hash, True),), "start"),
    ],
)
def test_diff_says_what_is_to_be_done(observed: tuple[Observed, ...], action: str) -> None:
    """Missing is started, equal is kept, changed is replaced, ended is started, and only here."""
    steps = {(step.node, step.name): step.action for step in diff((SPEC,), observed)}
    assert steps[SPEC.node, SPEC.name] == action


def test_engine_that_the_watchdog_stopped_is_started_for_that_reason() -> None:
    """``up`` is a person's wish, so it may start again (when memory allows); the reason is told."""
    (step,) = diff((SPEC,), (found(running=False, exit_code=143, restart="no"),))
    assert (step.action, step.why) == ("start", "its node's watchdog stopped it for memory")


def test_stops_come_before_starts() -> None:
    """Memory is freed before it is asked for."""
    old = Observed("lmtower-old", "old", "spark", "x", True)
    assert [step.action for step in diff((SPEC,), (old,))] == ["stop", "start"]


def test_only_stop_and_replace_touch_running_engines() -> None:
    """A diff that only starts and keeps needs no confirmation."""
    assert [step.touches for step in diff((SPEC,), ())] == [False]
    assert [step.touches for step in diff((SPEC,), (found("other"),))] == [True]


def test_utilisation_is_not_part_of_the_hash() -> None:
    """It depends on the free memory of the moment: a second up must not replace an engine for it."""
    one, other = (
        LaunchSpec("e", "n", "vllm", ("vllm", "--gpu-memory-utilization", value, "--x")).sealed()
        for value in ("0.3", "0.4")
    )
    assert one.spec_hash == other.spec_hash


def test_flags_and_keys_are_part_of_the_hash() -> None:
    """An engine with another flag or another key is another engine; another Hugging Face token is not."""
    plain = LaunchSpec("e", "n", "vllm", ("vllm",)).sealed()
    assert LaunchSpec("e", "n", "vllm", ("vllm", "--x")).sealed().spec_hash != plain.spec_hash
    assert LaunchSpec("e", "n", "vllm", ("vllm",), secrets={"VLLM_API_KEY": "k"}).sealed().spec_hash != plain.spec_hash
    assert LaunchSpec("e", "n", "vllm", ("vllm",), secrets={"HF_TOKEN": "k"}).sealed().spec_hash == plain.spec_hash
