"""Names of settings: each has one, and some have another that means the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from billaged.settings.kinds import printable
from billaged.settings.section import PREFIX

# What follows one of these may also be written with the other: the dashboards' documentation has it so.
OTEL_PREFIX: Final = f"{PREFIX}OTEL_"
SHORT_OTEL_PREFIX: Final = OTEL_PREFIX.removeprefix("UNKEY_")
# Other names that are no matter of a prefix.
_OTHER_NAMES: Final = {f"{PREFIX}ENABLE_OTEL": f"{PREFIX}OTEL_ENABLED"}


class Named(NamedTuple):
    """The settings of an environment under their own names.

    ``written`` has those that were given under another one, with that; ``problems`` is a line
    for each setting whose names disagree.
    """

    texts: Mapping[str, str]
    written: Mapping[str, str]
    problems: tuple[str, ...]


def other_names(name: str) -> Iterator[str]:
    """What else a setting may be called."""
    if name.startswith(OTEL_PREFIX):
        yield SHORT_OTEL_PREFIX + name.removeprefix(OTEL_PREFIX)
    for other, own in _OTHER_NAMES.items():
        if own == name:
            yield other


def under_own_names(environ: Mapping[str, str]) -> Named:
    """What of an environment is ours; all else is left out."""
    texts: dict[str, str] = {}
    names: dict[str, str] = {}
    problems = []
    # A setting's own name sorts last, so it is the one that is said where both are right.
    for name in sorted(environ, key=lambda name: (_own(name) == name, name)):
        if not name.upper().startswith((PREFIX, SHORT_OTEL_PREFIX)):
            continue
        own = _own(name)
        if own in texts and texts[own] != environ[name]:
            problems.append(
                f"{printable(names[own])} and {printable(name)}: set to different values; unset one of them"
            )
        texts[own], names[own] = environ[name], name
    written = {own: name for own, name in names.items() if own != name}
    return Named(texts, written, tuple(problems))


def _own(name: str) -> str:
    if name.startswith(SHORT_OTEL_PREFIX):
        return OTEL_PREFIX + name.removeprefix(SHORT_OTEL_PREFIX)
    return _OTHER_NAMES.get(name, name)
