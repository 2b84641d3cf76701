"""The stopwatch: what it times, and that a recording that fails costs a measurement its graph and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpustages.place import Place
from gpustages.shapes import SEVEN
from gpustages.small import copies
from gpustages.timing import COLD_BYTES, FEW, Call, Cuda, NotRecorded, Stopwatch, summary


class FakeEvent:
    """A point on the clock of its device."""

    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        self.when = -1.0

    def record(self) -> None:
        self.when = self.device.now

    def milliseconds_until(self, later: Any, /) -> float:
        assert self.device.synchronized, "read before the device was waited for"
        return float(later.when - self.when)


class FakeDevice:
    """A launch takes `launch` milliseconds, whether of a call or of a recording of any number of calls of 1 each."""

    def __init__(self, launch: float = 0.0, broken: bool = False) -> None:
        self.now = 0.0
        self.launch = launch
        self.broken = broken
        self.recording: list[Call] | None = None
        self.synchronized = True
        self.forgotten = 0

    def call(self) -> None:
        self.synchronized = False
        if self.recording is not None:
            self.recording.append(self.call)
        else:
            self.now += self.launch + 1

    def synchronize(self) -> None:
        self.synchronized = True

    def event(self) -> FakeEvent:
        return FakeEvent(self)

    def forget(self) -> None:
        self.now += 50
        self.forgotten += 1

    def record(self, body: Call) -> Call:
        if self.broken:
            raise NotRecorded("RuntimeError: waits")
        self.recording = calls = []
        body()
        self.recording = None

        def replay() -> None:
            self.synchronized = False
            self.now += self.launch + len(calls)

        return replay


def test_the_launch_of_a_recording_is_shared_out_among_its_calls() -> None:
    device = FakeDevice(launch=4.0)
    timing = Stopwatch(device, 100).measure(*[device.call] * FEW)
    assert (timing.ms, timing.launched) == (1.2, "graph")


def test_what_cannot_be_recorded_is_timed_call_by_call_and_says_so() -> None:
    device = FakeDevice(launch=4.0, broken=True)
    timing = Stopwatch(device, 100).measure(*[device.call] * FEW)
    assert (timing.ms, timing.launched) == (5.0, "eager (RuntimeError: waits)")


def test_caches_are_forgotten_before_each_run_and_not_on_the_clock() -> None:
    device = FakeDevice()
    timing = Stopwatch(device, 0, least_runs=9).measure(device.call)
    assert (timing.ms, timing.runs, device.forgotten) == (1.0, 9, 2 + 9)


def test_a_median_and_a_spread_are_those_of_the_times() -> None:
    timing = summary([5.0, 1.0, 2.0, 4.0, 3.0, 100.0, 0.5, 6.0, 7.0, 8.0, 9.0], "graph")
    assert (timing.ms, timing.low, timing.high, timing.runs) == (5.0, 1.0, 9.0, 11)
    assert summary([1.0, 2.0], "graph").ms == 1.5


@pytest.mark.parametrize("rows", [1, 64])
def test_kernels_of_a_few_microseconds_are_called_often_in_one_recording(rows: int) -> None:
    place = SimpleNamespace(tiny=False)
    assert copies(place, 4 * rows * SEVEN.hidden * 2) >= FEW  # type: ignore[arg-type]
    assert copies(place, rows * SEVEN.vocab * 4) >= FEW  # type: ignore[arg-type]


class Generator:
    def __init__(self, state: str = "usual") -> None:
        self.state = state

    def clone_state(self) -> Generator:
        return Generator(self.state)

    def graphsafe_set_state(self, other: Generator) -> None:
        self.state = other.state


class FakeCuda:
    """torch.cuda as far as a recording goes: one that waits for the device leaves everything as it is then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stream = "usual"
        self.generator = Generator()
        self.pools: set[tuple[int, int]] = set()
        self.synchronized = 0
        cuda = {
            "current_device": lambda: 0,
            "current_stream": lambda: self.stream,
            "set_stream": self.set_stream,
            "default_generators": (self.generator,),
            "graph_pool_handle": lambda: (0, 7),
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: "replayed"),
            "graph": lambda graph, pool: Capture(self, pool),
            "synchronize": self.synchronize,
        }
        for name, value in cuda.items():
            monkeypatch.setattr(torch.cuda, name, value, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end_pool, raising=False)

    def set_stream(self, stream: str) -> None:
        self.stream = stream

    def end_pool(self, device: int, pool: tuple[int, int]) -> None:
        if pool not in self.pools:
            raise RuntimeError("not recording to this pool")
        self.pools.remove(pool)

    def synchronize(self) -> None:
        assert self.stream == "usual"
        self.synchronized += 1

    @property
    def usual(self) -> bool:
        return (self.stream, self.generator.state, self.pools) == ("usual", "usual", set())


class Capture:
    """torch.cuda.graph: its end raises, and does no more, where what was captured broke it."""

    def __init__(self, cuda: FakeCuda, pool: tuple[int, int]) -> None:
        self.cuda, self.pool = cuda, pool

    def __enter__(self) -> None:
        self.cuda.stream, self.cuda.generator.state = "recording", "recording"
        self.cuda.pools.add(self.pool)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RuntimeError):
            raise RuntimeError("operation failed due to a previous error during capture")
        self.cuda.stream, self.cuda.generator.state = "usual", "usual"
        self.cuda.pools.remove(self.pool)


def waits() -> None:
    raise RuntimeError("operation not permitted when stream is capturing")


def mistaken() -> None:
    raise TypeError("no such argument")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (waits, "RuntimeError: operation not permitted when stream is capturing"),
        (mistaken, "TypeError: no such argument"),
    ],
)
def test_a_recording_that_fails_leaves_the_gpu_as_it_was(
    monkeypatch: pytest.MonkeyPatch, body: Callable[[], None], reason: str
) -> None:
    cuda = FakeCuda(monkeypatch)
    with pytest.raises(NotRecorded) as raised:
        Cuda(torch.device("cuda", 0)).record(body)
    assert str(raised.value) == reason  # what broke it, not what its end said then
    assert cuda.usual
    assert cuda.synchronized


def test_a_recording_that_succeeds_can_be_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    assert Cuda(torch.device("cuda", 0)).record(lambda: None)() == "replayed"
    assert cuda.usual


def test_caches_are_driven_out_by_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    monkeypatch.setattr(torch, "amax", lambda values: read.append(values.nbytes))
    device = Cuda(torch.device("cpu"))
    device.forget()
    (values,) = read
    assert values == COLD_BYTES
    device.forget()
    assert read == [COLD_BYTES, COLD_BYTES]


def test_a_stopwatch_of_a_cpu_takes_the_same_ways(tmp_path: Any) -> None:
    place = Place.here(tiny=True, scratch=tmp_path, ceilings={}, deadline=0)
    calls: list[int] = []
    timing = place.stopwatch.measure(lambda: calls.append(1))
    assert (timing.launched, timing.runs) == ("graph", 1)
    assert len(calls) == 1 + 1 + 2 + 1  # for the first time, recorded, estimated, timed
