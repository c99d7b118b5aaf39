"""Volumes know who uses them: containers, compose project, labels."""

import sqlalchemy as sa
from alembic import op

revision = "v0002"
down_revision = "v0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; every volume tells its own at its agent's next hello."""
    with op.batch_alter_table("volumes", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("workload", sa.LargeBinary(), nullable=False, server_default="")
        )
