"""The spool: what it took is there after a crash, in order, until it is acknowledged; never more than its bound."""

from __future__ import annotations

import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billaged.client.segment import HEADER_BYTES, SpoolRecord, frame
from billaged.client.spool import Spool, SpoolRefused
from billaged.model.errors import StorageError
from billaged.model.records import Kind

ROOMY = 2**20


def sample(text: str) -> SpoolRecord:
    return SpoolRecord(Kind.METRICS, text.encode())


def notice(text: str) -> SpoolRecord:
    return SpoolRecord(Kind.STOPPED, text.encode())


@contextmanager
def opened(directory: Path, max_bytes: int = ROOMY) -> Iterator[Spool]:
    spool = Spool(directory, max_bytes)
    try:
        yield spool
    finally:
        spool.close()


def waiting(spool: Spool) -> list[SpoolRecord]:
    return spool.peek(10**9, 10**9)[0]


def only_segment(directory: Path) -> Path:
    (path,) = directory.glob("*.spool")
    return path


def test_records_stay_in_order_until_acknowledged(tmp_path: Path) -> None:
    records = [sample("one"), notice("two"), sample("three")]
    with opened(tmp_path) as spool:
        spool.append(records[:2])
        spool.append(records[2:])
        first, position = spool.peek(2, ROOMY)
        assert first == records[:2]
        assert waiting(spool) == records, "to look is not to take"
        spool.acknowledge(position)
        assert waiting(spool) == records[2:]
    with opened(tmp_path) as spool:
        assert waiting(spool) == records[2:], "a restart knows what was acknowledged"


def test_an_emptied_spool_takes_no_room(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        for number in range(50):
            spool.append([sample(f"{number}" * 100)])
            spool.acknowledge(spool.peek(1, ROOMY)[1])
        assert spool.used_bytes == 0
    assert only_segment(tmp_path).stat().st_size == 0


def test_every_torn_tail_is_cut_back_to_whole_records(tmp_path: Path) -> None:
    """A write cut short at any byte loses that record only, and what is appended later is found."""
    kept, torn, later = sample("kept"), sample("torn away"), sample("later")
    original = tmp_path / "original"
    with opened(original) as spool:
        spool.append([kept])
        whole = only_segment(original).stat().st_size
        spool.append([torn])
        full = only_segment(original).stat().st_size
    for size in range(whole, full):
        directory = tmp_path / str(size)
        shutil.copytree(original, directory)
        with only_segment(directory).open("r+b") as file:
            file.truncate(size)
        with opened(directory) as spool:
            assert waiting(spool) == [kept], size
            spool.append([later])
        with opened(directory) as spool:
            assert waiting(spool) == [kept, later], size


@pytest.mark.parametrize("tail", [b"\0" * 64, b"\xff" * 64, frame(sample("x"))[:-1] + b"?"], ids=["0", "255", "crc"])
def test_a_tail_that_is_no_record_is_cut_off(tmp_path: Path, tail: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with opened(tmp_path) as spool:
        spool.append([sample("kept")])
    with only_segment(tmp_path).open("ab") as file:
        file.write(tail)
    with opened(tmp_path) as spool:
        assert waiting(spool) == [sample("kept")]
    assert f"torn tail of {len(tail)} bytes cut off" in caplog.text


def test_a_header_cut_short_is_an_empty_spool(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.append([sample("lost with its header")])
    with only_segment(tmp_path).open("r+b") as file:
        file.truncate(HEADER_BYTES - 1)
    with opened(tmp_path) as spool:
        assert waiting(spool) == []
        spool.append([sample("new")])
        assert waiting(spool) == [sample("new")]


def test_damage_in_an_old_segment_loses_that_segment_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = [sample(f"{number:04}" * 25) for number in range(100)]
    with opened(tmp_path, 4 * 4_096) as spool:
        for record in records:
            spool.append([record])
    oldest = min(tmp_path.glob("*.spool"))
    data = bytearray(oldest.read_bytes())
    data[HEADER_BYTES + 20] ^= 1
    oldest.write_bytes(data)
    with opened(tmp_path, 4 * 4_096) as spool:
        left = waiting(spool)
        assert left == records[-len(left) :]
        assert 50 < len(left) < 100
        spool.acknowledge(spool.peek(10**9, 10**9)[1])
        assert waiting(spool) == []
    assert "damaged at byte" in caplog.text


def test_a_file_that_is_no_spool_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / f"{7:020d}.spool").write_bytes(b"something else altogether, kept")
    with opened(tmp_path) as spool:
        spool.append([sample("new")])
        assert waiting(spool) == [sample("new")]
    assert (tmp_path / f"{7:020d}.damaged").read_bytes() == b"something else altogether, kept"


def test_a_full_spool_refuses_samples_and_still_takes_notices(tmp_path: Path) -> None:
    with opened(tmp_path, 4_096) as spool:
        taken = 0
        with pytest.raises(SpoolRefused, match="full"):
            while True:
                spool.append([sample("x" * 100)])
                taken += 1
        assert 4_096 - 200 <= spool.used_bytes <= 4_096
        # More than was left beside the last sample.
        notices = [notice(f"VM {number} stopped".ljust(50)) for number in range(6)]
        spool.append(notices)
        assert waiting(spool) == [sample("x" * 100)] * taken + notices
        with pytest.raises(SpoolRefused, match="full"):
            while True:
                spool.append([notice("y" * 50)])
        assert spool.used_bytes <= 4_096 + 512
        spool.acknowledge(spool.peek(10, ROOMY)[1])
        spool.acknowledge(spool.peek(10, ROOMY)[1])
        spool.append([sample("there is room again")])


def test_appending_is_all_or_nothing(tmp_path: Path) -> None:
    with opened(tmp_path, 4_096) as spool:
        with pytest.raises(SpoolRefused):
            spool.append([sample("small"), sample("x" * 5_000)])
        assert waiting(spool) == []


def test_a_disk_that_fails_refuses_and_what_was_safe_stays(tmp_path: Path) -> None:
    """The file size limit stands in for a full disk: the write itself fails, half done."""
    old_limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with opened(tmp_path) as spool:
        spool.append([sample("safe")])
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (200, old_limits[1]))
            with pytest.raises(SpoolRefused, match="cannot be written"):
                spool.append([sample("x" * 500)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old_limits)
            signal.signal(signal.SIGXFSZ, old_handler)
        assert waiting(spool) == [sample("safe")]
        spool.append([sample("after")])
        assert waiting(spool) == [sample("safe"), sample("after")]
        assert len(list(tmp_path.glob("*.spool"))) == 2, "a file that failed is not written again"
    with opened(tmp_path) as spool:
        assert waiting(spool) == [sample("safe"), sample("after")]


def test_a_cursor_older_than_an_emptied_file_skips_nothing(tmp_path: Path) -> None:
    """Power is lost after the file was emptied and filled again, and the cursor on disk is the old one."""
    with opened(tmp_path) as spool:
        spool.append([sample("a long record that was acknowledged"), sample("two")])
        spool.acknowledge(spool.peek(1, ROOMY)[1])
        old_cursor = (tmp_path / "cursor").read_bytes()
        spool.acknowledge(spool.peek(1, ROOMY)[1])
        spool.append([sample("a record never sent, at the same place"), sample("three")])
    (tmp_path / "cursor").write_bytes(old_cursor)
    with opened(tmp_path) as spool:
        assert waiting(spool) == [sample("a record never sent, at the same place"), sample("three")]


def test_a_second_agent_cannot_open_it(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(StorageError, match=r"another agent is using this spool.*--spool-dir"):
        Spool(tmp_path, ROOMY)
    with opened(tmp_path) as spool:
        assert waiting(spool) == []


def test_its_files_are_the_owners_alone(tmp_path: Path) -> None:
    with opened(tmp_path / "spool") as spool:
        spool.append([sample("private")])
        assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o777 for path in (tmp_path / "spool").iterdir()} == {0o600}


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.lists(st.binary(max_size=200), min_size=1, max_size=4)),
        st.tuples(st.just("take"), st.integers(1, 12)),
        st.tuples(st.just("reopen"), st.none()),
    ),
    max_size=60,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=_STEPS)
def test_it_behaves_as_a_bounded_list(
    steps: list[tuple[str, object]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever is appended, taken and reopened: the spool holds what a plain list holds."""
    directory = tmp_path_factory.mktemp("spool")
    model: list[SpoolRecord] = []
    spool = Spool(directory, 8_192)
    for step, value in steps:
        if step == "append":
            assert isinstance(value, list)
            records = [SpoolRecord(Kind.METRICS, payload) for payload in value]
            try:
                spool.append(records)
            except SpoolRefused:
                assert sum(len(record.payload) + 9 for record in model) > 4_096, "refused with room left"
            else:
                model += records
        elif step == "take":
            assert isinstance(value, int)
            taken, position = spool.peek(value, ROOMY)
            assert taken == model[:value]
            spool.acknowledge(position)
            del model[:value]
        else:
            spool.close()
            spool = Spool(directory, 8_192)
        assert spool.used_bytes <= 8_192
    assert waiting(spool) == model
    spool.close()
