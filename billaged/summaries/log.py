"""Summaries on the log: a line for each VM, each customer, or one for all."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from billaged.aggregator.columns import TOTALS_WIDTH
from billaged.aggregator.summary import Summary, SummaryBatch, usage_of
from billaged.model.quantity import GIB, MIB, ScoreWeights, Usage, resource_score
from billaged.model.time import NANOS, exact_seconds, format_duration, format_instant
from billaged.summaries.mean import memory_mean_bytes

_log = logging.getLogger("billaged.summary")


class SummaryLog:
    """``scope``: ``vm``, ``customer``, ``total`` or ``off``. ``readable``: for eyes instead of machines."""

    def __init__(self, scope: str, weights: ScoreWeights, *, readable: bool) -> None:
        self._scope = scope
        self._weights = weights
        self._readable = readable

    def publish(self, batch: SummaryBatch) -> None:
        if self._scope == "vm":
            for index in range(len(batch)):
                self._vm_line(batch, index)
        elif self._scope == "customer":
            rows = defaultdict(list)
            for index, customer_id in enumerate(batch.customer_ids):
                rows[customer_id].append(index)
            for customer_id, indexes in sorted(rows.items()):
                self._sum_line(batch, np.array(indexes), {"customer_id": customer_id})
        elif self._scope == "total" and len(batch):
            self._sum_line(batch, np.arange(len(batch)), {"customers": len(set(batch.customer_ids))})

    def _vm_line(self, batch: SummaryBatch, index: int) -> None:
        try:
            summary = batch.row(index)
            if self._readable:
                _log.info("%s", readable_line(summary, self._weights))
            else:
                _log.info("vm usage summary", extra=summary_fields(summary, self._weights))
        except Exception:  # noqa: BLE001 - one VM's trouble is not the others'
            _log.exception("the summary of VM %s cannot be logged", batch.vm_ids[index])

    def _sum_line(self, batch: SummaryBatch, indexes: NDArray[np.intp], about: Mapping[str, object]) -> None:
        usage = usage_of(exact_sums(batch.window[indexes]))
        span_ns = batch.window_end_ns - batch.window_start_ns
        name = about.get("customer_id", "all customers")
        if self._readable:
            text = _usage_text(usage, span_ns, self._weights)
            _log.info("%s  %d VMs  %s  %s", name, len(indexes), format_duration(_rounded(span_ns)), text)
            return
        fields = {
            **about,
            "vms": len(indexes),
            "window_start": format_instant(batch.window_start_ns),
            "window_end": format_instant(batch.window_end_ns),
            "window": usage_fields(usage, span_ns, self._weights),
            "replayed": batch.replayed,
        }
        _log.info("customer usage summary" if "customer_id" in about else "total usage summary", extra=fields)


def exact_sums(totals: NDArray[np.int64]) -> list[int]:
    """The sums of totals' columns as Python integers (the peak's is their highest), however many rows."""
    high = (totals >> 32).sum(axis=0).tolist()
    low = (totals & 0xFFFF_FFFF).sum(axis=0).tolist()
    sums = [(upper << 32) + lower for upper, lower in zip(high, low, strict=True)]
    sums[TOTALS_WIDTH - 1] = int(totals[:, TOTALS_WIDTH - 1].max())
    return sums


def summary_fields(summary: Summary, weights: ScoreWeights) -> dict[str, object]:
    """A VM's summary as the fields of a JSON line."""
    window_ns = summary.window_end_ns - summary.window_start_ns
    session_ns = summary.session_end_ns - summary.session_start_ns
    return {
        "vm_id": summary.vm_id,
        "customer_id": summary.customer_id,
        "session_number": summary.ordinal,
        "window_start": format_instant(summary.window_start_ns),
        "window_end": format_instant(summary.window_end_ns),
        "session_start": format_instant(summary.session_start_ns),
        "session_end": format_instant(summary.session_end_ns),
        "window": usage_fields(summary.window, window_ns, weights),
        "session": usage_fields(summary.session, session_ns, weights),
        "final": summary.final,
        "replayed": summary.replayed,
    }


def usage_fields(usage: Usage, span_ns: int, weights: ScoreWeights) -> dict[str, object]:
    return {
        "cpu_time_nanos": usage.cpu_time_ns,
        "memory_mean_bytes": memory_mean_bytes(usage),
        "memory_peak_bytes": usage.memory_peak_bytes,
        "memory_byte_seconds": usage.memory_byte_nanos // NANOS,
        "disk_read_bytes": usage.disk_read_bytes,
        "disk_write_bytes": usage.disk_write_bytes,
        "network_rx_bytes": usage.network_rx_bytes,
        "network_tx_bytes": usage.network_tx_bytes,
        "samples": usage.samples,
        "measured_seconds": exact_seconds(usage.measured_ns),
        "gap_seconds": exact_seconds(usage.gap_ns),
        "resource_score": str(resource_score(usage, span_ns, weights)),
    }


def readable_line(summary: Summary, weights: ScoreWeights) -> str:
    """A VM's summary for a terminal: the window, then the session so far."""
    window_ns = summary.window_end_ns - summary.window_start_ns
    session_ns = summary.session_end_ns - summary.session_start_ns
    window = _usage_text(summary.window, window_ns, weights)
    session = _usage_text(summary.session, session_ns, weights)
    span = format_duration(_rounded(window_ns))
    lived = format_duration(_rounded(session_ns))
    ended = "  ended" if summary.final else ""
    again = "  (replayed)" if summary.replayed else ""
    head = f"{summary.vm_id} of {summary.customer_id}{ended}{again}"
    return f"{head}\n    last {span:>7}: {window}\n    so far {lived:>5}: {session}"


def _rounded(nanos: int) -> int:
    """To a tenth of a second below ten, to whole seconds above: for eyes."""
    unit = NANOS // 10 if abs(nanos) < 10 * NANOS else NANOS
    return round(nanos / unit) * unit


def _usage_text(usage: Usage, span_ns: int, weights: ScoreWeights) -> str:
    parts: Sequence[str] = (
        f"cpu {usage.cpu_time_ns / NANOS:.2f}s",
        f"mem {memory_mean_bytes(usage) / GIB:.2f} GiB (peak {usage.memory_peak_bytes / GIB:.2f})",
        f"disk r {usage.disk_read_bytes / MIB:.1f} w {usage.disk_write_bytes / MIB:.1f} MiB",
        f"net rx {usage.network_rx_bytes / MIB:.2f} tx {usage.network_tx_bytes / MIB:.2f} MiB",
        f"measured {format_duration(_rounded(usage.measured_ns))} gap {format_duration(_rounded(usage.gap_ns))}",
        f"score {resource_score(usage, span_ns, weights):.2f}",
    )
    return " · ".join(parts)
