"""The networks that can be simulated: LeoLM's by name, and any folder with a config.json."""

from __future__ import annotations

from pathlib import Path

from leoserve.model import published
from leoserve.model.config import ModelConfig

ITEMSIZES = {"bfloat16": 2, "float16": 2}  # of those that a GPU's fast products take
KV_ITEMSIZES = {"auto": None, "int8": 1, "fp8": 1}  # None: as the weights


def network(name: str) -> ModelConfig:
    """By its name, or by a folder. Raises leoserve's UnsupportedModel for what is neither."""
    return published.network(name) or ModelConfig.from_folder(Path(name))
