"""Ids: which texts may name a VM, a customer or an instance."""

from __future__ import annotations

import re
from typing import Final, NewType

VmId = NewType("VmId", str)
CustomerId = NewType("CustomerId", str)
InstanceId = NewType("InstanceId", str)

MAX_ID_BYTES: Final = 255
# ASCII only, so characters are bytes and no two ids look alike.
_ID: Final = re.compile(rf"[A-Za-z0-9._:/@-]{{1,{MAX_ID_BYTES}}}")
is_id: Final = _ID.fullmatch


def why_not_id(text: str) -> str | None:
    """What is wrong with an id, in words for its sender; None where nothing is."""
    if is_id(text):
        return None
    if not text:
        return "must not be empty"
    if len(text.encode("utf-8", "replace")) > MAX_ID_BYTES:
        return f"must not be longer than {MAX_ID_BYTES} bytes"
    return "may hold only letters, digits and ._:/@-"
