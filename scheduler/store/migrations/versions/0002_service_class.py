"""Tenants are in a service class; those that exist are in `default`.

The column has a default, so processes of the version before go on making tenants.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    column = sa.Column(
        "service_class", sa.String(length=64), nullable=False, server_default="default"
    )
    op.add_column("tenants", column)


def downgrade() -> None:
    """Drop the column."""
    with op.batch_alter_table("tenants") as batch:
        batch.drop_column("service_class")
