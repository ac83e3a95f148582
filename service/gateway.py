"""What one gateway process holds, built once and handed to routes through dependencies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scheduler.store.adapter_orders import Orders
    from scheduler.store.adapters import Adapters
    from scheduler.store.board import Board
    from scheduler.store.database import Database
    from scheduler.store.evaluations import Evaluations
    from scheduler.store.files import Files
    from scheduler.store.idempotency import Idempotency
    from scheduler.store.jobs import Jobs
    from scheduler.store.keys import Keys
    from scheduler.store.objects import ObjectStore
    from scheduler.store.tenants import Tenants
    from scheduler.store.usage import Usage
    from service.catalogue import Catalogue
    from service.coded_adapters import CodedAdapters
    from service.generation import Engines
    from service.rate_limiter import RateLimiter
    from service.settings import ServiceSettings
    from service.transfers import Transfers


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """The parts of a gateway.

    Stores here see all tenants, so only two narrow them: `deps.py` for routes, and `evaluator.py`
    for the tenants whose evaluations it carries out.
    """

    settings: ServiceSettings
    db: Database
    keys: Keys
    tenants: Tenants
    files: Files
    jobs: Jobs
    adapters: Adapters
    orders: Orders
    evaluations: Evaluations
    usage: Usage
    board: Board
    idempotency: Idempotency
    objects: ObjectStore
    limiter: RateLimiter
    transfers: Transfers
    coded: CodedAdapters
    catalogue: Catalogue
    engines: Engines
