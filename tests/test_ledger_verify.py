"""``billaged verify``: a ledger that was folded from hostile journals is whole; one changed row is found and named."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import shutil
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import daemon_calls
import grpc
import pytest
from auditor.convert import to_entries
from auditor.generator import seeded_journal
from click.testing import CliRunner
from daemon_process import DaemonProcess
from report_fixtures import GIB, DataDir, at, batch, data_dir
from test_ledger_bill import within_settings

from billaged.cli.errors import exit_code
from billaged.cli.main import billaged
from billaged.ledger.audit_reader import auditing
from billaged.ledger.views import Subject
from billaged.model.errors import BillagedError
from billaged.model.quantity import REST_PER_MIB_SECOND
from billaged.model.records import FoldRules, Heartbeat, PossibleGap, Record, Tick, VmStarted, VmStopped
from billaged.model.time import DAY_NANOS, HOUR_NANOS, INT64_MAX, MINUTE_NANOS, NANOS
from billaged.reports.ledger_check.check import check_rows
from billaged.reports.ledger_check.findings import Findings
from billaged.reports.ledger_check.invariants import OF_THE_WHOLE, SENTENCES


def records() -> list[Record]:
    """VM a: two sessions, one with a gap; b: another customer's, with a correction; c: runs; and some of the rest."""
    made: list[Record] = [FoldRules(), Tick(at("10:00:00"), 0, False), Heartbeat("host", ("a", "b"))]
    made += [VmStarted("a", "acme", at("10:00:00")), VmStarted("c", "acme", at("10:00:00"))]
    for minute in range(5, 125, 5):
        time_ns = at("10:00:00") + minute * MINUTE_NANOS
        made.append(batch("a", (time_ns, GIB + minute, minute * NANOS)))
        if minute <= 30:
            made.append(batch("b", (time_ns, GIB, minute * NANOS), customer="bravo"))
    made.append(PossibleGap("a", at("12:00:00"), at("13:00:00")))
    made += [batch("a", (at("13:00:00"), GIB, 150 * NANOS)), VmStopped("a", at("13:05:00"))]
    made += [VmStarted("a", "acme", at("13:20:00")), batch("a", (at("13:25:00"), GIB, 10 * NANOS))]
    made += [Tick(at("13:30:00") + minute * MINUTE_NANOS, 5 * MINUTE_NANOS, True) for minute in range(0, 60, 5)]
    # Into a bucket that has closed; another customer's; late; no session at all.
    made.append(batch("b", (at("10:40:00"), GIB, 45 * NANOS), customer="bravo"))
    made.append(batch("a", (at("13:30:00"), GIB, 20 * NANOS), customer="eve"))
    made.append(batch("a", (at("10:31:00"), GIB, 1)))
    made.append(VmStopped("nobody", at("12:00:00")))
    return made


RECORDS = records()
HOUR_10, HOUR_12, HOUR_13 = at("10:00:00"), at("12:00:00"), at("13:00:00")
# Of a's first session from ten to eleven.
FACT = f"vm_id = 'a' AND ordinal = 1 AND bucket_start_ns = {HOUR_10}"
CORRECTION = "vm_id = 'b' AND ordinal = 1"
FACT_KEY = {"vm_id": "a", "ordinal": 1, "bucket_start_ns": HOUR_10}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_dir(tmp_path_factory.mktemp("made"), *RECORDS)


@pytest.fixture
def directory(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "copy")


def run(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout, and what stderr or the error says."""
    result = CliRunner().invoke(billaged, ["verify", *map(str, arguments)])
    if isinstance(result.exception, BillagedError):
        return exit_code(result.exception), result.stdout, str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def change(path: Path, *statements: str) -> int:
    """Run statements in a database file; how many rows they changed."""
    with closing(sqlite3.connect(path)) as connection:
        changed = sum(connection.execute(statement).rowcount for statement in statements)
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return changed


def found_in(path: Path, weight_max: int) -> Findings:
    findings = Findings()
    with auditing(path / "ledger.db") as reader:
        check_rows(reader, Subject(), findings, lambda done, total: None, weight_max)
    return findings


def test_a_whole_ledger(directory: Path) -> None:
    code, out, err = run("--data-dir", directory)
    assert (code, err) == (0, "")
    header, *lines = out.splitlines()
    assert header.split() == ["invariant", "state", "rows", "broken"]
    assert [line.split()[:2] for line in lines] == [[name, "holds"] for name in SENTENCES]
    # Rows of every sort were there to be held against each of them.
    assert all(int(line.split()[2].replace(",", "")) > 0 for line in lines)


@pytest.mark.parametrize("seed", range(20))
def test_hostile_journals_make_whole_ledgers(seed: int, tmp_path: Path) -> None:
    """In stretches of any size: each VM for itself, a few, all at once."""
    events = within_settings(seeded_journal(seed + 7_000, events=200))
    made = data_dir(tmp_path, *(entry.record for entry in to_entries(events)))
    for weight_max in (1, 3, 250_000):
        findings = found_in(made, weight_max)
        assert findings.first == {}
    assert findings.checked["buckets"] and findings.checked["sums"]


class Mutation(NamedTuple):
    """Statements, the invariant that they break, and the row that breaks it."""

    invariant: str
    table: str
    key: dict[str, Any]
    statements: tuple[str, ...]
    # Others that cannot hold then either.
    besides: tuple[str, ...] = ()


A1, A2 = {"vm_id": "a", "ordinal": 1}, {"vm_id": "a", "ordinal": 2}
GAP_KEY = {**A1, "start_ns": HOUR_12}
UPDATE_A1, UPDATE_A2 = (
    (lambda what, ordinal=ordinal: f"UPDATE sessions SET {what} WHERE vm_id = 'a' AND ordinal = {ordinal}")
    for ordinal in (1, 2)
)
OTHER_FACT = f"vm_id = 'a' AND ordinal = 1 AND bucket_start_ns = {HOUR_10 + HOUR_NANOS}"
B1 = {"vm_id": "b", "ordinal": 1}
MORE_MEMORY = f"memory_mib_seconds = memory_mib_seconds + {10**6}"

MUTATIONS = {
    "a flag of a session": Mutation("values", "sessions", A1, (UPDATE_A1("explicit = 7"),)),
    "text for a number": Mutation(
        "values", "facts", FACT_KEY, (f"UPDATE facts SET samples = 'x' WHERE {FACT}",), ("sums",)
    ),
    "a kind of end": Mutation("values", "sessions", A1, (UPDATE_A1("end_kind = 'tired'"),)),
    "a kind of gap": Mutation("values", "gaps", GAP_KEY, ("UPDATE gaps SET kind = 'hole'",)),
    "a cause": Mutation("values", "corrections", B1, ("UPDATE corrections SET cause = 'start+backfill'",)),
    "a memory's rest": Mutation(
        "values",
        "corrections",
        B1,
        (
            "UPDATE corrections SET memory_mib_seconds = memory_mib_seconds - 1,"
            f" memory_rest_byte_nanos = memory_rest_byte_nanos + {REST_PER_MIB_SECOND}",
        ),
    ),
    "a host's list": Mutation(
        "values", "instances", {"instance_id": "host"}, ("""UPDATE instances SET active_vms = '["b","a"]'""",)
    ),
    "a dead letter's reason": Mutation("values", "dead_letters", {}, ("UPDATE dead_letters SET reason = ''",)),
    "an anomaly's detail": Mutation(
        "values", "anomalies", {"kind": "late"}, ("UPDATE anomalies SET detail = '{' WHERE kind = 'late'",)
    ),
    "a nanosecond of a session": Mutation(
        "lifetime", "sessions", A1, (UPDATE_A1("measured_ns = measured_ns + 1"),), ("sums",)
    ),
    "an end and no kind": Mutation("order", "sessions", A1, (UPDATE_A1("end_kind = NULL"),)),
    "a number left out": Mutation(
        "order", "sessions", {"vm_id": "a", "ordinal": 3}, (UPDATE_A2("ordinal = 3"),), ("sums", "references")
    ),
    "two newest": Mutation("order", "sessions", A2, (UPDATE_A1("newest = 1"),)),
    "an older newest": Mutation(
        *("order", "sessions", A1, (UPDATE_A1("newest = 1"), UPDATE_A2("newest = 0"))),
        # Where the newest has ended no silence may be open.
        ("silences",),
    ),
    "a newest sample past the end": Mutation("order", "sessions", A1, (UPDATE_A1("last_ns = end_ns + 1"),)),
    "a missed stop after a sample": Mutation("order", "sessions", A1, (UPDATE_A1("end_kind = 'missed_stop'"),)),
    "one that runs before another": Mutation(
        "order", "sessions", A1, (UPDATE_A1("end_ns = NULL, end_kind = NULL"),), ("lifetime", "buckets")
    ),
    "a session in another": Mutation(
        *("overlap", "sessions", A2, (UPDATE_A2(f"start_ns = {at('13:01:00')}"),)), ("lifetime", "buckets", "values")
    ),
    "a gap in another": Mutation(
        "overlap",
        "gaps",
        {**A1, "start_ns": HOUR_12 + 1},
        (f"INSERT INTO gaps SELECT vm_id, ordinal, {HOUR_12 + 1}, end_ns, kind, customer_id, 0,0,0,0,0, 1 FROM gaps",),
        ("sums", "buckets"),
    ),
    "a gap of no length": Mutation(
        "overlap", "gaps", GAP_KEY, ("UPDATE gaps SET end_ns = start_ns",), ("sums", "buckets")
    ),
    "usage after the end": Mutation(
        "stop",
        "facts",
        {**A1, "bucket_start_ns": at("14:00:00")},
        (f"UPDATE facts SET bucket_start_ns = {at('14:00:00')} WHERE {FACT.replace(str(HOUR_10), str(HOUR_13))}",),
        ("buckets",),
    ),
    "usage before the start": Mutation(
        "stop",
        "facts",
        {**A1, "bucket_start_ns": at("09:00:00")},
        (f"UPDATE facts SET bucket_start_ns = {at('09:00:00')} WHERE {FACT}",),
        ("buckets",),
    ),
    "a gap after the end": Mutation(
        "stop", "gaps", GAP_KEY, (f"UPDATE gaps SET end_ns = {at('15:00:00')}",), ("sums", "buckets")
    ),
    "a counter of a fact": Mutation(
        "sums", "sessions", A1, (f"UPDATE facts SET cpu_time_ns = cpu_time_ns + 1 WHERE {FACT}",)
    ),
    "a counter of a gap": Mutation(
        "sums", "sessions", A1, ("UPDATE gaps SET network_tx_bytes = network_tx_bytes + 1",)
    ),
    "a counter of a correction": Mutation(
        "sums", "sessions", B1, (f"UPDATE corrections SET disk_read_bytes = disk_read_bytes + 1 WHERE {CORRECTION}",)
    ),
    "a session's memory": Mutation(
        "sums", "sessions", A1, (UPDATE_A1("memory_rest_byte_nanos = memory_rest_byte_nanos + 1"),)
    ),
    "a session's peak": Mutation("sums", "sessions", A1, (UPDATE_A1("memory_peak_bytes = memory_peak_bytes + 1"),)),
    "a fact that is gone": Mutation("sums", "sessions", A1, (f"DELETE FROM facts WHERE {FACT}",)),
    # Beyond 64 bits in sum: neither a wrong total nor an overflow hides it.
    "sums past 64 bits": Mutation(
        "sums", "sessions", A1, (f"UPDATE facts SET disk_read_bytes = {INT64_MAX} WHERE vm_id = 'a' AND ordinal = 1",)
    ),
    "a nanosecond from bucket to bucket": Mutation(
        "buckets",
        "facts",
        FACT_KEY,
        (
            f"UPDATE facts SET measured_ns = measured_ns - 1 WHERE {FACT}",
            f"UPDATE facts SET measured_ns = measured_ns + 1 WHERE {OTHER_FACT}",
        ),
    ),
    "a negative counter": Mutation(
        "buckets",
        "facts",
        FACT_KEY,
        (
            f"UPDATE facts SET cpu_time_ns = cpu_time_ns - {10**15} WHERE {FACT}",
            f"UPDATE facts SET cpu_time_ns = cpu_time_ns + {10**15} WHERE {OTHER_FACT}",
        ),
    ),
    "a correction that takes too much": Mutation(
        "buckets",
        "corrections",
        B1,
        (
            "UPDATE corrections SET cpu_time_ns = -1000000000000",
            "UPDATE sessions SET cpu_time_ns = cpu_time_ns - 1000000000000 - 15000000000 WHERE vm_id = 'b'",
        ),
        ("values", "sums"),
    ),
    "a bucket off its edge": Mutation(
        "buckets",
        "facts",
        {**A1, "bucket_start_ns": HOUR_10 + 1},
        (f"UPDATE facts SET bucket_start_ns = bucket_start_ns + 1 WHERE {FACT}",),
    ),
    "memory over the peak": Mutation(
        "memory", "sessions", A1, (UPDATE_A1(MORE_MEMORY), f"UPDATE facts SET {MORE_MEMORY} WHERE {FACT}")
    ),
    "memory in a bucket over the peak": Mutation(
        "memory", "facts", FACT_KEY, (UPDATE_A1(MORE_MEMORY), f"UPDATE facts SET {MORE_MEMORY} WHERE {FACT}")
    ),
    "a fact of another's": Mutation(
        "owner", "facts", FACT_KEY, (f"UPDATE facts SET customer_id = 'bravo' WHERE {FACT}",)
    ),
    "a correction of nobody's": Mutation("owner", "corrections", B1, ("UPDATE corrections SET customer_id = 'eve'",)),
    "a gap of nobody's": Mutation("owner", "gaps", GAP_KEY, ("UPDATE gaps SET customer_id = ''",)),
    "a fact of no session": Mutation(
        "references", "facts", {**FACT_KEY, "ordinal": 9}, (f"UPDATE facts SET ordinal = 9 WHERE {FACT}",), ("sums",)
    ),
    "a fact of no VM": Mutation(
        "references", "facts", {**FACT_KEY, "vm_id": "z"}, (f"UPDATE facts SET vm_id = 'z' WHERE {FACT}",), ("sums",)
    ),
    "a gap of no VM": Mutation(
        "references", "gaps", {**GAP_KEY, "vm_id": "0"}, ("UPDATE gaps SET vm_id = '0'",), ("sums", "buckets")
    ),
    "a gap of a row to come": Mutation("references", "gaps", GAP_KEY, ("UPDATE gaps SET sequence = 100000",)),
    "a correction of a row to come": Mutation(
        "references", "corrections", {"sequence": 100_000}, ("UPDATE corrections SET sequence = 100000",)
    ),
    "an anomaly of a row to come": Mutation(
        "references", "anomalies", {"kind": "late"}, ("UPDATE anomalies SET sequence = 100000 WHERE kind = 'late'",)
    ),
    "an anomaly of no session": Mutation(
        "references", "anomalies", {"kind": "late"}, ("UPDATE anomalies SET ordinal = 3 WHERE kind = 'late'",)
    ),
    "a dead letter of a row to come": Mutation(
        "references", "dead_letters", {"sequence": 100_000}, ("UPDATE dead_letters SET sequence = 100000",)
    ),
    "a reported gap of a row to come": Mutation(
        "references", "reported_gaps", {"sequence": 100_000}, ("UPDATE reported_gaps SET sequence = 100000",)
    ),
    "a kept instant of no session": Mutation(
        "references", "kept_instants", {"vm_id": "z"}, ("UPDATE kept_instants SET vm_id = 'z' WHERE vm_id = 'a'",)
    ),
    "a kept instant's content": Mutation(
        "values", "kept_instants", {"vm_id": "a"}, ("UPDATE kept_instants SET content = x'02' WHERE vm_id = 'a'",)
    ),
    "a silence backwards": Mutation(
        "silences",
        "silences",
        {"vm_id": "c", "start_ns": 5},
        ("INSERT INTO silences VALUES ('c', 5, 'silent_vm', 4, 1)",),
    ),
    "a silence of nobody": Mutation(
        "references", "silences", {"vm_id": "x"}, ("INSERT INTO silences VALUES ('x', 5, 'silent_vm', NULL, 1)",)
    ),
    "an open silence of an ended VM": Mutation(
        "silences",
        "silences",
        {"vm_id": "c", "start_ns": 5},
        (
            "INSERT INTO silences VALUES ('c', 5, 'silent_vm', NULL, 1)",
            "UPDATE sessions SET end_ns = last_ns, end_kind = 'stop' WHERE vm_id = 'c'",
        ),
    ),
    "an open silence of before the newest sample": Mutation(
        "silences",
        "silences",
        {"vm_id": "c", "start_ns": 5},
        ("INSERT INTO silences VALUES ('c', 5, 'silent_vm', NULL, 1)",),
    ),
    "an open silence of all": Mutation(
        "silences", "silences", {"vm_id": ""}, ("INSERT INTO silences VALUES ('', 5, 'billaged_down', NULL, 1)",)
    ),
    "a silence's reason": Mutation(
        "values", "silences", {"vm_id": "c", "start_ns": 5}, ("INSERT INTO silences VALUES ('c', 5, 'asleep', 6, 1)",)
    ),
    "an anomaly's kind": Mutation(
        "values", "anomalies", {"kind": "odd"}, ("UPDATE anomalies SET kind = 'odd' WHERE kind = 'late'",), ("tallies",)
    ),
    "a tally's name": Mutation("values", "tallies", {"name": "x"}, ("INSERT INTO tallies VALUES ('x', 1)",)),
    "a tally": Mutation(
        "tallies", "tallies", {"name": "late"}, ("UPDATE tallies SET value = value + 1 WHERE name = 'late'",)
    ),
    "a tally that is gone": Mutation(
        "tallies", "tallies", {"name": "samples"}, ("DELETE FROM tallies WHERE name = 'samples'",)
    ),
    "a dead letter that is gone": Mutation(
        "tallies", "tallies", {"name": "dead_letters"}, ("DELETE FROM dead_letters",)
    ),
}


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS)
def test_a_changed_row_is_found_and_named(mutation: Mutation, directory: Path) -> None:
    assert change(directory / "ledger.db", *mutation.statements)
    code, out, err = run("--data-dir", directory, "--ledger-only", "--format", "json")
    assert code == 1
    assert mutation.invariant in err
    checks = {check["name"]: check for check in json.loads(out)["invariants"]}
    rows = [(row["table"], row["key"]) for row in checks[mutation.invariant]["first"]]
    assert any(table == mutation.table and mutation.key.items() <= key.items() for table, key in rows), rows
    broken = {name for name, check in checks.items() if check["broken"]}
    assert broken <= {mutation.invariant, *mutation.besides}, checks
    # In stretches of one VM each the same is found.
    assert set(found_in(directory, 1).first) == broken


def test_every_invariant_of_the_rows_has_a_mutation() -> None:
    assert {mutation.invariant for mutation in MUTATIONS.values()} == set(SENTENCES) - {"file", "journal", "replay"}


def states(out: str) -> dict[str, str]:
    return {check["name"]: check["state"] for check in json.loads(out)["invariants"]}


def test_a_damaged_index_is_found(directory: Path) -> None:
    """An index says otherwise than its table: a report by VM would not be what the rows are."""
    with closing(sqlite3.connect(directory / "ledger.db")) as connection:
        row = connection.execute("SELECT * FROM sqlite_master WHERE name = 'facts_by_vm'").fetchone()
        connection.executescript("PRAGMA writable_schema = ON; DELETE FROM sqlite_master WHERE name = 'facts_by_vm'")
    change(directory / "ledger.db", f"DELETE FROM facts WHERE {FACT}")
    with closing(sqlite3.connect(directory / "ledger.db")) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", row)
        connection.commit()
    code, out, _ = run("--data-dir", directory, "--ledger-only", "--format", "json")
    assert code == 1
    assert states(out)["file"] == "broken"
    [file] = (check for check in json.loads(out)["invariants"] if check["name"] == "file")
    assert "facts_by_vm" in file["first"][0]["problem"]


def test_of_a_ledger_with_a_page_that_cannot_be_read_the_journal_is_looked_at_all_the_same(directory: Path) -> None:
    path = directory / "ledger.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        [(page,)] = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'gaps'").fetchall()
        [(size,)] = connection.execute("PRAGMA page_size").fetchall()
    content = bytearray(path.read_bytes())
    content[(page - 1) * size : page * size] = b"\xff" * size
    path.write_bytes(content)
    code, out, err = run("--data-dir", directory, "--format", "json")
    assert code == 1
    found = states(out)
    assert {name for name, state in found.items() if state == "broken"} == {"file", "replay"}
    assert [name for name, state in found.items() if state == "holds"] == ["journal"]
    assert "The journal is whole, so nothing is lost. Restore a backup of the ledger, or fold" in err
    # Of some of its VMs nothing can be said.
    code, out, err = run("--data-dir", directory, "--vm", "a")
    assert (code, out) == (1, "")
    assert "cannot be read: database disk image is malformed. Restore a backup of the ledger" in err


def test_a_changed_journal_is_found(directory: Path) -> None:
    assert change(directory / "journal.db", "UPDATE journal SET received_ns = received_ns + 1 WHERE sequence = 5") == 1
    code, out, err = run("--data-dir", directory, "--quick")
    assert code == 1
    assert err.startswith("the ledger breaks what it must hold: journal. Keep all files as they are")
    assert re.search(r"^  journal: .*journal row 5", out, re.MULTILINE)
    assert re.search(r"^replay +not checked *$", out, re.MULTILINE)


def test_where_both_are_broken_only_a_backup_of_both_helps(directory: Path) -> None:
    change(directory / "journal.db", "DELETE FROM journal WHERE sequence = 5")
    change(directory / "ledger.db", "DELETE FROM gaps")
    code, _, err = run("--data-dir", directory, "--quick")
    assert code == 1
    assert err.endswith("'billaged restore BACKUP' puts it back.")


def test_only_the_journal_can_say_that_a_sum_was_changed_everywhere(directory: Path) -> None:
    more = "cpu_time_ns = cpu_time_ns + 1"
    assert change(directory / "ledger.db", UPDATE_A1(more), f"UPDATE facts SET {more} WHERE {FACT}") == 2
    assert run("--data-dir", directory, "--quick")[0] == 0
    code, out, err = run("--data-dir", directory, "--format", "json")
    assert code == 1
    assert err.startswith("the ledger breaks what it must hold: replay. The journal is whole, so nothing is lost.")
    [replay] = (check for check in json.loads(out)["invariants"] if check["name"] == "replay")
    assert [(row["table"], row["key"]) for row in replay["first"]] == [
        ("sessions", A1),
        ("facts", {**FACT_KEY, "bucket_ns": HOUR_NANOS}),
    ]
    assert replay["first"][0]["problem"].startswith("cpu_time_ns is ")


def test_one_vm_or_one_customer(directory: Path) -> None:
    change(directory / "ledger.db", f"UPDATE facts SET measured_ns = measured_ns + 1 WHERE {FACT}")
    for subject in (["--vm", "a"], ["--customer", "acme"], ["--vm", "a", "--customer", "acme"]):
        code, out, err = run(*subject, "--data-dir", directory, "--format", "json")
        assert code == 1
        assert err.startswith("the ledger breaks what it must hold: sums, buckets. 'billaged verify' says whether")
        assert {name for name, state in states(out).items() if state == "not checked"} == set(OF_THE_WHOLE)
    for subject in (["--vm", "b"], ["--vm", "c"], ["--customer", "bravo"]):
        assert run(*subject, "--data-dir", directory)[0] == 0
    for subject in (["--vm", "nobody"], ["--customer", "nobody"], ["--vm", "a", "--customer", "bravo"]):
        code, out, err = run(*subject, "--data-dir", directory)
        assert (code, out) == (1, "")
        assert err.startswith("the ledger knows no ")


def test_every_broken_row_is_counted_and_the_first_are_shown(directory: Path) -> None:
    change(directory / "ledger.db", "UPDATE facts SET customer_id = 'eve'", "UPDATE tallies SET value = value + 1")
    code, out, err = run("--data-dir", directory, "--ledger-only", "--format", "csv")
    assert code == 1
    assert err.startswith("the ledger breaks what it must hold: owner, tallies. ")
    lines = list(csv.DictReader(io.StringIO(out)))
    [owner] = (line for line in lines if (line["record"], line["invariant"]) == ("invariant", "owner"))
    with closing(sqlite3.connect(directory / "ledger.db")) as connection:
        [(facts,)] = connection.execute("SELECT count(*) FROM facts").fetchall()
    assert (owner["state"], owner["broken"]) == ("broken", str(facts))
    rows = [line for line in lines if (line["record"], line["invariant"]) == ("row", "owner")]
    assert len(rows) == min(facts, 10)
    assert json.loads(rows[0]["key"]).keys() == {"bucket_start_ns", "bucket_ns", "vm_id", "ordinal"}
    table = run("--data-dir", directory, "--ledger-only")[1]
    assert "\nowner: Facts, corrections and gaps have their session's customer.\n  facts bucket_start_ns=" in table


def test_a_ledger_alone_has_to_be_asked_for(directory: Path) -> None:
    (directory / "journal.db").unlink()
    code, out, err = run("--data-dir", directory)
    assert (code, out) == (1, "")
    assert err.endswith("Give --ledger-only to check what is there.")
    code, out, _ = run("--data-dir", directory, "--ledger-only", "--format", "json")
    assert code == 0
    assert {name for name, state in states(out).items() if state == "not checked"} == {"journal", "replay"}


@pytest.mark.parametrize("arguments", [["--format", "xml"], ["--what"], ["--vm"], ["extra"]], ids=" ".join)
def test_a_wrong_argument(arguments: list[str]) -> None:
    assert run(*arguments)[0] == 2


def test_no_ledger_at_all(tmp_path: Path) -> None:
    code, out, err = run("--data-dir", tmp_path, "--ledger-only")
    assert (code, out) == (1, "")
    assert err.startswith("there is no ledger at ")
    assert list(tmp_path.iterdir()) == []


def test_the_help_names_every_invariant() -> None:
    code, out, _ = run("--help")
    assert code == 0
    named = re.findall(r"^  (\w+) {2,}\S", out, re.MULTILINE)
    assert [name for name in named if name in SENTENCES] == list(SENTENCES)


def test_it_only_reads_and_needs_no_stopped_daemon(tmp_path: Path) -> None:
    made = DataDir(tmp_path)
    made.put(*RECORDS)
    before = (tmp_path / "ledger.db").read_bytes()
    with auditing(tmp_path / "ledger.db") as reader:
        position = reader.position
        # What is committed meanwhile is not of this moment.
        made.put(batch("c", (at("14:40:00"), GIB, 5)))
        findings = Findings()
        check_rows(reader, Subject(), findings, lambda done, total: None)
        assert (findings.first, reader.position) == ({}, position)
    assert (tmp_path / "ledger.db").read_bytes() == before
    assert run("--data-dir", tmp_path)[0] == 0
    made.close()


def test_progress_reaches_its_end(made: Path) -> None:
    told: list[tuple[int, int]] = []
    with auditing(made / "ledger.db") as reader:
        total = check_rows(reader, Subject(), Findings(), lambda *progress: told.append(progress), 1)
    assert told[-1] == (total, total)
    assert told == sorted(told)


def position_of(data_dir: Path) -> int:
    with closing(sqlite3.connect(f"{(data_dir / 'ledger.db').as_uri()}?mode=ro", uri=True)) as connection:
        return int(connection.execute("SELECT position FROM checkpoint").fetchone()[0])


def test_a_daemon_under_load_is_whole_at_any_moment(tmp_path: Path) -> None:
    """Usage comes in, also late and after gaps, while everything is checked, replay and all."""
    begun_ns = time.time_ns() - DAY_NANOS
    rounds = itertools.count()
    enough = threading.Event()

    def send(channel: grpc.Channel) -> None:
        while not enough.is_set():
            number = next(rounds)
            # Every tenth step is over the threshold, some come late.
            at_ns = begun_ns + number * MINUTE_NANOS + number // 10 * HOUR_NANOS - (number % 7 == 6) * 3 * MINUTE_NANOS
            if at_ns > time.time_ns() - HOUR_NANOS:
                return
            for vm in range(20):
                daemon_calls.call(channel, "SendMetricsBatch", daemon_calls.batch(f"vm-{vm}", at_ns))

    settings = {"GAP_THRESHOLD": "15m", "LEDGER_BUCKET": "5m", "AGGREGATION_INTERVAL": "1s", "SUMMARY_LOG": "off"}
    with DaemonProcess(tmp_path, settings) as daemon, daemon.channel() as channel:
        sender = threading.Thread(target=send, args=(channel,))
        sender.start()
        try:
            positions = [0]
            for _ in range(3):
                until = time.monotonic() + 60
                while position_of(tmp_path) <= positions[-1] and time.monotonic() < until:
                    time.sleep(0.05)
                code, out, err = run("--data-dir", tmp_path, "--format", "json")
                assert (code, err) == (0, ""), out
                assert set(states(out).values()) == {"holds"}
                positions.append(json.loads(out)["ledger"]["sequence"])
        finally:
            enough.set()
            sender.join()
        # It went on meanwhile.
        assert 0 < positions[1] < positions[2] < positions[3]
        assert daemon.stop() == 0
    assert run("--data-dir", tmp_path)[0] == 0
