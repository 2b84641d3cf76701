"""Stages with the sizes of a GPU, over tensors that have shapes and no numbers: no typo is left for a GPU to find.

What a tiny run never reaches runs here: LeoLM's shapes, every batch, all tiles. Kernels are launched for the sake of
their arguments; a network has one layer instead of dozens.
"""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gpustages import attention, checks, deterministic, machine, recording, serving
from gpustages.place import Place
from gpustages.shapes import SEVEN, SEVENTY, THIRTEEN
from gpustages.stages import BY_NAME
from gpustages.timing import Host, Stopwatch
from leokernels.triton.state import SamplingState

MODULES = (attention, checks, deterministic, machine, recording, serving)
OPTIONS = {"num_warps", "num_stages", "enable_fp_fusion", "maxnreg", "launch_pdl"}
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs the stages themselves")


def nested(shape: tuple[int, ...]) -> Any:
    return [nested(shape[1:]) for _ in range(shape[0])] if shape else 0


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of kernels that were launched, their arguments being what they take."""
    from triton.runtime.interpreter import InterpretedFunction

    found: list[str] = []

    def at(kernel: Any, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(isinstance(size, int) and size > 0 for size in grid), grid

        def launch(*arguments: Any, **named: Any) -> None:
            given = {name: value for name, value in named.items() if name not in OPTIONS}
            inspect.signature(kernel.fn).bind(*arguments, **given)
            found.append(kernel.fn.__name__)

        return launch

    monkeypatch.setattr(InterpretedFunction, "__getitem__", at)
    return found


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, launches: list[str]) -> Iterator[Place]:
    """Numbers that are asked for are 0, and what is compared is the same."""
    for name, value in {"__bool__": True, "__int__": 0, "__index__": 0, "__float__": 0.0}.items():
        monkeypatch.setattr(torch.Tensor, name, lambda self, value=value: value)
    monkeypatch.setattr(torch.Tensor, "item", lambda self: 0.0 if self.is_floating_point() else 0)
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: nested(tuple(self.shape)))
    monkeypatch.setattr(torch, "equal", lambda *_: True)
    for module in MODULES:
        for name, shape in (("SEVEN", SEVEN), ("THIRTEEN", THIRTEEN), ("SEVENTY", SEVENTY)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, replace(shape, layers=1))
    monkeypatch.setattr(checks, "ROWS", 8)
    monkeypatch.setattr(checks, "DRAWS", 32)
    set_slot = SamplingState.set_slot
    monkeypatch.setattr(
        SamplingState, "set_slot", lambda self, slot, *of: set_slot(self, slot, *of) if slot < 2 else None
    )
    monkeypatch.setattr(serving, "ANSWER", 24)
    monkeypatch.setattr(serving, "profile", nothing)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        made = Place(torch.device("cpu"), torch.bfloat16, False, tmp_path, {}, time.monotonic() + 1000)
        made.stopwatch = Stopwatch(Host(), 0, least_runs=1)
        yield made


def nothing(*_: object) -> Iterator[dict[str, object]]:
    """Of the profiler, which would see how tensors without numbers are computed."""
    return iter(())


@pytest.mark.parametrize("name", ["machine", "kernels", "attention", "graphs", "engine", "deterministic", "larger"])
def test_a_stage_runs_to_its_end_with_real_sizes(name: str, place: Place, launches: list[str]) -> None:
    found = list(BY_NAME[name].load()(place))
    assert json.loads(json.dumps(found)) == found
    assert [entry for entry in found if not entry.get("ok", True)] == []
    assert len(found) > 10
    assert bool(launches) == (name != "machine")
    failed = [entry for entry in found if "did not run" in str(entry.get("note")) or "Error" in str(entry.get("note"))]
    assert [entry for entry in failed if "varlen" not in entry["name"]] == []  # which a CPU does not have
    assert len({entry["name"] for entry in found}) == len(found), "two measurements of one name"
