"""Names of callers who have shown no certificate. No certificate can carry one that begins with @."""

from __future__ import annotations

from typing import Final

PLAINTEXT: Final = "@plaintext"  # no TLS
ANONYMOUS: Final = "@anonymous"  # TLS, but nobody has said who they are
TOKEN: Final = "@token"  # HTTP's bearer token
NAMES: Final = (PLAINTEXT, ANONYMOUS, TOKEN)
# Shared by all who prove nothing: counted by where they come from instead.
UNPROVED: Final = (PLAINTEXT, ANONYMOUS)
