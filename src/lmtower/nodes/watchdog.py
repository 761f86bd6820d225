"""When a node runs out of memory: hold batch work, then default work, then stop the least important engine.

Theory of operation. cgroup limits do not see CUDA memory, and a DGX Spark whose memory ends does not kill a
process, it freezes. So the node is watched from MemAvailable and memory pressure (PSI), once a second:

    level 0  calm
    level 1  batch work is held         MemAvailable under the reserve, or PSI over its limit
    level 2  default work is held too   still so after ``patience_seconds``, or under 3/4 of the reserve
    level 3  an engine is stopped       still so after ``patience_seconds``, or under half of the reserve

Pressure alone never stops an engine: a slow disk raises PSI too, so level 3 wants MemAvailable under the reserve.
After a stop the node gets ``settle_seconds``, because a GPU's memory comes back slowly (a minute was seen); only
under a quarter of the reserve the next engine goes after ``hurry_seconds``. Levels fall one by one, each after
``calm_seconds`` in which MemAvailable was above the reserve by the ``clearance`` and PSI was under half its limit;
in between nothing changes. An engine that was stopped is not started again: that is a person's decision.

``decide`` is pure. Holds are told again every ``repeat_seconds``, so that a gateway that restarted learns of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lmtower.config.types import Lane

HELD_LANES: tuple[tuple[Lane, ...], ...] = ((), ("batch",), ("batch", "default"), ("batch", "default"))


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits of the watchdog. ``reserve_bytes`` is the node's reserve in the tower file."""

    reserve_bytes: int
    stalled_limit: float = 0.2
    patience_seconds: float = 10.0
    calm_seconds: float = 60.0
    settle_seconds: float = 60.0
    hurry_seconds: float = 10.0
    repeat_seconds: float = 30.0
    clearance: float = 1.2


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at the node. ``stalled`` is the share of ten seconds in which tasks waited for memory."""

    available_bytes: int
    stalled: float = 0.0


@dataclass(frozen=True, slots=True)
class Watch:
    """The watchdog's memory. Times are in seconds of one monotonic clock."""

    level: int = 0
    since: float = 0.0
    """When the level was reached."""
    calm_since: float | None = None
    stopped_at: float | None = None
    told_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Hold:
    """Tell the gateway to admit (``on=False``) or not to admit these lanes on the node."""

    lanes: tuple[Lane, ...]
    on: bool


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the least important engine of the node."""

    reason: str


Action = Hold | Stop


def decide(watch: Watch, reading: Reading, now: float, policy: Policy) -> tuple[Watch, tuple[Action, ...]]:
    """The next state and what to do about it."""
    if _danger(reading, policy):
        return _worse(replace(watch, calm_since=None), reading, now, policy)
    if watch.level and _calm(reading, policy):
        return _better(watch, now, policy)
    return _repeat(replace(watch, calm_since=None), now, policy)


def _danger(reading: Reading, policy: Policy) -> bool:
    return reading.available_bytes < policy.reserve_bytes or reading.stalled > policy.stalled_limit


def _calm(reading: Reading, policy: Policy) -> bool:
    clear = reading.available_bytes >= policy.reserve_bytes * policy.clearance
    return clear and reading.stalled <= policy.stalled_limit / 2


def _worse(watch: Watch, reading: Reading, now: float, policy: Policy) -> tuple[Watch, tuple[Action, ...]]:
    level = max(watch.level, _wanted(watch, reading, now, policy))
    actions: tuple[Action, ...] = ()
    if level > watch.level:
        if HELD_LANES[level] != HELD_LANES[watch.level]:
            actions = (Hold(HELD_LANES[level], on=True),)
        watch = replace(watch, level=level, since=now, told_at=now if actions else watch.told_at)
    if level == 3 and reading.available_bytes < policy.reserve_bytes and _may_stop(watch, reading, now, policy):
        actions += (Stop(_reason(reading, policy)),)
        watch = replace(watch, stopped_at=now)
    if actions:
        return watch, actions
    return _repeat(watch, now, policy)


def _wanted(watch: Watch, reading: Reading, now: float, policy: Policy) -> int:
    """The level that this reading asks for, patience included."""
    share = reading.available_bytes / policy.reserve_bytes if policy.reserve_bytes else 1.0
    if share < 0.5:
        return 3
    wanted = 2 if share < 0.75 else 1
    if watch.level and now - watch.since >= policy.patience_seconds:
        wanted = max(wanted, min(watch.level + 1, 3 if share < 1 else 2))
    return wanted


def _may_stop(watch: Watch, reading: Reading, now: float, policy: Policy) -> bool:
    if watch.stopped_at is None:
        return True
    hurry = reading.available_bytes < policy.reserve_bytes / 4
    return now - watch.stopped_at >= (policy.hurry_seconds if hurry else policy.settle_seconds)


def _reason(reading: Reading, policy: Policy) -> str:
    gib = 1024**3
    return (
        f"{reading.available_bytes / gib:.1f} GiB available, reserve {policy.reserve_bytes / gib:.1f} GiB, "
        f"memory pressure {reading.stalled:.0%}"
    )


def _better(watch: Watch, now: float, policy: Policy) -> tuple[Watch, tuple[Action, ...]]:
    if watch.calm_since is None:
        return _repeat(replace(watch, calm_since=now), now, policy)
    if now - watch.calm_since < policy.calm_seconds:
        return _repeat(watch, now, policy)
    level = watch.level - 1
    freed = tuple(lane for lane in HELD_LANES[watch.level] if lane not in HELD_LANES[level])
    stopped_at = watch.stopped_at if level else None
    after = replace(watch, level=level, since=now, calm_since=now if level else None, stopped_at=stopped_at)
    return after, (Hold(freed, on=False),) if freed else ()


def _repeat(watch: Watch, now: float, policy: Policy) -> tuple[Watch, tuple[Action, ...]]:
    if not watch.level or now - watch.told_at < policy.repeat_seconds:
        return watch, ()
    return replace(watch, told_at=now), (Hold(HELD_LANES[watch.level], on=True),)
