"""The adapter registry: where versions come from, tags, promotions, shares, pins, imports, merges.

Everything is added, nothing is renamed, so processes of the version before go on working on the
new schema. The one thing that they do not expect is an imported adapter, which has no job: they
call and delete it, but cannot list it under /v1/adapters.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_KEPT = "adapter_versions_kept"  # rows of adapter_versions while their parent table is rebuilt
_SEQ = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("files", sa.Column("sha256", sa.String(length=64), nullable=True))
    op.add_column("jobs", sa.Column("data_digests", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("adapters", sa.Column("live_version", sa.Integer(), nullable=True))
    op.add_column(
        "adapters", sa.Column("is_pinned", sa.Boolean(), server_default=sa.false(), nullable=False)
    )
    _set_job_nullable(True)
    for column in (
        sa.Column("origin", sa.String(length=16), nullable=True),
        sa.Column("base_digest", sa.String(length=128), nullable=True),
        sa.Column("method", sa.String(length=32), nullable=True),
        sa.Column("job_id", sa.String(length=64), nullable=True),
        sa.Column("data_digests", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("metrics", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("parent_version", sa.Integer(), nullable=True),
    ):
        op.add_column("adapter_versions", column)
    _create_tables()


def downgrade() -> None:
    op.drop_index(op.f("ix_adapter_merges_tenant_id"), table_name="adapter_merges")
    op.drop_index(op.f("ix_adapter_merges_status"), table_name="adapter_merges")
    op.drop_table("adapter_merges")
    op.drop_index(op.f("ix_adapter_shares_tenant_id"), table_name="adapter_shares")
    op.drop_table("adapter_shares")
    op.drop_index(op.f("ix_adapter_promotions_adapter_id_seq"), table_name="adapter_promotions")
    op.drop_table("adapter_promotions")
    op.drop_table("adapter_tags")
    for name in (
        *("origin", "base_digest", "method", "job_id", "data_digests", "metrics"),
        "parent_version",
    ):
        op.drop_column("adapter_versions", name)
    imported = "SELECT id FROM adapters WHERE job_id IS NULL"
    op.execute(sa.text(f"DELETE FROM adapter_versions WHERE adapter_id IN ({imported})"))
    op.execute(sa.text("DELETE FROM adapters WHERE job_id IS NULL"))
    _set_job_nullable(False)
    op.drop_column("adapters", "is_pinned")
    op.drop_column("adapters", "live_version")
    op.drop_column("jobs", "data_digests")
    op.drop_column("files", "sha256")


def _set_job_nullable(nullable: bool) -> None:
    """Let an adapter be without a job, or not.

    SQLite cannot change a column: the table is built anew. Dropping the old one takes the rows of
    adapter_versions with it (ON DELETE CASCADE, which a transaction cannot switch off), so they
    wait aside.
    """
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    if is_sqlite:
        op.execute(sa.text(f"CREATE TABLE {_KEPT} AS SELECT * FROM adapter_versions"))
    with op.batch_alter_table("adapters") as batch:
        batch.alter_column("job_id", existing_type=sa.String(length=64), nullable=nullable)
    if is_sqlite:
        op.execute(sa.text(f"INSERT INTO adapter_versions SELECT * FROM {_KEPT}"))
        op.execute(sa.text(f"DROP TABLE {_KEPT}"))


def _create_tables() -> None:
    op.create_table(
        "adapter_tags",
        sa.Column("adapter_id", sa.String(length=64), nullable=False),
        sa.Column("tag", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        _version_key("adapter_tags"),
        sa.PrimaryKeyConstraint("adapter_id", "tag", name=op.f("pk_adapter_tags")),
    )
    op.create_table(
        "adapter_promotions",
        sa.Column("seq", _SEQ, nullable=False),
        sa.Column("adapter_id", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("previous_version", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("undone_at", sa.Float(), nullable=True),
        _version_key("adapter_promotions"),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_adapter_promotions")),
    )
    op.create_index(
        op.f("ix_adapter_promotions_adapter_id_seq"), "adapter_promotions", ["adapter_id", "seq"]
    )
    op.create_table(
        "adapter_shares",
        sa.Column("adapter_id", sa.String(length=64), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_id"],
            ["adapters.id"],
            name=op.f("fk_adapter_shares_adapter_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_adapter_shares_tenant_id")
        ),
        sa.PrimaryKeyConstraint("adapter_id", "tenant_id", name=op.f("pk_adapter_shares")),
    )
    op.create_index(op.f("ix_adapter_shares_tenant_id"), "adapter_shares", ["tenant_id"])
    op.create_table(
        "adapter_merges",
        sa.Column("adapter_id", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("uri", sa.Text(), nullable=True),
        sa.Column("files", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("finished_at", sa.Float(), nullable=True),
        sa.Column("num_tries", sa.Integer(), nullable=False),
        sa.Column("lease_until", sa.Float(), nullable=True),
        sa.Column("hinted_at", sa.Float(), nullable=True),
        _version_key("adapter_merges"),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_adapter_merges_tenant_id")
        ),
        sa.PrimaryKeyConstraint("adapter_id", "version", name=op.f("pk_adapter_merges")),
    )
    op.create_index(op.f("ix_adapter_merges_status"), "adapter_merges", ["status"])
    op.create_index(op.f("ix_adapter_merges_tenant_id"), "adapter_merges", ["tenant_id"])


def _version_key(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["adapter_id", "version"],
        ["adapter_versions.adapter_id", "adapter_versions.version"],
        name=op.f(f"fk_{table}_adapter_id"),
        ondelete="CASCADE",
    )
