"""What an endpoint picker reads of a server under load: the pickers' own rules, applied to a real scrape.

The rules are those of the Gateway API Inference Extension and of its successor llm-d-router, which has them unchanged:
https://github.com/kubernetes-sigs/gateway-api-inference-extension, pkg/epp/datalayer/metrics/spec.go and extractor.go;
https://github.com/llm-d/llm-d-router, pkg/epp/framework/plugins/datalayer/extractor/metrics/, where factories.go names
the families of the engine type `vllm` and loraspec.go lets those of LoRA be absent.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx
import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.checkpoints import write_checkpoint
from tests.conftest import PATIENCE, Serve, Server

MODEL, KEY = "leo", "sk-leo"
PLACES, REQUESTS = 3, 8
WAITING, RUNNING, USAGE = "vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc"
LORA, CACHE = "vllm:lora_requests_info", "vllm:cache_config_info"
LINTED = 3  # promtool's exit code for a text that it can read and has opinions on

Families = Mapping[str, Metric]


@dataclass
class Endpoint:
    """What the picker keeps of a pod, and what it could not read."""

    waiting: int = 0
    running: int = 0
    kv_usage: float = 0.0
    active_adapters: set[str] = field(default_factory=set)
    waiting_adapters: set[str] = field(default_factory=set)
    max_adapters: int = 0
    block_size: int = 0
    num_blocks: int = 0
    errors: list[str] = field(default_factory=list)


def latest(families: Families, name: str) -> Sample:
    """The series with the latest timestamp. Without timestamps all are equally late, and the first one is taken."""
    found = families[name].samples
    return max(found, key=lambda sample: sample.timestamp or 0)


def latest_adapters(families: Families) -> Sample | None:
    """Of LoRA the series with the largest value, for that is when it was made; below 0 none is."""
    family = families.get(LORA)
    found = [sample for sample in family.samples if sample.value > -1] if family else []
    return max(found, key=lambda sample: sample.value, default=None)


def extract(text: str) -> Endpoint:
    """As `Extractor.Extract` does for a pod labelled `vllm`, or not labelled at all."""
    families = {family.name: family for family in text_string_to_metric_families(text)}
    pod = Endpoint()
    for name in (WAITING, RUNNING, USAGE, CACHE):
        if name not in families or not families[name].samples:
            pod.errors.append(f"metric family {name} not found")
            return pod
        if families[name].type not in ("gauge", "counter"):
            pod.errors.append(f"{name} is a {families[name].type}, whose value reads as 0")
    pod.waiting = int(latest(families, WAITING).value)
    pod.running = int(latest(families, RUNNING).value)
    pod.kv_usage = latest(families, USAGE).value
    if (adapters := latest_adapters(families)) is not None:
        pod.active_adapters = names(adapters.labels.get("running_lora_adapters", ""))
        pod.waiting_adapters = names(adapters.labels.get("waiting_lora_adapters", ""))
        pod.max_adapters = number(adapters, "max_lora", pod)
    pod.block_size = number(latest(families, CACHE), "block_size", pod)
    pod.num_blocks = number(latest(families, CACHE), "num_gpu_blocks", pod)
    return pod


def names(listed: str) -> set[str]:
    return {name.strip() for name in listed.split(",")} - {""}


def number(sample: Sample, label: str, pod: Endpoint) -> int:
    """A label as Go's `strconv.Atoi` reads it; an absent or empty one is no error and leaves 0."""
    value = sample.labels.get(label, "")
    if value and not re.fullmatch(r"[+-]?[0-9]+", value):
        pod.errors.append(f"{label}={value!r} is no whole number")
        return 0
    return int(value or 0)


@pytest.fixture(scope="module")
def starting(serve_once: Serve, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A server that wants keys, perhaps not ready yet."""
    folder = write_checkpoint(tmp_path_factory.mktemp("models") / MODEL, "70b")
    options = ("--num-kv-blocks", "256", "--max-num-seqs", str(PLACES), "--api-key", KEY)
    return serve_once(folder, *options, wait=False)


def test_a_pod_is_read_without_a_key_from_its_first_moment(starting: Server) -> None:
    response = httpx.get(f"{starting.url}/metrics", timeout=PATIENCE)
    assert response.status_code == 200
    assert extract(response.text).errors == []


async def test_under_load_the_picker_reads_the_load(starting: Server) -> None:
    blocks, size = map(int, starting.wait_for(r"\((\d+) blocks of (\d+)\)").groups())
    body = {"model": MODEL, "prompt": "Es war einmal", "max_tokens": 1000, "ignore_eos": True, "stream": True}
    async with httpx.AsyncClient(base_url=starting.url, timeout=PATIENCE) as http:

        async def read() -> Endpoint:
            return extract((await http.get("/metrics")).text)

        async def hold() -> None:
            """Streams, one after the other, until they are given up."""
            while True:
                async with http.stream(
                    "POST", "/v1/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}
                ) as stream:
                    assert stream.status_code == 200
                    async for _ in stream.aiter_bytes():
                        pass

        assert (await read()).num_blocks == blocks
        streams = [asyncio.create_task(hold()) for _ in range(REQUESTS)]
        while ((pod := await read()).running, pod.waiting) != (PLACES, REQUESTS - PLACES):
            assert pod.errors == []
            assert pod.running <= PLACES
            assert not any(stream.done() for stream in streams)
        text = (await http.get("/metrics")).text
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
        while (after := await read()).running + after.waiting:
            await asyncio.sleep(0.01)
    assert pod.errors == after.errors == []
    assert 0 < pod.kv_usage <= 1
    assert (pod.block_size, pod.num_blocks) == (size, blocks)
    assert (pod.active_adapters, pod.waiting_adapters, pod.max_adapters) == (set(), set(), 0)
    assert after.kv_usage == 0
    families = {family.name: family for family in text_string_to_metric_families(text)}
    for name in (WAITING, RUNNING, USAGE, LORA, CACHE):
        assert len(families[name].samples) == 1, "of several the picker takes one, and it says not which"
        assert families[name].samples[0].timestamp is None


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is missing (Debian package prometheus)")
def test_prometheus_own_parser_which_the_pickers_use_reads_a_scrape(starting: Server) -> None:
    text = httpx.get(f"{starting.url}/metrics", timeout=PATIENCE).text
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    assert done.returncode in (0, LINTED), done.stderr
    broken = subprocess.run(["promtool", "check", "metrics"], input=text + "x{", capture_output=True, text=True)
    assert broken.returncode not in (0, LINTED)
