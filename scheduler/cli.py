"""The `tandem` command."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from scheduler.adapter_commands import adapters
from scheduler.api_client import ApiRefused
from scheduler.backup.make import back_up
from scheduler.backup.restore import restore as restore_backup
from scheduler.data_dir import accounts, check_class_exists, locked, store_settings
from scheduler.domain.errors import Conflict, DomainError
from scheduler.domain.service_class import parse_classes
from scheduler.launch import UpOptions
from scheduler.launch import up as launch
from scheduler.settings import StoreSettings
from scheduler.store.database import migrate
from scheduler.store.objects import ObjectStore
from scheduler.supervisor import ChildKeepsDying
from scheduler.telemetry import configure_logging

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from scheduler.backup.manifest import BackupManifest
    from scheduler.domain.service_class import ClassTargets
    from scheduler.domain.tenant import Tenant

app = typer.Typer(
    help="Fine-tune and serve many LLM adapters on the same device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
keys = typer.Typer(help="API keys of the tenants.", no_args_is_help=True)
app.add_typer(keys, name="keys")
tenants = typer.Typer(help="Who shares the device, and on which terms.", no_args_is_help=True)
app.add_typer(tenants, name="tenants")
app.add_typer(adapters, name="adapters")

DataOption = Annotated[
    Path, typer.Option("--data", envvar="TANDEM_DATA_DIR", help="Folder of the service's data.")
]
DEFAULT_DATA = Path(".tandem")


@app.command()
def up(
    base_model: Annotated[
        list[str] | None,
        typer.Option(help="ID=DIR, DIR or hub id (org/name@revision); may be repeated."),
    ] = None,
    data: DataOption = DEFAULT_DATA,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    devices: Annotated[str, typer.Option(help="`cpu`, or GPU numbers such as 0,1.")] = "cpu",
    tpot_ms: Annotated[
        float | None, typer.Option(min=0.1, help="Target mean time per output token.")
    ] = None,
    ttft_ms: Annotated[
        float | None, typer.Option(min=0.1, help="Target time to first token.")
    ] = None,
    slo_class: Annotated[
        list[str] | None,
        typer.Option(help="NAME:ttft_ms=300,tpot_ms=30 declares a service class; may be repeated."),
    ] = None,
) -> None:
    """Start the service on this machine, in the foreground."""

    async def start() -> None:
        targets = {"TANDEM_TPOT_MS": tpot_ms, "TANDEM_TTFT_MS": ttft_ms}
        given = {name: str(value) for name, value in targets.items() if value is not None}
        if slo_class:
            given["TANDEM_SLO_CLASSES"] = _as_json(parse_classes(slo_class))
        own = {name: value for name, value in os.environ.items() if name.startswith("TANDEM_")}
        options = UpOptions(
            base_models=tuple(base_model or ()),
            data=data,
            host=host,
            port=port,
            devices=devices,
            environment=own | given,
            hub_token=os.environ.get("HF_TOKEN"),
        )
        await launch(options, typer.echo, show_key=sys.stdout.isatty())

    configure_logging()
    for chatty in ("alembic", "httpx"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    _run(start())


@keys.command("create")
def create_key(
    tenant: Annotated[str, typer.Option(help="Tenant's name; created if there is none.")],
    data: DataOption = DEFAULT_DATA,
    name: Annotated[str, typer.Option(help="What the key is for.")] = "",
    admin: Annotated[bool, typer.Option("--admin", help="The tenant is to be an admin.")] = False,
) -> None:
    """Print a new key of a tenant; it cannot be shown again."""

    async def create() -> None:
        async with accounts(store_settings(data)) as known:
            owner = await known.tenant(tenant, is_admin=admin)
            if admin and not owner.is_admin:
                raise Conflict(f"Tenant {tenant!r} exists and is no admin; name another one.")
            _, plaintext = await known.keys.create(owner.id, name or "made by tandem keys")
        typer.echo(plaintext)

    _run(create())


@keys.command("list")
def list_keys(data: DataOption = DEFAULT_DATA) -> None:
    """Print all keys: id, tenant, first characters, what for, state."""

    async def show() -> None:
        async with accounts(store_settings(data)) as known:
            for owner in await known.tenants.list():
                for key in await known.keys.list(owner.id):
                    state = f"revoked {_day(key.revoked_at)}" if key.revoked_at else "works"
                    typer.echo(f"{key.id}\t{owner.name}\t{key.prefix}...\t{key.name}\t{state}")

    _run(show())


@keys.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="`key-...`, as `tandem keys list` prints it.")],
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Make a key useless from now on."""

    async def revoke() -> None:
        async with accounts(store_settings(data)) as known:
            await known.keys.revoke(key_id)
        typer.echo(f"{key_id} is revoked.")

    _run(revoke())


@tenants.command("list")
def list_tenants(data: DataOption = DEFAULT_DATA) -> None:
    """Print all tenants: id, name, service class, weight, whether an admin, rate limits."""

    async def show() -> None:
        async with accounts(store_settings(data)) as known:
            for tenant in await known.tenants.list():
                role = "admin" if tenant.is_admin else ""
                terms = (tenant.service_class, f"{tenant.weight:g}", role, *_rates(tenant))
                facts = (tenant.id, tenant.name, *terms)
                typer.echo("\t".join(facts).rstrip())

    _run(show())


@tenants.command("set")
def set_tenant(
    name: Annotated[str, typer.Argument(help="Tenant's name.")],
    service_class: Annotated[
        str | None,
        typer.Option("--class", help="default, best_effort, or one that `tandem up` declared."),
    ] = None,
    weight: Annotated[
        float | None, typer.Option(help="Share of contended capacity beside other tenants.")
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(help="Chat and text completions; 0 lifts the limit.")
    ] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(help="Of their prompts and answers; 0 lifts the limit.")
    ] = None,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Change a tenant's service class, weight or rate limits; requests see it at once."""

    async def change() -> None:
        settings = store_settings(data)
        if service_class is not None:
            await check_class_exists(settings, service_class)
        async with accounts(settings) as known:
            tenant = await known.tenants.get_by_name(name)
            tenant = await known.tenants.change(
                tenant.id,
                weight=weight,
                service_class=service_class,
                requests_per_minute=requests_per_minute,
                tokens_per_minute=tokens_per_minute,
            )
        terms = (f"class {tenant.service_class}", f"weight {tenant.weight:g}", *_rates(tenant))
        typer.echo(f"{name}: {', '.join(terms)}.")

    _run(change())


@app.command()
def backup(
    out: Annotated[Path, typer.Option(help="A new file NAME.tar, or a new folder.")],
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Save database, objects and the keys' secret; the service may run meanwhile."""

    async def save() -> None:
        manifest = await back_up(StoreSettings(data_dir=data.resolve()), out)
        typer.echo(f"{out} holds {_extent(manifest)}.")

    _run(save())


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(metavar="BACKUP", help="What `tandem backup` made.")],
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Fill an empty data folder from a backup; then start it with `tandem up`."""

    async def fill() -> None:
        settings = store_settings(data)
        with locked(settings.data_dir):
            manifest = await restore_backup(settings, source)
        typer.echo(f"{data} holds {_extent(manifest)}; start it with tandem up.")

    _run(fill())


def _extent(manifest: BackupManifest) -> str:
    size_bytes = sum(member.size_bytes for member in manifest.members.values())
    return f"the database and {len(manifest.object_keys())} objects, {size_bytes} bytes"


@app.command()
def prepare(data: DataOption = DEFAULT_DATA) -> None:
    """Bring the database's schema up to date and make the object store's root, both if needed."""

    async def make() -> None:
        settings = store_settings(data)
        await migrate(settings.database_url)
        await ObjectStore(settings.object_store_url).make_root()
        typer.echo("The database and the object store are ready.")

    _run(make())


@app.command()
def version() -> None:
    """Print the installed version."""
    typer.echo(f"tandem {installed_version('tandem-llm')}")


def _as_json(classes: dict[str, ClassTargets]) -> str:
    return json.dumps({name: targets.model_dump() for name, targets in classes.items()})


def _rates(tenant: Tenant) -> list[str]:
    return [f"{limit} {kind} a minute" for kind, limit in tenant.rate_limits.items()]


def _day(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).date().isoformat()


def _run(command: Coroutine[object, object, None]) -> None:
    """Run a command; what is wrong becomes one sentence and exit status 1."""
    try:
        asyncio.run(command)
    except (DomainError, ChildKeepsDying) as error:
        reason = str(error)
    except OSError as error:  # a data folder that cannot be written, a full disk
        reason = f"{error.filename or 'the data folder'}: {error.strerror or error}."
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"Setting TANDEM_{str(first['loc'][0]).upper()} is wrong: {first['msg']}."
    else:
        return
    typer.echo(f"tandem: {reason}", err=True)
    raise typer.Exit(1)


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except ApiRefused as error:
        typer.echo(f"tandem: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
