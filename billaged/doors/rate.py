"""How much one caller may send: a token bucket for each key, an identity or a remote address.

A bucket holds five seconds' worth and is one whole number, the point at which it is full
again, on a scale of monotonic nanoseconds times the rate: a billionth of a token a step.
So nothing is rounded, and a bucket that nobody uses needs no upkeep.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from billaged.model.errors import Overloaded
from billaged.model.time import NANOS

REQUESTS_PER_SECOND: Final = "UNKEY_BILLAGED_REQUESTS_PER_SECOND"
SAMPLES_PER_SECOND: Final = "UNKEY_BILLAGED_SAMPLES_PER_SECOND"

_KEYS_MAX: Final = 16_384
_FORGET_NANOS: Final = NANOS


class Limiter:
    """Requests and samples a second of each key. For one thread, the event loop's."""

    def __init__(
        self,
        requests_per_second: int,
        samples_per_second: int,
        burst_seconds: int = 5,
        *,
        monotonic_nanos: Callable[[], int],
        keys_max: int = _KEYS_MAX,
    ) -> None:
        """A rate of 0 is no limit. Of each kind ``keys_max`` buckets are kept, and one that the others share."""
        if burst_seconds < 1:
            raise ValueError("a bucket that holds nothing lets nothing pass")
        self._monotonic_nanos = monotonic_nanos
        self._requests = _Buckets(requests_per_second, burst_seconds, keys_max) if requests_per_second else None
        self._samples = _Buckets(samples_per_second, burst_seconds, keys_max) if samples_per_second else None
        self.throttled = 0  # refusals so far

    def request(self, key: str) -> None:
        """Take one request.

        Raises:
            Overloaded: there is none left; with the time until there is.
        """
        buckets = self._requests
        if buckets is None:
            return
        wait_ns = buckets.take(key, 1, NANOS, self._monotonic_nanos())
        if wait_ns:
            raise self._refusal(
                f"too many requests: the limit is {buckets.rate} a second ({REQUESTS_PER_SECOND})", wait_ns
            )

    def samples(self, key: str, count: int) -> None:
        """Take the samples of one batch, which may be more than there are: what is owed has to come in again first.

        So a batch larger than the bucket passes too, and the rate holds in the long run.

        Raises:
            Overloaded: samples are owed from before; with the time until none are.
        """
        buckets = self._samples
        if buckets is None or not count:
            return
        wait_ns = buckets.take(key, count, 0, self._monotonic_nanos())
        if wait_ns:
            raise self._refusal(
                f"too many samples: the limit is {buckets.rate} a second ({SAMPLES_PER_SECOND})", wait_ns
            )

    def _refusal(self, message: str, wait_ns: int) -> Overloaded:
        self.throttled += 1
        return Overloaded(message, wait_ns / NANOS)


class _Buckets:
    """Buckets of one rate, in a bounded place.

    Only a full bucket is forgotten, which is what a new one is: no flood of keys gives
    anybody more. While all that are kept are in use, keys without one share the bucket
    of the key None. Whoever leaves it for one of his own takes its level along, or he
    would have had both.
    """

    def __init__(self, rate: int, burst_seconds: int, keys_max: int) -> None:
        self.rate = rate  # tokens a second
        self._capacity = rate * burst_seconds * NANOS  # billionths of a token
        self._places_max = keys_max + 1
        self._full_at: dict[str | None, int] = {None: 0}  # nanoseconds × rate
        self._forget_again_ns = 0  # when the next look for full ones is due

    def take(self, key: str, count: int, needed: int, now_ns: int) -> int:
        """Take ``count`` tokens if ``needed`` billionths of one are there; else say in how many nanoseconds they are.

        Returns 0 when they were taken.
        """
        now = now_ns * self.rate
        holder: str | None = key
        full_at = self._full_at.get(key)
        if full_at is None:
            holder = self._place(key, now_ns)
            full_at = self._full_at[holder]
        if full_at < now:
            full_at = now
        missing = full_at - now + needed - self._capacity
        if missing > 0:
            return -(-missing // self.rate)
        self._full_at[holder] = full_at + count * NANOS
        return 0

    def _place(self, key: str, now_ns: int) -> str | None:
        """Whose bucket a key without one takes from: its own new one, or the shared one where there is no room."""
        if len(self._full_at) >= self._places_max:
            self._forget_full(now_ns)
            if len(self._full_at) >= self._places_max:
                return None
        self._full_at[key] = self._full_at[None]
        return key

    def _forget_full(self, now_ns: int) -> None:
        """Once a second at most: it looks at all of them, and keys may come by the thousand."""
        if now_ns < self._forget_again_ns:
            return
        self._forget_again_ns = now_ns + _FORGET_NANOS
        now = now_ns * self.rate
        self._full_at = {key: at for key, at in self._full_at.items() if at > now or key is None}
