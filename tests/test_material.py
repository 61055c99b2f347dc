"""Certificates from files: what is refused with which reason, what is used, and what stays when a file goes bad."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tls_material import DAY, Authority, Pair, key_pem

from billaged.identity.files import FileSource, PemFiles
from billaged.identity.keeper import Keeper
from billaged.identity.material import BadMaterial, Material

NOW = datetime.now(UTC)
LABELS = ("UNKEY_BILLAGED_TLS_CERT_FILE", "UNKEY_BILLAGED_TLS_KEY_FILE", "UNKEY_BILLAGED_TLS_CA_FILE")
LOOK_SECONDS = 0.02
DEADLINE_SECONDS = 20.0


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


class Files:
    """A server's certificate, key and CA in a folder."""

    def __init__(self, folder: Path, authority: Authority, pair: Pair | None = None) -> None:
        self.folder = folder
        self.cert, self.key = (pair or authority.sign("server", names=("localhost",))).write(folder, "it")
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(authority.pem)

    def pem_files(self, *, ca: bool = True) -> PemFiles:
        return PemFiles(self.cert, self.key, self.ca if ca else None, LABELS)

    def load(self, now: datetime = NOW) -> Material:
        material = self.pem_files().load()
        material.check(now)
        return material

    def put(self, path: Path, content: bytes) -> None:
        """As who renews certificates should: under another name, then renamed."""
        fresh = path.with_suffix(".new")
        fresh.write_bytes(content)
        fresh.replace(path)


@pytest.fixture
def files(tmp_path: Path, authority: Authority) -> Files:
    return Files(tmp_path, authority)


def test_good_files_are_the_material(files: Files) -> None:
    material = files.load()
    assert material.chain_pem == files.cert.read_bytes()
    assert material.key_pem == files.key.read_bytes()
    assert material.trust is not None and material.trust.roots_pem.strip() == files.ca.read_bytes().strip()


def test_without_a_ca_nobody_is_asked_for_a_certificate(files: Files) -> None:
    assert files.pem_files(ca=False).load().trust is None


@pytest.mark.parametrize("which", ["cert", "key", "ca"])
def test_a_missing_file_is_named_with_its_setting(files: Files, which: str) -> None:
    path: Path = getattr(files, which)
    path.unlink()
    with pytest.raises(BadMaterial, match=rf"UNKEY_BILLAGED_TLS_{which.upper()}_FILE: .*No such file") as caught:
        files.load()
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("which", "problem"), [("cert", "no certificate"), ("key", "no private key"), ("ca", "no cer")]
)
@pytest.mark.parametrize("content", [b"", b"hello", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_pem_is_named(files: Files, which: str, problem: str, content: bytes) -> None:
    getattr(files, which).write_bytes(content)
    with pytest.raises(BadMaterial, match=rf"UNKEY_BILLAGED_TLS_{which.upper()}_FILE: .*{problem}"):
        files.load()


def test_half_a_chain_is_no_chain(files: Files, authority: Authority) -> None:
    whole = files.cert.read_bytes() + authority.pem
    files.cert.write_bytes(whole[:-200])
    with pytest.raises(BadMaterial, match=r"UNKEY_BILLAGED_TLS_CERT_FILE: .*(ends within|no certificate)"):
        files.load()


def test_a_directory_is_no_file(files: Files, tmp_path: Path) -> None:
    files.key = tmp_path
    with pytest.raises(BadMaterial, match="Is a directory"):
        files.load()


def test_another_key_is_refused(files: Files, authority: Authority) -> None:
    files.key.write_bytes(authority.sign("another").key)
    with pytest.raises(BadMaterial, match="is not that of the first certificate"):
        files.load()


def test_a_chain_in_the_wrong_order_is_refused(files: Files, authority: Authority) -> None:
    files.cert.write_bytes(authority.pem + files.cert.read_bytes())
    with pytest.raises(BadMaterial, match="must stand first"):
        files.load()


def test_an_encrypted_key_is_refused(files: Files) -> None:
    files.key.write_bytes(key_pem(ec.generate_private_key(ec.SECP256R1()), b"passphrase"))
    with pytest.raises(BadMaterial, match="the key is encrypted"):
        files.load()


def test_a_certificate_out_of_its_time_is_refused(tmp_path: Path, authority: Authority) -> None:
    pair = authority.sign("server", not_before=NOW - DAY, not_after=NOW + 10 * DAY)
    files = Files(tmp_path, authority, pair)
    files.load(NOW + 9 * DAY)
    with pytest.raises(BadMaterial, match="has expired at"):
        files.load(NOW + 11 * DAY)
    with pytest.raises(BadMaterial, match="is not valid before"):
        files.load(NOW - 2 * DAY)


def test_an_intermediate_out_of_its_time_counts_too(tmp_path: Path, authority: Authority) -> None:
    pair = authority.intermediate(not_after=NOW + DAY).sign("server", not_after=NOW + 9 * DAY)
    files = Files(tmp_path, authority, pair)
    assert files.load().valid_until is not None and files.load().valid_until < NOW + 2 * DAY  # type: ignore[operator]
    with pytest.raises(BadMaterial, match="has expired at"):
        files.load(NOW + 2 * DAY)


def test_a_ca_that_has_expired_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadMaterial, match="every CA certificate has expired"):
        Files(tmp_path, Authority(not_after=NOW - DAY)).load()


# --- watched -----------------------------------------------------------------------


class Watched:
    """Files under the eyes of a source."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.keeper = Keeper()
        self.source = FileSource(files.pem_files(), self.keeper, LOOK_SECONDS)
        self._news = threading.Condition()
        self._count = 0
        self.keeper.listen(self._heard)
        self.source.start()

    def _heard(self) -> None:
        with self._news:
            self._count += 1
            self._news.notify_all()

    def wait_for_changes(self, count: int) -> None:
        with self._news:
            assert self._news.wait_for(lambda: self._count >= count, DEADLINE_SECONDS)

    def wait_for_refusals(self, count: int) -> None:
        """Each look at files that are wrong counts as one."""
        waited = threading.Event()
        for _ in range(int(DEADLINE_SECONDS / LOOK_SECONDS)):
            if self.keeper.status().refusals >= count:
                return
            waited.wait(LOOK_SECONDS)
        raise TimeoutError(f"not refused: {self.keeper.status()}")


@pytest.fixture
def watched(files: Files) -> Iterator[Watched]:
    it = Watched(files)
    yield it
    it.source.stop()


def test_a_renewed_pair_is_used_once_both_files_are_there(watched: Watched, authority: Authority) -> None:
    first = watched.keeper.material
    pair = authority.sign("renewed")
    watched.files.put(watched.files.cert, pair.cert)
    watched.wait_for_refusals(1)
    assert watched.keeper.material is first, "a certificate whose key has not come yet"
    assert "is not that of the first certificate" in str(watched.keeper.status().problem)
    watched.files.put(watched.files.key, pair.key)
    watched.wait_for_changes(2)
    assert watched.keeper.material is not None and watched.keeper.material.chain_pem == pair.cert
    assert watched.keeper.status().problem is None


def test_a_file_that_goes_bad_changes_nothing_and_is_said_once(
    watched: Watched, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    first = watched.keeper.material
    good = watched.files.ca.read_bytes()
    with caplog.at_level(logging.WARNING, "billaged.identity"):
        watched.files.ca.write_bytes(good[: len(good) // 2])
        watched.wait_for_refusals(5)
    assert watched.keeper.material is first
    [line] = [record.getMessage() for record in caplog.records]
    assert "UNKEY_BILLAGED_TLS_CA_FILE" in line and "stays in use" in line
    watched.files.put(watched.files.ca, good + Authority().pem)
    watched.wait_for_changes(2)
    assert watched.keeper.material is not first


def test_an_expired_renewal_is_not_used(watched: Watched, authority: Authority) -> None:
    first = watched.keeper.material
    pair = authority.sign("late", not_after=NOW - timedelta(minutes=1))
    watched.files.put(watched.files.key, pair.key)
    watched.files.put(watched.files.cert, pair.cert)
    watched.wait_for_refusals(3)
    assert watched.keeper.material is first


def test_the_same_content_again_is_no_change(watched: Watched) -> None:
    first = watched.keeper.material
    watched.files.put(watched.files.cert, watched.files.cert.read_bytes())
    pair_of_files = watched.files.ca.read_bytes()
    # The next real change comes after it: by then the same content has been looked at.
    watched.files.put(watched.files.ca, pair_of_files + Authority().pem)
    watched.wait_for_changes(2)
    assert watched.keeper.status().changes == 2
    assert first is not None and watched.keeper.material is not None
    assert first.chain_pem == watched.keeper.material.chain_pem


# --- the end comes near ------------------------------------------------------------


def test_the_end_is_warned_of_again_and_again_and_then_it_is_the_end(
    tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    pair = authority.sign("server", not_before=NOW - DAY, not_after=NOW + 29 * DAY)
    times = [NOW]
    keeper = Keeper(now=lambda: times[0])
    keeper.offer(Files(tmp_path, authority, pair).load())

    def lines_at(moment: datetime) -> list[tuple[str, str]]:
        times[0] = moment
        caplog.clear()
        for _ in range(3):
            keeper.warn_of_expiry()
        return [(record.levelname, record.getMessage()) for record in caplog.records]

    with caplog.at_level(logging.WARNING, "billaged.identity"):
        # A third of its life would be ten days: a week is the longest warning.
        assert lines_at(NOW + 21 * DAY) == []
        assert not keeper.overdue()
        [(level, text)] = lines_at(NOW + 23 * DAY)
        assert level == "WARNING" and "has not been renewed" in text
        assert keeper.overdue()
        assert lines_at(NOW + 24 * DAY) == [], "not before half of the rest is gone"
        assert len(lines_at(NOW + 26 * DAY + timedelta(hours=1))) == 1
        assert not keeper.expired()
        [(level, text)] = lines_at(NOW + 30 * DAY)
        assert level == "ERROR" and "has expired" in text
        assert keeper.expired()
        assert lines_at(NOW + 31 * DAY) == [], "said once"
    assert keeper.status().expires_in_seconds is not None and keeper.status().expires_in_seconds < 0  # type: ignore[operator]
