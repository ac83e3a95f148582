"""Alembic migrations of the database; `database.migrate` runs them."""
