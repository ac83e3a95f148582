"""The tables. `seq` columns give insertion order, which is also the order of pages.

Times are unix seconds by the database's clock. Statements that change a running job match its
`epoch`, see leases.py.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
)

from scheduler.domain.service_class import DEFAULT

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

# SQLite gives growing keys only to INTEGER; PostgreSQL should not run out of them.
Seq = BigInteger().with_variant(Integer, "sqlite")

tenants = Table(
    "tenants",
    metadata,
    Column("seq", Seq, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("is_admin", Boolean, nullable=False),
    Column("weight", Float, nullable=False),
    Column("service_class", String(64), nullable=False, server_default=DEFAULT),
    Column("created_at", Float, nullable=False),
    Column("evaluated_at", Float),  # when an evaluation of the tenant was last taken
    Column("requests_per_minute", Integer),
    Column("tokens_per_minute", Integer),
    CheckConstraint("weight > 0", name="weight"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("seq", Seq, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False, index=True),
    Column("name", String(128), nullable=False),
    Column("prefix", String(32), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("created_at", Float, nullable=False),
    Column("revoked_at", Float),
)

files = Table(
    "files",
    metadata,
    Column("seq", Seq, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", String(64), nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("object_key", Text, nullable=False),
    Column("status", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("sha256", String(64)),
    Index(None, "tenant_id", "seq"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("seq", Seq, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False),
    Column("status", String(32), nullable=False),
    Column("base_model", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("spec", JSON, nullable=False),
    # Not a foreign key: a file may be deleted once its job has read it.
    Column("training_file", String(64), nullable=False),
    Column("validation_file", String(64)),
    # SHA-256 of both at creation, by role; they may be gone when a version asks.
    Column("data_digests", JSON(none_as_null=True)),
    Column("suffix", String(64), nullable=False),
    Column("adapter_id", String(64), nullable=False, unique=True),
    Column("model_name", Text, nullable=False, unique=True),
    Column("hyperparameters", JSON, nullable=False),
    Column("method", JSON(none_as_null=True)),
    Column("metadata", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("finished_at", Float),
    Column("estimated_finish", Float),
    Column("trained_tokens", BigInteger, nullable=False),
    Column("result_files", JSON, nullable=False),
    Column("error_code", String(64)),
    Column("error_message", Text),
    Column("error_param", String(128)),
    # What workers and tasks need.
    Column("train_key", Text),
    Column("valid_key", Text),
    Column("epoch", Integer, nullable=False),
    Column("lease_owner", String(128)),
    Column("lease_until", Float),
    Column("cancel_requested", Boolean, nullable=False),
    Column("pause_requested", Boolean, nullable=False),
    Column("num_crashes", Integer, nullable=False),
    Column("num_checks", Integer, nullable=False),
    Column("hinted_at", Float, nullable=False),
    Index(None, "tenant_id", "seq"),
    Index(None, "status", "base_model"),
)

job_metadata = Table(
    "job_metadata",
    metadata,
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("key", String(64), primary_key=True),
    Column("value", String(512), nullable=False),
)

job_events = Table(
    "job_events",
    metadata,
    Column("seq", Seq, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("level", String(8), nullable=False),
    Column("type", String(8), nullable=False),
    Column("message", Text, nullable=False),
    Column("data", JSON(none_as_null=True)),
    Index(None, "job_id", "seq"),
)

metrics = Table(
    "metrics",
    metadata,
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("step", Integer, primary_key=True, autoincrement=False),
    Column("epoch", Integer, nullable=False),
    Column("train_loss", Float, nullable=False),
    Column("valid_loss", Float),
    Column("num_mismatches", Integer, nullable=False),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("seq", Seq, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("step", Integer, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("uri", Text),
    Column("manifest_sha256", String(64)),
    Column("model_name", Text, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    UniqueConstraint("job_id", "step"),
)

adapters = Table(
    "adapters",
    metadata,
    Column("seq", Seq, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False, index=True),
    Column("job_id", ForeignKey("jobs.id"), unique=True),  # NULL: it was imported
    Column("base_model", Text, nullable=False),
    Column("model_name", Text, nullable=False, unique=True),
    # The plain name answers with live_version, or with final_version while nobody promoted any.
    Column("final_version", Integer),
    Column("live_version", Integer),
    Column("is_pinned", Boolean, nullable=False, server_default=false()),
    # Nothing answers to its name before a version was promoted.
    Column("is_gated", Boolean, nullable=False, server_default=false()),
    Column("created_at", Float, nullable=False),
    Column("deleted_at", Float),
)

adapter_versions = Table(
    "adapter_versions",
    metadata,
    Column("adapter_id", ForeignKey("adapters.id", ondelete="CASCADE"), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False, index=True),
    Column("step", Integer, nullable=False),
    Column("digest", String(128), nullable=False),
    Column("uri", Text, nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("created_at", Float, nullable=False),
    # Where it comes from; unknown for versions older than these columns.
    Column("origin", String(16)),
    Column("base_digest", String(128)),
    Column("method", String(32)),
    Column("job_id", String(64)),
    Column("data_digests", JSON(none_as_null=True)),
    Column("metrics", JSON(none_as_null=True)),
    Column("parent_version", Integer),
    Column("recipe", JSON(none_as_null=True)),
)


def _version_key() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        ["adapter_id", "version"],
        ["adapter_versions.adapter_id", "adapter_versions.version"],
        ondelete="CASCADE",
    )


adapter_tags = Table(
    "adapter_tags",
    metadata,
    Column("adapter_id", String(64), primary_key=True),
    Column("tag", String(64), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("updated_at", Float, nullable=False),
    _version_key(),
)

adapter_promotions = Table(
    "adapter_promotions",
    metadata,
    Column("seq", Seq, primary_key=True),
    Column("adapter_id", String(64), nullable=False),
    Column("version", Integer, nullable=False),
    Column("previous_version", Integer),  # what was live before, which a rollback brings back
    Column("created_at", Float, nullable=False),
    Column("undone_at", Float),
    _version_key(),
    Index(None, "adapter_id", "seq"),
)

adapter_shares = Table(
    "adapter_shares",
    metadata,
    Column("adapter_id", ForeignKey("adapters.id", ondelete="CASCADE"), primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id"), primary_key=True, index=True),
    Column("created_at", Float, nullable=False),
)

# Full models made of a base and a version; the row is the order and the record of it.
adapter_orders = Table(
    "adapter_orders",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False, index=True),
    Column("kind", String(16), nullable=False),
    Column("status", String(16), nullable=False, index=True),
    Column("adapter_id", String(64), nullable=False),
    Column("version", Integer),
    Column("base_model", Text, nullable=False),
    Column("options", JSON(none_as_null=True)),
    Column("max_total_bytes", BigInteger),
    Column("uri", Text),
    Column("files", JSON(none_as_null=True)),
    Column("result_version", Integer),
    Column("live_before", Integer),  # the adapter's live version when it was ordered
    Column("promoted", Boolean),  # NULL: that was not asked for
    Column("error_message", Text),
    Column("created_at", Float, nullable=False),
    Column("finished_at", Float),
    Column("num_tries", Integer, nullable=False),
    Column("lease_until", Float),
    Column("hinted_at", Float),
    _version_key(),
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("seq", Seq, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False),
    Column("status", String(16), nullable=False, index=True),
    Column("adapter_id", String(64), nullable=False),
    Column("version", Integer, nullable=False),
    Column("job_id", ForeignKey("jobs.id")),  # NULL: no job asked for it
    Column("plan", JSON, nullable=False),
    Column("report", JSON(none_as_null=True)),
    Column("error_message", Text),
    Column("created_at", Float, nullable=False),
    Column("finished_at", Float),
    Column("num_tries", Integer, nullable=False),
    Column("lease_until", Float),
    _version_key(),
    Index(None, "tenant_id", "seq"),
)

outbox = Table(
    "outbox",
    metadata,
    Column("seq", Seq, primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("sent_at", Float),
    Index(None, "sent_at", "seq"),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("tenant_id", ForeignKey("tenants.id"), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("body_hash", String(128), nullable=False),
    Column("resource_id", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
)

usage = Table(
    "usage",
    metadata,
    Column("tenant_id", ForeignKey("tenants.id"), primary_key=True),
    Column("day", Date, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("trained_tokens", BigInteger, nullable=False),
)
