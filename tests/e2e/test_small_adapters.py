"""Adapters are compressed, leave as one file, come back, and are merged: real processes all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.e2e.calls import call, say, unpack
from tests.e2e.service import BASE_MODEL, RunningService, finished, rows, start, start_job, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from openai import OpenAI

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    running = start(tmp_path_factory.mktemp("up"))
    yield running
    running.stop()


def carried_out(client: OpenAI, order: Any) -> Any:
    """An order once it is over."""
    path = f"adapters/orders/{order['id']}"
    until(lambda: call(client, "GET", path).json()["status"] in ("succeeded", "failed"))
    order = call(client, "GET", path).json()
    assert order["status"] == "succeeded", order["error"]
    return order


def test_small_ones_go_round(service: RunningService, tmp_path: Path) -> None:
    maker, friend = service.tenant("maker"), service.tenant("friend")
    valid = maker.files.create(file=("valid.jsonl", rows(8)), purpose="fine-tune")

    # A job that compresses at its end: the guard held, so the small version is live.
    job = finished(
        maker,
        start_job(
            maker, epochs=6, learning_rate=5e-3, validation_file=valid.id,
            compress={"config": {"density": 0.5}, "guard": 5.0, "promote": True},
        ),
    )  # fmt: skip
    path = f"adapters/{job.model_extra['adapter_id']}"
    until(lambda: call(maker, "GET", path).json()["live_version"] is not None)
    adapter = call(maker, "GET", path).json()
    trained, small = adapter["versions"][-2:]
    assert (small["origin"], small["parent_version"]) == ("compress", trained["version"])
    assert adapter["live_version"] == small["version"]
    assert small["bytes"] < trained["bytes"] / 5
    assert small["recipe"]["ratio_to_16_bit"] > 3
    assert small["recipe"]["valid_loss"] <= small["recipe"]["valid_loss_uncompressed"] + 5
    assert say(maker, adapter["model"]) != say(maker, BASE_MODEL)

    # Logits are mixed: less than the whole way from the small version to the trained one.
    big, little = (f"{adapter['model']}@{v['version']}" for v in (trained, small))
    alone, whole = say(maker, big), {"model": big, "reference": little, "beta": 1.0}
    assert say(maker, little, logit_arithmetic=[whole]) == alone
    assert say(maker, BASE_MODEL, logit_arithmetic=[{"model": big, "beta": 0.0}]) == say(
        maker, BASE_MODEL
    )
    assert say(maker, little, logit_arithmetic=[whole | {"beta": 0.5}])

    # A search for the smallest that is good enough.
    body = {"search": {"densities": [0.1, 0.5], "alphas": [None], "guard": 0.5},
            "validation_file": valid.id}  # fmt: skip
    version = f"{path}/versions/{trained['version']}"
    order = carried_out(maker, call(maker, "POST", f"{version}/compress", json=body).json())
    found = call(maker, "GET", f"{path}/versions/{order['result_version']}").json()
    assert found["recipe"]["valid_loss"] <= found["recipe"]["valid_loss_uncompressed"] + 0.5

    # Out as one file, in again for another tenant: the same content, the same answer.
    small_path = f"{path}/versions/{small['version']}"
    content = call(maker, "GET", f"{small_path}/export", params={"format": "compeft"}).content
    assert len(content) < small["bytes"]
    imported = call(
        friend, "POST", "adapters",
        data={"model": BASE_MODEL, "name": "theirs"}, files={"file": ("a.tandem", content)},
    ).json()  # fmt: skip
    assert imported["versions"][0]["digest"] == small["digest"]
    assert say(friend, imported["model"]) == say(maker, adapter["model"])

    # peft loads what a small version expands to.
    exported = call(maker, "GET", f"{small_path}/export").content
    base = AutoModelForCausalLM.from_pretrained("examples/base_model/tandem-tiny")
    PeftModel.from_pretrained(base, str(unpack(exported, tmp_path / "exported")))

    # Merged into a new adapter: all of the original, nothing of the small one.
    sources = [{"model": f"{adapter['model']}@{v['version']}"} for v in (trained, small)]
    weighed = [source | {"weight": w} for source, w in zip(sources, (1.0, 0.0), strict=True)]
    body = {"method": "cat", "sources": weighed, "name": "both"}
    order = carried_out(maker, call(maker, "POST", "adapters/merges", json=body).json())
    both = call(maker, "GET", f"adapters/{order['adapter_id']}").json()
    assert both["versions"][0]["recipe"]["method"] == "cat"
    assert say(maker, both["model"]) == say(maker, f"{adapter['model']}@{trained['version']}")

    # Weights learned on examples.
    body = {"method": "lorahub", "config": {"trials": 6}, "sources": sources,
            "adapter_id": both["id"], "validation_file": valid.id}  # fmt: skip
    order = carried_out(maker, call(maker, "POST", "adapters/merges", json=body).json())
    learned = call(maker, "GET", f"adapters/{both['id']}/versions/2").json()
    assert order["result_version"] == 2
    assert learned["metrics"].keys() == {"valid_loss"}
