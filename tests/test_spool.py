"""The spool: what it took is there after a crash, in order, until it is acknowledged; never more than its bound."""

from __future__ import annotations

import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billaged.client.segment import FRAME_BYTES, HEADER_BYTES, Header, SpoolRecord, frame, pieces
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


def taken_all(spool: Spool) -> list[SpoolRecord]:
    """Everything that it still gives out, acknowledged as it goes."""
    taken: list[SpoolRecord] = []
    while True:
        records, position = spool.peek(3, ROOMY)
        spool.acknowledge(position)
        if not records:
            return taken
        taken += records


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


def header_of(path: Path) -> Header:
    found = Header.read(path.read_bytes())
    assert found is not None
    return found


def torn_frame(path: Path) -> bytes:
    return frame(header_of(path).salt, path.stat().st_size, sample("never whole"))[:-1]


@pytest.mark.parametrize(
    "tail", [lambda _: bytes(64), lambda _: b"\xff" * 11, torn_frame], ids=["zeros", "few", "torn"]
)
def test_what_a_crash_leaves_of_a_write_is_cut_off(
    tmp_path: Path, tail: Callable[[Path], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path) as spool:
        spool.append([sample("kept")])
    left = tail(only_segment(tmp_path))
    with only_segment(tmp_path).open("ab") as file:
        file.write(left)
    with opened(tmp_path) as spool:
        assert waiting(spool) == [sample("kept")]
    assert f"torn tail of {len(left)} bytes cut off" in caplog.text
    assert not list(tmp_path.glob("*.damaged"))


def test_a_whole_last_record_that_is_damaged_is_set_aside(tmp_path: Path) -> None:
    """It may have been on disk for long: nothing says that a crash cut it short."""
    with opened(tmp_path) as spool:
        spool.append([sample("kept")])
        size = only_segment(tmp_path).stat().st_size
        spool.append([sample("damaged")])
    data = bytearray(only_segment(tmp_path).read_bytes())
    data[-1] ^= 1
    only_segment(tmp_path).write_bytes(data)
    with opened(tmp_path) as spool:
        spool.append([sample("later")])
        assert taken_all(spool) == [sample("kept"), sample("later")]
    assert (tmp_path / f"{1:020d}-{size}.damaged").read_bytes() == data[size:]


def test_a_header_cut_short_is_an_empty_spool(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.append([sample("lost with its header")])
    with only_segment(tmp_path).open("r+b") as file:
        file.truncate(HEADER_BYTES - 1)
    with opened(tmp_path) as spool:
        assert waiting(spool) == []
        spool.append([sample("new")])
        assert waiting(spool) == [sample("new")]


def test_a_flipped_bit_anywhere_costs_one_record_and_nothing_is_lost(tmp_path: Path) -> None:
    """Each bit of a segment of seven records: six are delivered, in order, and the bytes of the other one are kept."""
    records = [sample(f"record {number} " * 2) for number in range(7)]
    original = tmp_path / "original"
    with opened(original) as spool:
        for record in records:
            spool.append([record])
    (name,) = (path.name for path in original.glob("*.spool"))
    data = (original / name).read_bytes()
    frame_bytes = (len(data) - HEADER_BYTES) // len(records)
    for bit in range(len(data) * 8):
        place = bit // 8
        damaged = bytearray(data)
        damaged[place] ^= 1 << bit % 8
        directory = tmp_path / str(bit)
        shutil.copytree(original, directory)
        (directory / name).write_bytes(damaged)
        hit = None if place < HEADER_BYTES else (place - HEADER_BYTES) // frame_bytes
        with opened(directory) as spool:
            assert taken_all(spool) == [record for number, record in enumerate(records) if number != hit], bit
        kept = list(directory.glob("*.damaged"))
        if hit is None:
            assert not kept, "there is another copy of the header"
            continue
        start = HEADER_BYTES + hit * frame_bytes
        assert [path.name for path in kept] == [f"{1:020d}-{start}.damaged"], bit
        assert kept[0].read_bytes() == damaged[start : start + frame_bytes], bit
        shutil.rmtree(directory)


def test_a_damaged_stretch_is_set_aside_and_the_rest_delivered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = [sample(f"{number:04}" * 25) for number in range(2_000)]
    with opened(tmp_path) as spool:
        for start in range(0, len(records), 100):
            spool.append(records[start : start + 100])
    path = min(tmp_path.glob("*.spool"))
    data = bytearray(path.read_bytes())
    first, last = len(data) // 10, len(data) // 10 + 4_096
    data[first:last] = bytes(range(256)) * 16
    path.write_bytes(data)
    with opened(tmp_path) as spool:
        left = taken_all(spool)
    assert left == [record for record in records if record in left]
    assert len(left) >= len(records) - 4_096 // 100 - 2
    (aside,) = tmp_path.glob("*.damaged")
    kept = aside.read_bytes()
    assert kept in bytes(data)
    assert bytes(data[first:last]) in kept
    assert f"{len(kept)} bytes set aside in {aside}" in caplog.text
    with opened(tmp_path):
        assert f"{len(kept)} bytes of damaged usage were set aside" in caplog.text
    assert aside.read_bytes() == kept, "nothing deletes it"


def test_damage_found_twice_is_set_aside_once(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.append([sample("damaged"), sample("kept")])
    data = bytearray(only_segment(tmp_path).read_bytes())
    data[HEADER_BYTES + FRAME_BYTES] ^= 1
    only_segment(tmp_path).write_bytes(data)
    for _ in range(3):
        with opened(tmp_path) as spool:
            assert waiting(spool) == [sample("kept")]
            assert waiting(spool) == [sample("kept")]
    assert len(list(tmp_path.glob("*.damaged"))) == 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    payloads=st.lists(st.binary(max_size=60), min_size=1, max_size=12),
    damage=st.lists(st.tuples(st.integers(0, 2_000), st.binary(min_size=1, max_size=20)), max_size=4),
)
def test_whatever_is_damaged_only_what_was_put_in_comes_out(
    payloads: list[bytes], damage: list[tuple[int, bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In order, each once; and each record comes out unless a byte of it was changed."""
    directory = tmp_path_factory.mktemp("spool")
    records = [SpoolRecord(Kind.METRICS, bytes((number,)) + payload) for number, payload in enumerate(payloads)]
    with opened(directory) as spool:
        spool.append(records)
    path = only_segment(directory)
    data = path.read_bytes()
    salt = header_of(path).salt
    damaged = bytearray(data)
    for place, content in damage:
        start = HEADER_BYTES + place % (len(data) - HEADER_BYTES)
        damaged[start : start + len(content)] = content[: len(data) - start]
    path.write_bytes(damaged)
    whole = [
        piece.record
        for piece in pieces(data[HEADER_BYTES:], salt, HEADER_BYTES)
        if data[piece.start : piece.end] == damaged[piece.start : piece.end]
    ]
    with opened(directory) as spool:
        assert taken_all(spool) == whole


def test_a_payload_that_looks_like_frames_is_not_taken_for_them(tmp_path: Path) -> None:
    """Frames of another segment, or of this one at other places, inside a record whose length is damaged."""
    with opened(tmp_path / "other") as spool:
        spool.append([sample("from elsewhere")] * 10)
    foreign = only_segment(tmp_path / "other").read_bytes()
    directory = tmp_path / "spool"
    with opened(directory) as spool:
        spool.append([sample("first")])
        own = only_segment(directory).read_bytes()[HEADER_BYTES:]
        spool.append([SpoolRecord(Kind.METRICS, foreign + own * 10), sample("last")])
    data = bytearray(only_segment(directory).read_bytes())
    data[HEADER_BYTES + len(own)] ^= 1
    only_segment(directory).write_bytes(data)
    with opened(directory) as spool:
        assert taken_all(spool) == [sample("first"), sample("last")]


def test_the_longest_damaged_segment_is_searched_within_seconds() -> None:
    data = random.Random(1).randbytes(4 * 2**20)
    began = time.monotonic()
    (piece,) = pieces(data, 7, HEADER_BYTES)
    assert (piece.record, piece.is_torn, piece.end) == (None, False, HEADER_BYTES + len(data))
    assert time.monotonic() - began < 20


def test_no_file_set_aside_is_written_over(tmp_path: Path) -> None:
    for content in (b"one" * 50, b"two" * 50):
        (tmp_path / f"{7:020d}.spool").write_bytes(content)
        with opened(tmp_path):
            pass
    assert sorted(path.read_bytes()[:3] for path in tmp_path.glob("*.damaged")) == [b"one", b"two"]


def test_a_file_that_is_no_spool_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / f"{7:020d}.spool").write_bytes(b"something else altogether, longer than a header, kept")
    with opened(tmp_path) as spool:
        spool.append([sample("new")])
        assert waiting(spool) == [sample("new")]
    assert (tmp_path / f"{7:020d}.damaged").read_bytes() == b"something else altogether, longer than a header, kept"


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
                assert sum(len(record.payload) + FRAME_BYTES + 1 for record in model) > 4_096, "refused with room left"
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
