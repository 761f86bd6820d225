"""Coroutines without a task: they run in the stack of what they waited for, and end where they wait."""

from __future__ import annotations

import asyncio

import pytest

from lmtower.gateway.errand import Errand, Signal


def _ignore(_: BaseException | None) -> None: ...


async def test_errand_goes_on_in_the_stack_of_what_it_waited_for() -> None:
    """No turn of the loop passes between start, wake and end."""
    seen: list[str] = []
    signal = Signal()

    async def work() -> None:
        seen.append("started")
        await signal
        seen.append("woken")

    errand = Errand(work(), _ignore)
    errand.start()
    assert (seen, errand.done) == (["started"], False)
    signal.wake()
    assert (seen, errand.done) == (["started", "woken"], True)


async def test_errand_awaits_futures_tasks_and_bare_yields() -> None:
    """What asyncio has to wait for works inside."""
    ended = asyncio.Event()
    seen: list[object] = []

    async def answer() -> int:
        await asyncio.sleep(0)
        return 5

    async def fail() -> None:
        raise ValueError("no")

    async def work() -> None:
        await asyncio.sleep(0)
        seen.append(await asyncio.create_task(answer()))
        seen.append(await asyncio.to_thread(lambda: 6))
        with pytest.raises(ValueError, match="no"):
            await asyncio.create_task(fail())
        ended.set()

    Errand(work(), _ignore).start()
    await asyncio.wait_for(ended.wait(), 5)
    assert seen == [5, 6]


@pytest.mark.parametrize("kind", ["signal", "future", "task"])
async def test_cancelled_errand_ends_at_once_and_so_does_what_it_waits_for(kind: str) -> None:
    """``finally`` has run when ``cancel`` returns; a task inside is cancelled, a late wake does nothing."""
    seen: list[str] = []
    signal, future = Signal(), asyncio.get_running_loop().create_future()
    task = asyncio.create_task(asyncio.sleep(60))

    async def work() -> None:
        try:
            await {"signal": signal, "future": future, "task": task}[kind]
        except asyncio.CancelledError:
            seen.append("cancelled")
        finally:
            seen.append("left")

    errand = Errand(work(), _ignore)
    errand.start()
    errand.cancel()
    assert (seen, errand.done) == (["cancelled", "left"], True)
    signal.wake()
    errand.cancel()
    await asyncio.sleep(0)
    assert seen == ["cancelled", "left"]
    assert future.cancelled() == (kind == "future")
    task.cancel()
    assert (await asyncio.gather(task, return_exceptions=True))[0] is not None


async def test_errand_cancelled_while_it_runs_ends_where_it_waits_next() -> None:
    """As for a task that cancels itself."""
    seen: list[str] = []
    errands: list[Errand] = []

    async def work() -> None:
        errands[0].cancel()
        seen.append("still here")
        try:
            await Signal()
        except asyncio.CancelledError:
            seen.append("cancelled")

    errands.append(Errand(work(), _ignore))
    errands[0].start()
    assert (seen, errands[0].done) == (["still here", "cancelled"], True)


@pytest.mark.parametrize("kind", ["turn", "future"])
async def test_cancelled_errand_that_waits_again_is_not_woken_by_what_it_waited_for_before(kind: str) -> None:
    """The next turn of the loop, or a future that was done just before: neither ends the second wait."""
    seen: list[str] = []
    signal, future = Signal(), asyncio.get_running_loop().create_future()

    async def work() -> None:
        try:
            await (asyncio.sleep(0) if kind == "turn" else future)
        except asyncio.CancelledError:
            seen.append("cancelled")
        await signal
        seen.append("woken")

    errand = Errand(work(), _ignore)
    errand.start()
    future.set_result(None)
    errand.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (seen, errand.done) == (["cancelled"], False)
    signal.wake()
    assert (seen, errand.done) == (["cancelled", "woken"], True)


async def test_task_waits_for_a_signal_too() -> None:
    """Woken in a turn of its own, because a task cannot run inside of another one's step; cancelled as ever."""
    signal = Signal()

    async def wait() -> str:
        await signal
        return "woken"

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    signal.wake()
    assert not task.done()
    assert await task == "woken"
    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_task_that_was_just_woken_can_still_be_cancelled() -> None:
    """Between the wake and the turn in which the task hears of it."""
    signal = Signal()

    async def wait() -> None:
        await signal

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    signal.wake()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_errand_says_how_it_ended() -> None:
    """With what its coroutine raised, or None; it is done then."""
    ends: list[BaseException | None] = []

    async def fail() -> None:
        raise RuntimeError("boom")

    async def leave() -> None:
        await asyncio.sleep(0)

    failing = Errand(fail(), ends.append)
    failing.start()
    leaving = Errand(leave(), ends.append)
    leaving.start()
    cancelled = Errand(leave(), ends.append)
    cancelled.start()
    assert [str(end) for end in ends] == ["boom"]
    assert (failing.done, leaving.done) == (True, False)
    cancelled.cancel()
    assert isinstance(ends[1], asyncio.CancelledError)
    await asyncio.sleep(0)
    assert ends[2:] == [None]
    assert leaving.done
