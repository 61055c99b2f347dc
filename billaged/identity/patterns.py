"""Patterns of identities and ids: literal text, ``*`` for a run without ``/``, ``**`` for any run.

A match takes time in proportion to the text, whatever the pattern: one pass that keeps
all places of the pattern that may come next as the bits of a number, and never goes back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

PATTERN_CHARACTERS_MAX: Final = 2048  # a SPIFFE ID is no longer
_RUN_OF_STARS: Final = re.compile(r"(\*+)")


class Pattern:
    """One compiled pattern. It matches a text as a whole or not at all."""

    __slots__ = ("_accepting", "_crossing", "_looping", "_prefix", "_suffix", "_where", "literal", "text")

    def __init__(self, text: str) -> None:
        """
        Raises:
            ValueError: the pattern is empty, too long, or has more than two ``*`` in a row.
        """
        if not text:
            raise ValueError("is empty")
        if len(text) > PATTERN_CHARACTERS_MAX:
            raise ValueError(f"has more than {PATTERN_CHARACTERS_MAX} characters")
        if "***" in text:
            raise ValueError("has more than two * in a row; write ** for any run, * for one without /")
        self.text = text
        self.literal = "*" not in text
        literals = _RUN_OF_STARS.split(text)
        wildcards = literals[1::2]
        self._prefix = literals[0]
        self._suffix = literals[-1] if wildcards else ""
        # Bit n of each: the n-th character between prefix and suffix that is no wildcard comes next.
        self._where: dict[str, int] = {}  # where each character is expected
        self._looping = 0  # where a wildcard stands before it, so that others may come first
        self._crossing = 0  # where that wildcard is **, so that "/" may come first, too
        bit = 1
        for index, wildcard in enumerate(wildcards):
            self._looping |= bit
            if wildcard == "**":
                self._crossing |= bit
            if index + 1 < len(wildcards):
                for character in literals[2 * index + 2]:
                    self._where[character] = self._where.get(character, 0) | bit
                    bit <<= 1
        self._accepting = bit

    def matches(self, text: str) -> bool:
        if self.literal:
            return text == self.text
        start, end = len(self._prefix), len(text) - len(self._suffix)
        if end < start or not text.startswith(self._prefix) or not text.endswith(self._suffix):
            return False
        crossing = self._crossing
        if self._accepting == 1:  # only one wildcard: by far the most common
            return crossing == 1 or text.find("/", start, end) < 0
        where, looping, places = self._where, self._looping, 1
        for character in text[start:end]:
            stay = crossing if character == "/" else looping
            places = (places & where.get(character, 0)) << 1 | places & stay
            if not places:
                return False
        return places & self._accepting != 0

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"


class Patterns:
    """Several patterns, each once; a text matches where one of them does."""

    __slots__ = ("_wild", "literals", "texts")

    def __init__(self, texts: Iterable[str]) -> None:
        """
        Raises:
            ValueError: one of them is no pattern.
        """
        self.texts = tuple(dict.fromkeys(texts))
        compiled = tuple(map(Pattern, self.texts))
        self.literals = frozenset(pattern.text for pattern in compiled if pattern.literal)
        self._wild = tuple(pattern for pattern in compiled if not pattern.literal)

    @property
    def wild(self) -> tuple[Pattern, ...]:
        """Those with wildcards."""
        return self._wild

    def matches(self, text: str) -> bool:
        if text in self.literals:
            return True
        for pattern in self._wild:  # noqa: SIM110 - any() with a generator takes three times as long
            if pattern.matches(text):
                return True
        return False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Patterns) and set(self.texts) == set(other.texts)

    def __hash__(self) -> int:
        return hash(frozenset(self.texts))

    def __repr__(self) -> str:
        return f"Patterns({list(self.texts)!r})"
