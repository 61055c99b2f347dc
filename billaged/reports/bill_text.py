"""A bill for programs: JSON and CSV, exact."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from billaged.ledger.reader import Anomaly
from billaged.model.errors import StorageError
from billaged.model.records import COUNTER_FIELDS
from billaged.model.time import exact_seconds, format_instant
from billaged.reports.bill import Bill, BillGap, BillLine
from billaged.reports.bill_buckets import BucketLine
from billaged.reports.completeness import Account
from billaged.reports.gaps import GAP_FIELDS, gap_record
from billaged.reports.sheet import Record, as_csv, as_json
from billaged.reports.units import gib_hours
from billaged.reports.usage import memory_peak_bytes

_TIMES: Final = ("lifetime_ns", "measured_ns", "gap_ns", "pending_ns")
_ACCOUNT: Final = ("completeness_percent", *_TIMES, *(name.replace("_ns", "_seconds") for name in _TIMES))
_COUNTS: Final = ("samples", "anomalies")
_USAGE: Final = (
    *("cpu_time_ns", "memory_mean_bytes", "memory_peak_bytes", "memory_byte_nanos", *COUNTER_FIELDS[1:]),
    *(f"gap_{name}" for name in COUNTER_FIELDS),
    *("resource_score", "cpu_seconds", "memory_gib_hours", "gap_cpu_seconds"),
)
_GAP: Final = (
    *(*GAP_FIELDS, "in_period_ns", "in_period_seconds"),
    *(f"in_period_{name}" for name in COUNTER_FIELDS),
)
_ANOMALY: Final = ("kind", "vm_id", "customer_id", "session", "at", "at_ns", "sequence", "item", "detail")
# One header for all that a bill says; `record` says what a line is: total, vm, bucket, gap or anomaly.
_CSV: Final = tuple(
    dict.fromkeys(
        (
            *("record", "vm_id", "customer_ids", "from", "to"),
            *(*_ACCOUNT, *_COUNTS, *_USAGE, *_GAP, *_ANOMALY),
        )
    )
)


def bill_json(bill: Bill) -> str:
    """Exact integers and, beside them, the same for reading; ``buckets`` only where they were asked for."""
    whose = {name: value for name, value in bill.subject._asdict().items() if value is not None}
    page: dict[str, Any] = {
        **whose,
        "from": format_instant(bill.span.from_ns),
        "to": format_instant(bill.span.to_ns),
        "from_ns": bill.span.from_ns,
        "to_ns": bill.span.to_ns,
        "as_of": format_instant(bill.as_of_ns),
        "ledger": bill.position._asdict(),
        "score_weights": {name: str(weight) for name, weight in asdict(bill.weights).items()},
        "vms": [_line(line) for line in bill.lines],
    }
    if bill.buckets is not None:
        page["buckets"] = [_bucket(line) for line in bill.buckets]
    page["total"] = _line(bill.total)
    page["gaps"] = [_gap(gap) | _lists(gap) for gap in bill.gaps]
    page["anomalies"] = [_anomaly(each) | {"detail": _detail(each)} for each in bill.anomalies]
    page["anomalies_left_out"] = bill.anomalies_left_out
    return as_json(page)


def bill_csv(bill: Bill) -> str:
    """All of it under one header. A column is summed up over lines of one ``record`` only."""
    period = {"from": format_instant(bill.span.from_ns), "to": format_instant(bill.span.to_ns)}
    records: list[Record] = [_csv_line("vm", line, period) for line in bill.lines]
    records += [{"record": "bucket", **_bucket(line)} for line in bill.buckets or ()]
    records.append(_csv_line("total", bill.total, period))
    records += [{"record": "gap", **_gap(gap)} for gap in bill.gaps]
    records += [{"record": "anomaly", **_anomaly(each)} for each in bill.anomalies]
    return as_csv(_CSV, records)


def _line(line: BillLine) -> dict[str, Any]:
    key = {"customer_ids": list(line.customer_ids)}
    return {**({} if line.vm_id is None else {"vm_id": line.vm_id}), **key, **_account(line.account), **_usage(line)}


def _csv_line(record: str, line: BillLine, period: Mapping[str, str]) -> Record:
    return {"record": record, **_line(line), "customer_ids": " ".join(line.customer_ids), **period}


def _account(account: Account) -> dict[str, str | int | None]:
    times = {name: getattr(account, name) for name in _TIMES}
    return {
        "completeness_percent": None if account.percent is None else f"{account.percent:f}",
        **times,
        **{name.replace("_ns", "_seconds"): exact_seconds(nanos) for name, nanos in times.items()},
        "samples": account.samples,
        "anomalies": account.anomalies,
    }


def _usage(line: BillLine) -> dict[str, str | int]:
    usage, across = line.used.usage, line.used.across_gaps
    return {
        "cpu_time_ns": usage.cpu_time_ns,
        "memory_mean_bytes": usage.memory_mean_bytes,
        "memory_peak_bytes": memory_peak_bytes(usage),
        "memory_byte_nanos": usage.memory_byte_nanos,
        **{name: getattr(usage, name) for name in COUNTER_FIELDS[1:]},
        **{f"gap_{name}": getattr(across, name) for name in COUNTER_FIELDS},
        "resource_score": f"{line.used.score:f}",
        "cpu_seconds": exact_seconds(usage.cpu_time_ns),
        "memory_gib_hours": f"{gib_hours(usage.memory_byte_nanos):f}",
        "gap_cpu_seconds": exact_seconds(across.cpu_time_ns),
    }


def _bucket(line: BucketLine) -> dict[str, str | int | None]:
    """What is pending has no bucket yet."""
    account = {name: value for name, value in _account(line.account).items() if not name.startswith("pending")}
    span = {"from": format_instant(line.span.from_ns), "to": format_instant(line.span.to_ns)}
    return {"vm_id": line.vm_id, **span, **account}


def _gap(gap: BillGap) -> dict[str, Any]:
    record = dict(gap_record(gap.line))
    if gap.line.end_ns is None:
        # It grows until it closes: what of it is in the period does not, once that is past.
        record |= {"duration_ns": None, "duration_seconds": None}
    part = {
        f"in_period_{name}": None if gap.in_period is None else getattr(gap.in_period, name) for name in COUNTER_FIELDS
    }
    inside = {"in_period_ns": gap.in_period_ns, "in_period_seconds": exact_seconds(gap.in_period_ns)}
    return {**record, **inside, **part}


def _lists(gap: BillGap) -> dict[str, list[str]]:
    return {"reasons": list(gap.line.reasons), "instances": list(gap.line.instances)}


def _anomaly(anomaly: Anomaly) -> dict[str, Any]:
    return {
        "kind": anomaly.kind,
        "vm_id": anomaly.vm_id,
        "customer_id": anomaly.customer_id,
        "session": anomaly.ordinal or None,
        "at": format_instant(anomaly.at_ns),
        "at_ns": anomaly.at_ns,
        "sequence": anomaly.sequence,
        "item": anomaly.item,
        "detail": anomaly.detail,
    }


def _detail(anomaly: Anomaly) -> Any:
    """
    Raises:
        StorageError: it is not the JSON that was written.
    """
    try:
        return json.loads(anomaly.detail)
    except ValueError as error:
        what = f"sequence {anomaly.sequence}, item {anomaly.item}, kind {anomaly.kind!r}"
        raise StorageError(
            f"the ledger's anomalies row ({what}) is damaged: detail is {anomaly.detail!r}.",
            "Restore a backup of the ledger.",
        ) from error
