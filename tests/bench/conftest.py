"""Kernels of a GPU are interpreted on a CPU; Triton reads this when a kernel is defined."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
