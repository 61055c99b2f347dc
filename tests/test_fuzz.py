"""A few thousand hostile messages over real connections, and the fuzzer itself. `make fuzz` sends a million."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from auditor.biller import bill
from auditor.convert import to_events
from daemon_process import ROOT, DaemonProcess
from fuzz import judge, run
from fuzz.memory import MIB, Held, growth_max_bytes
from fuzz.messages import FuzzedMessage, load, message, save
from fuzz.sender import Sender, digest
from fuzz.wire import GROUP, LENGTH, Field, encode, text, whole
from google.protobuf.message import DecodeError

from billaged.intake.journal import entry_of
from billaged.wire.billing.v1 import billing_pb2 as pb

COUNT, SEED = 3_000, 1


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, run.Outcome]:
    """Always the same messages, but for their times; `make fuzz` is for news."""
    plan = run.Plan(SEED, COUNT, time.time_ns())
    data_dir = tmp_path_factory.mktemp("fuzz") / "var"
    outcome = run.run(plan, data_dir)
    if outcome.failures:
        run.keep(outcome, plan)
    assert outcome.complaints == [], plan
    assert [failure.why for failure in outcome.failures] == [], plan
    return data_dir, outcome


@pytest.mark.slow
def test_every_answer_is_clean_and_what_was_accepted_is_billed(
    fuzzed: tuple[Path, run.Outcome],
) -> None:
    data_dir, outcome = fuzzed
    assert outcome.answers.total() == COUNT
    # Of both there is enough for the rest to say something, through each door.
    assert COUNT // 4 < outcome.accepted < COUNT * 3 // 4
    for door in ("grpc", "http-proto", "http-json"):
        assert outcome.answers[door, "OK"], door
        assert outcome.answers[door, "INVALID_ARGUMENT"], door
    assert outcome.answers["grpc", "FAILED_PRECONDITION"]
    audited = bill(to_events(map(entry_of, judge.journal_rows(data_dir))))
    for table in ("sessions", "facts", "gaps", "anomalies", "instances", "reported_gaps"):
        assert audited.tables[table], table
    assert "overflow" in {reason for *_, reason in audited.tables["dead_letters"]}


@pytest.mark.slow
def test_the_judge_notices_what_is_missing_and_what_nobody_sent(fuzzed: tuple[Path, run.Outcome]) -> None:
    data_dir, _ = fuzzed
    sent = Counter(
        (method, digest(row.payload)) for row in judge.journal_rows(data_dir) if (method := judge.METHODS.get(row.kind))
    )
    assert judge.complaints(data_dir, sent) == []
    one = next(iter(sent))
    (complaint,) = judge.complaints(data_dir, sent + Counter([one]))
    assert complaint.startswith("1 accepted, but not journaled")
    (complaint,) = judge.complaints(data_dir, sent - Counter([one]))
    assert complaint.startswith("1 journaled, but not accepted")
    with closing(sqlite3.connect(data_dir / "ledger.db")) as ledger, ledger:
        ledger.execute("UPDATE sessions SET gap_ns = gap_ns + 1 WHERE rowid = (SELECT min(rowid) FROM sessions)")
    (complaint,) = judge.complaints(data_dir, sent)
    assert complaint.startswith("2 rows of the ledger are not the auditor's")


async def test_an_answer_that_is_not_clean_and_a_daemon_that_is_gone_are_failures(tmp_path: Path) -> None:
    here = FuzzedMessage(1, "grpc", "billing.v1.BillingService", "SendHeartbeat", encode((text(1, "host-1"),)))
    with DaemonProcess(tmp_path / "var", run.SETTINGS) as daemon:
        sender = Sender(daemon)
        await sender.send([here, here._replace(number=2, method="NoSuchMethod")])
        assert sender.accepted == {("SendHeartbeat", digest(here.body)): 1}
        assert [(failure.message.number, failure.why[:13]) for failure in sender.failures] == [(2, "UNIMPLEMENTED")]
        daemon.kill()
        sender = Sender(daemon)
        await sender.send([here, here._replace(number=3, door="http-proto")])
        assert sorted(failure.message.number for failure in sender.failures) == [1, 3]


def test_what_a_process_did_wrong_is_told(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path / "var", run.SETTINGS) as daemon:
        daemon.kill()
        assert list(run.of_the_process(daemon)) == ["it ended with -9"]


def test_growth_is_judged() -> None:
    before = Held(100 * MIB, 10)
    assert growth_max_bytes(before, Held(0, 1_010)) - growth_max_bytes(before, Held(0, 10)) < 4 * MIB
    assert growth_max_bytes(before, Held(0, 0)) == growth_max_bytes(before, Held(0, 10)) < 100 * MIB


def test_a_message_depends_on_nothing_but_seed_number_and_epoch(tmp_path: Path) -> None:
    epoch_ns = time.time_ns()
    alone = message(7, 4_321, epoch_ns)
    among = [message(7, number, epoch_ns) for number in range(4_300, 4_330)]
    assert among[21] == alone
    assert len({one.body for one in among}) == len(among)
    assert message(8, 4_321, epoch_ns).body != alone.body
    path = save(alone, 7, epoch_ns, "INTERNAL: it broke", tmp_path / "fuzz")
    assert load(path) == alone
    assert "it broke" in path.read_text()


def test_messages_are_of_all_methods_and_doors_and_most_mutations_still_parse() -> None:
    epoch_ns = time.time_ns()
    messages = [message(1, number, epoch_ns) for number in range(3_000)]
    assert len({one.path for one in messages}) == 10
    assert len({one.door for one in messages}) == 3
    bodies = [one for one in messages if one.door != "http-json"]
    parsed = [one for one in bodies if parses(one)]
    assert len(bodies) * 0.6 < len(parsed) < len(bodies) * 0.95


def parses(one: FuzzedMessage) -> bool:
    try:
        getattr(pb, f"{one.method}Request").FromString(one.body)
    except DecodeError:
        return False
    return True


def test_the_hand_written_encoding_is_protobufs() -> None:
    timestamp = Field(1, LENGTH, (whole(1, 1_800_000_000), whole(2, 5)))
    fields = (text(1, "vm-1"), text(2, "acme"), Field(3, LENGTH, (timestamp, whole(2, 2**63 - 1))))
    request = pb.SendMetricsBatchRequest(vm_id="vm-1", customer_id="acme")
    request.metrics.add(cpu_time_nanos=2**63 - 1).timestamp.FromNanoseconds(1_800_000_000 * 10**9 + 5)
    assert encode(fields) == request.SerializeToString()
    wide = (*(field._replace(width=5) for field in fields), Field(9, GROUP, (whole(1, -1),)))
    again = pb.SendMetricsBatchRequest.FromString(encode(wide))
    again.DiscardUnknownFields()
    assert again == request


def test_one_saved_message_is_sent_again_by_the_command(tmp_path: Path) -> None:
    epoch_ns = time.time_ns()
    body = encode((text(1, "vm-1"), whole(2, epoch_ns)))
    one = FuzzedMessage(5, "http-proto", "billaged.v1.BillingService", "NotifyVmStopped", body)
    path = save(one, 3, epoch_ns, "", tmp_path)
    command = [sys.executable, "scripts/fuzz.py", "--again", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "accepted, journaled and billed               1" in done.stdout
    assert done.stderr == ""
