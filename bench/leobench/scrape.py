"""The server's own metrics, read while it is measured: leoserve's, vLLM's, SGLang's and llama.cpp's names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import aiohttp

from leobench.records import ServerSample

TIMEOUT = 5.0  # seconds for one scrape

# What a sample tells, by the names of Prometheus series. Of those that a server has, the first counts.
SERIES = {
    "running": (
        "leoserve_requests_running",
        "vllm:num_requests_running",
        "sglang:num_running_reqs",
        "llamacpp:requests_processing",
    ),
    "waiting": (
        "leoserve_requests_waiting",
        "vllm:num_requests_waiting",
        "sglang:num_queue_reqs",
        "llamacpp:requests_deferred",
    ),
    "cache_usage": (
        "leoserve_kv_cache_usage_ratio",
        "vllm:kv_cache_usage_perc",
        "vllm:gpu_cache_usage_perc",
        "sglang:token_usage",
        "llamacpp:kv_cache_usage_ratio",
    ),
    "prompt_tokens": (
        "leoserve_prompt_tokens_total",
        "vllm:prompt_tokens_total",
        "sglang:prompt_tokens_total",
        "llamacpp:prompt_tokens_total",
    ),
    "generation_tokens": (
        "leoserve_generation_tokens_total",
        "vllm:generation_tokens_total",
        "sglang:generation_tokens_total",
        "llamacpp:tokens_predicted_total",
    ),
    "cached_tokens": ("leoserve_cached_tokens_total", "vllm:prefix_cache_hits_total", "sglang:cached_tokens_total"),
    "preemptions": ("leoserve_preemptions_total", "vllm:num_preemptions_total"),
}
KNOWN = {name for names in SERIES.values() for name in names}


def read_metrics(text: str) -> dict[str, float]:
    """What a sample tells, from Prometheus' text format. Several engines' series add up; of a share the mean counts."""
    found: dict[str, list[float]] = {}
    for line in text.splitlines():
        name = line.partition("{")[0].partition(" ")[0]
        if name in KNOWN:
            found.setdefault(name, []).extend(_value(line))
    told = {}
    for quantity, names in SERIES.items():
        values = next((found[name] for name in names if found.get(name)), None)
        if values is not None:
            told[quantity] = sum(values) / (len(values) if quantity == "cache_usage" else 1)
    return told


def _value(line: str) -> Iterator[float]:
    """A series' value: the word after its labels."""
    rest = line.rpartition("}")[2] if "{" in line else line.partition(" ")[2]
    try:
        yield float(rest.split()[0])
    except (IndexError, ValueError):
        return


class Scraper:
    """Samples of every URL, taken together. A server without metrics is asked once."""

    def __init__(
        self, session: aiohttp.ClientSession, urls: list[str], headers: dict[str, str], now: Callable[[], float]
    ) -> None:
        self.samples: list[ServerSample] = []
        self._session = session
        self._urls = dict(enumerate(urls))
        self._headers = headers
        self._now = now

    async def sample(self) -> None:
        """One sample of each server that has metrics."""
        time = self._now()
        places = list(self._urls)
        told = await asyncio.gather(*(self._ask(self._urls[place]) for place in places))
        for place, values in zip(places, told, strict=True):
            if values == {}:
                del self._urls[place]
            elif values is not None:
                self.samples.append(ServerSample(time=time, url=place, **values))

    async def follow(self, interval: float) -> None:
        """A sample now and every `interval` seconds, until cancelled or no server has metrics."""
        due = self._now()
        while self._urls:
            await self.sample()
            due += interval
            await asyncio.sleep(max(0.0, due - self._now()))

    async def _ask(self, url: str) -> dict[str, float] | None:
        """What a server tells; empty when it has nothing to tell, None when it did not answer in time."""
        try:
            timeout = aiohttp.ClientTimeout(total=TIMEOUT)
            async with self._session.get(f"{url}/metrics", headers=self._headers, timeout=timeout) as response:
                return read_metrics(await response.text()) if response.status == 200 else {}
        except (aiohttp.ClientError, TimeoutError, OSError, UnicodeDecodeError):
            return None
