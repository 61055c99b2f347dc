"""Whether the fold gets on, told while it is at one long entry."""

from __future__ import annotations


class Progress:
    """How many points were folded one by one; only the fold's thread writes."""

    __slots__ = ("points",)

    def __init__(self) -> None:
        self.points = 0
