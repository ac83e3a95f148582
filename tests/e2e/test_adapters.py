"""An adapter is trained, leaves as files, comes back for another tenant, and leaves merged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest
from openai import NotFoundError
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.e2e.calls import call, say, unpack
from tests.e2e.service import BASE_MODEL, RunningService, finished, start, start_job, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    running = start(tmp_path_factory.mktemp("up"))
    yield running
    running.stop()


def test_it_goes_round(service: RunningService, tmp_path: Path) -> None:
    maker, friend = service.tenant("maker"), service.tenant("friend")
    job = finished(maker, start_job(maker, epochs=6, learning_rate=5e-3))
    assert job.fine_tuned_model is not None
    trained = call(maker, "GET", f"adapters/{job.model_extra['adapter_id']}").json()
    newest = trained["versions"][-1]
    assert newest["base_digest"]
    assert newest["data_digests"].keys() == {"training_file"}
    path = f"adapters/{trained['id']}/versions/{newest['version']}"

    # Out, and in again for another tenant: the same content, the same answer.
    exported = call(maker, "GET", f"{path}/export").content
    imported = call(
        friend, "POST", "adapters",
        data={"model": BASE_MODEL, "name": "theirs"}, files={"file": ("a.tar", exported)},
    ).json()  # fmt: skip
    assert imported["versions"][0]["base_digest"] == newest["base_digest"]
    assert say(friend, imported["model"]) == say(maker, job.fine_tuned_model)
    assert say(friend, imported["model"]) != say(friend, BASE_MODEL)

    # Lent, called by name, taken back.
    friend_id = friend_organization(service)
    call(maker, "POST", f"adapters/{trained['id']}/shares", json={"tenant_id": friend_id})
    assert say(friend, f"{job.fine_tuned_model}@{newest['version']}")
    call(maker, "DELETE", f"adapters/{trained['id']}/shares/{friend_id}")
    with pytest.raises(NotFoundError, match="does not exist"):
        say(friend, job.fine_tuned_model)

    # Merged into a model that transformers loads, equal to what peft makes of the export.
    call(maker, "POST", f"{path}/merge")
    until(lambda: call(maker, "GET", f"{path}/merge").json()["status"] in ("succeeded", "failed"))
    merged = call(maker, "GET", f"{path}/export", params={"format": "merged"}).content
    model = AutoModelForCausalLM.from_pretrained(unpack(merged, tmp_path / "merged"))
    base = AutoModelForCausalLM.from_pretrained("examples/base_model/tandem-tiny")
    adapter = unpack(exported, tmp_path / "exported")
    oracle = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
    for (name, got), (_, want) in zip(
        model.named_parameters(), oracle.named_parameters(), strict=True
    ):
        assert (got - want).abs().max() <= 2**-7 * want.abs().max(), name


def friend_organization(service: RunningService) -> str:
    """The id that a borrower would tell the owner."""
    headers = {"Authorization": f"Bearer {service.admin_key}"}
    tenants = httpx.get(f"{service.url}/v1/admin/tenants", headers=headers).json()["data"]
    (found,) = [tenant["id"] for tenant in tenants if tenant["name"] == "friend"]
    assert isinstance(found, str)
    return found
