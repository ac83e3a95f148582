"""Two tenants fine-tune on one machine while chats keep being answered. Run by `make demo`.

Ends with one table, and with status 1 when an adapter did not learn its task.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx
from demo_service import Service, running_service
from demo_tasks import TASKS, Chat, examples
from demo_traffic import Sample, Target, Traffic, percentile
from openai import AsyncOpenAI
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

if TYPE_CHECKING:
    from openai.types.fine_tuning import FineTuningJob

N_EPOCHS, BATCH_SIZE = 12, 8
EXTRAS = {"learning_rate": 4e-3, "rank": 16, "alpha": 32}  # beyond OpenAI's hyperparameters
READERS = 2  # chats in the background at any time
BASELINE_S = 12.0
POLL_S = 0.5
LEARNT, UNKNOWN = 0.95, 0.2  # exact match an adapter must reach, and the base must not exceed
PARALLEL_QUESTIONS = 8
ANSWER_LIMIT_TOKENS = 48


@dataclass
class TenantRun:
    """One tenant's way through the demo."""

    name: str
    client: AsyncOpenAI
    key: str
    train: list[Chat]
    held_out: list[Chat]
    base_accuracy: float = 0.0
    tuned_accuracy: float = 0.0
    job: FineTuningJob | None = None
    tokens_per_second: float = 0.0
    adapter_bytes: int = 0

    async def start_job(self, base_model: str) -> None:
        """Upload the data and begin."""
        lines = [json.dumps({"messages": chat}) for chat in self.train]
        file = await self.client.files.create(
            file=(f"{self.name}.jsonl", "\n".join(lines).encode()), purpose="fine-tune"
        )
        self.job = await self.client.fine_tuning.jobs.create(
            model=base_model,
            training_file=file.id,
            suffix="demo",
            seed=1,
            method={
                "type": "supervised",
                "supervised": {"hyperparameters": {"n_epochs": N_EPOCHS, "batch_size": BATCH_SIZE}},
            },
            extra_body=EXTRAS,
        )

    async def refresh(self) -> dict[str, float]:
        """Look at the job again; the newest metrics, if there are any."""
        assert self.job is not None
        self.job = await self.client.fine_tuning.jobs.retrieve(self.job.id)
        events = await self.client.fine_tuning.jobs.list_events(self.job.id, limit=5)
        metrics = [event.data for event in events.data if event.type == "metrics"]
        newest: dict[str, float] = dict(metrics[0]) if metrics else {}  # type: ignore[call-overload]
        self.tokens_per_second = newest.get("tokens_per_second", self.tokens_per_second)
        return newest

    @property
    def adapter(self) -> str | None:
        """Name of the finished adapter."""
        return self.job.fine_tuned_model if self.job else None


async def main() -> int:
    """Run the whole demo; the exit status."""
    console = Console()
    began_s = time.monotonic()
    async with running_service() as service:
        console.print(f"Tandem runs at [bold]{service.url}[/], ready.")
        tenants = [await _tenant(service, name) for name in TASKS]
        base_model = (await tenants[0].client.models.list()).data[0].id
        console.print(f"Asking [bold]{base_model}[/] what the tenants will teach it ...")
        for tenant in tenants:
            tenant.base_accuracy = await _accuracy(tenant, base_model)
        traffic = _traffic(tenants[0], base_model)
        async with traffic.running(READERS):
            console.print(f"Serving alone for {BASELINE_S:.0f} s ...")
            alone_s = (time.monotonic(), time.monotonic() + BASELINE_S)
            await asyncio.sleep(BASELINE_S)
            training_s = await _train_all(tenants, base_model, traffic, console)
        await _check_adapters(service, tenants)
    console.print()
    console.print(_table(tenants, traffic.between(*alone_s), traffic.between(*training_s)))
    console.print(f"Done in {time.monotonic() - began_s:.0f} s.")
    return _verdict(tenants, console)


async def _tenant(service: Service, name: str) -> TenantRun:
    key = await service.tenant_key(name)
    client = AsyncOpenAI(base_url=f"{service.url}/v1", api_key=key, max_retries=5)
    train, held_out = examples(name)
    return TenantRun(name, client, key, train, held_out)


def _traffic(tenant: TenantRun, base_model: str) -> Traffic:
    questions = [chat[0]["content"] for chat in tenant.held_out]
    return Traffic([Target(tenant.client, base_model)], questions)


async def _accuracy(tenant: TenantRun, model: str) -> float:
    """Share of held-out prompts that are answered exactly."""
    turns = asyncio.Semaphore(PARALLEL_QUESTIONS)

    async def is_right(chat: Chat) -> bool:
        async with turns:
            answer = await tenant.client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": chat[0]["content"]}],
                max_tokens=ANSWER_LIMIT_TOKENS,
                temperature=0,
            )
        return (answer.choices[0].message.content or "").strip() == chat[1]["content"]

    right = await asyncio.gather(*(is_right(chat) for chat in tenant.held_out))
    return sum(right) / len(right)


async def _train_all(
    tenants: list[TenantRun], base_model: str, traffic: Traffic, console: Console
) -> tuple[float, float]:
    """Train all jobs at once under live bars; the first and the last moment of training."""
    for tenant in tenants:
        await tenant.start_job(base_model)
    bars = Progress(
        TextColumn("{task.description:>8}"),
        BarColumn(),
        TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[news]}"),
    )
    rows = {tenant.name: bars.add_task(tenant.name, total=1, news="") for tenant in tenants}
    began_s = time.monotonic()
    open_tenants = list(tenants)
    with Live(bars, console=console, refresh_per_second=8):
        while open_tenants:
            for tenant in list(open_tenants):
                _show(bars, rows[tenant.name], tenant, await tenant.refresh())
                assert tenant.job is not None
                if tenant.adapter is not None:  # callable at once: it gets traffic too
                    traffic.targets.append(Target(tenant.client, tenant.adapter))
                if tenant.job.status in ("succeeded", "failed", "cancelled"):
                    open_tenants.remove(tenant)
            await asyncio.sleep(POLL_S)
    return began_s, time.monotonic()


def _show(bars: Progress, row: TaskID, tenant: TenantRun, metrics: dict[str, float]) -> None:
    assert tenant.job is not None
    if not metrics:
        bars.update(row, news=tenant.job.status)
        return
    news = (
        f"loss {metrics['train_loss']:.3f}  {metrics['tokens_per_second']:,.0f} tokens/s  "
        f"{metrics['eta_seconds']:.0f} s left"
    )
    if tenant.adapter is not None:
        news = f"loss {metrics['train_loss']:.3f}  answers as {tenant.adapter}"
    bars.update(row, total=metrics["total_steps"], completed=metrics["step"], news=news)


async def _check_adapters(service: Service, tenants: list[TenantRun]) -> None:
    """Ask the finished adapters, and look up their sizes."""
    for tenant in tenants:
        if tenant.adapter is None:
            continue
        tenant.tuned_accuracy = await _accuracy(tenant, tenant.adapter)
        headers = {"Authorization": f"Bearer {tenant.key}"}
        async with httpx.AsyncClient(base_url=service.url, headers=headers) as http:
            listed = (await http.get("/v1/adapters")).raise_for_status().json()["data"]
        mine = next(entry for entry in listed if entry["model"] == tenant.adapter)
        tenant.adapter_bytes = mine["versions"][-1]["bytes"]


def _table(tenants: list[TenantRun], alone: list[Sample], training: list[Sample]) -> Table:
    """Everything that was measured."""
    table = Table(title="Tandem: two tenants, one machine", title_style="bold")
    for header in ("", *(tenant.name for tenant in tenants)):
        table.add_column(header, justify="right" if header else "left")
    table.add_row("exact match before", *(f"{t.base_accuracy:.1%}" for t in tenants))
    table.add_row("exact match after", *(f"{t.tuned_accuracy:.1%}" for t in tenants))
    table.add_row("training tokens/s", *(f"{t.tokens_per_second:,.0f}" for t in tenants))
    table.add_row("adapter size", *(f"{t.adapter_bytes / 1024:,.0f} KiB" for t in tenants))
    table.add_section()
    table.add_row("[bold]serving, milliseconds[/]", "[bold]alone[/]", "[bold]training[/]")
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        for label, attribute in (("time to first token", "ttft_s"), ("time per token", "tpot_s")):
            cells = (
                f"{1000 * percentile((getattr(s, attribute) for s in samples), share):.1f}"
                for samples in (alone, training)
            )
            table.add_row(f"{label}, {name}", *cells)
    table.add_row("answers", str(len(alone)), str(len(training)))
    return table


def _verdict(tenants: list[TenantRun], console: Console) -> int:
    """0 when every adapter learnt what the base did not know."""
    status = 0
    for tenant in tenants:
        assert tenant.job is not None
        if tenant.job.error is not None and tenant.job.error.message:
            console.print(f"[red]{tenant.name}: {tenant.job.error.message}[/]")
        if tenant.tuned_accuracy < LEARNT or tenant.base_accuracy > UNKNOWN:
            console.print(
                f"[red]{tenant.name}: expected at most {UNKNOWN:.0%} before and at least "
                f"{LEARNT:.0%} after.[/]"
            )
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
