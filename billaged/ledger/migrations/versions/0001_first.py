"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_INT64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "anomalies",
        sa.Column("sequence", _INT64, autoincrement=False, nullable=False),
        sa.Column("item", _INT64, autoincrement=False, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("vm_id", sa.Text(), nullable=False),
        sa.Column("ordinal", _INT64, autoincrement=False, nullable=False),
        sa.Column("at_ns", _INT64, autoincrement=False, nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("sequence", "item", "kind"),
    )
    op.create_index("anomalies_by_vm", "anomalies", ["vm_id", "at_ns"], unique=False)
    op.create_table(
        "checkpoint",
        sa.Column("part", _INT64, autoincrement=False, nullable=False),
        sa.Column("journal_id", sa.Text(), nullable=False),
        sa.Column("epoch", _INT64, autoincrement=False, nullable=False),
        sa.Column("position", _INT64, autoincrement=False, nullable=False),
        sa.Column("window_number", _INT64, autoincrement=False, nullable=False),
        sa.Column("window_start_ns", _INT64, autoincrement=False, nullable=False),
        sa.Column("rules", sa.Text(), nullable=True),
        sa.Column("clock", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("part"),
    )
    op.create_table(
        "corrections",
        sa.Column("sequence", _INT64, autoincrement=False, nullable=False),
        sa.Column("bucket_start_ns", _INT64, autoincrement=False, nullable=False),
        sa.Column("bucket_ns", _INT64, autoincrement=False, nullable=False),
        sa.Column("vm_id", sa.Text(), nullable=False),
        sa.Column("ordinal", _INT64, autoincrement=False, nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("cpu_time_ns", _INT64, nullable=False),
        sa.Column("disk_read_bytes", _INT64, nullable=False),
        sa.Column("disk_write_bytes", _INT64, nullable=False),
        sa.Column("network_rx_bytes", _INT64, nullable=False),
        sa.Column("network_tx_bytes", _INT64, nullable=False),
        sa.Column("memory_mib_seconds", _INT64, nullable=False),
        sa.Column("memory_rest_byte_nanos", _INT64, nullable=False),
        sa.Column("measured_ns", _INT64, autoincrement=False, nullable=False),
        sa.Column("samples", _INT64, autoincrement=False, nullable=False),
        sa.Column("memory_peak_bytes", _INT64, autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("sequence", "bucket_start_ns", "bucket_ns", "vm_id", "ordinal"),
    )
    op.create_index("corrections_by_vm", "corrections", ["vm_id", "bucket_start_ns"], unique=False)
    op.create_table(
        "dead_letters",
        sa.Column("sequence", _INT64, autoincrement=False, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("received_ns", _INT64, autoincrement=False, nullable=False),
        sa.Column("caller", sa.Text(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("sequence"),
    )
    op.create_table(
        "facts",
        sa.Column("bucket_start_ns", _INT64, autoincrement=False, nullable=False),
        sa.Column("bucket_ns", _INT64, autoincrement=False, nullable=False),
        sa.Column("vm_id", sa.Text(), nullable=False),
        sa.Column("ordinal", _INT64, autoincrement=False, nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("cpu_time_ns", _INT64, nullable=False),
        sa.Column("disk_read_bytes", _INT64, nullable=False),
        sa.Column("disk_write_bytes", _INT64, nullable=False),
        sa.Column("network_rx_bytes", _INT64, nullable=False),
        sa.Column("network_tx_bytes", _INT64, nullable=False),
        sa.Column("memory_mib_seconds", _INT64, nullable=False),
        sa.Column("memory_rest_byte_nanos", _INT64, nullable=False),
        sa.Column("measured_ns", _INT64, autoincrement=False, nullable=False),
        sa.Column("samples", _INT64, autoincrement=False, nullable=False),
        sa.Column("memory_peak_bytes", _INT64, autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("bucket_start_ns", "bucket_ns", "vm_id", "ordinal"),
    )
    op.create_index("facts_by_vm", "facts", ["vm_id", "bucket_start_ns"], unique=False)
    op.create_table(
        "gaps",
        sa.Column("vm_id", sa.Text(), nullable=False),
        sa.Column("ordinal", _INT64, autoincrement=False, nullable=False),
        sa.Column("start_ns", _INT64, autoincrement=False, nullable=False),
        sa.Column("end_ns", _INT64, autoincrement=False, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("cpu_time_ns", _INT64, nullable=False),
        sa.Column("disk_read_bytes", _INT64, nullable=False),
        sa.Column("disk_write_bytes", _INT64, nullable=False),
        sa.Column("network_rx_bytes", _INT64, nullable=False),
        sa.Column("network_tx_bytes", _INT64, nullable=False),
        sa.Column("sequence", _INT64, autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("vm_id", "ordinal", "start_ns"),
    )
    op.create_index("gaps_by_end", "gaps", ["end_ns"], unique=False)
    op.create_table(
        "instances",
        sa.Column("instance_id", sa.Text(), nullable=False),
        sa.Column("last_seen_ns", _INT64, autoincrement=False, nullable=False),
        sa.Column("active_vms", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("instance_id"),
    )
    op.create_table(
        "reported_gaps",
        sa.Column("sequence", _INT64, autoincrement=False, nullable=False),
        sa.Column("vm_id", sa.Text(), nullable=False),
        sa.Column("last_sent_ns", _INT64, autoincrement=False, nullable=False),
        sa.Column("resume_ns", _INT64, autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("sequence"),
    )
    op.create_index("reported_gaps_by_vm", "reported_gaps", ["vm_id"], unique=False)
    op.create_table(
        "sessions",
        sa.Column("vm_id", sa.Text(), nullable=False),
        sa.Column("ordinal", _INT64, autoincrement=False, nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("start_ns", _INT64, autoincrement=False, nullable=False),
        sa.Column("explicit", _INT64, autoincrement=False, nullable=False),
        sa.Column("last_ns", _INT64, autoincrement=False, nullable=False),
        sa.Column("end_ns", _INT64, autoincrement=False, nullable=True),
        sa.Column("end_kind", sa.Text(), nullable=True),
        sa.Column("cpu_time_ns", _INT64, nullable=False),
        sa.Column("disk_read_bytes", _INT64, nullable=False),
        sa.Column("disk_write_bytes", _INT64, nullable=False),
        sa.Column("network_rx_bytes", _INT64, nullable=False),
        sa.Column("network_tx_bytes", _INT64, nullable=False),
        sa.Column("memory_mib_seconds", _INT64, nullable=False),
        sa.Column("memory_rest_byte_nanos", _INT64, nullable=False),
        sa.Column("measured_ns", _INT64, autoincrement=False, nullable=False),
        sa.Column("gap_ns", _INT64, autoincrement=False, nullable=False),
        sa.Column("samples", _INT64, autoincrement=False, nullable=False),
        sa.Column("memory_peak_bytes", _INT64, autoincrement=False, nullable=False),
        sa.Column("newest", _INT64, autoincrement=False, nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("vm_id", "ordinal"),
    )
    op.create_index("sessions_by_customer", "sessions", ["customer_id", "vm_id"], unique=False)
    op.create_index(
        "sessions_running",
        "sessions",
        ["vm_id"],
        unique=False,
        sqlite_where=sa.text("end_ns IS NULL"),
        postgresql_where=sa.text("end_ns IS NULL"),
    )
    op.create_table(
        "tallies",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", _INT64, autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
