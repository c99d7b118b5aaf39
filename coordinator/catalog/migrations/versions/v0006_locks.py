"""Objects may be locked in the store: until when is known of each."""

import sqlalchemy as sa
from alembic import op

revision = "v0006"
down_revision = "v0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing that was stored before is known to be locked."""
    op.add_column(
        "packs", sa.Column("locked_until", sa.BigInteger(), nullable=False, server_default="0")
    )
    op.create_index("ix_packs_locked_until", "packs", ["locked_until"])
    op.add_column("snapshots", sa.Column("locked_until", sa.BigInteger()))
    op.create_table(
        "locked_objects",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("locked_until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_locked_objects")),
    )
