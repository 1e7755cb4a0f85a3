"""Runs migrations on the connection that ``store.schema`` hands over; its transaction is the caller's."""

from alembic import context

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit(
        "migrations run through `perijove db upgrade`, not through the alembic command"
    )

context.configure(connection=connection, target_metadata=None, transactional_ddl=True)
context.run_migrations()
