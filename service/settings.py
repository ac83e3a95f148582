"""Everything an operator may set on a gateway."""

from __future__ import annotations

from pydantic import Field

from scheduler.settings import LogSettings, StoreSettings, TextSettings

MIB = 2**20


class ServiceSettings(StoreSettings, TextSettings, LogSettings):
    """TANDEM_* variables of `python -m service`."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    gateway_id: str = Field(
        "gateway", pattern="^[A-Za-z0-9._-]{1,64}$", description="Name in the reply stream."
    )
    num_gateways: int = Field(
        1,
        ge=1,
        description="How many there are; without Redis each grants its part of a rate limit.",
    )
    max_body_bytes: int = Field(4 * MIB, gt=0, description="Largest body but an uploaded file.")
    max_file_bytes: int = Field(512 * MIB, gt=0, description="Largest uploaded file.")
    max_stored_bytes: int = Field(
        10 * 1024 * MIB, gt=0, description="Bytes of files that one tenant may store."
    )
    max_adapter_bytes: int = Field(
        2048 * MIB, gt=0, description="Most bytes of an imported adapter, unpacked."
    )
    max_imported_bytes: int = Field(
        10 * 1024 * MIB,
        gt=0,
        description="Bytes of adapters that no job has trained, of one tenant.",
    )
    max_transfers: int = Field(
        8, gt=0, description="Uploads and exports of one tenant that a gateway holds at once."
    )
    max_merges: int = Field(
        4, ge=0, description="Merged models, made or ordered, that one tenant may keep."
    )
    max_open_orders: int = Field(
        16, ge=1, description="Compressions and merges of one tenant that are not over."
    )
    max_open_evaluations: int = Field(
        16, ge=1, description="Evaluations of one tenant that are not over."
    )
    max_evaluations: int = Field(
        2, ge=0, description="Evaluations that this gateway carries out at once; 0: none."
    )
    max_active_jobs: int = Field(
        16, ge=1, description="Fine-tuning jobs of one tenant that are not over."
    )
    max_n: int = Field(8, ge=1, description="Largest `n` of a request.")
    max_stops: int = Field(4, ge=1, description="Most stop strings of a request.")
    max_stop_chars: int = Field(256, ge=1, description="Longest stop string.")
    max_prompts: int = Field(64, ge=1, description="Most prompts of one completions request.")
    max_live_per_tenant: int = Field(
        256,
        ge=1,
        description="Answers of one tenant under way at once, times models mixed; beyond it 429.",
    )
    max_waiting_per_worker: int = Field(
        512, ge=1, description="Requests without a first token at one worker; beyond it 503."
    )
    ping_s: float = Field(10.0, gt=0, description="Silence after which a stream sends a comment.")
    slow_client_s: float = Field(
        60.0, gt=0, description="A client that takes no byte for so long is cut."
    )
    stall_limit_s: float = Field(
        300.0, gt=0, description="A worker silent on a request for so long has failed it."
    )
    refresh_s: float = Field(
        1.0, gt=0, description="How often the registry of workers is looked at."
    )
    worker_grace_s: float = Field(
        2.5, ge=0, description="A worker gone from the registry for so long is lost."
    )
    replay_after_s: float = Field(
        5.0, gt=0, description="A request silent for so long asks its worker for lost frames."
    )
    shutdown_s: int = Field(30, ge=0, description="How long SIGTERM lets open answers finish.")
