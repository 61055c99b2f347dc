"""Opening a ledger: for the one daemon that writes it, and for those who read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool, StaticPool

from billaged.model.errors import StorageError

FILE_NAME: Final = "ledger.db"
_MIGRATIONS: Final = Path(__file__).parent / "migrations"


def open_for_writing(path: Path | None) -> Engine:
    """An engine on the ledger file, created and migrated where needed; None keeps it in memory.

    Raises:
        StorageError: it is no ledger, or of a newer version than this one knows.
    """
    if path is None:
        engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    else:
        engine = create_engine(URL.create("sqlite", database=str(path)), connect_args={"timeout": 30})
    _begin_explicitly(engine, ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", "PRAGMA foreign_keys=ON"))
    try:
        _migrate(engine, path)
    except DBAPIError as error:
        engine.dispose()
        raise StorageError(f"{path} cannot be used as a ledger: {error.orig}.", "Restore a backup of it.") from error
    return engine


def open_for_reading(path: Path) -> Engine:
    """A read-only engine on a ledger file, whether a daemon writes it or not.

    Raises:
        StorageError: there is none, or it is of another version.
    """
    if not path.exists():
        raise StorageError(
            f"there is no ledger at {path}.",
            "Point --data-dir or UNKEY_BILLAGED_DATA_DIR at the daemon's data directory.",
        )
    engine = create_engine(_read_only(path), poolclass=NullPool, connect_args={"timeout": 30})
    _begin_explicitly(engine, ())
    try:
        with engine.connect() as connection:
            _refuse_other_versions(connection, path)
    except DBAPIError as error:
        raise StorageError(f"{path} cannot be read as a ledger: {error.orig}.") from error
    return engine


def _read_only(path: Path) -> URL:
    uri = path.absolute().as_uri().removeprefix("file://")
    return URL.create("sqlite", database=f"file:{uri}", query={"mode": "ro", "uri": "true"})


def _begin_explicitly(engine: Engine, pragmas: tuple[str, ...]) -> None:
    """Transactions begin where we say: the driver's own way of beginning them is off."""

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        for pragma in pragmas:
            connection.execute(pragma)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if pragmas else "BEGIN")


def _scripts() -> tuple[Config, str]:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    head = ScriptDirectory.from_config(config).get_current_head()
    if head is None:
        raise StorageError("this installation has no ledger migrations.", "Install it again.")
    return config, head


def _migrate(engine: Engine, path: Path | None) -> None:
    config, head = _scripts()
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
        if current == head:
            return
        if current is None and inspect(connection).get_table_names():
            raise StorageError(f"{path} holds tables but is no ledger.", "Choose another data directory.")
    config.attributes["engine"] = engine
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise _newer(path, current, head) from error


def _refuse_other_versions(connection: Connection, path: Path) -> None:
    _, head = _scripts()
    current = MigrationContext.configure(connection).get_current_revision()
    if current is None:
        raise StorageError(f"{path} is no ledger.")
    if current != head:
        raise _newer(path, current, head)


def _newer(path: Path | None, current: str | None, head: str) -> StorageError:
    return StorageError(
        f"the ledger {path} has schema {current}, this version of billaged knows {head}.",
        "Use the version of billaged that wrote it, or a newer one.",
    )
