"""Limits: what is refused, why, for how long; and that nothing is counted twice or lost."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from lmtower.config.types import Limits, Price
from lmtower.ledger import Client, LimitRefusal, LocalLimits, Reservation
from tests.ledger.records import NOW

ANYBODY = Client(id="key_1", name="alice")


def _client(**limits: Any) -> Client:
    return Client(id="key_1", name="alice", limits=Limits(**limits))


def _reserve(
    limits: LocalLimits, client: Client, now: float, tokens: int = 0, **more: Any
) -> Reservation | LimitRefusal:
    return limits.reserve(
        client, "plan", more.pop("persona", None), more.pop("price", None), tokens, more.pop("images", 0), now, **more
    )


def _granted(limits: LocalLimits, client: Client, now: float, tokens: int = 0, **more: Any) -> Reservation:
    found = _reserve(limits, client, now, tokens, **more)
    assert isinstance(found, Reservation), found
    return found


def _refused(limits: LocalLimits, client: Client, now: float, tokens: int = 0, **more: Any) -> LimitRefusal:
    found = _reserve(limits, client, now, tokens, **more)
    assert isinstance(found, LimitRefusal)
    return found


def test_without_limits_everything_runs_and_nothing_is_kept() -> None:
    """No limit, no account, no headers."""
    limits = LocalLimits()
    for _ in range(100):
        held = _granted(limits, ANYBODY, NOW, 10**9, images=1000)
        assert limits.headers(held, "openai", NOW) == []
        assert limits.settle(held, 10**9, 0, 10**9, 1000, NOW) == 0
    assert limits.accounts() == ()


def test_requests_per_minute_counts_any_sixty_seconds() -> None:
    """The third request in a minute waits until the first is a minute old."""
    limits, client = LocalLimits(), _client(requests_per_minute=2)
    for at in (0, 30):
        limits.settle(_granted(limits, client, NOW + at), 1, 0, 1, 0, NOW + at + 1)
    refusal = _refused(limits, client, NOW + 45)
    assert (refusal.reason, refusal.scope, refusal.retry_after, refusal.hard) == (
        "requests_per_minute",
        "key",
        15,
        False,
    )
    assert "limit is 2 requests per minute: 2 are used" in refusal.message
    assert isinstance(_reserve(limits, client, NOW + 59.99), LimitRefusal)
    _granted(limits, client, NOW + 60)


def test_tokens_per_minute_holds_the_estimate_then_counts_the_use() -> None:
    """While a request runs its estimate is held; afterwards only what it used is."""
    limits, client = LocalLimits(), _client(tokens_per_minute=1000)
    held = _granted(limits, client, NOW, 900)
    refusal = _refused(limits, client, NOW, 200)
    assert (refusal.retry_after, refusal.hard) == (1, False)
    assert "900 are held by running requests" in refusal.message
    limits.settle(held, 200, 0, 100, 0, NOW + 10)
    second = _granted(limits, client, NOW + 10, 700)
    assert isinstance(_reserve(limits, client, NOW + 10, 1), LimitRefusal)
    limits.settle(second, 700, 0, 0, 0, NOW + 20)
    assert _refused(limits, client, NOW + 20, 300).retry_after == 50
    _granted(limits, client, NOW + 70, 300)


def test_held_tokens_do_not_expire() -> None:
    """A request of an hour holds its estimate for an hour."""
    limits, client = LocalLimits(), _client(tokens_per_minute=100)
    held = _granted(limits, client, NOW, 100)
    assert isinstance(_reserve(limits, client, NOW + 3600, 1), LimitRefusal)
    limits.settle(held, 10, 0, 0, 0, NOW + 3600)
    _granted(limits, client, NOW + 3600, 90)


def test_tokens_per_day_that_free_up_late_are_a_hard_refusal() -> None:
    """Waiting a minute does not help: insufficient quota. When the room is near, it is a soft one."""
    limits, client = LocalLimits(), _client(tokens_per_day=1000)
    limits.settle(_granted(limits, client, NOW, 1000), 1000, 0, 0, 0, NOW)
    refusal = _refused(limits, client, NOW + 3600, 1)
    assert (refusal.reason, refusal.retry_after, refusal.hard) == ("tokens_per_day", 60, True)
    assert "23 hours" in refusal.message
    assert _refused(limits, client, NOW + 86_400 - 30, 1) == LimitRefusal(
        "tokens_per_day", "key",
        "the key's limit is 1000 tokens per day: 1000 are used, this request needs up to 1", 30, False,
    )  # fmt: skip
    _granted(limits, client, NOW + 86_400, 1000)


def test_images_per_day_concern_only_requests_with_images() -> None:
    """Text goes on when the images are used up."""
    limits, client = LocalLimits(), _client(images_per_day=3)
    limits.settle(_granted(limits, client, NOW, images=3), 1, 0, 1, 3, NOW)
    assert _refused(limits, client, NOW, images=1).reason == "images_per_day"
    _granted(limits, client, NOW)


def test_request_larger_than_the_limit_is_told_what_would_fit() -> None:
    """Waiting never helps, so the refusal is hard and names the largest request."""
    limits, client = LocalLimits(), _client(tokens_per_minute=1000)
    refusal = _refused(limits, client, NOW, 1001)
    assert refusal.hard
    assert "at most 1000" in refusal.message
    assert "max_tokens" in refusal.message


def test_parallel_counts_running_requests() -> None:
    """Only what runs now counts; the end of one makes room for another."""
    limits, client = LocalLimits(), _client(parallel=2)
    first = _granted(limits, client, NOW)
    second = _granted(limits, client, NOW)
    refusal = _refused(limits, client, NOW)
    assert (refusal.reason, refusal.retry_after, refusal.hard) == ("parallel", 1, False)
    limits.settle(first, 0, 0, 0, 0, NOW)
    third = _granted(limits, client, NOW)
    limits.release(second)
    limits.release(third)
    _granted(limits, client, NOW)


def test_money_is_spent_by_price_until_the_month_ends() -> None:
    """Cached tokens have their own price; the budget comes back with the calendar month (UTC)."""
    limits, client = LocalLimits(), _client(money_per_month=1.0)
    price = Price(input=1.0, cached=0.1, output=10.0, image=0.01)
    held = _granted(limits, client, NOW, 100_000, price=price, output_estimate=50_000, images=1)
    cost = limits.settle(held, 100_000, 90_000, 70_000, 1, NOW)
    assert cost == pytest.approx(0.01 + 0.009 + 0.7 + 0.01)
    refusal = _refused(limits, client, NOW, 100_000, price=price)
    assert (refusal.reason, refusal.retry_after, refusal.hard) == ("money_per_month", 60, True)
    assert "The next month begins in 8 days" in refusal.message
    december = 1_796_083_200.0
    assert isinstance(_reserve(limits, client, december - 1, 100_000, price=price), LimitRefusal)
    _granted(limits, client, december, 100_000, price=price)


def test_money_held_by_running_requests_is_a_soft_refusal() -> None:
    """Estimates that are held may come back soon, so the client may retry."""
    limits, client, price = LocalLimits(), _client(money_per_month=1.0), Price(output=1.0)
    held = _granted(limits, client, NOW, 900_000, price=price)
    assert not _refused(limits, client, NOW, 200_000, price=price).hard
    limits.settle(held, 0, 0, 0, 0, NOW)
    _granted(limits, client, NOW, 200_000, price=price)


def test_spent_budget_refuses_free_requests_too() -> None:
    """When the money is gone the key rests, whatever the next request would cost."""
    limits, client = LocalLimits(), _client(money_per_month=0.0)
    assert _refused(limits, client, NOW).hard


def test_persona_limit_counts_over_all_keys() -> None:
    """A persona's limit is shared by its clients, and other personas do not feel it."""
    limits, persona = LocalLimits(), Limits(requests_per_minute=2)
    for number in range(2):
        _granted(limits, Client(id=f"key_{number}", name="x"), NOW, persona=persona)
    refusal = _refused(limits, Client(id="key_9", name="x"), NOW, persona=persona)
    assert (refusal.scope, refusal.reason) == ("persona", "requests_per_minute")
    assert isinstance(limits.reserve(ANYBODY, "other", persona, None, 0, 0, NOW), Reservation)


def test_refusal_by_one_account_counts_on_none() -> None:
    """What the persona refuses does not use up the key's limit."""
    limits, persona = LocalLimits(), Limits(parallel=1)
    client = _client(requests_per_minute=2)
    first = _granted(limits, client, NOW, persona=persona)
    for _ in range(5):
        assert _refused(limits, client, NOW, persona=persona).reason == "parallel"
    limits.settle(first, 0, 0, 0, 0, NOW)
    _granted(limits, client, NOW, persona=persona)


def test_default_holds_for_keys_without_limits_of_their_own() -> None:
    """The tower's limits are per key; a key with limits has only those."""
    limits = LocalLimits()
    limits.default = Limits(requests_per_minute=1)
    other = Client(id="key_2", name="bob")
    _granted(limits, ANYBODY, NOW)
    assert isinstance(_reserve(limits, ANYBODY, NOW), LimitRefusal)
    _granted(limits, other, NOW)
    own = Client(id="key_3", name="eve", limits=Limits())
    for _ in range(3):
        _granted(limits, own, NOW)


def test_changed_limits_keep_what_was_used() -> None:
    """A reload may raise or lower a limit; the window does not begin anew."""
    limits = LocalLimits()
    for _ in range(3):
        _granted(limits, _client(requests_per_minute=5), NOW)
    assert isinstance(_reserve(limits, _client(requests_per_minute=3), NOW), LimitRefusal)
    _granted(limits, _client(requests_per_minute=4), NOW)


def test_changed_limits_are_seen_before_the_next_request() -> None:
    """What metrics say of a budget follows the key, the tower file and the persona at once; revoked keys are let be."""
    limits = LocalLimits()
    limits.default = Limits(tokens_per_day=100)
    own = Client(id="own", name="a", limits=Limits(parallel=1))
    for client in (own, Client(id="plain", name="b")):
        limits.reserve(client, "plan", Limits(images_per_day=5), None, 10, 0, NOW)
    limits.follow({"own": Limits(parallel=9), "plain": None}, {"plan": Limits(images_per_day=7)})
    assert [account.limits for account in limits.accounts()] == [
        Limits(parallel=9), Limits(tokens_per_day=100), Limits(images_per_day=7),
    ]  # fmt: skip
    limits.default = Limits()
    limits.follow({"own": None}, {})
    assert all(account.limits == Limits() for account in limits.accounts())


def test_release_undoes_everything() -> None:
    """A request that admission refused counts for nothing."""
    limits, client = LocalLimits(), _client(requests_per_minute=1, tokens_per_minute=10, images_per_day=1, parallel=1)
    for _ in range(5):
        held = _granted(limits, client, NOW, 10, images=1)
        limits.release(held)
        limits.release(held)
        limits.settle(held, 10, 0, 0, 1, NOW)
    _granted(limits, client, NOW, 10, images=1)


def test_settling_twice_counts_once() -> None:
    """A second settle returns the same cost and changes nothing."""
    limits, client, price = LocalLimits(), _client(tokens_per_minute=100), Price(input=1.0)
    held = _granted(limits, client, NOW, 50, price=price)
    assert limits.settle(held, 50, 0, 0, 0, NOW) == limits.settle(held, 99, 0, 0, 0, NOW) == pytest.approx(50e-6)
    _granted(limits, client, NOW, 50)


def test_repeat_of_a_counted_request_counts_once() -> None:
    """The SDK's retry of the same request takes no second request from the limit; a claim without proof does."""
    limits, client = LocalLimits(), _client(requests_per_minute=1)
    first = _granted(limits, client, NOW, fingerprint="a")
    assert not first.retry
    limits.settle(first, 0, 0, 0, 0, NOW)
    again = _granted(limits, client, NOW + 1, retry=True, fingerprint="a")
    assert again.retry
    limits.settle(again, 5, 0, 5, 0, NOW + 2)
    assert isinstance(_reserve(limits, client, NOW + 3, fingerprint="a"), LimitRefusal)
    assert isinstance(_reserve(limits, client, NOW + 3, retry=True, fingerprint="b"), LimitRefusal)
    assert isinstance(_reserve(limits, client, NOW + 3, retry=True), LimitRefusal)
    other = Client(id="key_2", name="bob", limits=Limits(requests_per_minute=1))
    assert not _granted(limits, other, NOW + 3, retry=True, fingerprint="a").retry


def test_repeats_are_believed_only_so_often() -> None:
    """A client that always claims to retry gains a few requests, not a life without limit."""
    limits, client = LocalLimits(), _client(requests_per_minute=1)
    _granted(limits, client, NOW, fingerprint="a")
    granted = 0
    for _ in range(50):
        granted += isinstance(_reserve(limits, client, NOW, retry=True, fingerprint="a"), Reservation)
    assert granted == 5


def test_retry_of_a_request_that_was_never_counted_counts() -> None:
    """Refused by a limit or by admission, the first try was not counted, so the second is."""
    limits, client = LocalLimits(), _client(requests_per_minute=1)
    limits.release(_granted(limits, client, NOW, fingerprint="a"))
    assert not _granted(limits, client, NOW, retry=True, fingerprint="a").retry
    assert isinstance(_reserve(limits, client, NOW, fingerprint="b"), LimitRefusal)
    assert not _granted(limits, client, NOW + 60, retry=True, fingerprint="b").retry


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.floats(0, 15), st.integers(1, 60), st.floats(0, 1), st.floats(0, 90)), min_size=1, max_size=60
    )
)
def test_no_window_exceeds_its_limit(steps: list[tuple[float, int, float, float]]) -> None:
    """With requests that overlap, no 60 s hold more requests or settled tokens than the limit."""
    limits, client = LocalLimits(), _client(requests_per_minute=5, tokens_per_minute=100)
    now, running, began, used = NOW, list[tuple[float, Reservation, int]](), list[float](), list[tuple[float, int]]()
    for pause, estimate, share, length in steps:
        now += pause
        for end, held, amount in sorted(running, key=lambda item: item[0]):
            if end <= now:
                limits.settle(held, amount, 0, 0, 0, end)
                used.append((end, amount))
        running = [item for item in running if item[0] > now]
        found = _reserve(limits, client, now, estimate)
        if isinstance(found, Reservation):
            began.append(now)
            running.append((now + length, found, int(estimate * share)))
        else:
            assert 1 <= found.retry_after <= 60
    for begin in began:
        assert sum(begin <= at < begin + 60 for at in began) <= 5
    for begin, _ in used:
        assert sum(amount for at, amount in used if begin <= at < begin + 60) <= 100


class Conservation(RuleBasedStateMachine):
    """Reserve, settle and release in any order: what is held is what runs, and it comes back whole."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.limits = LocalLimits()
        self.now = NOW
        self.running: dict[int, Reservation] = {}
        self.client = _client(requests_per_minute=50, tokens_per_minute=5000, images_per_day=100, money_per_month=1.0)
        self.persona = Limits(parallel=5, tokens_per_day=50_000)
        self.price = Price(input=1.0, output=2.0, image=0.001)

    @rule(target=held, tokens=st.integers(0, 3000), images=st.integers(0, 9), pause=st.floats(0, 30))
    def reserve(self, tokens: int, images: int, pause: float) -> Reservation | None:
        """One request comes in."""
        self.now += pause
        found = _reserve(
            self.limits, self.client, self.now, tokens, images=images, price=self.price, persona=self.persona
        )
        if isinstance(found, LimitRefusal):
            return None
        self.running[id(found)] = found
        return found

    @rule(reservation=consumes(held), share=st.floats(0, 1))
    def settle(self, reservation: Reservation | None, share: float) -> None:
        """One request ends."""
        if reservation is not None:
            del self.running[id(reservation)]
            self.limits.settle(reservation, int(reservation.tokens * share), 0, 0, reservation.images, self.now)

    @rule(reservation=consumes(held))
    def release(self, reservation: Reservation | None) -> None:
        """One request is refused by somebody else."""
        if reservation is not None:
            del self.running[id(reservation)]
            self.limits.release(reservation)

    @invariant()
    def held_is_what_runs(self) -> None:
        """Sums in the accounts equal the sums over running requests, and no limit is exceeded."""
        for account in self.limits.accounts():
            running = self.running.values()
            assert account.running == len(running) <= 5
            assert account.held_tokens == sum(reservation.tokens for reservation in running)
            assert account.held_images == sum(reservation.images for reservation in running)
            assert account.held_money == pytest.approx(sum(reservation.money for reservation in running), abs=1e-9)
            assert account.tokens_day.used(self.now) + account.held_tokens <= 50_000
            if account.scope == "key":
                assert account.tokens_minute.used(self.now) + account.held_tokens <= 5000
                assert account.requests_minute.used(self.now) <= 50
                assert account.spent + account.held_money <= 1.0 + 1e-9


TestConservation = Conservation.TestCase
TestConservation.__doc__ = Conservation.__doc__
