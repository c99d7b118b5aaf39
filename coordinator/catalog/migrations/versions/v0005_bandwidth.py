"""Limits of the network have a table."""

import sqlalchemy as sa
from alembic import op

revision = "v0005"
down_revision = "v0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table; nothing is limited before somebody says so."""
    op.create_table(
        "bandwidth_limits",
        sa.Column("scope", sa.String(length=16), nullable=False),
        sa.Column("subject", sa.LargeBinary(length=16), nullable=False),
        sa.Column("rules", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "subject", name=op.f("pk_bandwidth_limits")),
    )
