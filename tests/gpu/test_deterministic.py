"""`--deterministic` on a GPU: what a CPU promises by default, by the same tests, over the GPU's kernels and its loop.

Alone, in a batch of 64, in chunks, from cached prefixes, after preemptions: the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from leoserve.engine.config import EngineConfig
from leoserve.engine.start import start_engine
from tests.engine import test_deterministic as promise
from tests.engine.test_deterministic import (
    alone,
    folder,
    test_after_preemptions,
    test_choices_of_one_request_and_a_lone_one,
    test_from_a_cached_prefix,
    test_from_the_prefix_of_a_conversation,
    test_in_a_batch_of_64_and_in_chunks,
    test_in_chunks_of_every_size,
)
from tests.engine.test_greedy import Engine, rows_with_a_token

__all__ = [  # fixtures and tests that are collected here, too
    "alone",
    "folder",
    "test_after_preemptions",
    "test_choices_of_one_request_and_a_lone_one",
    "test_from_a_cached_prefix",
    "test_from_the_prefix_of_a_conversation",
    "test_in_a_batch_of_64_and_in_chunks",
    "test_in_chunks_of_every_size",
]


class OnGpu(Engine):
    """The tests' engine, where they do not expect it."""

    def __init__(self, folder: Path, **options: Any) -> None:
        settings = {"num_kv_blocks": 1024, "block_size": 16, "max_model_len": 512, "deterministic": True}
        ranges = [(0, rows_with_a_token(folder))]
        config = EngineConfig(
            model=str(folder), device="cuda", token_ranges=ranges, progress=False, **(settings | options)
        )
        self.sent = {}
        self.loop, ready = start_engine(config, self._receive)
        assert ready.attention == "triton"


@pytest.fixture(scope="module", autouse=True)
def on_a_gpu() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(promise, "Engine", OnGpu)
        yield


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()
