"""What the terminal shows: how a run is getting on while it runs, and what it came to."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from leobench.records import Run
from leobench.summary import percentile, ttft

if TYPE_CHECKING:  # the simulator shows tables, too, and has no client
    from leobench.drive import Drive

TERMINAL_SECONDS, PLAIN_SECONDS = 0.5, 5.0
RECENT = 1000  # requests that the live median is of
COLUMNS = ("mean", "p50", "p90", "p95", "p99", "p999", "max")
ROWS = (("TTFT", "ttft"), ("ITL", "itl"), ("TPOT", "tpot"), ("end to end", "e2e"))


class Progress:
    """One line: rewritten on a terminal, a new one now and then otherwise."""

    def __init__(self, now: Callable[[], float], stream: TextIO | None = None) -> None:
        self._now = now
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()

    async def follow(self, drive: Drive) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(TERMINAL_SECONDS if self._terminal else PLAIN_SECONDS)
            self._say(line(drive, self._now()))

    def note(self, text: str) -> None:
        """A line that stays."""
        print(("\r\x1b[K" if self._terminal else "") + text, file=self._stream, flush=True)

    def close(self) -> None:
        """The terminal's line is taken away."""
        if self._terminal:
            print("\r\x1b[K", end="", file=self._stream, flush=True)

    def _say(self, text: str) -> None:
        if self._terminal:
            print(f"\r\x1b[K{text}", end="", file=self._stream, flush=True)
        else:
            print(text, file=self._stream, flush=True)


def line(drive: Drive, now: float) -> str:
    """How far a load has got, `now` seconds into the run."""
    seconds = max(1e-9, now - drive.begin)
    waits = sorted(wait for record in drive.records[-RECENT:] if (wait := ttft(record)) is not None)
    told = [
        f"{'warm-up ' if drive.warmup else ''}{seconds:.0f} s",
        f"{len(drive.records) - drive.failed} answered",
        f"{drive.running} running",
        f"{drive.failed} failed",
        f"{drive.tokens / seconds:.0f} tokens/s",
    ]
    if waits:
        told.append(f"TTFT p50 {milliseconds(percentile(waits, 50))} ms")
    return " · ".join(told)


def milliseconds(seconds: float) -> str:
    """With three digits that say something."""
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(run: Run) -> str:
    """A run's figures, for people."""
    summary = run.summary
    target = run.target
    lines = [
        f"{run.name}: {', '.join(target['urls'])}, {target['model']}, {target['endpoint']}"
        f"{', streamed' if target['stream'] else ''}",
        *_counts(summary),
        "",
        f"{'milliseconds':<13}" + "".join(f"{name:>9}" for name in COLUMNS),
    ]
    for title, key in ROWS:
        if (figures := summary[key]) is not None:
            lines.append(f"{title:<13}" + "".join(f"{milliseconds(figures[name]):>9}" for name in COLUMNS))
    lines += ["", *_sides(run)]
    return "\n".join(lines)


def _counts(summary: dict[str, Any]) -> list[str]:
    """Requests and tokens."""
    requests, rates, tokens = summary["requests"], summary["throughput"], summary["tokens"]
    failed = ", ".join(f"{count} × {kind}" for kind, count in requests["errors"].items())
    lines = [
        f"{'requests':<13}{requests['ok']} answered in {summary['duration']:.1f} s, {rates['requests_s']:.2f}/s; "
        f"{requests['failed']} failed{f' ({failed})' if failed else ''}",
        f"{'tokens':<13}{tokens['output']} out, {rates['output_tokens_s']:.1f}/s; "
        f"{tokens['prompt']} in, {rates['prompt_tokens_s']:.1f}/s, of these {tokens['cached']} cached",
        f"{'concurrency':<13}mean {summary['concurrency']['mean']:.1f}, most {summary['concurrency']['max']:.0f}",
    ]
    if (good := summary["goodput"]) is not None:
        lines.append(f"{'goodput':<13}{good['share']:.1%} within the SLO, {good['requests_s']:.2f}/s")
    return lines


def _sides(run: Run) -> list[str]:
    """The server by its own metrics, the client, and what to beware of."""
    told = run.summary["server"]
    server = [
        f"{name.replace('_', ' ')} mean {told[name]['mean']:.3g}, most {told[name]['max']:.3g}"
        for name in ("running", "waiting", "cache_usage")
        if name in told
    ]
    server += [f"{told[name]:.0f} {name}" for name in ("preemptions",) if told.get(name)]
    lines = [f"{'server':<13}{'; '.join(server) or 'tells no metrics'}"]
    if run.kind == "measured":
        late, latest = milliseconds(run.client.loop_lag_p99), milliseconds(run.client.loop_lag_max)
        lines.append(
            f"{'client':<13}{run.client.cpu:.0%} of a core; event loop late by {late} ms at p99, {latest} at most"
        )
    return lines + [f"warning: {warning}" for warning in run.client.warnings]
