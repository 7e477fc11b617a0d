"""What several benchmarks read: windows of token ids, and models in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM


def token_windows(path: Path, limit: int | None = None) -> Tensor:
    """A .npy file of token ids [n, length], at most `limit` windows of it."""
    return torch.from_numpy(np.load(path).astype(np.int64))[:limit]


def load_model(folder: Path) -> Any:
    """A causal language model in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
