"""Measures: warms a server up, drives a load, watches the server and itself meanwhile, and makes a result of it."""

from __future__ import annotations

import argparse
import asyncio
import gc
import platform
import resource
import signal
import time
from collections.abc import Coroutine
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import aiohttp

import leobench
from leobench import options as common
from leobench import workloads
from leobench.client import Client, Target
from leobench.drive import Drive
from leobench.health import Watch
from leobench.load import Load, Span, describe
from leobench.progress import Progress
from leobench.records import Run
from leobench.scrape import Scraper
from leobench.server import Server, find_server
from leobench.summary import summarize
from leobench.vocabulary import words_of
from leobench.workloads import ESTIMATED, Words, Workload
from leobench.workloads.warmup import WarmUp

ASK_SECONDS = 10.0  # for what is asked before measuring
MADE_UP = {"random", "trace", "conversations"}  # workloads whose prompts are made to a number of tokens
WARMUP_CONCURRENCY = 8  # at most, unless the load itself has more
ALONE = {"random", "chat"}  # workloads whose prompts share nothing
MOST_CACHED = 0.5  # of their tokens: more than a chat template's beginning
SOME = Coroutine[Any, Any, None]


class Bench:
    """A server and a workload, on which loads are measured one after the other."""

    def __init__(self, options: argparse.Namespace, server: Server, words: Words) -> None:
        """Raises Unusable."""
        self.options = options
        self.server = server
        self.words = words
        self.headers = common.headers(options)
        self.target = Target(
            common.urls(options),
            server.model,
            options.endpoint,
            options.stream,
            common.fields(options),
            options.timeout,
        )
        self.interrupted = False

    @classmethod
    async def find(cls, options: argparse.Namespace) -> Bench:
        """Ask the server for what has to be known. Raises Unusable."""
        common.check(options)
        allow_many_connections()
        urls, headers = common.urls(options), common.headers(options)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ASK_SECONDS)) as session:
            server = await find_server(session, urls, options.model, headers)
            words = ESTIMATED
            if options.workload in MADE_UP:
                words = await words_of(session, urls[0], server.model, headers)
        return cls(options, server, words)

    def workload(self, seed: int) -> Workload:
        """Raises BadTrace."""
        options = argparse.Namespace(**vars(self.options) | {"seed": seed})
        return workloads.from_options(options, options.endpoint, self.words)

    async def measure(self, load: Load) -> Run:
        """One load, with requests of its seed. Ctrl-C ends it, and what was answered until then is the result.

        Raises BadTrace.
        """
        measurement = Measurement(self, load)
        gc.collect()
        gc.freeze()  # what lives on is not looked at again while it matters
        task = asyncio.create_task(measurement.whole())
        loop = asyncio.get_running_loop()

        def interrupt() -> None:
            self.interrupted = True
            loop.remove_signal_handler(signal.SIGINT)  # the next one ends the program
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupt)
        try:
            await task
        except asyncio.CancelledError:
            if not self.interrupted:
                raise
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
            gc.unfreeze()
            await measurement.close()
        return measurement.result(self.interrupted)


class Measurement:
    """One load on its way."""

    def __init__(self, bench: Bench, load: Load) -> None:
        self.bench = bench
        self.load = load
        self.workload = bench.workload(load.seed)
        self.began = time.perf_counter()
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self.measured_from = 0.0
        self.client = Client(bench.target, bench.headers, self.now)
        self.watch = Watch()
        self.progress = Progress(self.now)
        self.warmup = Drive(self.client, warmup_load(bench.options.warmup, load), self.now, warmup=True)
        self.drive = Drive(self.client, load, self.now)
        self.scraper = Scraper(self.client.session, bench.target.urls, bench.headers, self.now)

    def now(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self.began

    async def whole(self) -> None:
        """Warm up, and measure."""
        bench, every = self.bench, self.bench.options.scrape_every
        if bench.options.warmup:
            others = WarmUp(self.workload, self.load.seed, bench.options.endpoint, bench.words)
            await beside(self.warmup.run(others), self.progress.follow(self.warmup))
        if every:
            await self.scraper.sample()
        self.watch.begin()
        self.measured_from = self.now()
        watching = [self.progress.follow(self.drive), self.watch.follow()]
        await beside(self.drive.run(self.workload), *watching, *([self.scraper.follow(every)] if every else []))
        if every:
            await self.scraper.sample()

    async def close(self) -> None:
        """The connections, and the terminal's line."""
        await self.client.close()
        self.progress.close()

    def result(self, interrupted: bool) -> Run:
        """What was measured."""
        health = self.watch.health(self.drive.lateness)
        bench, records = (
            self.bench,
            sorted(self.warmup.records + self.drive.records, key=lambda record: record.intended),
        )
        for index, record in enumerate(records):
            record.index = index
        answered = [record for record in self.drive.records if record.error is None]
        until = max((record.ended for record in self.drive.records), default=self.now())
        if interrupted:
            until = self.now()
            health.warnings.append(f"interrupted: {self.drive.running} requests on their way are not counted")
        if any(record.output_tokens is None for record in answered):
            health.warnings.append("the server did not tell the usage of every answer: its tokens are not counted")
        samples = self.scraper.samples
        run = Run(
            name=bench.options.name or f"{self.workload.name}, {describe(self.load)}",
            kind="measured",
            started=self.started,
            measured_from=self.measured_from,
            measured_until=max(until, self.measured_from),
            workload=self.workload.parameters | {"exact_tokens": bench.words.exact},
            load=self.load.parameters,
            target={
                "urls": [common.without_password(url) for url in bench.target.urls],
                "model": bench.server.model,
                "endpoint": bench.options.endpoint,
                "stream": bench.options.stream,
                "fields": bench.target.fields,
            },
            settings=common.told(bench.options),
            versions=versions(bench.server),
            requests=records,
            samples=samples,
            client=health,
            slo=bench.options.slo,
        )
        run.summary = summarize(run)
        cached, prompt = run.summary["tokens"]["cached"], run.summary["tokens"]["prompt"]
        if self.workload.name in ALONE and cached > MOST_CACHED * prompt:
            health.warnings.append(
                f"{cached / prompt:.0%} of the prompts' tokens came from the server's prefix cache: were the same "
                "requests sent before? Another --seed makes others"
            )
        return run


async def beside(main: SOME, *others: SOME) -> None:
    """Run `main` to its end, and the others as long as it takes."""
    tasks = [asyncio.create_task(other) for other in others]
    try:
        await main
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


def warmup_load(requests: int, load: Load) -> Load:
    """A closed loop of so many requests, at about the concurrency that will be measured."""
    users = max(load.concurrency.begin, load.concurrency.end) if load.concurrency else WARMUP_CONCURRENCY
    users = max(1, min(requests, users))
    return Load("closed", concurrency=Span(users, users), requests=max(1, requests), seed=load.seed)


def versions(server: Server) -> dict[str, str]:
    """Of what measured, and of what was measured."""
    known = {
        "leobench": leobench.__version__,
        "python": platform.python_version(),
        "aiohttp": aiohttp.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
    }
    return known | ({"server": server.version} if server.version else {})


def allow_many_connections() -> None:
    """As many open files as the system lets this process have: each request under way is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or soft < hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
