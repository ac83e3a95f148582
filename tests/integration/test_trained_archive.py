"""What the engine trains and publishes can be coded as its change from the initial value."""

from __future__ import annotations

from pathlib import Path
from random import Random

import torch

from scheduler.domain.adapter import AdapterManifest
from scheduler.domain.messages import CheckpointWritten
from tests.integration.engine_driver import TinyEngine
from workers.adapter_archive import initial_params, pack_archive, read_archive
from workers.adapter_file import BaseIdentity, read_adapter
from workers.codecs import CODECS

UNMOVED = 1e-12  # a learning rate that leaves A, in float32, where it began


def test_the_manifest_tells_the_seed_that_draws_the_initial_value_again(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path)
    job = engine.job("job", engine.data("train", Random(1)), seed=41, learning_rate=UNMOVED)

    script = engine.complete(job)

    folder = Path(script.of(CheckpointWritten)[-1].path) / "adapter"
    manifest = AdapterManifest.model_validate_json((folder / "manifest.json").read_bytes())
    adapter = read_adapter(folder, engine.config)
    assert manifest.init_seed == 41
    initial = initial_params(adapter.method, 41)
    for name in (n for n in initial if "lora_A" in n):
        assert float((adapter.params[name] - initial[name]).abs().max()) < 1e-6


def test_a_trained_adapter_goes_through_a_compressed_archive(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path)
    job = engine.job("job", engine.data("train", Random(1)), seed=41)
    script = engine.complete(job)
    folder = Path(script.of(CheckpointWritten)[-1].path) / "adapter"
    adapter = read_adapter(folder, engine.config)
    codec = CODECS["compeft"](CODECS["compeft"].Config.model_validate({"density": 0.5}))
    path = tmp_path / "adapter.tnd"

    path.write_bytes(pack_archive(adapter, codec, BaseIdentity("tiny", "digest"), 41))
    decoded = read_archive(path, engine.config).adapter()

    initial = initial_params(adapter.method, 41)
    names = sorted(initial)
    change = torch.cat([(adapter.params[n] - initial[n]).flatten() for n in names])
    kept = torch.cat([(decoded.params[n] - initial[n]).flatten() for n in names])
    assert path.stat().st_size < 0.3 * sum(2 * t.numel() for t in adapter.params.values())
    assert float(torch.cosine_similarity(change, kept, dim=0)) > 0.7
