"""Alembic's scripts: every schema the ledger ever had, in order. Never edit one that was released."""
