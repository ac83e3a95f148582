"""An engine over quantized base weights trains, publishes and serves like any other."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from scheduler.domain.messages import CheckpointWritten, EngineReady
from tests.integration.engine_driver import TinyEngine, always, generate
from workers.weight_format import WEIGHT_FORMATS, find_format

if TYPE_CHECKING:
    from tests.integration.engine_driver import Script

assert find_format("int8") is not None
PROMPT = [5, 17, 40, 3, 88, 9]


@pytest.mark.parametrize("name", WEIGHT_FORMATS.names())
def test_an_adapter_trained_on_a_quantized_base_answers_on_it_and_on_the_plain_one(
    name: str, tmp_path: Path
) -> None:
    engine, plain = TinyEngine(tmp_path, weight_format=name), TinyEngine(tmp_path)
    job = engine.job("job", engine.data("train", Random(1)), n_epochs=30, learning_rate=1e-2)

    script = engine.run((always, [job]), (lambda s: s.has_ended("job"), []))

    losses = [step.train_loss for step in script.steps("job")]
    assert losses[-1] < 0.5 * losses[0]
    adapter = adapter_of(script)
    assert json.loads((adapter / "manifest.json").read_text())["weight_format"] == name
    state = json.loads((adapter.parent / "state.json").read_text())
    assert state["fingerprint"]["weight_format"] == name
    for server in (engine, plain):
        requests = [generate("tuned", PROMPT, adapter), generate("base", PROMPT)]
        served = server.run((always, [*requests]), (lambda s: s.is_answered("tuned"), []))
        assert served.tokens("tuned") != served.tokens("base")
        (ready,) = served.of(EngineReady)
        (base,) = ready.capabilities.base_models
        assert base.weight_format == server.settings.weight_format


def adapter_of(script: Script) -> Path:
    (final,) = [message for message in script.of(CheckpointWritten) if message.final]
    return Path(final.path) / "adapter"
