"""A tiny bilingual LeoLM, shipped with leoserve so that the first run has something to say.

The model itself lies in `model/`, in exactly the layout of a LeoLM repository; everything that made it
lies beside it: `facts/` (what it knows and how one asks), `corpus` (the dialogues), `tokenizer`, `train`
and `evaluate`.
"""

from __future__ import annotations

from pathlib import Path


def model_path() -> Path:
    """Return the folder of the bundled model (config, tokenizer, bf16 weights). Imports nothing heavy."""
    return Path(__file__).resolve().parent / "model"
