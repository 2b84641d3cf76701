"""Triton's attention compiles for every GPU it is made for, without spilling and within its shared memory.

What is compiled follows from what the table offers: every dtype, cache, block size and head size, with and without a
sliding window, for heads that do and do not share a KV head. That is 420 variants a GPU, or an hour for all, which no
change can wait for: the tests compile so many of them that any two such choices that can meet do, and with
`COMPILE_MEETING=3` in the environment any three, which takes a quarter of an hour. For all of them, or those of some
GPUs, `python -m tests.kernels.test_triton_compile [8.0] [8.9] [9.0] [10.0]` prints what they use and which are beyond
bounds. The version of Triton is the installed one: after a change of the tiles, do it with the oldest that is
supported, too (3.6, beside torch 2.11), in an environment of its own.
"""

from __future__ import annotations

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product
from unittest import mock

import pytest
import torch

from leokernels import AttentionMetadata, KVCache
from leokernels.table import dtype_name, entry
from leokernels.triton import tiles
from leokernels.triton.tiles import Tile
from tests.kernels.compiling import REGISTERS, SHARED, Capability, Report, Scenario, reports

pytestmark = pytest.mark.timeout(1200)  # compiling is work, and other tests may run beside it
MEETING = int(os.environ.get("COMPILE_MEETING", "2"))  # how many choices meet, whichever they are
USED = ("registers", "stack", "shared")
REGISTER_FILE = 65536  # registers of a multiprocessor
# Tiles that may spill, and how many bytes a thread, because an H200 was faster with them than with any that does not.
# By capability, kernel, and what is cached; see tiles.prefill and tiles._decode_128_on_sm_90 for what was timed.
MAY_SPILL = {
    ((9, 0), "paged_prefill", None): (Tile(rows=128, keys=64, warps=4, stages=2), 224),  # 0.67 to 0.73 of the time
    ((9, 0), "paged_decode_grouped", torch.int8): (Tile(rows=16, keys=128, warps=4, stages=2), 24),  # 0.64 to 0.69
}
META = torch.device("meta")  # without storage: a host function that looked at a value would fail
OFFERED = entry("triton")
WINDOW = 4096  # Mistral's; only whether there is one changes what a kernel does
NETWORKS = {  # heads, KV heads, head size
    "7B": (32, 32, 128),
    "13B": (40, 40, 128),
    "Mistral": (32, 8, 128),
    "70B": (64, 8, 128),
    "heads of 64": (12, 12, 64),
    "4 heads of 64 on a KV head": (32, 8, 64),
    "8 heads of 64 on a KV head": (64, 8, 64),
}


@dataclass(frozen=True)
class Compiled:
    """What kernels use on a GPU of this capability, by the variant's name."""

    capability: Capability
    reports: dict[str, list[Report]]


@dataclass(frozen=True)
class Variant:
    """What a server may be started with, as far as kernels are compiled for it."""

    network: str
    dtype: torch.dtype
    cached: torch.dtype | None  # None: dtype
    block_size: int
    windowed: bool

    def __str__(self) -> str:
        cached = "its cache" if self.cached is None else dtype_name(self.cached)
        window = ", a window" if self.windowed else ""
        return f"{self.network}, {dtype_name(self.dtype)}, {cached}, blocks of {self.block_size}{window}"

    def aspects(self, capability: Capability) -> tuple[object, ...]:
        """What changes the code there. Of a block size: whether a tile of keys lies in one block, beside shifts."""
        heads, kv_heads, head_dim = NETWORKS[self.network]
        shape = (capability, head_dim, heads // kv_heads, (self.cached or self.dtype).itemsize, self.windowed)
        in_one_block = tuple(self.block_size % tile(*shape).keys == 0 for tile in (tiles.decode, tiles.prefill))
        return self.network, self.dtype, self.cached, in_one_block, self.windowed

    def launch(self) -> None:
        """A decode row and a prefill row."""
        from leokernels.triton.attention import attention

        heads, kv_heads, head_dim = NETWORKS[self.network]
        shape = (4, self.block_size, kv_heads, head_dim)
        keys, values = (torch.empty(shape, dtype=self.cached or self.dtype, device=META) for _ in range(2))
        scales = [None if self.cached is None else torch.empty(shape[:3], device=META) for _ in range(2)]
        query = torch.empty(17, heads, head_dim, dtype=self.dtype, device=META)
        window = WINDOW if self.windowed else None
        attention(query, KVCache(keys, values, *scales), step(), scale=0.1, window=window, out=torch.empty_like(query))


def step() -> AttentionMetadata:
    """Of a decode row and a row with a prompt of 16 tokens."""
    return AttentionMetadata(
        num_decode=1,
        query_start=torch.empty(3, dtype=torch.int32, device=META),
        context_len=torch.empty(2, dtype=torch.int32, device=META),
        block_table=torch.empty(2, 2, dtype=torch.int32, device=META),
        slot_mapping=torch.empty(17, dtype=torch.int64, device=META),
        query_lens=[1, 16],
        context_lens=[1, 16],
        max_query=16,
        max_context=16,
    )


def offered(capability: Capability) -> list[Variant]:
    """Every variant that the table offers on such a GPU."""
    caches = [cached for cached, least in OFFERED.eight_bit.items() if least is None or capability >= least]
    choices = product(NETWORKS, OFFERED.dtypes, (None, *caches), OFFERED.block_sizes, (False, True))
    return [Variant(*chosen) for chosen in choices]


def sample(capability: Capability) -> list[Variant]:
    """Some of what is offered, so that any MEETING aspects that meet in a variant meet in one of these.

    The one that adds the most is next. Ties go to block sizes taken least, and on each GPU begin at another variant.
    """

    def meeting(variant: Variant) -> frozenset[tuple[tuple[int, object], ...]]:
        return frozenset(combinations(enumerate(variant.aspects(capability)), MEETING))

    variants = offered(capability)
    begin = list(SHARED).index(capability) * len(variants) // len(SHARED)
    meetings = {variant: meeting(variant) for variant in variants[begin:] + variants[:begin]}
    missing = set().union(*meetings.values())
    taken: list[Variant] = []
    while missing:
        used = Counter(variant.block_size for variant in taken)
        best = max(meetings, key=lambda variant: (len(meetings[variant] & missing), -used[variant.block_size]))
        missing -= meetings[best]
        taken.append(best)
    return taken


def sampled_scenarios(capability: Capability) -> Iterator[Scenario]:
    for variant in sample(capability):
        yield str(variant), variant.launch


def offered_scenarios(capability: Capability) -> Iterator[Scenario]:
    for variant in offered(capability):
        yield str(variant), variant.launch


def stack_allowed(variant: Variant, kernel: str, capability: Capability) -> int:
    """Bytes a thread: none, but where the variant has one of the tiles that may spill."""
    heads, kv_heads, head_dim = NETWORKS[variant.network]
    tile, most = MAY_SPILL.get((capability, kernel, variant.cached), (None, 0))
    table = tiles.prefill if kernel == "paged_prefill" else tiles.decode
    shape = (capability, head_dim, heads // kv_heads, (variant.cached or variant.dtype).itemsize, variant.windowed)
    return most if head_dim == 128 and table(*shape) == tile else 0


def within_bounds(report: Report, capability: Capability, stack: int = 0) -> bool:
    return (
        report.stack <= stack
        and report.registers <= REGISTERS
        and report.registers * report.warps * 32 <= REGISTER_FILE
        and report.shared <= SHARED[capability]
    )


@pytest.fixture(scope="module")
def compiled(request: pytest.FixtureRequest) -> Compiled:
    """The sample's kernels on a GPU of the capability that is asked for, by variant."""
    found = defaultdict(list)
    for report in reports(f"{__name__}:{sampled_scenarios.__name__}", request.param):
        found[report.scenario].append(report)
    return Compiled(request.param, found)


@pytest.mark.parametrize(
    ("compiled", "variant"),
    [(capability, variant) for capability in SHARED for variant in sample(capability)],
    indirect=["compiled"],
    ids=str,
)
def test_attention_compiles_without_spilling_and_within_shared_memory(compiled: Compiled, variant: Variant) -> None:
    found = compiled.reports[str(variant)]
    heads, kv_heads, _ = NETWORKS[variant.network]
    decode = "paged_decode" if heads == kv_heads else "paged_decode_grouped"
    assert [report.kernel for report in found] == [decode, "decode_combine", "paged_prefill"]
    for report in found:
        stack = stack_allowed(variant, report.kernel, compiled.capability)
        assert within_bounds(report, compiled.capability, stack), report


@pytest.mark.parametrize("capability", SHARED, ids=str)
def test_each_choice_that_the_table_offers_is_among_what_is_compiled(capability: Capability) -> None:
    taken = sample(capability)
    eight_bit = {torch.int8} if capability < (8, 9) else {torch.int8, torch.float8_e4m3fn}
    assert {variant.dtype for variant in taken} == set(OFFERED.dtypes)
    assert {variant.cached for variant in taken} == {None, *eight_bit}
    assert {variant.block_size for variant in taken} == set(OFFERED.block_sizes)
    assert {NETWORKS[variant.network][2] for variant in taken} == set(OFFERED.head_dims)
    assert {variant.windowed for variant in taken} == {False, True}
    pairs = {(variant.network, variant.cached, variant.windowed) for variant in taken}
    for choice in ({(a, b) for a, b, _ in pairs}, {(a, c) for a, _, c in pairs}):
        assert len(choice) == len({a for a, _ in choice}) * len({b for _, b in choice}), "any two choices meet"


def test_a_kernel_that_spills_is_seen() -> None:
    """The gate can fail: a tile far too large for its warps needs stack memory."""
    found = reports(f"{__name__}:{too_large_scenarios.__name__}", (9, 0))
    assert not all(within_bounds(report, (9, 0)) for report in found)
    assert max(report.stack for report in found) > 0


def test_tiles_that_may_spill_are_the_tables() -> None:
    """An exception whose tile is no longer taken would excuse nothing, and stand there all the same."""
    for (capability, kernel, cached), (tile, _) in MAY_SPILL.items():
        taken = [v for v in offered(capability) if v.cached is cached and stack_allowed(v, kernel, capability)]
        assert taken, (kernel, tile)
        assert all(NETWORKS[variant.network][2] == 128 for variant in taken)


def too_large_scenarios(capability: Capability) -> Iterator[Scenario]:
    def call() -> None:
        with mock.patch("leokernels.triton.tiles.prefill", return_value=Tile(rows=128, keys=128, warps=4, stages=2)):
            Variant("7B", torch.bfloat16, None, 64, windowed=False).launch()

    yield "four warps", call


def print_all(capability: Capability) -> bool:
    """What all variants use at most, by kernel, and which are beyond bounds; whether none is."""
    found = reports(f"tests.kernels.test_triton_compile:{offered_scenarios.__name__}", capability)
    for kernel in sorted({report.kernel for report in found}):
        its = [report for report in found if report.kernel == kernel]
        registers, stack, shared = (max(getattr(report, what) for report in its) for what in USED)
        print(
            capability,
            f"{kernel}: {len(its)} variants, at most {registers} registers, {stack} B stack, {shared} B shared",
        )
    variants = {str(variant): variant for variant in offered(capability)}
    beyond = [
        report
        for report in found
        if not within_bounds(report, capability, stack_allowed(variants[report.scenario], report.kernel, capability))
    ]
    print(*beyond, sep="\n", flush=True)
    return not beyond


if __name__ == "__main__":
    targets = [tuple(map(int, name.split("."))) for name in sys.argv[1:]] or list(SHARED)
    passed = [print_all((major, minor)) for major, minor in targets]
    sys.exit(not all(passed))
