"""Volumes know what tells their agent of changes."""

import sqlalchemy as sa
from alembic import op

revision = "v0004"
down_revision = "v0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; an agent fills them when it says hello."""
    with op.batch_alter_table("volumes", schema=None) as batch_op:
        for name in ("tracked_by", "tracking_reason"):
            batch_op.add_column(sa.Column(name, sa.String(), nullable=False, server_default=""))
