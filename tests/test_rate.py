"""Token buckets: what passes, what is told to whom has to wait, and what a flood of keys can do. Time is passed in."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billaged.doors.rate import Limiter
from billaged.model.errors import Overloaded

SECOND = 10**9

rates = st.integers(1, 10_000)
waits_ns = st.one_of(st.integers(0, 3 * SECOND), st.integers(0, 1000))


class Time:
    """A clock that stands until it is moved. It begins late: a daemon may start on a machine that is up for a year."""

    def __init__(self, now_ns: int = 3 * 10**16) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns


def limiter(time: Time, *, requests: int = 0, samples: int = 0, burst_seconds: int = 5, keys_max: int = 16) -> Limiter:
    return Limiter(requests, samples, burst_seconds, monotonic_nanos=time, keys_max=keys_max)


def wait_ns_of(refusal: Overloaded) -> int:
    """What a caller is told, as it is rounded into RetryInfo."""
    assert refusal.retry_after_seconds is not None
    return math.ceil(refusal.retry_after_seconds * SECOND)


def request_passes(limits: Limiter, key: str) -> bool:
    try:
        limits.request(key)
    except Overloaded:
        return False
    return True


def assert_law(passed_ns: list[int], rate: int, burst_seconds: int) -> None:
    """From any request that passed to any later one, both included, in whole numbers."""
    for first, start_ns in enumerate(passed_ns):
        for last in range(first, len(passed_ns)):
            window_ns = passed_ns[last] - start_ns
            assert (last - first + 1) * SECOND <= rate * (burst_seconds * SECOND + window_ns)


def test_a_burst_passes_at_once_and_then_the_rate_holds() -> None:
    time = Time()
    limits = limiter(time, requests=10)
    assert [request_passes(limits, "a") for _ in range(51)] == [True] * 50 + [False]
    with pytest.raises(Overloaded) as caught:
        limits.request("a")
    assert str(caught.value) == "too many requests: the limit is 10 a second (UNKEY_BILLAGED_REQUESTS_PER_SECOND)"
    assert wait_ns_of(caught.value) == SECOND // 10
    assert limits.throttled == 2
    time.now_ns += SECOND // 10 - 1
    assert not request_passes(limits, "a")
    time.now_ns += 1
    assert request_passes(limits, "a")
    assert not request_passes(limits, "a")


def test_keys_do_not_touch_each_other() -> None:
    limits = limiter(Time(), requests=1, burst_seconds=1)
    assert request_passes(limits, "a")
    assert not request_passes(limits, "a")
    assert request_passes(limits, "b")


def test_zero_is_no_limit() -> None:
    limits = limiter(Time())
    for _ in range(100_000):
        limits.request("a")
    limits.samples("a", 10**12)
    assert limits.throttled == 0


def test_a_batch_larger_than_the_bucket_passes_and_is_paid_back_first() -> None:
    time = Time()
    limits = limiter(time, samples=100)
    limits.samples("a", 100_000)
    with pytest.raises(Overloaded) as caught:
        limits.samples("a", 1)
    assert str(caught.value) == "too many samples: the limit is 100 a second (UNKEY_BILLAGED_SAMPLES_PER_SECOND)"
    # 100,000 less the 500 that were there.
    assert caught.value.retry_after_seconds == 995
    limits.samples("a", 0)
    time.now_ns += 995 * SECOND
    limits.samples("a", 1)
    assert limits.throttled == 1


def test_samples_and_requests_are_counted_apart() -> None:
    limits = limiter(Time(), requests=1, samples=1, burst_seconds=1)
    limits.samples("a", 2)
    limits.request("a")
    with pytest.raises(Overloaded, match="samples"):
        limits.samples("a", 1)
    with pytest.raises(Overloaded, match="requests"):
        limits.request("a")


@given(st.integers(1, 20), st.integers(1, 5), st.lists(waits_ns, min_size=1, max_size=200))
def test_over_any_window_no_more_than_burst_and_rate_pass(rate: int, burst_seconds: int, waits: list[int]) -> None:
    time = Time()
    limits = limiter(time, requests=rate, burst_seconds=burst_seconds)
    passed_ns = []
    for wait_ns in waits:
        time.now_ns += wait_ns
        passed_ns += [time.now_ns for _ in range(5) if request_passes(limits, "a")]
    assert_law(passed_ns, rate, burst_seconds)


@given(rates, st.lists(st.tuples(waits_ns, st.integers(1, 50_000)), min_size=1, max_size=60))
def test_samples_hold_the_rate_but_for_the_last_batch(rate: int, batches: list[tuple[int, int]]) -> None:
    time = Time()
    limits = limiter(time, samples=rate)
    passed: list[tuple[int, int]] = []
    for wait_ns, count in batches:
        time.now_ns += wait_ns
        try:
            limits.samples("a", count)
        except Overloaded:
            continue
        passed.append((time.now_ns, count))
    for first, (start_ns, _) in enumerate(passed):
        before_last = 0
        for now_ns, count in passed[first:]:
            assert before_last * SECOND <= rate * 5 * SECOND + rate * (now_ns - start_ns)
            before_last += count


@given(rates, rates, st.lists(st.tuples(waits_ns, st.integers(0, 100_000)), max_size=100))
def test_who_waits_as_told_passes(requests: int, samples: int, work: list[tuple[int, int]]) -> None:
    time = Time()
    limits = limiter(time, requests=requests, samples=samples, burst_seconds=1)

    for wait_ns, count in work:
        time.now_ns += wait_ns
        for take in (lambda: limits.request("a"), lambda count=count: limits.samples("a", count)):
            try:
                take()
            except Overloaded as refusal:
                # Two early: one may come from a float of seconds.
                time.now_ns += wait_ns_of(refusal) - 2
                with contextlib.suppress(Overloaded):
                    take()
                    pytest.fail("told to wait longer than needed")
                time.now_ns += 2
                take()


@given(rates, st.integers(0, 300), waits_ns, waits_ns)
def test_time_going_by_never_refuses(rate: int, before: int, wait_ns: int, later_ns: int) -> None:
    """Of two callers that are alike, the one who waits longer passes wherever the other does."""
    patient, eager = Time(), Time()
    limits = {"patient": limiter(patient, requests=rate), "eager": limiter(eager, requests=rate)}
    for key in limits:
        for _ in range(before):
            request_passes(limits[key], key)
    eager.now_ns += wait_ns
    patient.now_ns += wait_ns + later_ns
    assert request_passes(limits["patient"], "patient") >= request_passes(limits["eager"], "eager")


# --- floods of keys -----------------------------------------------------------------


def test_a_bucket_in_use_outlives_any_flood() -> None:
    time = Time()
    limits = limiter(time, requests=1, keys_max=4)
    while request_passes(limits, "attacker"):
        pass
    for number in range(1000):
        request_passes(limits, f"flood-{number}")
        time.now_ns += SECOND // 1000 - 1
    assert not request_passes(limits, "attacker")


def test_memory_is_bounded_and_late_keys_share_one_bucket() -> None:
    limits = limiter(Time(), requests=1, keys_max=100)
    passed = sum(request_passes(limits, f"key-{number}") for number in range(50_000))
    # One each of the hundred, and five of the shared one.
    assert passed == 105
    assert limits._requests is not None
    assert len(limits._requests._full_at) == 101


def test_full_buckets_make_room_for_new_keys() -> None:
    """Addresses that come once, each for a moment: nobody is held up by those before."""
    time = Time()
    limits = limiter(time, requests=1000, keys_max=100)
    for number in range(5000):
        time.now_ns += SECOND // 50
        assert request_passes(limits, f"key-{number}")
        assert limits._requests is not None
        assert len(limits._requests._full_at) <= 101


@given(
    st.integers(1, 5),
    st.integers(0, 3),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2 * SECOND)), min_size=1, max_size=200),
)
def test_no_key_gets_more_by_moving_between_buckets(rate: int, keys_max: int, calls: list[tuple[int, int]]) -> None:
    """With fewer places than keys each is now and then in the shared one: the law holds for each all the same."""
    time = Time()
    limits = limiter(time, requests=rate, burst_seconds=2, keys_max=keys_max)
    passed_ns: dict[int, list[int]] = {}
    for key, wait_ns in calls:
        time.now_ns += wait_ns
        for _ in range(3):
            if request_passes(limits, f"key-{key}"):
                passed_ns.setdefault(key, []).append(time.now_ns)
    for moments in passed_ns.values():
        assert_law(moments, rate, 2)


def test_a_bucket_of_no_seconds_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing"):
        limiter(Time(), requests=1, burst_seconds=0)
