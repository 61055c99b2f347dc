"""Canonical JSON, so that two details are equal where their texts are."""

from __future__ import annotations

import json


def canonical_json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
