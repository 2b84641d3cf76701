"""What servers say of themselves is read under each one's names."""

from __future__ import annotations

import urllib.request

import pytest

from leobench.scrape import read_metrics
from tests.conftest import PATIENCE, Server

VLLM = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
vllm:num_requests_waiting{engine="0",model_name="with {braces} and spaces"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
vllm:prompt_tokens_total{engine="0",model_name="m"} 1.5e+06
vllm:generation_tokens_total{engine="0",model_name="m"} 42.0 1700000000000
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 7.0
vllm:num_preemptions_total{engine="0",model_name="m"} 1.0
vllm:time_to_first_token_seconds_bucket{le="0.1"} 5.0
"""
SGLANG = (
    "sglang:num_running_reqs 5\nsglang:num_queue_reqs 6\nsglang:token_usage 0.5\nsglang:generation_tokens_total 9\n"
)
LLAMA = "llamacpp:requests_processing 1\nllamacpp:requests_deferred 2\nllamacpp:tokens_predicted_total 300\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            VLLM,
            {
                "running": 7,
                "waiting": 2,
                "cache_usage": 0.5,
                "prompt_tokens": 1.5e6,
                "generation_tokens": 42,
                "cached_tokens": 7,
                "preemptions": 1,
            },
        ),
        (SGLANG, {"running": 5, "waiting": 6, "cache_usage": 0.5, "generation_tokens": 9}),
        (LLAMA, {"running": 1, "waiting": 2, "generation_tokens": 300}),
        ("python_info 1\n<html>\nvllm:num_requests_running\nvllm:num_requests_waiting x\n", {}),
    ],
)
def test_each_servers_names_are_known(text: str, told: dict[str, float]) -> None:
    assert read_metrics(text) == told


def test_leoserve_tells_everything(demo_server: Server) -> None:
    with urllib.request.urlopen(f"{demo_server.url}/metrics", timeout=PATIENCE) as response:
        told = read_metrics(response.read().decode())
    assert set(told) == {
        "running", "waiting", "cache_usage", "prompt_tokens", "generation_tokens", "cached_tokens", "preemptions",
    }  # fmt: skip
