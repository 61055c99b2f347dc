"""Ledgers of earlier schemas, made by the migrations up to there, with rows in them."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from alembic import command
from sqlalchemy import create_engine

from billaged.ledger.database import _scripts
from billaged.model.records import FoldRules
from billaged.wire.codec import rules_to_json

OLDER = ("0001", "0002")
NEWEST = "0003"
ANOMALIES = 2_000


def old_ledger(path: Path, schema: str, *, journal_id: str = "journal-1", rules: FoldRules | None = None) -> Path:
    """A ledger of this schema. Without rules nothing has been folded into it yet; with them, rows up to 5."""
    engine = create_engine(f"sqlite:///{path}")
    config, _ = _scripts()
    config.attributes["engine"] = engine
    command.upgrade(config, schema)
    engine.dispose()
    clock = {"closed_through_ns": 0, "time_ns": None, "newest_sample_ns": 0, "waiting": []}
    checkpoint = {
        "part": 0,
        "journal_id": journal_id,
        "epoch": 1,
        "position": 0 if rules is None else 5,
        "window_number": 0,
        "window_start_ns": 0,
        # Only those in force, as it was then.
        "rules": None if rules is None else json.dumps(rules_to_json(rules)),
        "clock": json.dumps(clock),
    }
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA journal_mode=WAL")
        names = ", ".join(checkpoint)
        marks = ", ".join("?" * len(checkpoint))
        connection.execute(f"INSERT INTO checkpoint ({names}) VALUES ({marks})", tuple(checkpoint.values()))
        # Of the table that a migration makes anew, row by row.
        connection.executemany(
            "INSERT INTO anomalies (sequence, item, kind, vm_id, ordinal, at_ns, detail)"
            " VALUES (?, 0, 'late', ?, 1, ?, '{}')",
            ((number, f"vm-{number % 7}", number) for number in range(1, ANOMALIES + 1)),
        )
    return path


def schema_of(path: Path) -> str:
    return str(rows_of(path, "SELECT version_num FROM alembic_version")[0][0])


def anomalies_of(path: Path) -> list[Any]:
    return rows_of(
        path, "SELECT sequence, item, kind, vm_id, ordinal, at_ns, detail FROM anomalies ORDER BY sequence, item"
    )


def content_of(path: Path) -> list[str]:
    """All that is in a database, as statements that would make it again."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        return list(connection.iterdump())


def rows_of(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        return connection.execute(query).fetchall()
