"""Tensors on one thread: matrices this small only lose by sharing."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
