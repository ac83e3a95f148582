"""Adapters that are no LoRAs go the way of LoRAs: trained, called, compressed, merged, exported."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.e2e.service import BASE_MODEL, RunningService, finished, start, start_job, until
from tests.e2e.test_adapters import call, say, unpack
from tests.e2e.test_small_adapters import carried_out

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
]


ENDED = ("succeeded", "failed")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    running = start(tmp_path_factory.mktemp("up"))
    yield running
    running.stop()


@pytest.mark.parametrize(("method", "rate"), [("lora_xs", 5e-2), ("svfit", 0.5)])
def test_it_goes_round(service: RunningService, tmp_path: Path, method: str, rate: float) -> None:
    client = service.tenant(method.replace("_", "-"))
    job = start_job(client, epochs=6, learning_rate=rate, peft_method=method, rank=8)
    done = finished(client, job)
    assert done.status == "succeeded", done.error
    path = f"adapters/{done.model_extra['adapter_id']}"
    adapter = call(client, "GET", path).json()
    trained = adapter["versions"][-1]
    answer = say(client, adapter["model"])
    assert trained["method"] == method
    assert answer != say(client, BASE_MODEL)

    # Coded in 8 bits, it is another version of the same method that answers.
    version = f"{path}/versions/{trained['version']}"
    body = {"codec": "int8"}
    order = carried_out(client, call(client, "POST", f"{version}/compress", json=body).json())
    assert say(client, f"{adapter['model']}@{order['result_version']}")

    # Merged, it becomes a LoRA that answers alike.
    body = {"method": "cat", "sources": [{"model": adapter["model"]}], "name": f"as-lora-{method}"}
    order = carried_out(client, call(client, "POST", "adapters/merges", json=body).json())
    lora = call(client, "GET", f"adapters/{order['adapter_id']}").json()
    assert lora["versions"][0]["method"] == "lora"
    assert say(client, lora["model"]) == answer

    # Merged into the base, it is the model that peft makes of that LoRA.
    call(client, "POST", f"{version}/merge")
    until(lambda: call(client, "GET", f"{version}/merge").json()["status"] in ENDED)
    merged = call(client, "GET", f"{version}/export", params={"format": "merged"}).content
    model = AutoModelForCausalLM.from_pretrained(unpack(merged, tmp_path / "merged"))
    exported = call(client, "GET", f"adapters/{lora['id']}/versions/1/export").content
    base = AutoModelForCausalLM.from_pretrained("examples/base_model/tandem-tiny")
    oracle = PeftModel.from_pretrained(base, str(unpack(exported, tmp_path / "lora")))
    pairs = zip(model.parameters(), oracle.merge_and_unload().parameters(), strict=True)
    for got, want in pairs:
        assert (got - want).abs().max() <= 2**-7 * want.abs().max()
