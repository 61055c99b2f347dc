"""The checkpoint keeps the journal's chain at its position."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("checkpoint", sa.Column("chain", sa.LargeBinary(), nullable=True))
