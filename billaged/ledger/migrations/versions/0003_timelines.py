"""What is kept of each VM's timeline, silences, why a bucket was corrected; anomalies by VM and time."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_INT64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "kept_instants",
        sa.Column("vm_id", sa.Text(), nullable=False),
        sa.Column("timeline", _INT64, autoincrement=False, nullable=False),
        sa.Column("time_ns", _INT64, autoincrement=False, nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("vm_id", "timeline", "time_ns"),
    )
    op.create_index("kept_instants_by_time", "kept_instants", ["time_ns"], unique=False)
    op.create_table(
        "silences",
        sa.Column("vm_id", sa.Text(), nullable=False),
        sa.Column("start_ns", _INT64, autoincrement=False, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("end_ns", _INT64, autoincrement=False, nullable=True),
        sa.Column("sequence", _INT64, autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("vm_id", "start_ns", "reason"),
    )
    op.add_column("checkpoint", sa.Column("passed_ns", _INT64, nullable=False, server_default="0"))
    op.add_column("corrections", sa.Column("cause", sa.Text(), nullable=False, server_default="step"))
    op.add_column("instances", sa.Column("heard_seconds", _INT64, nullable=False, server_default="0"))
    op.add_column("instances", sa.Column("silent", _INT64, nullable=False, server_default="0"))
    _rekey_anomalies()


def _rekey_anomalies() -> None:
    """A primary key cannot be changed in place on SQLite."""
    columns = ("sequence", "item", "kind", "vm_id", "at_ns", "ordinal", "detail")
    texts = ("kind", "vm_id", "detail")
    op.create_table(
        "anomalies_anew",
        *(
            sa.Column(name, sa.Text() if name in texts else _INT64, autoincrement=False, nullable=False)
            for name in columns
        ),
        sa.PrimaryKeyConstraint(*columns[:5]),
    )
    op.execute(f"INSERT INTO anomalies_anew ({', '.join(columns)}) SELECT {', '.join(columns)} FROM anomalies")
    op.drop_index("anomalies_by_vm", "anomalies")
    op.drop_table("anomalies")
    op.rename_table("anomalies_anew", "anomalies")
    op.create_index("anomalies_by_vm", "anomalies", ["vm_id", "at_ns"], unique=False)
