"""The model of a GPU against what a real one took: every engine-level figure of the run on an H200, within a tenth.

Its efficiencies come from kernels alone and from decode with and without overlap and graphs; the figures that are held
here are of whole steps and of a server over HTTP.
"""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from leobench.simulate.hardware import GPUS
from leobench.simulate.network import network
from leobench.simulate.plan import GPU_FRONTEND
from leobench.simulate.replica import Replica, Setup
from leobench.simulate.roofline import Efficiencies, Roofline
from leobench.simulate.work import Work, prefill_pairs
from leoserve.engine.scheduler import SchedulerLimits
from leoserve.model.capacity import Placement, TooLittleMemory, cache_blocks

RESULTS = Path(__file__).resolve().parents[4] / "bench" / "results" / "gpu-h200.json"
BOUND = 0.10
H200 = GPUS["h200"]


def measured() -> dict[str, dict[str, Any]]:
    """By name: what took time in the stages of whole networks. What ran twice is there once."""
    stages = json.loads(RESULTS.read_text())["stages"]
    kept = [stage for stage in stages if stage["name"] in ("engine", "larger", "http")]
    found = {entry["name"].split(" (")[0]: entry for stage in kept for entry in stage["measurements"] if "ms" in entry}
    assert len(found) == 32
    return found


MEASURED = measured()
DECODE = [name for name in MEASURED if " decode, B" in name]
PROMPTS = [name for name in MEASURED if " prompt of " in name]
HTTP = [name for name in MEASURED if " through HTTP" in name]


def roofline(name: str) -> Roofline:
    """Of the network and the cache that a measurement names."""
    kv_dtype = "fp8" if "float8" in name else "int8" if "int8" in name else "auto"
    placement = Placement(network(name.split()[0]), 2, 2 if kv_dtype == "auto" else 1, 1)
    return Roofline(H200, placement, kv_dtype=kv_dtype)


def test_every_figure_of_whole_networks_is_held() -> None:
    assert len(DECODE) + len(PROMPTS) + len(HTTP) == len(MEASURED)


@pytest.mark.parametrize("name", DECODE)
def test_a_token_of_every_sequence_takes_what_it_took(name: str) -> None:
    batch = int(re.search(r"B(\d+)", name.split("decode")[1])[1])  # type: ignore[index]
    model = roofline(name)
    cost = model.cost(Work(batch, batch * 1024, (), batch))
    seconds = max(cost.device, cost.plan)
    if "without overlap" in name:
        seconds = cost.plan + cost.device
    if "without graphs" in name:
        launch = model.efficiencies.launch_layer * model.placement.config.num_layers
        seconds = max(cost.device, cost.plan + launch)
    assert seconds * 1e3 == pytest.approx(MEASURED[name]["ms"], rel=BOUND)


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_takes_what_it_took(name: str) -> None:
    length = int(name.rsplit(" ", 1)[1])
    cost = roofline(name).cost(Work(0, 0, ((length, 0),), 1))
    assert (cost.plan + max(cost.launch, cost.device)) * 1e3 == pytest.approx(MEASURED[name]["ms"], rel=BOUND)


@pytest.mark.parametrize("name", HTTP)
def test_clients_see_what_they_saw(name: str) -> None:
    """As many at once as the name says, with 896 tokens and 256 of an answer each: see bench/gpustages/overhttp.py."""
    batch = int(name.rsplit("B", 1)[1])
    limits = SchedulerLimits(max_sequences=64, max_tokens_per_step=8192, max_model_len=8192, block_size=64)
    setup = Setup(limits=limits, num_blocks=3532, ahead=1, frontend=GPU_FRONTEND)
    replica = Replica(roofline("7B"), setup)
    sent = GPU_FRONTEND.request
    prompts = [[1000 * number + token for token in range(896)] for number in range(batch)]
    answers = [replica.submit(number, prompt, list(range(256)), sent) for number, prompt in enumerate(prompts)]
    while replica.busy:
        replica.advance()
    first = statistics.median(answer.token_times[0] for answer in answers)
    each = statistics.median((answer.token_times[-1] - answer.token_times[0]) / 255 for answer in answers)
    begin = max(answer.token_times[0] for answer in answers)
    end = min(answer.token_times[-1] for answer in answers)
    together = sum(begin < when <= end for answer in answers for when in answer.token_times) / (end - begin)
    assert first * 1e3 == pytest.approx(MEASURED[name]["first_ms"], rel=BOUND)
    assert each * 1e3 == pytest.approx(MEASURED[name]["ms"], rel=BOUND)
    assert together == pytest.approx(MEASURED[name]["tokens_s"], rel=BOUND)


def test_the_cache_has_as_many_blocks_as_the_server_gave_itself() -> None:
    said = next(stage for stage in json.loads(RESULTS.read_text())["stages"] if stage["name"] == "http")
    line = next(line for entry in said["measurements"] for line in entry.get("said", ()) if "key-value cache" in line)
    blocks = int(re.search(r"cache: (\d+) blocks", line)[1])  # type: ignore[index]
    options = {"block_size": 64, "max_model_len": 8192, "max_num_seqs": 64, "tokens_per_step": 8192}
    found = cache_blocks(H200.memory, Placement(network("7b"), 2, 2, 1), **options, utilization=0.9)
    assert found == pytest.approx(blocks, rel=0.01)


def test_70b_does_not_fit_one_h200_and_fits_two() -> None:
    options = {"block_size": 64, "max_model_len": 8192, "max_num_seqs": 64, "tokens_per_step": 8192}
    with pytest.raises(TooLittleMemory, match="less than one sequence of 8192 tokens"):
        cache_blocks(H200.memory, Placement(network("70b"), 2, 2, 1), **options, utilization=0.9)
    assert cache_blocks(H200.memory, Placement(network("70b"), 2, 2, 2), **options, utilization=0.9) > 100


def test_rates_follow_the_datasheet_by_the_measured_shares() -> None:
    sheet = GPUS["h200-datasheet"]
    assert sheet.bandwidth == pytest.approx(H200.bandwidth)
    assert sheet.operations == pytest.approx(H200.operations)
    assert all("measured" in gpu.provenance for gpu in GPUS.values())


def test_two_gpus_share_a_layer_and_pay_for_its_sums() -> None:
    one = Roofline(H200, Placement(network("7b"), 2, 2, 1))
    two = Roofline(H200, Placement(network("7b"), 2, 2, 2))
    work = Work(64, 64 * 1024, (), 64)
    alone, shared = one.cost(work).device, two.cost(work).device
    sums = 2 * 32 * (H200.link_latency + 64 * 4096 * 2 / H200.link)
    assert alone / 2 < shared - sums < alone
    slow = Roofline(replace(H200, link=1e9), Placement(network("7b"), 2, 2, 2))
    assert slow.cost(work).device > shared


def test_a_window_bounds_the_keys_of_a_prompt() -> None:
    for start, count, window in ((0, 5, 3), (0, 3, 3), (7, 4, 3), (2, 6, 5), (0, 9, None)):
        by_hand = sum(min(place + 1, window or place + 1) for place in range(start, start + count))
        assert prefill_pairs(count, start, window) == by_hand, (start, count, window)


def test_an_efficiency_changes_what_it_is_of() -> None:
    """So that none of them is there for nothing."""
    work = Work(64, 64 * 8192, ((8000, 0),), 65)
    placement = Placement(network("7b"), 2, 2, 1)
    usual = sum_of(Roofline(H200, placement), work)
    for name in Efficiencies.__dataclass_fields__:
        changed = replace(Efficiencies(), **{name: getattr(Efficiencies(), name) * 0.5})
        kv_dtype = name.removeprefix("decode_bytes_") if "decode_bytes_" in name else "auto"
        base = sum_of(Roofline(H200, placement, kv_dtype=kv_dtype), work) if kv_dtype != "auto" else usual
        small = Work(1, 1, ((1, 0),), 1) if name == "product_bytes" else work
        base = sum_of(Roofline(H200, placement), small) if small is not work else base
        assert sum_of(Roofline(H200, placement, kv_dtype=kv_dtype, efficiencies=changed), small) != base, name


def sum_of(model: Roofline, work: Work) -> float:
    cost = model.cost(work)
    return cost.plan + cost.launch + cost.device
