"""A coordinator may have several repositories: which one is known of each thing in them."""

import sqlalchemy as sa
from alembic import op

revision = "v0007"
down_revision = "v0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Whose rows those of before are, only the coordinator's keys tell: they are filled in by it.

    Which objects are locked is forgotten: they are locked anew, for longer, and that is learnt.
    """
    for table in ("volumes", "sessions", "packs", "snapshots"):
        op.add_column(table, sa.Column("repository_id", sa.LargeBinary(16)))
    op.create_index("ix_packs_repository_id", "packs", ["repository_id"])
    op.create_index("ix_sessions_repository_id_node_id", "sessions", ["repository_id", "node_id"])
    op.drop_table("locked_objects")
    op.create_table(
        "locked_objects",
        sa.Column("repository_id", sa.LargeBinary(16), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("locked_until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("repository_id", "name", name=op.f("pk_locked_objects")),
    )
