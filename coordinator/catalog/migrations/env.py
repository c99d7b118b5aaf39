"""Alembic's entry: runs the steps on the connection that the catalog holds already."""

from alembic import context

from coordinator.catalog.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite alters most things only by copying a table.
    render_as_batch=True,
    # All or nothing, in the transaction of whoever opened the catalog.
    transactional_ddl=False,
)
context.run_migrations()
