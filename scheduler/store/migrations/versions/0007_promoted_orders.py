"""What was live when an order came and whether its result is; when a tenant was last evaluated.

A process of the version before leaves the new columns empty: what it orders counts as ordered while
nothing was live, and what it evaluates moves its tenant to no other place in the queue.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("adapter_orders", sa.Column("live_before", sa.Integer(), nullable=True))
    op.add_column("adapter_orders", sa.Column("promoted", sa.Boolean(), nullable=True))
    op.add_column("tenants", sa.Column("evaluated_at", sa.Float(), nullable=True))


def downgrade() -> None:
    op.drop_column("tenants", "evaluated_at")
    op.drop_column("adapter_orders", "promoted")
    op.drop_column("adapter_orders", "live_before")
