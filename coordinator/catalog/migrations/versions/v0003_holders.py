"""Volumes may move: what their node calls them, and what is waited for after a move."""

import sqlalchemy as sa
from alembic import op

revision = "v0003"
down_revision = "v0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; until now a volume's id was what its node calls it."""
    with op.batch_alter_table("volumes", schema=None) as batch_op:
        batch_op.add_column(sa.Column("local_id", sa.LargeBinary(16), nullable=True))
        batch_op.add_column(sa.Column("awaits", sa.String(), nullable=True))
    op.execute("UPDATE volumes SET local_id = volume_id")
    with op.batch_alter_table("volumes", schema=None) as batch_op:
        batch_op.create_index("ux_volumes_node_id_local_id", ["node_id", "local_id"], unique=True)
