"""``billaged restore``: a whole backup is put back, or refused before anything is replaced."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from backup_fixtures import (
    RECORDS,
    carry_on,
    data_directory,
    done,
    files_of,
    flip,
    live,
    refused,
    run,
    samples,
)
from daemon_process import ROOT, fails_to_start, ledger_of
from faults.injected import Injection


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return data_directory(tmp_path / "var")


@pytest.fixture
def backup(directory: Path, tmp_path: Path) -> Path:
    done("backup", "--to", tmp_path / "backup", "--data-dir", directory)
    return tmp_path / "backup"


def test_a_folder_says_what_it_holds(backup: Path) -> None:
    page = json.loads((backup / "backup.json").read_text())
    assert [entry["name"] for entry in page["files"]] == [
        "ledger.db",
        "journal.db",
        "segments/journal-0000000000000001-0000000000000005.jsonl.gz",
        "segments/journal-0000000000000006-0000000000000012.jsonl.gz",
    ]
    assert (page["format"], page["journal_position"], page["ledger_position"]) == (1, len(RECORDS), len(RECORDS))
    modes = {stat.S_IMODE(path.stat().st_mode) for path in backup.rglob("*") if path.is_file()}
    assert modes == {0o600}
    sums = "".join(f"{entry['sha256']}  {entry['name']}\n" for entry in page["files"])
    subprocess.run(["sha256sum", "--check", "--quiet"], input=sums, cwd=backup, text=True, check=True, timeout=30)


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What is written to a stream; of ``directory`` before anything is done to it."""
    return live(data_directory(tmp_path_factory.mktemp("packed") / "var"), "backup", "--to", "-").stdout


def test_each_form_gives_the_same_directory(directory: Path, backup: Path, tar: bytes, tmp_path: Path) -> None:
    (tmp_path / "backup.tar").write_bytes(tar)
    with tarfile.open(tmp_path / "backup.tar") as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    subprocess.run(["gzip", str(tmp_path / "backup.tar")], check=True, timeout=30)
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    right = ledger_of(directory)
    for number, source in enumerate((backup, tmp_path / "backup.tar.gz", unpacked, "-")):
        into = tmp_path / f"restored-{number}"
        restored = done("restore", source, "--data-dir", into, stdin=tar)
        assert restored["journal_position"] == len(RECORDS)
        assert sorted(path.name for path in into.iterdir()) == ["journal.db", "ledger.db", "lock", "segments"]
        assert ledger_of(into) == right
        assert run("verify", "--data-dir", into)[0] == 0


def test_what_was_there_is_kept(directory: Path, backup: Path) -> None:
    carry_on(directory, *samples(29, 33))
    before = files_of(directory)
    said = refused("restore", backup, "--data-dir", directory)
    assert f"goes up to row {len(RECORDS) + 5}, and the backup's up to row {len(RECORDS)} does not hold" in said
    assert "billaged ledger restore" in said
    assert files_of(directory) == before
    restored = done("restore", backup, "--lose-newer", "--data-dir", directory)
    assert files_of(Path(restored["set_aside"])) == before
    assert restored["journal_position"] == len(RECORDS)
    assert run("verify", "--data-dir", directory)[0] == 0


def test_a_journal_that_went_on_another_way_is_not_lost_either(directory: Path, backup: Path, tmp_path: Path) -> None:
    """The backup is as long, or longer; its rows are others."""
    carry_on(directory, *samples(29, 33))
    done("backup", "--to", tmp_path / "longer", "--data-dir", directory)
    done("restore", backup, "--lose-newer", "--data-dir", directory)
    # What the backup continues is no loss.
    done("restore", tmp_path / "longer", "--data-dir", directory)
    done("restore", backup, "--lose-newer", "--data-dir", directory)
    carry_on(directory, *samples(29, 30, "b"))
    assert "usage that was acknowledged since would be lost" in refused(
        "restore", tmp_path / "longer", "--data-dir", directory
    )


def test_a_damaged_journal_is_replaced_without_a_word(directory: Path, backup: Path) -> None:
    (directory / "journal.db").write_bytes(b"what is left of it" * 1000)
    restored = done("restore", backup, "--data-dir", directory)
    assert (Path(restored["set_aside"]) / "journal.db").read_bytes().startswith(b"what is left of it")
    assert run("verify", "--data-dir", directory)[0] == 0


def one_segment(backup: Path) -> Path:
    return sorted((backup / "segments").iterdir())[0]


def edit_manifest(backup: Path, **fields: object) -> None:
    path = backup / "backup.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda backup: (backup / "backup.json").unlink(), "was not finished: it has no backup.json"),
        (lambda backup: (backup / "backup.json").write_text("{"), "is damaged"),
        (lambda backup: edit_manifest(backup, format=2), "was made by a later version"),
        (lambda backup: edit_manifest(backup, files=[]), "is damaged: its files are []"),
        (
            lambda backup: edit_manifest(backup, files=[{"name": "../x", "bytes": 1, "sha256": ""}]),
            "is damaged: its files are",
        ),
        (lambda backup: edit_manifest(backup, ledger_schema="0099"), "has schema 0099"),
        (lambda backup: flip(backup / "ledger.db", 9_000), "ledger.db of"),
        (lambda backup: flip(backup / "journal.db", 9_000), "journal.db of"),
        (lambda backup: flip(one_segment(backup), 60), "is not what was written"),
        (lambda backup: one_segment(backup).unlink(), "lacks segments/journal-"),
        (lambda backup: (backup / "journal.db").unlink(), "lacks journal.db"),
    ],
    ids=[
        "unfinished",
        "no JSON",
        "later format",
        "no files",
        "elsewhere",
        "later schema",
        "ledger",
        "journal",
        "segment",
        "no segment",
        "no journal",
    ],
)
def test_a_damaged_folder_is_refused(
    directory: Path, backup: Path, how: Callable[[Path], object], said: str, tmp_path: Path
) -> None:
    how(backup)
    before = files_of(directory)
    assert said in refused("restore", backup, "--data-dir", directory)
    assert files_of(directory) == before


def repacked(tar: bytes, how: Callable[[str, bytes], list[tuple[str, bytes]]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(tar)) as old, tarfile.open(fileobj=out, mode="w") as new:
        for member in old:
            content = old.extractfile(member)
            assert content is not None
            for name, changed in how(member.name, content.read()):
                info = tarfile.TarInfo(name)
                info.size = len(changed)
                new.addfile(info, io.BytesIO(changed))
    return out.getvalue()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda tar: tar[: len(tar) // 2], "is no backup, or not all of it"),
        (lambda _: b"no tar file" * 1000, "is no backup, or not all of it"),
        (lambda _: b"", "is no backup, or not all of it"),
        (
            lambda tar: repacked(tar, lambda name, content: [] if name.endswith(".json") else [(name, content)]),
            "was not finished: it has no backup.json",
        ),
        (lambda tar: repacked(tar, lambda name, content: [(name, content), ("../../x", b"x")]), "it has ../../x"),
        (
            lambda tar: repacked(
                tar, lambda name, content: [(name, content[:-1] + b"x" if name.endswith("ledger.db") else content)]
            ),
            "ledger.db of the backup on stdin is not what was written",
        ),
    ],
    ids=["cut", "no tar", "empty", "unfinished", "elsewhere", "changed"],
)
def test_a_damaged_tar_is_refused(
    directory: Path, tar: bytes, how: Callable[[bytes], bytes], said: str, tmp_path: Path
) -> None:
    before = files_of(directory)
    assert said in refused("restore", "-", "--data-dir", directory, stdin=how(tar))
    assert files_of(directory) == before
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("call", ["rename", "unlink"])
@pytest.mark.parametrize("number", [1, 2, 4, 6, 8])
def test_a_restore_that_is_killed_is_done_again(
    directory: Path, backup: Path, tmp_path: Path, call: str, number: int
) -> None:
    carry_on(directory, *samples(29, 33))
    kill = Injection(call, "signal=SIGKILL", number)
    restore = ["restore", str(backup), "--lose-newer", "--data-dir", str(directory)]
    subprocess.run(
        [*kill.under(directory, tmp_path / "log"), sys.executable, "-m", "billaged", *restore],
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        check=False,
    )
    if (directory / "restore.unfinished").exists():
        ended = fails_to_start(directory)
        assert ended.exit_code == 1
        assert "was broken off half-way: not all files are in their places. Do it again" in ended.stderr
        said = refused("ledger", "restore", backup / "ledger.db", "--data-dir", directory)
        assert "a restore of all of" in said or "a ledger alone cannot go on" in said
    done(*restore)
    assert run("verify", "--data-dir", directory)[0] == 0
    # What was there before is kept, wherever it was by then.
    kept = {len(path.read_bytes()) for path in directory.glob("replaced-*/journal.db")}
    assert kept
    assert not (directory / "restore.unfinished").exists()
    assert not (directory / "restore.partial").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_makes_belongs_to_the_directorys_owner(directory: Path, backup: Path, tmp_path: Path) -> None:
    """Else the daemon could not start, or not write its own backups."""
    nobody = 65534
    for path in (directory, *directory.rglob("*")):
        os.chown(path, nobody, nobody)
    done("ledger", "backup", "--data-dir", directory)
    done("ledger", "restore", backup / "ledger.db", "--data-dir", directory)
    done("restore", backup, "--data-dir", directory)
    owners = {str(path.relative_to(directory)): path.stat().st_uid for path in directory.rglob("*")}
    assert set(owners.values()) == {nobody}, owners


def test_each_command_says_where_to_go_on_when_it_is_the_wrong_one() -> None:
    for arguments, other in (
        (["ledger", "--help"], "billaged backup"),
        (["backup", "--help"], "billaged verify --data-dir"),
        (["restore", "--help"], "billaged ledger restore"),
    ):
        assert other in run(*arguments)[1]
