"""The worked examples of docs/billing-semantics.md: a small language, read and written.

An example is a fenced block marked ``example``. Its first lines say what arrives, in the order of arrival, each with
the time that it is about; those that begin with ``=`` say what is billed then: every session, gap, correction and
record, and the buckets where any is named. The VM is ``vm``, the customer ``acme``; ``day 2 10:00`` is a day later.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from auditor.bill import Bill
from auditor.events import (
    HOUR_NS,
    MINUTE_NS,
    SECOND_NS,
    Batch,
    Event,
    Heartbeat,
    PossibleGap,
    Resumed,
    Rules,
    Sample,
    Started,
    Stopped,
    Tick,
    What,
)

VM: Final = "vm"
CUSTOMER: Final = "acme"
DAY_NS: Final = 24 * HOUR_NS
# 2026-11-10, a midnight.
DAY_ONE_NS: Final = 1_794_268_800 * SECOND_NS
GIB: Final = 2**30

_BLOCK: Final = re.compile(r"^```example\n(.*?)^```", re.MULTILINE | re.DOTALL)
_TIME: Final = re.compile(r"(?:day (\d+) )?(\d\d):(\d\d)(?::(\d\d))?")
_AMOUNT: Final = re.compile(r"(cpu|memory|disk) ([\d,]+) (s|GiB|MiB)")
_LENGTH: Final = re.compile(r"([\d,]+) (s|min|h)")
_UNITS_NS: Final = {"s": SECOND_NS, "min": MINUTE_NS, "h": HOUR_NS}


class Example(NamedTuple):
    heading: str
    events: list[Event]
    expected: list[str]


def examples(page: str) -> Iterator[Example]:
    """Each example of the page, under the heading that it stands below."""
    for match in _BLOCK.finditer(page):
        heading = re.findall(r"^#+ (.*)$", page[: match.start()], re.MULTILINE)[-1]
        lines = [line.strip() for line in match[1].splitlines() if line.strip()]
        arrivals = [line for line in lines if not line.startswith("=")]
        whats: list[What] = [Rules(), *map(_arrival, arrivals)]
        events = [Event(number, DAY_ONE_NS + number, "host", what) for number, what in enumerate(whats, 1)]
        yield Example(heading, events, [line.removeprefix("=").strip() for line in lines if line.startswith("=")])


def billed(bill: Bill, *, with_buckets: bool) -> list[str]:
    """The lines that say what a bill says, in the examples' words."""
    lines = []
    for row in sorted(bill.rows("sessions"), key=lambda row: row["start_ns"]):
        end = "running" if row["end_ns"] is None else f"{_clock(row['end_ns'])} {row['end_kind']}"
        lines.append(
            f"session {_clock(row['start_ns'])} to {end}: measured {_length(row['measured_ns'])},"
            f" gap {_length(row['gap_ns'])}, {_usage(row)}, {_memory(row)}, {row['samples']} samples"
        )
    if with_buckets:
        lines += [
            f"bucket {_clock(row['bucket_start_ns'])}: {_usage(row)}, {_memory(row)}" for row in bill.rows("facts")
        ]
    for row in bill.rows("corrections"):
        lines.append(f"correction of {_clock(row['bucket_start_ns'])} ({row['cause']}): {_usage(row)}, {_memory(row)}")
    for row in bill.rows("gaps"):
        reasons = ", ".join(_reasons(bill, row["start_ns"], row["end_ns"]))
        lines.append(f"gap {_clock(row['start_ns'])} to {_clock(row['end_ns'])} ({reasons}): {_usage(row)}")
    lines += [f"recorded: {row['kind']} at {_clock(row['at_ns'])}" for row in bill.rows("anomalies")]
    lines += [f"dead letter: {row['reason']}" for row in bill.rows("dead_letters")]
    return lines


def _reasons(bill: Bill, start_ns: int, end_ns: int) -> Sequence[str]:
    spoken = [("reported", row["last_sent_ns"], row["resume_ns"]) for row in bill.rows("reported_gaps")]
    for row in bill.rows("silences"):
        spoken.append((row["reason"], row["start_ns"], end_ns if row["end_ns"] is None else row["end_ns"]))
    known = {reason for reason, from_ns, to_ns in spoken if from_ns < end_ns and to_ns > start_ns}
    return sorted(known - {"no_samples"}) or ["no_samples"]


def _arrival(line: str) -> What:
    time = _TIME.match(line)
    if time is None:
        raise ValueError(f"no time: {line}")
    at_ns, rest = _time(time), line[time.end() :].strip()
    word, _, more = rest.partition(" ")
    if word == "start":
        return Started(VM, more.removeprefix("of ") or CUSTOMER, at_ns)
    if word == "stop":
        return Stopped(VM, at_ns)
    if word == "sample":
        values = {name: int(number.replace(",", "")) for name, number, _ in _AMOUNT.findall(more)}
        customer = match[1] if (match := re.search(r"of (\w+)", more)) else CUSTOMER
        sample = Sample(
            at_ns,
            values.get("memory", 0) * GIB,
            values.get("cpu", 0) * SECOND_NS,
            values.get("disk", 0) * 2**20,
            0, 0, 0,
        )  # fmt: skip
        return Batch(VM, customer, [sample])
    if word == "threshold":
        customer, _, length = more.removeprefix("of ").partition(" ")
        return Rules(gap_thresholds=((customer, _length_ns(length)),))
    if word == "tick":
        return Tick(at_ns, _length_ns(more), False)
    if word == "heartbeat":
        instance, *vms = more.split()
        return Heartbeat(instance, tuple(vms))
    if word in ("gap", "down"):
        until = _TIME.search(more)
        if until is None:
            raise ValueError(f"until when? {line}")
        return PossibleGap(VM, at_ns, _time(until)) if word == "gap" else Resumed(at_ns, _time(until))
    raise ValueError(f"what is this? {line}")


def _time(match: re.Match[str]) -> int:
    day, hour, minute, second = (int(part or 0) for part in match.groups())
    return DAY_ONE_NS + max(0, day - 1) * DAY_NS + hour * HOUR_NS + minute * MINUTE_NS + second * SECOND_NS


def _length_ns(text: str) -> int:
    match = _LENGTH.fullmatch(text)
    if match is None:
        raise ValueError(f"no length: {text}")
    return int(match[1].replace(",", "")) * _UNITS_NS[match[2]]


def _clock(time_ns: int) -> str:
    day, rest = divmod(time_ns - DAY_ONE_NS, DAY_NS)
    seconds, nanos = divmod(rest, SECOND_NS)
    if nanos:
        raise ValueError(f"{time_ns} is no whole second")
    text = f"{seconds // 3600:02}:{seconds // 60 % 60:02}" + (f":{seconds % 60:02}" if seconds % 60 else "")
    return f"day {day + 1} {text}" if day else text


def _length(nanos: int) -> str:
    """In minutes; what is none is said in seconds, exactly."""
    return f"{nanos // MINUTE_NS} min" if nanos % MINUTE_NS == 0 else f"{_number(nanos, SECOND_NS)} s"


def _usage(row: dict[str, int]) -> str:
    disk = f", disk {_number(row['disk_read_bytes'], 2**20)} MiB" if row["disk_read_bytes"] else ""
    return f"cpu {_number(row['cpu_time_ns'], SECOND_NS)} s{disk}"


def _memory(row: dict[str, int]) -> str:
    byte_nanos = row["memory_mib_seconds"] * 2**20 * SECOND_NS + row["memory_rest_byte_nanos"]
    return f"memory {_number(byte_nanos, GIB * MINUTE_NS)} GiB-min"


def _number(amount: int, unit: int) -> str:
    whole, rest = divmod(amount, unit)
    text = f"{whole:,}"
    if rest:
        hundredths, left = divmod(rest * 100, unit)
        if left:
            raise ValueError(f"{amount}/{unit} does not end after two digits: choose other numbers")
        text += f".{hundredths:02}".rstrip("0")
    return text
