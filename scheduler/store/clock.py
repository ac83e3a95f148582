"""The database's clock, the only one that leases are measured with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Float
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

if TYPE_CHECKING:
    from sqlalchemy.sql.compiler import SQLCompiler


class DbNow(FunctionElement[float]):
    """Unix time in seconds with a fraction, as the database sees it."""

    type = Float()
    inherit_cache = True


@compiles(DbNow, "sqlite")
def _sqlite_now(_element: DbNow, _compiler: SQLCompiler, **_options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(DbNow, "postgresql")
def _postgresql_now(_element: DbNow, _compiler: SQLCompiler, **_options: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"
