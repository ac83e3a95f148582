"""What the card's benchmark starts the service on, and how it reads what callers get."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from benchmarks.gpu.service import EOS, SHIPPED, VOCABULARY, random_base
from benchmarks.gpu.service_client import Answer
from benchmarks.gpu.service_process import missing_package
from benchmarks.gpu.setting import Setting
from scheduler.text.model_files import read_model_files
from workers.architecture import decoder_config
from workers.base_weights import WeightFolder, load_weights
from workers.hf_config import read_hf_config

if TYPE_CHECKING:
    from pathlib import Path

TINY = Setting(torch.device("cpu"), is_tiny=True)


def test_a_random_base_is_a_folder_that_a_worker_loads(tmp_path: Path) -> None:
    folder = random_base(TINY, tmp_path, "tiny")

    config = decoder_config(read_hf_config(folder))
    weights = load_weights(WeightFolder(folder), config, torch.float32, TINY.device)

    assert weights.embedding.shape == (VOCABULARY, 64)
    assert read_model_files(folder).eos_ids == {EOS}


def test_the_vocabulary_is_that_of_the_shipped_model() -> None:
    assert read_hf_config(SHIPPED).vocab_size == VOCABULARY
    assert read_model_files(SHIPPED).eos_ids == {EOS}


def test_the_first_token_of_an_answer_is_no_part_of_its_time_per_token() -> None:
    answer = Answer(sent_s=1.0, began_s=1.5, ended_s=2.5, tokens=5)

    assert answer.ttft_ms == 500.0
    assert answer.tpot_ms == 250.0


def test_nothing_that_the_service_needs_is_missing_here() -> None:
    assert missing_package() is None
