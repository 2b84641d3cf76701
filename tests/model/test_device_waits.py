"""Nothing in a step asks the device for a value: on a GPU that would stop the host until the device is done.

Every operation of torch is watched while steps are launched. What reads values back, or makes a shape of them, fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from leokernels import AttentionMetadata, KVCache
from leokernels.cache import write_unread
from leokernels.triton import attention as triton_attention
from leokernels.triton import logits as triton_logits
from leokernels.triton import logprobs as triton_logprobs
from leokernels.triton import sampling as triton_sampling
from leoserve.model import device
from leoserve.model.device import DeviceRunner
from leoserve.model.step import Admitted, Row, SamplingParams, Step
from tests.checkpoints import write_checkpoint
from tests.model.test_device import device_runner, replayed

READS = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"}
VALUE_SHAPED = {"aten::nonzero", "aten::masked_select", "aten::_local_scalar_dense", "aten::_unique2"}


class Waits(AssertionError):
    """The host would wait for the device."""


class NoReads(TorchFunctionMode):
    """Tensor methods that bring a value to the host."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(function, "__name__", "") in READS:
            raise Waits(function.__name__)
        return function(*args, **(kwargs or {}))


class NoValueShapes(TorchDispatchMode):
    """Operations whose result's shape, or whose result, is a value of the device."""

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = operation.name().split(".")[0]
        if name in VALUE_SHAPED:
            raise Waits(name)
        if name.startswith("aten::index") and any(
            isinstance(each, torch.Tensor) and each.dtype is torch.bool
            for arg in args
            for each in (arg if isinstance(arg, list | tuple) else [arg])
        ):
            raise Waits(f"{name} by a mask")
        return operation(*args, **(kwargs or {}))


@contextmanager
def watched() -> Iterator[None]:
    with NoReads(), NoValueShapes():
        yield


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DeviceRunner:
    """Kernels do nothing here: what is watched is the host's side, and interpreting them reads values."""
    made = device_runner(write_checkpoint(tmp_path, "7b", dtype=torch.float32))

    def no_attention(query: torch.Tensor, cache: KVCache, metadata: AttentionMetadata, **rest: Any) -> None:
        rest["out"].copy_(query)

    class Nothing:
        def __getitem__(self, grid: object) -> Callable[..., None]:
            return lambda *arguments, **options: None

    monkeypatch.setattr(triton_attention, "attention", no_attention)
    for module, name in (
        (triton_logits, "process_logits_kernel"),
        (triton_logprobs, "gather_logprobs_kernel"),
        (triton_sampling, "sample_kernel"),
        (triton_sampling, "update_counts_kernel"),
    ):
        monkeypatch.setattr(module, name, Nothing())
    monkeypatch.setattr("leokernels.fused.write_kv", write_unread)  # torch's way on a GPU; Triton's has its own tests
    return made


def steps() -> list[Step]:
    """A mixed step with every sampling parameter and a scored prompt, then a decode step."""
    params = SamplingParams(
        max_tokens=5, top_k=5, top_p=0.9, min_p=0.1, logprobs=3, prompt_logprobs=2, presence_penalty=0.5, min_tokens=2,
        stop_token_ids=(7,), logit_bias={3: 1.0}, allowed_token_ids=tuple(range(100)), bad_words=((4,), (5, 6)),
    )  # fmt: skip
    prompt = list(range(3, 23))
    first = [
        Row(0, 0, [9], 0, [0], samples=True, decodes=True, admitted=Admitted(params, 0, [9], [])),
        Row(1, 0, prompt, 0, [1, 2], samples=True, admitted=Admitted(params, 0, prompt, []), targets=prompt[1:]),
    ]
    second = [Row(0, 1, None, 1, [], samples=True, decodes=True), Row(1, 20, None, 2, [3], samples=True, decodes=True)]
    return [Step(first, copies=[(4, 5)]), Step(second)]


@pytest.mark.parametrize("recorded", [False, True])
def test_no_step_waits_for_the_device(runner: DeviceRunner, recorded: bool) -> None:
    if recorded:
        runner.record(replayed)
    for step in steps():
        with watched():
            launched = runner.launch(step)
        assert len(launched.results()) == 2


@pytest.mark.parametrize(
    "read",
    [
        lambda t: t.sum().item(),
        lambda t: t.tolist(),
        lambda t: t.cpu(),
        lambda t: bool(t.any()),
        lambda t: t[t > 0],
        lambda t: t.nonzero(),
        lambda t: int(t[0]),
    ],
)
def test_what_would_wait_is_noticed(read: Callable[[torch.Tensor], object]) -> None:
    with pytest.raises(Waits), watched():
        read(torch.ones(3))


def test_a_runner_that_reads_a_value_is_noticed(runner: DeviceRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = DeviceRunner._upload

    def peeking(self: DeviceRunner, values: device.Int32) -> Tensor:
        sent = upload(self, values)
        return sent * (sent.max().item() > 0)

    monkeypatch.setattr(DeviceRunner, "_upload", peeking)
    with pytest.raises(Waits), watched():
        runner.launch(steps()[0])
