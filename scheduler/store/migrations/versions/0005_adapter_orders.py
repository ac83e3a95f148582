"""Orders: full models as before, and now compressions and merges; a version's recipe.

`adapter_merges` becomes `adapter_orders`, with all its rows. A process of the version before finds
the old table gone: what it does with merged models fails until it is replaced, and nothing else.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0003"
branch_labels = None
depends_on = None

_KEPT = "status, uri, files, error_message, created_at, finished_at, num_tries, lease_until"


def upgrade() -> None:
    op.add_column("adapter_versions", sa.Column("recipe", sa.JSON(none_as_null=True)))
    op.create_table(
        "adapter_orders",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("adapter_id", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("base_model", sa.Text(), nullable=False),
        sa.Column("options", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("max_total_bytes", sa.BigInteger(), nullable=True),
        sa.Column("uri", sa.Text(), nullable=True),
        sa.Column("files", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("result_version", sa.Integer(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("finished_at", sa.Float(), nullable=True),
        sa.Column("num_tries", sa.Integer(), nullable=False),
        sa.Column("lease_until", sa.Float(), nullable=True),
        sa.Column("hinted_at", sa.Float(), nullable=True),
        *_keys("adapter_orders"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adapter_orders")),
    )
    _index("adapter_orders")
    op.execute(
        sa.text(
            f"INSERT INTO adapter_orders (id, kind, adapter_id, version, tenant_id, base_model,"
            f" {_KEPT}) SELECT m.adapter_id || '@' || m.version, 'export', m.adapter_id,"
            f" m.version, m.tenant_id, a.base_model, {_prefixed('m')} FROM adapter_merges m"
            " JOIN adapters a ON a.id = m.adapter_id"
        )
    )
    _drop("adapter_merges")


def downgrade() -> None:
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
        *_keys("adapter_merges"),
        sa.PrimaryKeyConstraint("adapter_id", "version", name=op.f("pk_adapter_merges")),
    )
    _index("adapter_merges")
    op.execute(
        sa.text(
            f"INSERT INTO adapter_merges (adapter_id, version, tenant_id, {_KEPT}) SELECT"
            f" adapter_id, version, tenant_id, {_KEPT} FROM adapter_orders WHERE kind = 'export'"
        )
    )
    _drop("adapter_orders")
    op.drop_column("adapter_versions", "recipe")


def _keys(table: str) -> tuple[sa.ForeignKeyConstraint, ...]:
    return (
        sa.ForeignKeyConstraint(
            ["adapter_id", "version"],
            ["adapter_versions.adapter_id", "adapter_versions.version"],
            name=op.f(f"fk_{table}_adapter_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f(f"fk_{table}_tenant_id")),
    )


def _index(table: str) -> None:
    for column in ("status", "tenant_id"):
        op.create_index(op.f(f"ix_{table}_{column}"), table, [column])


def _drop(table: str) -> None:
    for column in ("tenant_id", "status"):
        op.drop_index(op.f(f"ix_{table}_{column}"), table_name=table)
    op.drop_table(table)


def _prefixed(table: str) -> str:
    return ", ".join(f"{table}.{name}" for name in _KEPT.split(", "))
