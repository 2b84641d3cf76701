"""How often `leobench compare` says that a server differs from itself, when it has one run a side.

    python bench/falseclaims.py --pairs 200 --out bench/results/falseclaims.json

Pairs of runs of one server whose queue is computed: requests come as a Poisson process and go to the first of its
places that is free; what they take there is random. At shares of its capacity from half to all of it, where the queue
wanders over the whole run, with short answers (of which a run has thousands) and with long ones (hundreds), and in a
closed loop. Every difference that is claimed is false; at 95% one of twenty may be.
"""

from __future__ import annotations

import argparse
import heapq
import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bench"))

from leobench.compare.differences import differences  # noqa: E402
from leobench.records import RequestRecord, Run, Slo  # noqa: E402

FAILING = 0.02  # of the requests
MOST = 0.06  # of all that is said in a case may be false: 0.05, and chance


@dataclass(frozen=True, slots=True)
class Case:
    """A server and a load. Seconds; `load`: of its capacity; or so many users in a closed loop."""

    load: float = 0.0
    users: int = 0
    places: int = 6
    first: float = 0.1  # until the first token, in the mean
    token: float = 0.02  # each other one
    tokens: int = 6  # at most, all numbers equally likely
    length: float = 60.0

    @property
    def rate(self) -> float:
        return self.load * self.places / (self.first + (self.tokens - 1) / 2 * self.token)


LONG: dict[str, Any] = {"places": 16, "first": 0.3, "tokens": 100}
CASES = {
    "short answers, half full": Case(load=0.5),
    "short answers, 85%": Case(load=0.85),
    "short answers, 95%": Case(load=0.95),
    "short answers, full": Case(load=1.0),
    "long answers, 95%": Case(load=0.95, **LONG),
    "long answers, full": Case(load=1.0, **LONG),
    "more users than places": Case(users=24, places=16, tokens=40),
}


def run(case: Case, seed: int) -> Run:
    """One run, of which the first sixth is warm-up."""
    draw = np.random.default_rng(seed)
    free = [0.0] * case.places
    records: list[RequestRecord] = []
    clients = [(0.0, number) for number in range(case.users)]
    arrival = 0.0
    while True:
        if case.users:
            arrival, client = heapq.heappop(clients)
        else:
            arrival += float(draw.exponential(1 / case.rate))
        if arrival >= case.length:
            break
        begin = max(arrival, heapq.heappop(free))
        steps = case.token * draw.gamma(20, 1 / 20, int(draw.integers(case.tokens)))
        times = (begin + case.first * draw.gamma(8, 1 / 8) + np.cumsum([0.0, *steps])).tolist()
        heapq.heappush(free, times[-1])
        if case.users:
            heapq.heappush(clients, (times[-1], client))
        records.append(_record(len(records), arrival, times, failed=draw.random() < FAILING, case=case))
    return Run(
        name="the same",
        kind="simulated",
        started="2026-01-01T00:00:00+00:00",
        measured_from=case.length / 6,
        measured_until=max(record.ended for record in records),
        workload={"name": "computed", "seed": seed},
        load={"concurrency": case.users} if case.users else {"rate": case.rate, "seed": seed},
        target={},
        settings={},
        versions={},
        requests=records,
        slo=Slo(ttft=0.5, itl=0.05),
    )


def _record(index: int, arrival: float, times: list[float], *, failed: bool, case: Case) -> RequestRecord:
    record = RequestRecord(index, arrival, arrival, times[-1], warmup=arrival < case.length / 6)
    if failed:
        record.error, record.ended = "http 429", arrival + 0.01
        return record
    record.first, record.last, record.chunk_times = times[0], times[-1], times
    record.prompt_tokens, record.output_tokens, record.finish_reason = 100, len(times), "length"
    return record


def claims(case: Case, pairs: int) -> dict[str, float]:
    """Of each quantity the share of pairs of which a difference is claimed."""
    said: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for pair in range(pairs):
        for each in differences([run(case, 2 * pair)], [run(case, 2 * pair + 1)]):
            seen[each.quantity.name] += 1
            said[each.quantity.name] += each.verdict != "no difference shown"
    return {name: said[name] / count for name, count in seen.items()}


def main() -> int:
    """0: about as often as 95% allows. 1: more often."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--pairs", type=int, default=200, metavar="N", help="of runs, for each case [default: 200]")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    options = parser.parse_args()
    cases = []
    for name, case in CASES.items():
        found = claims(case, options.pairs)
        share = sum(found.values()) / len(found)
        cases.append({"case": name, **asdict(case), "rate": case.rate, "false": share, "by_quantity": found})
        worst = max(found, key=lambda quantity: found[quantity])
        print(f"{name:<26} {share:6.1%} of all, at most {found[worst]:.1%} ({worst})", flush=True)
    told = {"command": f"python bench/falseclaims.py --pairs {options.pairs}", "pairs": options.pairs, "cases": cases}
    options.out.write_text(json.dumps(told, indent=1) + "\n")
    return int(max(case["false"] for case in cases) > MOST)


if __name__ == "__main__":
    sys.exit(main())
