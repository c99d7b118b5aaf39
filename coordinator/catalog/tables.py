"""The catalog's tables as they are now. How they came to be so stands in migrations/.

Lists that are only ever read whole (statistics, failures, orders) are msgpack in one column;
whatever is searched or joined is a column of its own.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

meta = Table(
    "meta",
    metadata,
    Column("key", String, primary_key=True),
    Column("value", LargeBinary, nullable=False),
)

nodes = Table(
    "nodes",
    metadata,
    Column("node_id", LargeBinary(16), primary_key=True),
    Column("name", String, nullable=False),
    Column("enrolled_at", BigInteger, nullable=False),
    Column("certificate_expires_at", BigInteger, nullable=False),
    Column("signing_public_key", LargeBinary(32), nullable=False),
    Column("signing_certificate", LargeBinary, nullable=False),
    Column("agent_version", String, nullable=False, default=""),
    Column("last_seen_at", BigInteger),
    Column("revoked", Boolean, nullable=False, default=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("token_id", LargeBinary(16), primary_key=True),
    Column("secret_hash", LargeBinary(32), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("used_at", BigInteger),
)

volumes = Table(
    "volumes",
    metadata,
    Column("volume_id", LargeBinary(16), primary_key=True),
    Column("node_id", LargeBinary(16), ForeignKey("nodes.node_id"), nullable=False, index=True),
    Column("name", String, nullable=False, index=True),
    Column("source", String, nullable=False),
    Column("path", LargeBinary, nullable=False),
    Column("verdict", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("first_seen_at", BigInteger, nullable=False),
    Column("scheduled_at", BigInteger),
    Column("present", Boolean, nullable=False, default=True),
    # How its node names it, and what name is waited for after a move: coordinator/holding.py.
    Column("local_id", LargeBinary(16)),
    Column("awaits", String),
    # Containers, project, labels. Empty where there are none, or in rows of the first version.
    Column("workload", LargeBinary, nullable=False, default=b"", server_default=""),
    # What tells its agent of changes, and why nothing better does. Empty while nobody has looked.
    Column("tracked_by", String, nullable=False, default="", server_default=""),
    Column("tracking_reason", String, nullable=False, default="", server_default=""),
    # Where its snapshots go; the first repository while nobody has said.
    Column("repository_id", LargeBinary(16)),
    # The highest sequence ever given out, to a snapshot that failed as well: never used twice.
    Column("last_sequence", BigInteger, nullable=False, default=0),
    Index("ux_volumes_node_id_local_id", "node_id", "local_id", unique=True),
)

jobs = Table(
    "jobs",
    metadata,
    Column("job_id", String(32), primary_key=True),
    Column("number", Integer, nullable=False, unique=True),
    Column("kind", String(16), nullable=False, index=True),
    Column("origin", String(16), nullable=False),
    Column("phase", String(16), nullable=False, index=True),
    Column("created_at", BigInteger, nullable=False),
    Column("started_at", BigInteger),
    Column("finished_at", BigInteger),
    Column("subjects", LargeBinary, nullable=False),
)

tasks = Table(
    "tasks",
    metadata,
    Column("task_id", String(32), primary_key=True),
    Column("job_id", String(32), ForeignKey("jobs.job_id"), nullable=False, index=True),
    Column("position", Integer, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("volume_id", LargeBinary(16), index=True),
    Column("node_id", LargeBinary(16)),
    Column("order", LargeBinary, nullable=False),
    Column("phase", String(16), nullable=False, index=True),
    Column("started_at", BigInteger),
    Column("finished_at", BigInteger),
    Column("failure", LargeBinary),
    Column("snapshot_id", String(32)),
    Column("result", LargeBinary),
)

sessions = Table(
    "sessions",
    metadata,
    Column("session_id", LargeBinary(16), primary_key=True),
    Column("task_id", String(32), ForeignKey("tasks.task_id"), nullable=False, index=True),
    Column("volume_id", LargeBinary(16), ForeignKey("volumes.volume_id"), nullable=False),
    Column("node_id", LargeBinary(16), ForeignKey("nodes.node_id"), nullable=False),
    Column("fencing_token", BigInteger, nullable=False, unique=True),
    Column("sealed_data_key", LargeBinary, nullable=False),
    Column("opened_at", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    Column("proven", Boolean, nullable=False, default=False),
    # Here and below: null in rows from before there could be several, until the next start.
    Column("repository_id", LargeBinary(16)),
    Index("ix_sessions_volume_id_state", "volume_id", "state"),
    Index("ix_sessions_repository_id_node_id", "repository_id", "node_id"),
)

packs = Table(
    "packs",
    metadata,
    Column("name", String, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("blake3", LargeBinary(32), nullable=False),
    Column("session_id", LargeBinary(16), ForeignKey("sessions.session_id"), nullable=False),
    Column("node_id", LargeBinary(16), nullable=False),
    Column("volume_id", LargeBinary(16), nullable=False),
    Column("stored_at", BigInteger, nullable=False),
    Column("frame_table", LargeBinary, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    # As far as it is known; 0 where it is not locked. Never shortened.
    Column("locked_until", BigInteger, nullable=False, default=0, server_default="0", index=True),
    Column("repository_id", LargeBinary(16), index=True),
)

# Where the frames of an origin lie now. Repacking will move origins; a name never changes.
pack_origins = Table(
    "pack_origins",
    metadata,
    Column("pack_nonce", LargeBinary(16), primary_key=True),
    Column("pack", String, ForeignKey("packs.name"), nullable=False, index=True),
    # Who wrote the frames first, which repacking does not change, and what opens them.
    Column("session_id", LargeBinary(16), nullable=False),
    Column("node_id", LargeBinary(16), nullable=False),
    Column("volume_id", LargeBinary(16), nullable=False),
    Column("sealed_data_key", LargeBinary, nullable=False),
)

# A frame is needed by the snapshots whose sequence lies in [from_seq, to_seq), or in
# [from_seq, infinity) while to_seq is null.
refs = Table(
    "refs",
    metadata,
    Column("volume_id", LargeBinary(16), primary_key=True),
    Column("pack_nonce", LargeBinary(16), primary_key=True),
    Column("frame", Integer, primary_key=True),
    Column("from_seq", BigInteger, primary_key=True),
    Column("to_seq", BigInteger),
    Column("live_bytes", BigInteger, nullable=False),
    Index("ix_refs_pack_nonce", "pack_nonce"),
    Index("ix_refs_volume_id_to_seq", "volume_id", "to_seq"),
    sqlite_with_rowid=False,
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("snapshot_id", String(32), primary_key=True),
    Column(
        "session_id",
        LargeBinary(16),
        ForeignKey("sessions.session_id"),
        nullable=False,
        unique=True,
    ),
    Column("volume_id", LargeBinary(16), ForeignKey("volumes.volume_id"), nullable=False),
    Column("node_id", LargeBinary(16), nullable=False),
    Column("volume", String, nullable=False),
    Column("node", String, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("committed_at", BigInteger, nullable=False, index=True),
    Column("phase", String(16), nullable=False),
    # COMMITTING pins packs and is settled by reading the store; COMPLETED is for ever.
    Column("state", String(16), nullable=False, index=True),
    Column("signed_root", LargeBinary, nullable=False),
    Column("root_object", LargeBinary, nullable=False),
    Column("refs_object", LargeBinary, nullable=False),
    Column("statistics", LargeBinary, nullable=False),
    Column("total_files", BigInteger, nullable=False),
    Column("total_bytes", BigInteger, nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("last_proof_at", BigInteger),
    # Until when nobody can delete anything that it needs.
    Column("locked_until", BigInteger),
    Column("repository_id", LargeBinary(16)),
    Index("ux_snapshots_volume_id_sequence", "volume_id", "sequence", unique=True),
)

# Until when other objects are locked that snapshots need: what founds a repository.
locked_objects = Table(
    "locked_objects",
    metadata,
    Column("repository_id", LargeBinary(16), primary_key=True),
    Column("name", String, primary_key=True),
    Column("locked_until", BigInteger, nullable=False),
)

job_logs = Table(
    "job_logs",
    metadata,
    Column("job_id", String(32), ForeignKey("jobs.job_id"), primary_key=True),
    Column("line", Integer, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("level", String(16), nullable=False),
    Column("message", String, nullable=False),
    sqlite_with_rowid=False,
)

# Rules of the fleet, a repository or a node: whose they are, and what they say (limits.py).
bandwidth_limits = Table(
    "bandwidth_limits",
    metadata,
    Column("scope", String(16), primary_key=True),
    Column("subject", LargeBinary(16), primary_key=True),
    Column("rules", LargeBinary, nullable=False),
)
