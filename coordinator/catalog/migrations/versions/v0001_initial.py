"""The first tables: nodes, volumes, jobs, sessions, packs, references, snapshots."""

import sqlalchemy as sa
from alembic import op

revision = "v0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "jobs",
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("origin", sa.String(length=16), nullable=False),
        sa.Column("phase", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.Column("subjects", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_jobs")),
        sa.UniqueConstraint("number", name=op.f("uq_jobs_number")),
    )
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_jobs_kind"), ["kind"], unique=False)
        batch_op.create_index(batch_op.f("ix_jobs_phase"), ["phase"], unique=False)

    op.create_table(
        "meta",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_meta")),
    )
    op.create_table(
        "nodes",
        sa.Column("node_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("enrolled_at", sa.BigInteger(), nullable=False),
        sa.Column("certificate_expires_at", sa.BigInteger(), nullable=False),
        sa.Column("signing_public_key", sa.LargeBinary(length=32), nullable=False),
        sa.Column("signing_certificate", sa.LargeBinary(), nullable=False),
        sa.Column("agent_version", sa.String(), nullable=False),
        sa.Column("last_seen_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_nodes")),
    )
    op.create_table(
        "refs",
        sa.Column("volume_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("pack_nonce", sa.LargeBinary(length=16), nullable=False),
        sa.Column("frame", sa.Integer(), nullable=False),
        sa.Column("from_seq", sa.BigInteger(), nullable=False),
        sa.Column("to_seq", sa.BigInteger(), nullable=True),
        sa.Column("live_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "volume_id", "pack_nonce", "frame", "from_seq", name=op.f("pk_refs")
        ),
        sqlite_with_rowid=False,
    )
    with op.batch_alter_table("refs", schema=None) as batch_op:
        batch_op.create_index("ix_refs_pack_nonce", ["pack_nonce"], unique=False)
        batch_op.create_index("ix_refs_volume_id_to_seq", ["volume_id", "to_seq"], unique=False)

    op.create_table(
        "tokens",
        sa.Column("token_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("used_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("token_id", name=op.f("pk_tokens")),
    )
    op.create_table(
        "job_logs",
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.Column("line", sa.Integer(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("level", sa.String(length=16), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.job_id"], name=op.f("fk_job_logs_job_id")),
        sa.PrimaryKeyConstraint("job_id", "line", name=op.f("pk_job_logs")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "tasks",
        sa.Column("task_id", sa.String(length=32), nullable=False),
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("volume_id", sa.LargeBinary(length=16), nullable=True),
        sa.Column("node_id", sa.LargeBinary(length=16), nullable=True),
        sa.Column("order", sa.LargeBinary(), nullable=False),
        sa.Column("phase", sa.String(length=16), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.Column("failure", sa.LargeBinary(), nullable=True),
        sa.Column("snapshot_id", sa.String(length=32), nullable=True),
        sa.Column("result", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.job_id"], name=op.f("fk_tasks_job_id")),
        sa.PrimaryKeyConstraint("task_id", name=op.f("pk_tasks")),
    )
    with op.batch_alter_table("tasks", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_tasks_job_id"), ["job_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_tasks_phase"), ["phase"], unique=False)
        batch_op.create_index(batch_op.f("ix_tasks_volume_id"), ["volume_id"], unique=False)

    op.create_table(
        "volumes",
        sa.Column("volume_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("node_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("path", sa.LargeBinary(), nullable=False),
        sa.Column("verdict", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("first_seen_at", sa.BigInteger(), nullable=False),
        sa.Column("scheduled_at", sa.BigInteger(), nullable=True),
        sa.Column("present", sa.Boolean(), nullable=False),
        sa.Column("last_sequence", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.node_id"], name=op.f("fk_volumes_node_id")),
        sa.PrimaryKeyConstraint("volume_id", name=op.f("pk_volumes")),
    )
    with op.batch_alter_table("volumes", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_volumes_name"), ["name"], unique=False)
        batch_op.create_index(batch_op.f("ix_volumes_node_id"), ["node_id"], unique=False)

    op.create_table(
        "sessions",
        sa.Column("session_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("task_id", sa.String(length=32), nullable=False),
        sa.Column("volume_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("node_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("fencing_token", sa.BigInteger(), nullable=False),
        sa.Column("sealed_data_key", sa.LargeBinary(), nullable=False),
        sa.Column("opened_at", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("proven", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.node_id"], name=op.f("fk_sessions_node_id")),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.task_id"], name=op.f("fk_sessions_task_id")),
        sa.ForeignKeyConstraint(
            ["volume_id"], ["volumes.volume_id"], name=op.f("fk_sessions_volume_id")
        ),
        sa.PrimaryKeyConstraint("session_id", name=op.f("pk_sessions")),
        sa.UniqueConstraint("fencing_token", name=op.f("uq_sessions_fencing_token")),
    )
    with op.batch_alter_table("sessions", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_sessions_task_id"), ["task_id"], unique=False)
        batch_op.create_index("ix_sessions_volume_id_state", ["volume_id", "state"], unique=False)

    op.create_table(
        "packs",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("blake3", sa.LargeBinary(length=32), nullable=False),
        sa.Column("session_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("node_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("volume_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("stored_at", sa.BigInteger(), nullable=False),
        sa.Column("frame_table", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.session_id"], name=op.f("fk_packs_session_id")
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_packs")),
    )
    with op.batch_alter_table("packs", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_packs_state"), ["state"], unique=False)

    op.create_table(
        "snapshots",
        sa.Column("snapshot_id", sa.String(length=32), nullable=False),
        sa.Column("session_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("volume_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("node_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("volume", sa.String(), nullable=False),
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("committed_at", sa.BigInteger(), nullable=False),
        sa.Column("phase", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("signed_root", sa.LargeBinary(), nullable=False),
        sa.Column("root_object", sa.LargeBinary(), nullable=False),
        sa.Column("refs_object", sa.LargeBinary(), nullable=False),
        sa.Column("statistics", sa.LargeBinary(), nullable=False),
        sa.Column("total_files", sa.BigInteger(), nullable=False),
        sa.Column("total_bytes", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("last_proof_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.session_id"], name=op.f("fk_snapshots_session_id")
        ),
        sa.ForeignKeyConstraint(
            ["volume_id"], ["volumes.volume_id"], name=op.f("fk_snapshots_volume_id")
        ),
        sa.PrimaryKeyConstraint("snapshot_id", name=op.f("pk_snapshots")),
        sa.UniqueConstraint("session_id", name=op.f("uq_snapshots_session_id")),
    )
    with op.batch_alter_table("snapshots", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_snapshots_committed_at"), ["committed_at"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_snapshots_state"), ["state"], unique=False)
        batch_op.create_index(
            "ux_snapshots_volume_id_sequence", ["volume_id", "sequence"], unique=True
        )

    op.create_table(
        "pack_origins",
        sa.Column("pack_nonce", sa.LargeBinary(length=16), nullable=False),
        sa.Column("pack", sa.String(), nullable=False),
        sa.Column("session_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("node_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("volume_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("sealed_data_key", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["pack"], ["packs.name"], name=op.f("fk_pack_origins_pack")),
        sa.PrimaryKeyConstraint("pack_nonce", name=op.f("pk_pack_origins")),
    )
    with op.batch_alter_table("pack_origins", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_pack_origins_pack"), ["pack"], unique=False)
