"""How far a backup of a data directory has come, and how fast it may go on."""

from __future__ import annotations

from pathlib import Path

from billaged.backup.contents import DATABASES
from billaged.backup.moving import bytes_of
from billaged.intake.segment_file import segments_in
from billaged.intake.segments import FOLDER_NAME as SEGMENTS
from billaged.ledger.copying import BytesDone, Pace
from billaged.ledger.cuts import FOLDER_NAME as SNAPSHOTS
from billaged.ledger.cuts import cuts_in


class Meter:
    """Each database is moved twice: to copy it, and to read the copy."""

    def __init__(self, data_dir: Path, pace: Pace, told: BytesDone) -> None:
        self.pace = pace
        self._told = told
        self._done = 0
        files = [segment.path for segment in segments_in(data_dir / SEGMENTS)]
        files += [cut.path for cut in cuts_in(data_dir / SNAPSHOTS)]
        databases = sum(bytes_of(data_dir / name) for name in DATABASES)
        self._total = 2 * databases + sum(path.stat().st_size for path in files)

    def moved(self, count: int) -> None:
        """So many bytes more; waits until the next ones may come."""
        self._tell(self._done + count)
        self.pace.moved(count)

    def copied(self) -> BytesDone:
        """For a copy of one database, which keeps the pace by itself."""
        before = self._done
        return lambda done, _total: self._tell(before + done)

    def _tell(self, done: int) -> None:
        self._done = done
        # Files grow meanwhile.
        self._told(min(done, self._total), self._total)
