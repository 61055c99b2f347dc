"""Names that a later version brings: accepted today, reported as doing nothing yet."""

from __future__ import annotations

from typing import Final, NamedTuple


class Coming(NamedTuple):
    """What a name will be. A ``secret``'s value is shown nowhere and kept nowhere."""

    description: str
    secret: bool = False


COMING: Final = {
    "DATABASE_URL": Coming("the ledger's database", secret=True),
}
