"""``billaged backup`` and ``billaged restore``: the whole data directory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from billaged.cli.copying import json_option, opened, print_made, print_restored, progress_bytes, rate_option
from billaged.cli.reading import data_dir_of, data_dir_option, load_settings

if TYPE_CHECKING:
    from billaged.backup.contents import Manifest


@click.command()
@click.option(
    "--to",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="TARGET",
    required=True,
    help="A new folder; a new file, where it ends in .tar; - writes a tar file to stdout.",
)
@rate_option
@json_option
@data_dir_option
def backup(to: Path, rate_mib: int, as_json: bool, data_dir: Path | None) -> None:
    """Back up the whole data directory: ledger, journal, segments, snapshots. The daemon may run.

    A folder is laid out like a data directory, so whatever reads one reads the backup:
    'billaged verify --data-dir TARGET' proves it. A tar file is made of copies, one database
    at a time, beside the file, or, for stdout, in TMPDIR. backup.json, written last, has the size and
    SHA-256 of each file: what has none is no backup.

    All that was acknowledged before the copy of the journal began is in it.

    \b
    billaged backup --to /backup/billaged-$(date +%F)
    billaged backup --to - | zstd | ssh backup 'cat > billaged.tar.zst'
    """
    from billaged.backup import whole
    from billaged.ledger.copying import Pace

    settings = load_settings()
    directory, pace = data_dir_of(settings, data_dir), Pace(rate_mib << 20)
    spare_bytes = settings.storage.min_free_bytes
    with progress_bytes("backing up") as told:
        if str(to) == "-":
            made = whole.back_up_into_stream(directory, sys.stdout.buffer, spare_bytes, pace, told)
            sys.stdout.flush()
        elif to.suffix == ".tar":
            made = whole.back_up_into_tar(directory, to, spare_bytes, pace, told)
        else:
            made = whole.back_up_into_folder(directory, to, spare_bytes, pace, told)
    print_made(_made(made, to), as_json=as_json, on_stderr=str(to) == "-")


@click.command()
@click.argument("source", type=click.Path(path_type=Path, allow_dash=True), metavar="BACKUP")
@click.option(
    "--lose-newer",
    is_flag=True,
    help="Also where the journal that is there has rows that the backup has not: they are billed no more.",
)
@json_option
@data_dir_option
def restore(source: Path, lose_newer: bool, as_json: bool, data_dir: Path | None) -> None:
    """Put a backup of a whole data directory back: a folder, a tar file, or - for one on stdin.

    The daemon must be down, or have another data directory. Before anything is replaced, each file is
    compared with its SHA-256, both databases are read through, and it is made sure that a start can go
    on from them. What is replaced is kept, in the folder replaced-... of the data directory.

    What was acknowledged after the backup is not in it, and no sender has it any more: where only
    the ledger is damaged, 'billaged ledger restore' loses nothing.
    """
    from billaged.backup.restore import restore_whole
    from billaged.backup.sources import FromFolder, FromTar

    directory = data_dir_of(load_settings(), data_dir)
    with progress_bytes("restoring") as told:
        if str(source) == "-":
            tar = FromTar(sys.stdin.buffer, "the backup on stdin", 0)
            done = restore_whole(directory, tar, told, lose_newer=lose_newer)
        elif source.is_dir():
            done = restore_whole(directory, FromFolder(source), told, lose_newer=lose_newer)
        else:
            with opened(source) as stream:
                tar = FromTar(stream, str(source), source.stat().st_size)
                done = restore_whole(directory, tar, told, lose_newer=lose_newer)
    print_restored(done, directory, as_json=as_json)


def _made(made: Manifest, to: Path) -> dict[str, Any]:
    return {
        "backup": str(to),
        "bytes": made.bytes,
        "files": len(made.files),
        "journal_id": made.journal_id,
        "journal_position": made.journal_position,
        "journal_head": f"{made.journal_position}:{made.journal_chain}",
        "ledger_position": made.ledger_position,
        "ledger_schema": made.ledger_schema,
    }
