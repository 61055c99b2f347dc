"""The columns of a canonical dump, table by table, and what names a row in each."""

from __future__ import annotations

from auditor.events import COUNTER_NAMES

_QUANTITIES = (
    *COUNTER_NAMES,
    "memory_mib_seconds",
    "memory_rest_byte_nanos",
    "measured_ns",
    "samples",
    "memory_peak_bytes",
)
BUCKET_KEY = ("bucket_start_ns", "bucket_ns", "vm_id", "ordinal", "customer_id")
COLUMNS = {
    "sessions": (
        "vm_id",
        "ordinal",
        "customer_id",
        "start_ns",
        "explicit",
        "last_ns",
        "end_ns",
        "end_kind",
        *COUNTER_NAMES,
        "memory_mib_seconds",
        "memory_rest_byte_nanos",
        "measured_ns",
        "gap_ns",
        "samples",
        "memory_peak_bytes",
    ),
    "facts": (*BUCKET_KEY, *_QUANTITIES),
    "corrections": ("sequence", *BUCKET_KEY, *_QUANTITIES, "cause"),
    "gaps": ("vm_id", "ordinal", "start_ns", "end_ns", "kind", "customer_id", *COUNTER_NAMES, "sequence"),
    "anomalies": ("sequence", "item", "kind", "vm_id", "at_ns", "ordinal", "detail"),
    "dead_letters": ("sequence", "kind", "reason"),
    "instances": ("instance_id", "last_seen_ns", "active_vms", "heard_seconds", "silent"),
    "silences": ("vm_id", "start_ns", "reason", "end_ns", "sequence"),
    "reported_gaps": ("sequence", "vm_id", "last_sent_ns", "resume_ns"),
    "tallies": ("name", "value"),
}
# How many of a table's first columns name a row.
KEY_LENGTHS = {
    "sessions": 2,
    "facts": 4,
    "corrections": 5,
    "gaps": 3,
    "anomalies": 5,
    "dead_letters": 1,
    "instances": 1,
    "silences": 3,
    "reported_gaps": 1,
    "tallies": 1,
}
