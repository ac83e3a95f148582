"""Puts a gateway together: stores, channel, tokenizers, routes, error handlers."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import structlog
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from scheduler.domain.errors import DomainError
from scheduler.store.adapter_orders import Orders
from scheduler.store.adapters import Adapters
from scheduler.store.board import Board
from scheduler.store.channels import connect_channel
from scheduler.store.database import DATABASE_AWAY, Database, migrate
from scheduler.store.evaluations import Evaluations
from scheduler.store.files import Files
from scheduler.store.idempotency import Idempotency
from scheduler.store.jobs import Jobs
from scheduler.store.keys import Keys, load_pepper
from scheduler.store.objects import ObjectStore
from scheduler.store.rate_buckets import connect_rate_buckets
from scheduler.store.tenants import Tenants
from scheduler.store.usage import Usage
from scheduler.text.tokenizer import load_tokenizer
from service.catalogue import Catalogue
from service.coded_adapters import CodedAdapters
from service.dashboard.files import DashboardFiles
from service.deps import adapter_path
from service.errors import domain_response, plain_response, told, validation_response
from service.evaluator import Evaluator
from service.event_stream import CLIENT_CLOSED, ClientLeft
from service.gateway import Gateway
from service.generation import Engines
from service.metrics import GatewayMetrics
from service.middleware import Boundary
from service.rate_limiter import RateLimiter
from service.routes import (
    account,
    adapter_exports,
    adapter_orders,
    adapter_pointers,
    adapters,
    admin,
    board,
    capabilities,
    chat,
    completions,
    evaluations,
    files,
    fine_tuning,
    health,
    models,
    workers,
)
from service.settings import ServiceSettings
from service.transfers import Transfers
from service.usage_meter import UsageMeter
from service.worker_pool import WorkerPool

log = structlog.get_logger(__name__)

API_VERSION = "0.1.0"


class GatewayApp(FastAPI):
    """FastAPI, with the contract saying what really happens to a request that does not fit."""

    def openapi(self) -> dict[str, Any]:
        """The contract; FastAPI's 422 answers become the 400 that the app sends."""
        if self.openapi_schema is None:
            document = super().openapi()
            for operations in document["paths"].values():
                for operation in operations.values():
                    _promise_400(operation["responses"])
            for name in ("HTTPValidationError", "ValidationError"):
                document["components"]["schemas"].pop(name, None)
        return super().openapi()


def _promise_400(responses: dict[str, Any]) -> None:
    if responses.pop("422", None) is None or "400" in responses:
        return
    schema = {"$ref": "#/components/schemas/ErrorObject"}
    content = {"application/json": {"schema": schema}}
    responses["400"] = {"description": "The caller must change the request.", "content": content}


def create_app(settings: ServiceSettings) -> FastAPI:
    """The application; it connects to nothing before its lifespan begins."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_gateway(settings) as gateway:
            app.state.gateway = gateway
            log.info("gateway_started", base_models=gateway.catalogue.base_models)
            yield

    app = GatewayApp(
        title="Tandem",
        version=API_VERSION,
        summary="Fine-tune and serve many adapters on the same GPU, in the same step.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=_operation_id,
    )
    app.add_middleware(
        Boundary,
        max_body_bytes=settings.max_body_bytes,
        max_file_bytes=settings.max_file_bytes,
    )
    _add_routes(app)
    _add_error_handlers(app)
    return app


@asynccontextmanager
async def open_gateway(settings: ServiceSettings) -> AsyncIterator[Gateway]:
    """Connect to everything for as long as the block lasts."""
    async with AsyncExitStack() as stack:
        await migrate(settings.database_url)
        db = Database(settings.database_url)
        stack.push_async_callback(db.close)
        channel = connect_channel(settings.channel_url)
        stack.push_async_callback(channel.close)
        buckets = connect_rate_buckets(settings.channel_url)
        limiter = RateLimiter(buckets, settings.num_gateways)
        await stack.enter_async_context(limiter.running())
        pool = WorkerPool(channel, settings)
        usage = Usage(db)
        meter = UsageMeter(usage)
        await stack.enter_async_context(meter.running())
        await stack.enter_async_context(pool.running())
        gateway = _assemble(settings, db, limiter, pool, usage, meter)
        await stack.enter_async_context(Evaluator(gateway).running())
        yield gateway


def _assemble(
    settings: ServiceSettings,
    db: Database,
    limiter: RateLimiter,
    pool: WorkerPool,
    usage: Usage,
    meter: UsageMeter,
) -> Gateway:
    model_dirs = settings.model_dirs()
    tokenizers = {name: load_tokenizer(folder) for name, folder in model_dirs.items()}
    created_at = min((_born(folder) for folder in model_dirs.values()), default=int(time.time()))
    return Gateway(
        settings=settings,
        db=db,
        keys=Keys(db, load_pepper(settings.key_pepper_file)),
        tenants=Tenants(db),
        files=Files(db),
        jobs=Jobs(db),
        adapters=Adapters(db),
        orders=Orders(db),
        evaluations=Evaluations(db),
        usage=usage,
        board=Board(db),
        idempotency=Idempotency(db),
        objects=ObjectStore(settings.object_store_url),
        limiter=limiter,
        transfers=Transfers(settings.max_transfers),
        coded=CodedAdapters(),
        catalogue=Catalogue(tokenizers, pool.roster, created_at),
        engines=Engines(pool=pool, metrics=GatewayMetrics(pool), meter=meter),
    )


def _born(folder: Path) -> int:
    return int((folder / "config.json").stat().st_mtime)


def _operation_id(route: APIRoute) -> str:
    """The function's name; routes that exist twice get a prefix where they are bound."""
    bound = route.path_format.startswith("/adapters/")
    return f"adapter_{route.name}" if bound else route.name


def _add_routes(app: FastAPI) -> None:
    for module in (
        *(files, fine_tuning, adapter_orders, adapters, adapter_pointers, adapter_exports),
        evaluations,
        *(capabilities, account, admin, board, workers, health),
    ):
        app.include_router(module.router)
    for module in (chat, completions, models):
        app.include_router(module.router, prefix="/v1")
        app.include_router(
            module.router,
            prefix="/adapters/{adapter_id}/v1",
            dependencies=[Depends(adapter_path)],
        )
    app.mount("/dashboard", DashboardFiles(), name="dashboard")


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(DomainError)
    async def on_domain_error(request: Request, error: DomainError) -> Response:
        del request
        return domain_response(error)

    async def on_database_away(request: Request, error: SQLAlchemyError) -> Response:
        log.error("database_away", path=request.url.path, reason=str(error).partition("\n")[0])
        return domain_response(told(error))

    for kind in DATABASE_AWAY:
        app.exception_handler(kind)(on_database_away)

    @app.exception_handler(RequestValidationError)
    async def on_invalid_request(request: Request, error: RequestValidationError) -> Response:
        del request
        return validation_response(error.errors())

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        if error.status_code in (404, 405):
            sentence = f"No route {request.method} {request.url.path}; see /openapi.json."
            return plain_response(error.status_code, sentence, error.headers)
        return plain_response(error.status_code, error.detail, error.headers)

    @app.exception_handler(ClientLeft)
    @app.exception_handler(ClientDisconnect)
    async def on_client_left(request: Request, error: Exception) -> Response:
        del request, error
        return Response(status_code=CLIENT_CLOSED)
