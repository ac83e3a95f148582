"""Adapters cross our border in both directions and compute the same on either side, by peft."""

from __future__ import annotations

import io
import shutil
import tarfile
from typing import TYPE_CHECKING

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from scheduler.artefact.archive import unpack
from scheduler.artefact.check import Base, check_artefact
from scheduler.artefact.intake import Intake
from scheduler.artefact.projections import read_projections
from scheduler.domain.errors import InvalidInput
from scheduler.store.adapter_record import AdapterVersion
from scheduler.store.objects import ObjectStore
from service.adapter_export import open_export
from service.tar_members import tar_chunks, tar_length
from tests.unit.workers.tiny_models import FAMILIES, VOCAB_SIZE, TinyModel, make_model
from workers.adapter_file import read_adapter
from workers.adapter_folder import read_folder
from workers.lora_factors import adapter_of, sites_of
from workers.model import MODULE_PATHS, fused_linears
from workers.tasks.merge_export import merge_export

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"  # peft still asks for it
)
LIMIT = 64 << 20


def save_with_peft(model: TinyModel, folder: Path, **options: object) -> torch.Tensor:
    """A random LoRA as peft saves it; returns the logits that peft computes with it."""
    torch.manual_seed(3)
    config = LoraConfig(
        **({"r": 5, "lora_alpha": 8, "target_modules": list(MODULE_PATHS)} | options),
        init_lora_weights=False,
    )
    peft = get_peft_model(model.oracle, config)
    peft.save_pretrained(str(folder))
    with torch.no_grad():
        logits: torch.Tensor = peft(token_ids()).logits
    peft.unload()
    return logits


def token_ids() -> torch.Tensor:
    return torch.arange(20)[None] % VOCAB_SIZE


def base_of(model: TinyModel) -> Base:
    return Base(model="base", digest="digest", folder=model.folder, max_rank=64)


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_from_the_config_are_those_of_the_decoder(family: str, tmp_path: Path) -> None:
    config = make_model(family, tmp_path / "model").decoder.config

    projections = read_projections(tmp_path / "model")

    assert projections.num_layers == config.num_layers
    assert projections.sizes == {
        part.module: (MODULE_PATHS[part.module], part.num_features, linear.in_features)
        for linear in fused_linears(config)
        for part in linear.slices
    }


@pytest.mark.parametrize("family", FAMILIES)
async def test_what_peft_saved_goes_in_and_comes_out_for_peft(family: str, tmp_path: Path) -> None:
    model = make_model(family, tmp_path / "model")
    want = save_with_peft(model, tmp_path / "saved", use_rslora=family == "qwen2")
    archive = shutil.make_archive(str(tmp_path / "a"), "gztar", tmp_path / "saved")
    inside = tmp_path / "inside"
    inside.mkdir()

    unpack(tmp_path / archive, Intake(inside, LIMIT))
    manifest = check_artefact(inside, base_of(model))
    objects = ObjectStore(f"file://{tmp_path}/objects")
    await objects.put_dir(inside, "adapters/x/import-1")
    version = AdapterVersion(
        version=1, name="x@1", step=0, digest=manifest.digest, uri="adapters/x/import-1",
        num_bytes=manifest.num_bytes, created_at=0,
    )  # fmt: skip
    export = await open_export("x", version, objects)
    length, content = tar_length(export.members), b"".join(tar_chunks(export.members))
    export.close()

    assert len(content) == length
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        tar.extractall(tmp_path / "out", filter="data")
    loaded = PeftModel.from_pretrained(model.oracle, str(tmp_path / "out" / "x-v1"))
    with torch.no_grad():
        got = loaded(token_ids()).logits
    assert torch.equal(got, want)
    assert read_adapter(inside, model.decoder.config).method.rank == 5


PATTERNS = {
    "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 7},
    "alpha_pattern": {"v_proj": 3, "model.layers.0.self_attn.q_proj": 11.5},
}


@pytest.mark.parametrize("use_rslora", [False, True])
def test_sites_of_several_ranks_and_alphas_mean_here_what_they_mean_to_peft(
    use_rslora: bool, tmp_path: Path
) -> None:
    model = make_model("llama", tmp_path / "model")
    want = save_with_peft(
        model, tmp_path / "saved", target_modules=["q_proj", "v_proj", "down_proj"],
        use_rslora=use_rslora, **PATTERNS,
    )  # fmt: skip

    check_artefact(tmp_path / "saved", base_of(model))

    adapter = read_folder(tmp_path / "saved", model.decoder.config)
    merge_export(model.folder, tmp_path / "saved", tmp_path / "merged")
    full = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    loaded = PeftModel.from_pretrained(model.oracle, str(tmp_path / "saved"))
    with torch.no_grad():
        assert torch.equal(loaded(token_ids()).logits, want)
        torch.testing.assert_close(full(token_ids()).logits, want, rtol=1e-4, atol=1e-4)
    assert adapter.method.rank == 7
    assert adapter_of(sites_of(adapter), model.decoder.config).method.rank == 7


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"alpha_pattern": {"(q|v)_proj": 3}}, "alpha_pattern"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
    ],
    ids=str,
)
def test_what_peft_can_and_we_cannot_is_refused_by_name(
    options: dict[str, object], reason: str, tmp_path: Path
) -> None:
    model = make_model("llama", tmp_path / "model")
    save_with_peft(model, tmp_path / "saved", **options)

    with pytest.raises(InvalidInput, match=reason):
        check_artefact(tmp_path / "saved", base_of(model))


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    save_with_peft(make_model("qwen3", tmp_path / "other"), tmp_path / "saved")
    model = make_model("llama", tmp_path / "model")

    with pytest.raises(InvalidInput, match="has shape"):
        check_artefact(tmp_path / "saved", base_of(model))
