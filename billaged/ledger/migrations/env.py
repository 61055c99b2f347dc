"""How Alembic reaches the ledger: through the engine that ``database.py`` hands over."""

from alembic import context

from billaged.ledger.tables import metadata

with context.config.attributes["engine"].begin() as connection:
    context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
    context.run_migrations()
