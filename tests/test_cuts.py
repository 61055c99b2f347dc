"""``billaged journal cuts`` and ``replay --from``: what of a bill can be proved once its first rows are gone."""

from __future__ import annotations

import gzip
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from daemon_process import DaemonProcess, fails_to_start
from report_fixtures import GIB, DataDir, at, batch
from snapshot_fixtures import nothing
from test_journal_replay import change, records, run

from billaged.intake.segments import Segments
from billaged.ledger.cuts import Cut, cuts_in, make_cut
from billaged.model.records import Heartbeat, PossibleGap, Record, Resumed, Tick, VmStarted, VmStopped
from billaged.model.time import HOUR_NANOS, MINUTE_NANOS, NANOS

RECEIVED_LONG_AFTER = 2**62
FIRST = records()
NOON = at("12:00:00")


def later() -> list[Record]:
    """What comes after the cut, and reaches back over it: some of everything again."""
    begin = at("12:01:00")
    made: list[Record] = [Heartbeat("host", ("a", "c")), PossibleGap("a", begin, begin + NANOS)]
    made += [Resumed(begin, begin + NANOS)]
    for minute in range(5, 120, 5):
        made.append(batch("a", (begin + minute * MINUTE_NANOS, GIB + minute, minute * NANOS)))
        made.append(Tick(begin + minute * MINUTE_NANOS, 5 * MINUTE_NANOS, True))
    # Into a gap of before the cut; another customer's; late; a VM of its own.
    made.append(batch("marked", (at("11:14:00"), GIB, 2_500)))
    made.append(batch("a", (begin + 118 * MINUTE_NANOS, GIB, 120 * NANOS), customer="bravo"))
    made.append(batch("a", (begin + 7 * MINUTE_NANOS, GIB, 1)))
    made += [VmStopped("a", begin + 2 * HOUR_NANOS), VmStarted("c", "acme", begin)]
    return made


LATER = later()
CUT = len(FIRST)
END = CUT + len(LATER)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A cut in the middle; all rows are there, those up to the cut in a segment."""
    folder = tmp_path / "data"
    folder.mkdir()
    made = DataDir(folder)
    made.put(*FIRST)
    make_cut(folder / "ledger.db", folder / "snapshots", NOON, nothing)
    made.put(*LATER)
    assert Segments(folder / "segments").archive(made.journal, 0, CUT, RECEIVED_LONG_AFTER) == CUT
    made.journal.prune(CUT)
    made.close()
    return folder


@pytest.fixture
def expired(directory: Path) -> Path:
    """The same, and the segment is gone."""
    for segment in (directory / "segments").iterdir():
        segment.unlink()
    return directory


def replay(directory: Path, *arguments: str) -> tuple[int, str, str]:
    return run("journal", "replay", "--data-dir", directory, *arguments)


def the_cut(directory: Path) -> Cut:
    (cut,) = cuts_in(directory / "snapshots")
    return cut


def repack(cut: Cut, change_it: Callable[[sqlite3.Connection], Any]) -> None:
    """Forge a snapshot: its content is another, its name and label are as they were."""
    packed = cut.path.read_bytes()
    unpacked = cut.path.with_suffix(".unpacked")
    unpacked.write_bytes(gzip.decompress(packed))
    with closing(sqlite3.connect(unpacked)) as connection:
        change_it(connection)
        connection.commit()
    label = f"ledger-{cut.position:016d}-{cut.label().chain.hex()}.db"
    with cut.path.open("wb") as file, gzip.GzipFile(label, "wb", fileobj=file, mtime=NOON // NANOS) as again:
        again.write(unpacked.read_bytes())
    unpacked.unlink()


def test_cuts_are_listed(directory: Path) -> None:
    code, out, _ = run("journal", "cuts", "--format", "json", "--data-dir", directory)
    assert code == 0
    beginning, cut = json.loads(out)
    assert (beginning["sequence"], beginning["made"], beginning["whole"]) == (0, None, True)
    assert (cut["sequence"], cut["made"], cut["whole"]) == (CUT, "2026-11-10T12:00:00Z", True)
    with closing(sqlite3.connect(directory / "journal.db")) as journal:
        assert cut["chain"] == journal.execute("SELECT pruned_chain FROM about").fetchone()[0].hex()
    code, out, _ = run("journal", "cuts", "--data-dir", directory)
    assert [line.split()[0] for line in out.splitlines()] == ["sequence", "0", str(CUT)]


def test_a_list_says_what_is_missing(expired: Path) -> None:
    beginning, cut = json.loads(run("journal", "cuts", "--format", "json", "--data-dir", expired)[1])
    assert (beginning["whole"], cut["whole"]) == (False, True)


def test_a_replay_begins_at_the_first_row_while_that_is_there(directory: Path) -> None:
    code, out, err = replay(directory)
    assert (code, err, out.splitlines()[-1]) == (0, "", "equal")
    assert out.splitlines()[0].split(maxsplit=1) == ["journal", f"{END} rows"]
    assert "not compared" not in out


def test_a_replay_from_a_cut_says_what_it_compared(directory: Path) -> None:
    code, out, err = replay(directory, "--from", str(CUT))
    assert (code, err, out.splitlines()[-1]) == (0, "", "equal")
    assert out.splitlines()[0].split(maxsplit=1) == ["journal", f"rows {CUT + 1} to {END}, from the cut at {CUT}"]
    shown = dict(line.split(maxsplit=1) for line in out.splitlines()[1:-1])
    whole = dict(line.split(maxsplit=1) for line in replay(directory, "--from", "0")[1].splitlines()[1:-1])
    for table, said in shown.items():
        compared, _, left_out = said.partition(" rows")
        earlier = int(left_out.removeprefix("; ").split()[0]) if left_out else 0
        assert f"{int(compared) + earlier} rows" == whole[table]
        assert int(compared) > 0
    assert "not compared" in shown["facts"]
    assert "not compared" in shown["anomalies"]
    assert "not compared" not in shown["tallies"]


def test_once_the_first_rows_are_gone_it_begins_at_the_oldest_cut(expired: Path) -> None:
    code, out, err = replay(expired)
    assert (code, err, out.splitlines()[-1]) == (0, "", "equal")
    assert f"from the cut at {CUT}" in out
    code, _, err = replay(expired, "--from", "0")
    assert code == 1
    assert "holds journal row 1." in err
    code, out, _ = run("verify", "--data-dir", expired)
    assert code == 0
    assert f"the replay began at the cut at {CUT}: what was final there was not replayed" in out
    code, out, _ = run("verify", "--format", "json", "--data-dir", expired)
    assert json.loads(out)["replayed_after"] == CUT


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--from", "5"), "there is no cut at 5: 'billaged journal cuts' lists"),
        (("--from", str(CUT), "--into", "new.db"), "--into keeps a whole ledger"),
    ],
)
def test_what_cannot_be_asked_for(directory: Path, arguments: tuple[str, ...], said: str) -> None:
    code, _, err = replay(directory, *arguments)
    assert code != 0
    assert said in err


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        # A session of before the cut that runs on; one that only came after it; a row of each sort.
        ("UPDATE sessions SET cpu_time_ns = cpu_time_ns + 1 WHERE vm_id = 'marked'", "cpu_time_ns is"),
        ("INSERT INTO sessions SELECT vm_id, 99, customer_id, start_ns, explicit, last_ns, 1, 'stop', 0, 0, 0, 0, 0, 0,"
         " 0, 0, 0, 0, 0, 0, x'' FROM sessions WHERE vm_id = 'c'", "ordinal=99: does not follow from the journal"),
        (f"DELETE FROM facts WHERE bucket_start_ns = {at('13:00:00')}", "is not in the ledger"),
        (f"UPDATE corrections SET samples = 9 WHERE sequence > {CUT}", "samples is 9"),
        ("DELETE FROM gaps WHERE vm_id = 'marked'", "gaps: vm_id=marked"),
        (f"INSERT INTO anomalies VALUES ({CUT + 1}, 0, 'late', 'a', 0, 1, '[]')", "anomalies: sequence="),
        (f"DELETE FROM dead_letters WHERE sequence > {CUT}", "dead_letters: sequence="),
        ("UPDATE instances SET active_vms = '[]'", "instances: instance_id=host"),
        ("UPDATE silences SET end_ns = 1 WHERE reason = 'billaged_down'", "silences: vm_id="),
        (f"DELETE FROM reported_gaps WHERE sequence > {CUT}", "reported_gaps: sequence="),
        ("UPDATE tallies SET value = value + 1 WHERE name = 'ticks'", "tallies: name=ticks: value is"),
    ],
)  # fmt: skip
def test_what_can_have_changed_since_the_cut_is_compared(expired: Path, statement: str, shown: str) -> None:
    assert change(expired / "ledger.db", statement) > 0
    code, out, err = replay(expired)
    assert code == 1
    assert shown in out
    assert "rows differ" in err


@pytest.mark.parametrize(
    "statement",
    [
        f"UPDATE facts SET samples = samples + 1 WHERE bucket_start_ns = {at('10:00:00')}",
        f"DELETE FROM anomalies WHERE sequence <= {CUT}",
    ],
)
def test_what_was_final_at_the_cut_is_not(expired: Path, statement: str) -> None:
    """So says the manual; the other checks of ``billaged verify`` find most of it."""
    assert change(expired / "ledger.db", statement) > 0
    code, out, _ = replay(expired)
    assert (code, out.splitlines()[-1]) == (0, "equal")


def test_a_row_changed_since_the_cut_breaks_its_chain(expired: Path) -> None:
    assert change(expired / "journal.db", f"UPDATE journal SET caller = 'nobody' WHERE sequence = {CUT + 3}")
    code, out, err = replay(expired)
    assert code == 1
    assert f"journal row {CUT + 3} was changed: it does not go on from the row before it" in out
    assert err == "the journal was changed. 'billaged journal verify' says more."


@pytest.mark.parametrize(
    ("forgery", "said"),
    [
        ("UPDATE sessions SET cpu_time_ns = cpu_time_ns + 7 WHERE vm_id = 'marked'", "cpu_time_ns is"),
        ("DELETE FROM sessions WHERE vm_id = 'marked'", "sessions: vm_id=marked"),
        ("UPDATE tallies SET value = value + 1 WHERE name = 'ticks'", "tallies: name=ticks"),
        ("UPDATE facts SET samples = samples + 1", "facts: bucket_start_ns"),
        ("UPDATE checkpoint SET chain = zeroblob(32)", "or the snapshot was changed"),
        ("UPDATE checkpoint SET position = position - 1", f"is of row {CUT - 1} of journal"),
        ("UPDATE checkpoint SET journal_id = 'another'", "of journal another"),
        ("DROP TABLE checkpoint", "no such table"),
    ],
)
def test_a_changed_snapshot_differs_from_the_ledger(expired: Path, forgery: str, said: str) -> None:
    repack(the_cut(expired), lambda connection: connection.execute(forgery))
    code, out, err = replay(expired)
    assert code == 1
    assert said in out + err


def test_a_damaged_snapshot_is_named(expired: Path) -> None:
    path = the_cut(expired).path
    path.write_bytes(path.read_bytes()[:-9])
    code, _, err = replay(expired)
    assert code == 1
    assert f"the snapshot {path} is damaged" in err


# --- a ledger that is lost -------------------------------------------------------


@pytest.mark.parametrize("how", ["lost", "damaged", "of another version"])
def test_a_lost_ledger_is_folded_anew_from_the_segments(directory: Path, how: str) -> None:
    """What the start says is what helps, and the daemon goes on from it."""
    lost = directory / "ledger.db"
    content = lost.read_bytes()
    if how == "lost":
        lost.unlink()
    elif how == "damaged":
        lost.write_bytes(b"\xff" * 100 + content[100:])
    else:
        # As version 1 kept them: the rules in force only.
        rules = "UPDATE checkpoint SET rules = json_extract(rules, '$.all[0]')"
        assert change(lost, rules)
    refused = fails_to_start(directory)
    assert refused.exit_code == 1
    assert "billaged journal replay --into NEW" in refused.stderr
    new = directory.parent / "new.db"
    code, out, err = replay(directory, "--into", str(new))
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].startswith("compared with nothing: ")
    code, _, err = run("ledger", "restore", new, "--data-dir", directory)
    assert (code, err) == (0, "")
    with DaemonProcess(directory) as daemon:
        assert daemon.stats()["journal"]["ledger_position"] >= END
        daemon.stop()
    code, out, err = run("verify", "--data-dir", directory)
    assert (code, err) == (0, "")
    code, out, _ = replay(directory, "--from", str(CUT))
    assert (code, out.splitlines()[-1]) == (0, "equal")


def test_where_the_first_rows_are_gone_no_whole_ledger_can_be_made(expired: Path) -> None:
    (expired / "ledger.db").unlink()
    code, _, err = replay(expired, "--into", str(expired.parent / "new.db"))
    assert code == 1
    assert "holds journal row 1." in err
    assert not (expired.parent / "new.db").exists()


def test_a_snapshot_of_another_life_of_the_journal_is_passed_over(expired: Path) -> None:
    """As after a restore of an older journal: the folder has one of rows that are none any more."""
    own = the_cut(expired)
    other = own._replace(position=CUT + 4, path=own.path.with_name(f"ledger-{CUT + 4:016d}.db.gz"))
    own.path.rename(other.path)
    content = gzip.decompress(other.path.read_bytes())
    with (
        other.path.open("wb") as file,
        gzip.GzipFile(f"ledger-{CUT + 4:016d}-{'ab' * 32}.db", "wb", 9, file, 1) as packed,
    ):
        packed.write(content)
    _, cut = json.loads(run("journal", "cuts", "--format", "json", "--data-dir", expired)[1])
    assert (cut["whole"], cut["own"]) == (True, False)
    assert "of another journal" in run("journal", "cuts", "--data-dir", expired)[1]
    with closing(DataDir(expired)):
        make_cut(expired / "ledger.db", expired / "snapshots", NOON, nothing)
    code, out, _ = replay(expired)
    assert code == 0
    assert f"from the cut at {END}" in out


@pytest.mark.parametrize("name", ["copy", "copy.tar"])
def test_a_backup_has_the_cuts(expired: Path, tmp_path: Path, name: str) -> None:
    # One of a row that the backup's ledger has not come to: there may be another one of that row once it is restored.
    newer = the_cut(expired).path.with_name(f"ledger-{END + 1:016d}.db.gz")
    newer.write_bytes(b"newer")
    assert run("backup", "--to", tmp_path / name, "--data-dir", expired)[0] == 0
    assert run("restore", tmp_path / name, "--data-dir", tmp_path / "again")[0] == 0
    assert [cut.position for cut in cuts_in(tmp_path / "again" / "snapshots")] == [CUT]
    code, out, _ = replay(tmp_path / "again")
    assert (code, out.splitlines()[-1]) == (0, "equal")
