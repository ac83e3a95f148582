"""What routes may ask for. Stores come narrowed to the caller's tenant: the one door to data."""

import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import Depends, Header, Path, Request

from scheduler.domain.tenant import Tenant
from scheduler.store.adapter_orders import TenantOrders
from scheduler.store.adapters import TenantAdapters
from scheduler.store.board import Board
from scheduler.store.evaluations import TenantEvaluations
from scheduler.store.files import TenantFiles
from scheduler.store.idempotency import IdempotencyKey
from scheduler.store.jobs import TenantJobs
from scheduler.store.keys import Keys
from scheduler.store.objects import ObjectStore
from scheduler.store.tenants import Tenants
from scheduler.store.usage import TenantUsage, Usage
from service.adapter_import import AdapterImport
from service.auth import CurrentAdmin, CurrentTenant
from service.catalogue import Catalogue, ServedModel
from service.coded_adapters import CodedAdapters
from service.gateway import Gateway
from service.generation import Engines
from service.logit_arithmetic import with_terms
from service.rate_gate import RateGate
from service.rate_limiter import RateLimiter
from service.schemas.logit_arithmetic import LogitTerm
from service.settings import ServiceSettings
from service.worker_roster import WorkerRoster


def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


AnyGateway = Annotated[Gateway, Depends(_gateway)]


def _settings(gateway: AnyGateway) -> ServiceSettings:
    return gateway.settings


def _tenant_files(gateway: AnyGateway, tenant: CurrentTenant) -> TenantFiles:
    return gateway.files.for_tenant(tenant.id)


def _tenant_jobs(gateway: AnyGateway, tenant: CurrentTenant) -> TenantJobs:
    return gateway.jobs.for_tenant(tenant.id)


def _tenant_adapters(gateway: AnyGateway, tenant: CurrentTenant) -> TenantAdapters:
    return gateway.adapters.for_tenant(tenant.id)


def _tenant_orders(gateway: AnyGateway, tenant: CurrentTenant) -> TenantOrders:
    return gateway.orders.for_tenant(tenant.id)


def _tenant_evaluations(gateway: AnyGateway, tenant: CurrentTenant) -> TenantEvaluations:
    return gateway.evaluations.for_tenant(tenant.id)


def _tenant_usage(gateway: AnyGateway, tenant: CurrentTenant) -> TenantUsage:
    return gateway.usage.for_tenant(tenant.id)


async def _transfer(gateway: AnyGateway, tenant: CurrentTenant) -> AsyncIterator[None]:
    """Counts until the answer has been sent."""
    with gateway.transfers.one_of(tenant.id):
        yield


def _adapter_import(gateway: AnyGateway, tenant: CurrentTenant) -> AdapterImport:
    return AdapterImport(
        gateway.adapters.for_tenant(tenant.id),
        gateway.objects,
        gateway.catalogue,
        gateway.engines.pool.roster,
        gateway.settings,
        gateway.coded,
    )


def _coded(gateway: AnyGateway) -> CodedAdapters:
    return gateway.coded


def _objects(gateway: AnyGateway) -> ObjectStore:
    return gateway.objects


def _catalogue(gateway: AnyGateway) -> Catalogue:
    return gateway.catalogue


def _engines(gateway: AnyGateway) -> Engines:
    return gateway.engines


def _roster(gateway: AnyGateway) -> WorkerRoster:
    return gateway.engines.pool.roster


async def _rate_gate(request: Request, gateway: AnyGateway, tenant: CurrentTenant) -> RateGate:
    return RateGate(gateway.limiter, tenant, request.state.answer_headers)


def _admin_tenants(gateway: AnyGateway, admin: CurrentAdmin) -> Tenants:
    del admin  # asked for so that nobody else gets here
    return gateway.tenants


def _admin_keys(gateway: AnyGateway, admin: CurrentAdmin) -> Keys:
    del admin  # asked for so that nobody else gets here
    return gateway.keys


def _admin_board(gateway: AnyGateway, admin: CurrentAdmin) -> Board:
    del admin  # asked for so that nobody else gets here
    return gateway.board


def _admin_usage(gateway: AnyGateway, admin: CurrentAdmin) -> Usage:
    del admin  # asked for so that nobody else gets here
    return gateway.usage


def _admin_roster(gateway: AnyGateway, admin: CurrentAdmin) -> WorkerRoster:
    del admin  # asked for so that nobody else gets here
    return gateway.engines.pool.roster


def _admin_limiter(gateway: AnyGateway, admin: CurrentAdmin) -> RateLimiter:
    del admin  # asked for so that nobody else gets here
    return gateway.limiter


OneTransfer = Depends(_transfer)
SettingsDep = Annotated[ServiceSettings, Depends(_settings)]
FilesDep = Annotated[TenantFiles, Depends(_tenant_files)]
JobsDep = Annotated[TenantJobs, Depends(_tenant_jobs)]
AdaptersDep = Annotated[TenantAdapters, Depends(_tenant_adapters)]
OrdersDep = Annotated[TenantOrders, Depends(_tenant_orders)]
EvaluationsDep = Annotated[TenantEvaluations, Depends(_tenant_evaluations)]
UsageDep = Annotated[TenantUsage, Depends(_tenant_usage)]
AdapterImportDep = Annotated[AdapterImport, Depends(_adapter_import)]
CodedDep = Annotated[CodedAdapters, Depends(_coded)]
ObjectsDep = Annotated[ObjectStore, Depends(_objects)]
CatalogueDep = Annotated[Catalogue, Depends(_catalogue)]
EnginesDep = Annotated[Engines, Depends(_engines)]
RosterDep = Annotated[WorkerRoster, Depends(_roster)]
RateGateDep = Annotated[RateGate, Depends(_rate_gate)]
AdminTenants = Annotated[Tenants, Depends(_admin_tenants)]
AdminKeys = Annotated[Keys, Depends(_admin_keys)]
AdminBoard = Annotated[Board, Depends(_admin_board)]
AdminUsage = Annotated[Usage, Depends(_admin_usage)]
AdminRoster = Annotated[WorkerRoster, Depends(_admin_roster)]
AdminLimiter = Annotated[RateLimiter, Depends(_admin_limiter)]


class Replays:
    """Idempotency for one create of one tenant."""

    def __init__(self, gateway: Gateway, tenant: Tenant, key: str | None) -> None:
        self._gateway = gateway
        self._tenant = tenant
        self._key = key

    def key_for(self, *facts: Any) -> IdempotencyKey | None:
        """The caller's key with a digest of what makes this request the same one again."""
        if self._key is None:
            return None
        canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        return IdempotencyKey(key=self._key, body_hash=digest)

    async def earlier(self, key: IdempotencyKey | None) -> str | None:
        """Id of what an earlier request with this key created.

        Raises:
            IdempotencyMismatch: the key came with another body.
        """
        if key is None:
            return None
        return await self._gateway.idempotency.replay(self._tenant.id, key)


def _replays(
    gateway: AnyGateway,
    tenant: CurrentTenant,
    idempotency_key: Annotated[
        str | None,
        Header(min_length=1, max_length=255, description="Repeats with it create nothing new."),
    ] = None,
) -> Replays:
    return Replays(gateway, tenant, idempotency_key)


ReplaysDep = Annotated[Replays, Depends(_replays)]


class ModelDoor:
    """Model names as this URL understands them: all of the tenant's, or one adapter's only."""

    def __init__(self, catalogue: Catalogue, adapters: TenantAdapters, name: str | None) -> None:
        self.adapters = adapters
        self.bound_to = name
        self._catalogue = catalogue

    async def find(self, name: str, terms: Sequence[LogitTerm] | None = None) -> ServedModel:
        """What answers to `name`; under an adapter's own URL it is always the adapter.

        Names in `terms` mean what they mean everywhere, also there.

        Raises:
            ModelNotFound: no such model for this tenant.
            InvalidInput: a term's model has another base.
        """
        served = await self._catalogue.find(self.bound_to or name, self.adapters)
        return await with_terms(served, terms or (), self._find_any)

    async def _find_any(self, name: str) -> ServedModel:
        return await self._catalogue.find(name, self.adapters)


def adapter_path(
    adapter_id: Annotated[str, Path(max_length=64, description="Id of an adapter.")],
) -> str:
    """The adapter in the path, declared so that it is documented."""
    return adapter_id


async def _model_door(
    request: Request, catalogue: CatalogueDep, adapters: AdaptersDep
) -> ModelDoor:
    adapter_id = request.path_params.get("adapter_id")
    if adapter_id is None:
        return ModelDoor(catalogue, adapters, None)
    adapter = await adapters.get(adapter_id)
    return ModelDoor(catalogue, adapters, adapter.model_name)


ModelDoorDep = Annotated[ModelDoor, Depends(_model_door)]
