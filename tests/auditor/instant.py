"""Points of a timeline, and the instants that they make up."""

from __future__ import annotations

from typing import Literal, NamedTuple

from auditor.events import Rules, Sample

Sort = Literal["start", "sample", "stop"]


class Point(NamedTuple):
    sort: Sort
    time_ns: int
    sample: Sample | None = None


class Instant(NamedTuple):
    """The points of one time, and the link into it from the instant before (or from nothing)."""

    time_ns: int
    # In force when it was appended: the link's.
    rules: Rules
    # The number of the session that its start opens.
    start_ordinal: int | None = None
    sample: Sample | None = None
    has_stop: bool = False
    # The link's, for good.
    open_link: bool = False

    def with_point(self, point: Point, ordinal: int) -> Instant:
        """The instant with a point more. A start opens the session of this number."""
        if point.sort == "start":
            return self._replace(start_ordinal=ordinal)
        if point.sort == "stop":
            return self._replace(has_stop=True)
        return self._replace(sample=point.sample)

    def holds(self, sort: Sort) -> bool:
        if sort == "start":
            return self.start_ordinal is not None
        return self.has_stop if sort == "stop" else self.sample is not None

    @property
    def holds_start_or_stop(self) -> bool:
        return self.holds("start") or self.holds("stop")

    def order(self, *, running: bool) -> list[Sort]:
        """In which its points count, where a session runs until then or not."""
        stop_first: list[Sort] = ["stop", "start", "sample"]
        stop_last: list[Sort] = ["start", "sample", "stop"]
        both = self.holds("start") and self.holds("stop")
        return [sort for sort in (stop_first if both and running else stop_last) if self.holds(sort)]
