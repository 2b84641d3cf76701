"""The routes that tell about the server itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

import leoserve
from leoserve.engine.request import EngineStats

from ..conftest import clean_environment
from .conftest import Running, Start
from .test_errors import error_of


async def test_models_are_listed_under_each_name_with_their_context(server: Running) -> None:
    listed = (await server.http.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [card["id"] for card in listed["data"]] == ["leo", "leo-alias"]
    card = (await server.http.get("/v1/models/leo-alias")).json()
    assert card == listed["data"][1]
    assert card["max_model_len"] == 256
    assert (card["object"], card["root"], card["created"]) == ("model", "leo", server.context.created)
    assert (await server.openai.models.retrieve("leo")).id == "leo"


async def test_a_model_with_a_slash_in_its_name_is_found(server: Running) -> None:
    server.context.model_ids.append("LeoLM/leo-hessianai-7b-chat")
    answer = await server.http.get("/v1/models/LeoLM/leo-hessianai-7b-chat")
    assert answer.json()["id"] == "LeoLM/leo-hessianai-7b-chat"
    assert (await server.openai.models.retrieve("LeoLM/leo-hessianai-7b-chat")).id == "LeoLM/leo-hessianai-7b-chat"


async def test_health_follows_progress_and_ready_the_state(server: Running) -> None:
    assert (await server.http.get("/health")).status_code == 200
    assert (await server.http.get("/ready")).status_code == 200
    server.engine.state = "draining"
    assert (await server.http.get("/health")).status_code == 200
    assert (await server.http.get("/ready")).status_code == 503
    server.engine.healthy = False
    answer = await server.http.get("/health")
    assert answer.status_code == 503
    error_of(answer)


HEADED = ("/health", "/ready", "/metrics", "/v1/models", "/v1/models/leo", "/version", "/openapi.json", "/docs", "/")


@pytest.mark.parametrize("path", [*HEADED, "/v1/models/none", "/v1/responses/resp_1"])
async def test_head_is_answered_as_get_is_without_the_body(start: Start, path: str) -> None:
    server = await start(api_key=["key"])
    for key in ("key", "wrong"):
        headers = {"authorization": f"Bearer {key}", "x-request-id": "one"}
        got, told = [await server.http.request(method, path, headers=headers) for method in ("GET", "HEAD")]
        assert (told.status_code, told.content) == (got.status_code, b"")
        differing = {"date", "content-length"} if path == "/metrics" else {"date"}  # which tells of the scrapes, too
        assert told.headers.keys() == got.headers.keys()
        assert {**told.headers, **dict.fromkeys(differing)} == {**got.headers, **dict.fromkeys(differing)}


async def test_head_is_refused_where_get_is(server: Running) -> None:
    """A balancer that asks by HEAD takes the server out as one that asks by GET does, and on the same connection."""
    server.engine.state = "loading"
    assert (await server.http.head("/ready")).status_code == 503
    assert (await server.http.head("/v1/completions")).status_code == 405
    assert (await server.http.head("/nowhere")).status_code == 404
    server.engine.state = "ready"
    assert (await server.http.head("/ready")).status_code == 200


async def test_the_version_is_told(server: Running) -> None:
    assert (await server.http.get("/version")).json() == {"version": leoserve.__version__}


async def test_metrics_are_those_that_routers_read_one_series_each(server: Running) -> None:
    server.engine.stats = EngineStats(running=3, waiting=2, blocks_total=64, blocks_used=16, prefix_queries=9)
    answer = await server.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    vllm = [line for line in answer.text.splitlines() if line.startswith("vllm:")]
    assert vllm == [
        'vllm:num_requests_running{model_name="leo"} 3.0',
        'vllm:num_requests_waiting{model_name="leo"} 2.0',
        'vllm:kv_cache_usage_perc{model_name="leo"} 0.25',
        'vllm:cache_config_info{block_size="16",num_gpu_blocks="64"} 1.0',
        'vllm:lora_requests_info{max_lora="0",running_lora_adapters="",waiting_lora_adapters=""} 0.0',
    ]
    assert "leoserve_prefix_cache_queries_total 9.0" in answer.text


def test_the_api_imports_no_torch_and_little_else() -> None:
    code = "import sys, leoserve.api.app; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean_environment(), capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "transformers", "numpy", "openai", "httpx", "pandas"}
