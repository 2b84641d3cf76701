"""A recording that fails on a GPU costs a measurement its graph, and nothing that comes after it."""

from __future__ import annotations

import pytest
import torch

from gpustages.timing import Cuda, NotRecorded, Stopwatch

GPU = torch.device("cuda", 0)


def test_after_a_recording_that_waits_for_the_device_everything_works_as_before() -> None:
    device, values = Cuda(GPU), torch.arange(8.0, device=GPU)
    stream = torch.cuda.current_stream()
    with pytest.raises(NotRecorded):
        device.record(lambda: values[values > 3].sum().item())
    assert torch.cuda.current_stream() == stream
    assert torch.randn(4, device=GPU).isfinite().all()  # the generator records no more
    out = torch.zeros_like(values)
    replay = device.record(lambda: out.add_(values))  # and the next one can be recorded
    out.zero_()
    replay()
    torch.cuda.synchronize()
    assert torch.equal(out, values)


def test_what_cannot_be_recorded_is_timed_all_the_same() -> None:
    values = torch.arange(8.0, device=GPU)
    timing = Stopwatch(Cuda(GPU), 5).measure(lambda: values[values > 3].sum().item())
    assert timing.launched.startswith("eager (")
    assert timing.ms > 0
