"""Material from PEM files, read again when they change on disk."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final, NamedTuple

from billaged.identity.keeper import Keeper
from billaged.identity.material import BadMaterial, Material, certificates, private_key_pem
from billaged.identity.reading import read_file
from billaged.identity.trust import ANY_DOMAIN, Trust

_Seen = tuple[tuple[int, ...], ...]
# Files that change while they are read are read again this often, at once; then at the usual pace.
_READS: Final = 3
_BYTES_MAX: Final = 4 * 2**20


class PemFiles(NamedTuple):
    """Where the files are; ``labels`` name them in messages (a setting, an option), in the same order."""

    cert: Path | None
    key: Path | None
    ca: Path | None
    labels: tuple[str, str, str] = ("certificate", "key", "CA")

    def load(self) -> Material:
        """All of them as they are on disk now.

        Raises:
            BadMaterial: one is missing, unreadable or no PEM, or they change faster than they can be read.
        """
        for _ in range(_READS):
            before = self.seen()
            material = self._read()
            if self.seen() == before:
                return material
        raise BadMaterial(f"{self._name()}: the files change while they are read.")

    def seen(self) -> _Seen:
        """Changes when a file does; a missing one counts as such."""
        return tuple(_seen(path) for path in (self.cert, self.key, self.ca) if path is not None)

    def _name(self) -> str:
        return str(self.cert or self.ca or "no files")

    def _read(self) -> Material:
        cert_label, key_label, ca_label = self.labels
        if (self.cert is None) != (self.key is None):
            raise BadMaterial(f"{cert_label} and {key_label} belong together.", "Give both, or neither.")
        chain_pem = key = b""
        if self.cert is not None and self.key is not None:
            chain_pem = _read(self.cert, cert_label)
            key = private_key_pem(_read(self.key, key_label), f"{key_label}: {self.key}")
        chain = certificates(chain_pem, f"{cert_label}: {self.cert}") if chain_pem or self.cert is not None else ()
        trust = None
        if self.ca is not None:
            trust = Trust({ANY_DOMAIN: certificates(_read(self.ca, ca_label), f"{ca_label}: {self.ca}")})
        return Material(chain, chain_pem, key, trust, self._name())


class FileSource:
    """Offers the files to a keeper, and again whenever they have changed (a thread looks every interval)."""

    def __init__(self, files: PemFiles, keeper: Keeper, interval_seconds: float) -> None:
        self._files = files
        self._keeper = keeper
        self._interval_seconds = interval_seconds
        self._wake = threading.Event()
        self._ending = False
        self._seen: _Seen | None = None  # of the files that are in use
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Load the files, and watch them from now on.

        Raises:
            BadMaterial: they cannot be used.
        """
        seen = self._files.seen()
        self._keeper.offer(self._files.load())
        self._seen = seen
        self._thread = threading.Thread(target=self._watch, name="billaged-identity", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ending = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def look(self) -> None:
        """Look now (``identity.keeper.Source``)."""
        self._wake.set()

    def _watch(self) -> None:
        while True:
            self._wake.wait(self._interval_seconds)
            self._wake.clear()
            if self._ending:
                return
            # Taken before reading: what changes meanwhile is looked at again.
            seen = self._files.seen()
            if seen == self._seen:
                continue
            try:
                self._keeper.offer(self._files.load())
            except BadMaterial as error:
                # Not marked as seen: one of them may be right and only wait for the others.
                self._keeper.refuse(error)
            except Exception as error:  # noqa: BLE001 - what a file holds must not end who watches it
                self._keeper.refuse(f"{self._files.cert}: cannot be used: {error!r}.")
            else:
                self._seen = seen


def _seen(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size, status.st_dev


def _read(path: Path, label: str) -> bytes:
    try:
        return read_file(path, _BYTES_MAX).data
    except OSError as error:
        raise BadMaterial(f"{label}: {path} cannot be read: {error.strerror}.") from error
