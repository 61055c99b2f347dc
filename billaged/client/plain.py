"""Text from elsewhere, made fit for a log, a terminal and a file."""

from __future__ import annotations

from typing import Final

MAX_CHARACTERS: Final = 500


def plain(text: str) -> str:
    """The text in one line, shortened; what does not print (control characters, what turns text around) is escaped."""
    cut = text[:MAX_CHARACTERS]
    if len(text) > len(cut):
        cut = cut[:-1] + "…"
    return cut if cut.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in cut)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
