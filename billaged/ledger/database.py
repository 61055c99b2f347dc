"""Opening a ledger: for the one daemon that writes it, and for those who read it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool, StaticPool

from billaged.intake.read_only import read_only_options
from billaged.ledger.backup import back_up_for_migration
from billaged.ledger.checked import RESTORE_OR_FOLD
from billaged.model.errors import StorageError

_log: Final = logging.getLogger("billaged.ledger")

FILE_NAME: Final = "ledger.db"
_MIGRATIONS: Final = Path(__file__).parent / "migrations"
# SQLite's own steps between two words to whoever waits; a second or so.
_STEPS_PER_WORD: Final = 10_000_000


def _tell_nobody(_said: str) -> None:
    pass


def open_for_writing(path: Path | None, tell: Callable[[str], None] = _tell_nobody, *, backup: bool = True) -> Engine:
    """An engine on the ledger file, created and migrated where needed; None keeps it in memory.

    A ledger of an older schema is copied first, unless ``backup`` is false; ``tell`` hears again and again
    that this goes on.

    Raises:
        StorageError: it is no ledger, of a newer version than this one knows, or cannot be copied or migrated.
    """
    if path is None:
        engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    else:
        engine = create_engine(URL.create("sqlite", database=str(path)), connect_args={"timeout": 30})
    _begin_explicitly(engine, ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", "PRAGMA foreign_keys=ON"))
    try:
        _migrate(engine, path, tell, backup=backup)
    except DBAPIError as error:
        engine.dispose()
        raise StorageError(f"{path} cannot be used as a ledger: {error.orig}.", RESTORE_OR_FOLD) from error
    except StorageError:
        engine.dispose()
        raise
    return engine


def newest_schema() -> str:
    """The schema that this version of billaged writes."""
    return _scripts()[1]


def check_schema(path: Path, schema: str) -> None:
    """
    Raises:
        StorageError: this version of billaged knows no such schema.
    """
    if schema not in _known_schemas():
        raise _newer(path, schema, newest_schema())


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
        raise StorageError(f"{path} cannot be read as a ledger: {error.orig}.", RESTORE_OR_FOLD) from error
    return engine


def _read_only(path: Path) -> URL:
    uri = path.resolve().as_uri().removeprefix("file://")
    return URL.create("sqlite", database=f"file:{uri}", query={**read_only_options(path), "uri": "true"})


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


def _known_schemas() -> set[str]:
    config, _ = _scripts()
    return {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}


def _migrate(engine: Engine, path: Path | None, tell: Callable[[str], None], *, backup: bool) -> None:
    config, head = _scripts()
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
        if current == head:
            return
        if current is None and inspect(connection).get_table_names():
            raise StorageError(f"{path} holds tables but is no ledger.", "Choose another data directory.")
    config.attributes["engine"] = engine
    if current is None or path is None:
        command.upgrade(config, "head")
        return
    check_schema(path, current)
    copy = back_up_for_migration(path, current, head, tell) if backup else None
    _log.info(
        "migrating the ledger", extra={"schema": current, "to_schema": head, "backup": str(copy) if copy else None}
    )
    try:
        with _telling(engine, lambda: tell(f"migrating the ledger from schema {current} to {head}")):
            command.upgrade(config, "head")
    except DBAPIError as error:
        raise StorageError(
            f"the ledger {path} could not be migrated from schema {current} to {head}: {error.orig}."
            " It is as it was before.",
            f"A copy of it is {copy}." if copy else "",
        ) from error


@contextmanager
def _telling(engine: Engine, tell: Callable[[], None]) -> Iterator[None]:
    """For as long as the body runs, say again and again that statements go on: one of them may take minutes."""

    def connected(connection: Any, _record: object, _proxy: object) -> None:
        connection.set_progress_handler(tell, _STEPS_PER_WORD)

    event.listen(engine, "checkout", connected)
    try:
        tell()
        yield
    finally:
        event.remove(engine, "checkout", connected)
        # What was told of it is in the pool still.
        engine.dispose()


def _refuse_other_versions(connection: Connection, path: Path) -> None:
    _, head = _scripts()
    current = MigrationContext.configure(connection).get_current_revision()
    if current is None:
        raise StorageError(f"{path} is no ledger.")
    check_schema(path, current)
    if current != head:
        raise StorageError(
            f"the ledger {path} has schema {current}, older than this version's, {head}.",
            "Start the daemon once: it copies the ledger, and brings it up to date.",
        )


def _newer(path: Path | None, current: str | None, head: str) -> StorageError:
    return StorageError(
        f"the ledger {path} has schema {current}, this version of billaged knows {head}.",
        "Use the version of billaged that wrote it, or a newer one; or put back a backup of before it was upgraded.",
    )
