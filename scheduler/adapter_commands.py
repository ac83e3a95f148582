"""`tandem adapters`: the adapter registry of a running service."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from scheduler.api_client import ApiClient
from scheduler.domain.adapter import CONFIG_FILE, TENSORS_FILE

POLL_S = 1.0

adapters = typer.Typer(
    help="Adapters of a running service: TANDEM_URL, TANDEM_API_KEY.", no_args_is_help=True
)
AdapterId = Annotated[str, typer.Argument(help="The last part of the adapter's name.")]
Version = Annotated[int, typer.Argument(min=1, help="Number of a version.")]
ValidationFile = Annotated[
    str | None, typer.Option(help="Id of an uploaded file to measure quality on.")
]


class ExportFormat(StrEnum):
    """What a version leaves as."""

    PEFT = "peft"
    COMPEFT = "compeft"
    MERGED = "merged"


@adapters.callback()
def connect(
    context: typer.Context,
    url: Annotated[
        str, typer.Option(envvar="TANDEM_URL", help="Where the service is.")
    ] = "http://127.0.0.1:8000",
    api_key: Annotated[str, typer.Option(envvar="TANDEM_API_KEY", help="A tenant's key.")] = "",
) -> None:
    """Adapters of a running service."""
    context.obj = ApiClient(url, api_key)
    context.call_on_close(context.obj.close)


@adapters.command("list")
def list_adapters(context: typer.Context) -> None:
    """Print all adapters, your own and those shared with you."""
    table = Table("adapter", "name", "live", "versions", "bytes", "tags", "")
    for adapter in _listed(context.obj, "/adapters"):
        table.add_row(*_row(adapter))
    Console().print(table)


@adapters.command("show")
def show_adapter(context: typer.Context, adapter_id: AdapterId) -> None:
    """Print an adapter and its versions."""
    adapter = context.obj.call("GET", f"/adapters/{adapter_id}")
    console = Console()
    console.print(adapter["model"], style="bold", soft_wrap=True)
    table = Table("version", "from", "of", "method", "bytes", "digest", "metrics")
    for version in adapter["versions"]:
        live = " (live)" if version["version"] == adapter["live_version"] else ""
        table.add_row(
            f"{version['version']}{live}",
            version["origin"] or "",
            str(version["parent_version"] or ""),
            (version["recipe"] or {}).get("codec") or version["method"] or "",
            str(version["bytes"]),
            version["digest"][:12],
            ", ".join(f"{name} {value:.4g}" for name, value in version["metrics"].items()),
        )
    console.print(table)


@adapters.command("import")
def import_adapter(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(exists=True, help="Archive, coded file, peft folder.")],
    model: Annotated[str | None, typer.Option(help="Base model of a new adapter.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of a new adapter.")] = None,
    to: Annotated[str | None, typer.Option(help="Adapter that gets a further version.")] = None,
) -> None:
    """Bring an adapter in, as a new one or as a further version of one."""
    data = {key: value for key, value in (("model", model), ("name", name)) if value}
    target = f"/adapters/{to}/versions" if to else "/adapters"
    folder = path.is_dir()
    paths = [path / CONFIG_FILE, path / TENSORS_FILE] if folder else [path]
    with ExitStack() as stack:
        field = "files" if folder else "file"
        parts = [(field, (p.name, stack.enter_context(p.open("rb")))) for p in paths]
        made = context.obj.call("POST", target, data=data, files=parts)
    typer.echo(f"{made['model']}")


@adapters.command("export")
def export_version(
    context: typer.Context,
    adapter_id: AdapterId,
    version: Version,
    out: Annotated[Path, typer.Option(help="File to write.")],
    kind: Annotated[ExportFormat, typer.Option("--format")] = ExportFormat.PEFT,
) -> None:
    """Write a version to a file: a tar for peft, one coded file, or a full model's tar."""
    path = f"/adapters/{adapter_id}/versions/{version}"
    if kind is ExportFormat.MERGED:
        context.obj.call("POST", f"{path}/merge")
        _wait(context.obj, f"{path}/merge")
    num_bytes = context.obj.download(f"{path}/export", out, format=kind.value)
    typer.echo(f"{out}: {num_bytes} bytes.")


@adapters.command("promote")
def promote_version(context: typer.Context, adapter_id: AdapterId, version: Version) -> None:
    """Make a version live."""
    _say_live(context.obj.call("POST", _at(adapter_id, "promote"), json={"version": version}))


@adapters.command("rollback")
def roll_back(context: typer.Context, adapter_id: AdapterId) -> None:
    """Undo the last promotion."""
    _say_live(context.obj.call("POST", _at(adapter_id, "rollback")))


@adapters.command("tag")
def tag_version(
    context: typer.Context,
    adapter_id: AdapterId,
    tag: str,
    version: Annotated[int | None, typer.Argument(min=1, help="Left out: forget it.")] = None,
) -> None:
    """Put a tag on a version, or forget it."""
    path = _at(adapter_id, f"tags/{tag}")
    if version is None:
        context.obj.call("DELETE", path)
        typer.echo(f"{tag} is gone.")
    else:
        context.obj.call("PUT", path, json={"version": version})
        typer.echo(f"{tag} means version {version}.")


@adapters.command("pin")
def pin_adapter(
    context: typer.Context,
    adapter_id: AdapterId,
    off: Annotated[bool, typer.Option("--off", help="No longer.")] = False,
) -> None:
    """Protect an adapter from deletion, or no longer."""
    adapter = context.obj.call("POST", _at(adapter_id, "unpin" if off else "pin"))
    typer.echo(f"{adapter_id} is {'pinned' if adapter['pinned'] else 'not pinned'}.")


@adapters.command("share")
def share_adapter(
    context: typer.Context,
    adapter_id: AdapterId,
    tenant_id: Annotated[str, typer.Argument(help="The borrower's organization id.")],
    off: Annotated[bool, typer.Option("--off", help="No longer.")] = False,
) -> None:
    """Let another tenant call an adapter, or no longer."""
    if off:
        context.obj.call("DELETE", _at(adapter_id, f"shares/{tenant_id}"))
    else:
        context.obj.call("POST", _at(adapter_id, "shares"), json={"tenant_id": tenant_id})
    typer.echo(f"{adapter_id} is {'not ' if off else ''}shared with {tenant_id}.")


@adapters.command("compress")
def compress_version(
    context: typer.Context,
    adapter_id: AdapterId,
    version: Version,
    codec: Annotated[str, typer.Option(help="See GET /v1/capabilities.")] = "compeft",
    config: Annotated[str, typer.Option(help="The codec's options, as JSON.")] = "{}",
    search: Annotated[
        str | None, typer.Option(help="Find the options: the ladder, as JSON; {} is the default.")
    ] = None,
    validation_file: ValidationFile = None,
    guard: Annotated[
        float | None, typer.Option(help="Nats by which the validation loss may rise.")
    ] = None,
    promote: Annotated[bool, typer.Option("--promote", help="Make the result live.")] = False,
) -> None:
    """Make a further version that holds this one coded."""
    options = {"search": _json(search)} if search is not None else {"config": _json(config)}
    body = options | {
        "codec": codec,
        "validation_file": validation_file,
        "guard": guard,
        "promote": promote,
    }
    path = f"/adapters/{adapter_id}/versions/{version}/compress"
    _carry_out(context.obj, path, body)


@adapters.command("merge")
def merge_versions(
    context: typer.Context,
    sources: Annotated[list[str], typer.Argument(help="Names of versions, any form.")],
    method: Annotated[str, typer.Option(help="See GET /v1/capabilities.")] = "linear",
    config: Annotated[str, typer.Option(help="The method's options, as JSON.")] = "{}",
    weight: Annotated[
        list[float] | None, typer.Option(help="One for each source, in order, or none.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of a new adapter.")] = None,
    to: Annotated[str | None, typer.Option(help="Adapter that gets a further version.")] = None,
    validation_file: ValidationFile = None,
) -> None:
    """Make one version of several."""
    weights: Sequence[float | None] = weight if weight else [None] * len(sources)
    if len(weights) != len(sources):
        raise typer.BadParameter("One --weight for each source, or none.")
    body = {
        "method": method,
        "config": _json(config),
        "sources": [
            {"model": source, "weight": value}
            for source, value in zip(sources, weights, strict=True)
        ],
        "name": name,
        "adapter_id": to,
        "validation_file": validation_file,
    }
    _carry_out(context.obj, "/adapters/merges", body)


@adapters.command("orders")
def list_orders(context: typer.Context) -> None:
    """Print compressions and merges, newest first."""
    table = Table("order", "kind", "status", "adapter", "of", "made", "error")
    for order in _listed(context.obj, "/adapters/orders"):
        fields = ("id", "kind", "status", "adapter_id", "version", "result_version", "error")
        table.add_row(*(str(order[field] or "") for field in fields))
    Console().print(table)


@adapters.command("delete")
def delete_adapter(context: typer.Context, adapter_id: AdapterId) -> None:
    """Delete an adapter with all its versions."""
    context.obj.call("DELETE", f"/adapters/{adapter_id}")
    typer.echo(f"{adapter_id} is gone.")


@adapters.command(
    "local",
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    },
)
def local_files(context: typer.Context) -> None:
    """Compress, inspect, expand or merge files on this machine: `tandem adapters local --help`."""
    command = (sys.executable, "-m", "workers.adapter_cli", *context.args)  # tensors live there
    raise typer.Exit(subprocess.run(command, check=False).returncode)


def _listed(client: ApiClient, path: str) -> Iterator[dict[str, Any]]:
    """All items of a list, page after page."""
    after: dict[str, str] = {}
    while True:
        page = client.call("GET", path, params=after)
        yield from page["data"]
        if not page["has_more"]:
            return
        after = {"after": page["last_id"]}


def _at(adapter_id: str, rest: str) -> str:
    return f"/adapters/{adapter_id}/{rest}"


def _row(adapter: dict[str, Any]) -> tuple[str, ...]:
    versions = adapter["versions"]
    return (
        adapter["id"],
        adapter["model"],
        str(adapter["live_version"] or ""),
        str(len(versions)),
        str(sum(version["bytes"] for version in versions)),
        ", ".join(f"{tag}={number}" for tag, number in adapter["tags"].items()),
        f"shared by {adapter['shared_by']}" if adapter["shared_by"] else "",
    )


def _say_live(adapter: dict[str, Any]) -> None:
    typer.echo(f"Live: {adapter['live_version'] or 'none promoted'}.")


def _json(text: str) -> dict[str, Any]:
    try:
        read = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"Not JSON: {error}.") from None
    if not isinstance(read, dict):
        raise typer.BadParameter("A JSON object is wanted.")
    return read


def _carry_out(client: ApiClient, path: str, body: dict[str, Any]) -> None:
    """Order, wait, and say what was made."""
    order = client.call("POST", path, json=body)
    order = _wait(client, f"/adapters/orders/{order['id']}")
    number = order["result_version"]
    made = client.call("GET", f"/adapters/{order['adapter_id']}/versions/{number}")
    typer.echo(f"{order['adapter_id']}@{number}: {made['bytes']} bytes.")
    if order["reason"]:
        typer.echo(f"It is not live: {order['reason']}")
    typer.echo(json.dumps(made["recipe"], indent=2))


def _wait(client: ApiClient, path: str) -> dict[str, Any]:
    """What was ordered, once it is over; a failure ends the command with its reason."""
    while True:
        order: dict[str, Any] = client.call("GET", path)
        if order["status"] == "failed":
            typer.echo(f"tandem: {order['error']}", err=True)
            raise typer.Exit(1)
        if order["status"] == "succeeded":
            return order
        time.sleep(POLL_S)
