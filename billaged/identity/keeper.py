"""The keeper: the newest good material, for as long as it is good.

A source offers what it finds; what does not hold is refused and the last good one stays.
Readers take ``material`` whenever they need it: each has the whole of one version.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NamedTuple, Protocol

from billaged.identity.material import BadMaterial, Material, text

_log: Final = logging.getLogger("billaged.identity")

# Who renews in time does so by half of a certificate's life; with a third left, something is wrong,
# and for one that lives for a year a week is enough of a warning.
_LIFE_LEFT_PARTS: Final = 3
_WARNING_SECONDS_MAX: Final = 7 * 86_400
# Said again whenever this part of the time that was left is gone.
_AGAIN_PARTS: Final = 2


class Source(Protocol):
    """Where material comes from. Runs threads of its own between ``start`` and ``stop``."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def look(self) -> None:
        """Look for new material soon, whatever the pace."""


class KeeperStatus(NamedTuple):
    """What an operator wants to know. ``expires_in_seconds`` is negative once it has expired."""

    name: str | None
    expires_in_seconds: float | None
    changes: int
    refusals: int
    problem: str | None


class Keeper:
    """Any thread may read and offer. Listeners are called on the thread that offers, without the lock."""

    def __init__(
        self,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        probe: Callable[[Material], None] = lambda material: None,
    ) -> None:
        """``probe`` tries material before it is used; raises BadMaterial."""
        self.now = now
        self.probe = probe
        self.material: Material | None = None  # replaced as a whole
        self.ready = threading.Event()  # there is material
        self._lock = threading.Lock()  # guards what follows, and that only one offer at a time is decided
        self._listeners: list[Callable[[], object]] = []
        self._problem: str | None = None  # why the newest offer was refused, or what the source fails with
        self._changes = 0  # material put in use
        self._refusals = 0  # offers that were refused, and failures of the source
        self._said_seconds: float | None = None  # time left at the last warning about it

    def listen(self, listener: Callable[[], object]) -> None:
        """Call this whenever other material is in use."""
        with self._lock:
            self._listeners.append(listener)

    def offer(self, material: Material) -> bool:
        """Use this from now on; False if it is what is used already.

        Raises:
            BadMaterial: it must not be used; nothing has changed.
        """
        material.check(self.now())
        if self.material is None or not self.material.same_as(material):
            self.probe(material)
        with self._lock:
            problem, self._problem = self._problem, None
            old = self.material
            if old is not None and old.same_as(material):
                if problem is not None:
                    _log.info("the identity in use is confirmed again", extra={"identity": material.name})
                return False
            self.material = material
            self._changes += 1
            self._said_seconds = None
            listeners = tuple(self._listeners)
        self.ready.set()
        until = material.valid_until
        _log.info(
            "identity in use" if old is None else "identity renewed",
            extra={"identity": material.name, "valid_until": text(until) if until else None}
            | (
                {"trust_domains": sorted(material.trust.bundles)}
                if material.trust and any(material.trust.bundles)
                else {}
            ),
        )
        for listener in listeners:
            listener()
        return True

    def refuse(self, problem: BadMaterial | str) -> None:
        """Note what is wrong with the newest offer or its source; said once for each problem."""
        said = str(problem)
        with self._lock:
            is_news = said != self._problem
            self._problem = said
            self._refusals += 1
            kept = self.material
        if is_news:
            until = kept.valid_until if kept is not None else None
            goes_on = f" The last good identity stays in use, until {text(until)}." if until else ""
            _log.warning("%s%s", said, goes_on)

    def expired(self) -> bool:
        """Whether the material in use has come to its end."""
        until = self.material.valid_until if self.material is not None else None
        return until is not None and until <= self.now()

    def overdue(self) -> bool:
        """Whether it should have been renewed by now."""
        left, warn = self._seconds_left()
        return left is not None and left < warn

    def warn_of_expiry(self) -> None:
        """Say that the end is near, again at each half of the time left. To be called every few seconds."""
        left, warn = self._seconds_left()
        material = self.material
        if left is None or left >= warn or material is None or material.valid_until is None:
            return
        with self._lock:
            if self._said_seconds is not None and (self._said_seconds <= 0 or left > self._said_seconds / _AGAIN_PARTS):
                return
            self._said_seconds = left
        when = text(material.valid_until)
        if left <= 0:
            _log.error("%s: the certificate has expired at %s: nobody accepts it any more", material.name, when)
        else:
            _log.warning("%s: the certificate expires at %s and has not been renewed", material.name, when)

    def status(self) -> KeeperStatus:
        material = self.material
        left, _ = self._seconds_left()
        with self._lock:
            return KeeperStatus(
                material.name if material is not None else None, left, self._changes, self._refusals, self._problem
            )

    def _seconds_left(self) -> tuple[float | None, float]:
        """How long the material in use holds, and from when on that is worth a warning."""
        material = self.material
        if material is None or material.valid_until is None or material.valid_from is None:
            return None, 0.0
        life = (material.valid_until - material.valid_from).total_seconds()
        left = (material.valid_until - self.now()).total_seconds()
        return left, min(life / _LIFE_LEFT_PARTS, _WARNING_SECONDS_MAX)
