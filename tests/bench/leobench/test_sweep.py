"""`leobench sweep`: a run for each load, and the highest load that keeps an SLO, where the limit is known."""

from __future__ import annotations

import argparse
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leobench.records import Sweep, read
from leobench.search import highest
from leobench.slo import bound
from tests.conftest import PATIENCE, clean_environment

from .conftest import TRIES, Process, Told, command

Start = Callable[..., Process]
Command = Callable[..., Told]


def result(folder: Path) -> Sweep:
    sweep = read(folder / "sweep.json")
    assert isinstance(sweep, Sweep)
    return sweep


@given(st.floats(1, 50), st.floats(1.1, 100), st.floats(0, 1), st.floats(0.01, 0.5))
async def test_bisection_finds_the_limit_to_the_tolerance(
    low: float, factor: float, place: float, tolerance: float
) -> None:
    high = low * factor
    limit = low + (high - low) * place
    tried: list[float] = []

    async def kept(value: float) -> bool:
        tried.append(value)
        return value <= limit

    found = await highest(low, high, tolerance, kept)
    assert found.highest is not None
    assert found.highest <= limit
    if found.lowest_broken is not None:
        assert limit < found.lowest_broken <= found.highest * (1 + tolerance) * (1 + 1e-9)
    else:
        assert found.highest == high
    assert len(tried) == len(set(tried)) <= 20


@given(st.integers(1, 40), st.integers(2, 200))
async def test_whole_numbers_are_searched_to_the_last_one(limit: int, high: int) -> None:
    async def kept(value: float) -> bool:
        assert value == int(value)
        return value <= limit

    found = await highest(1, high, 1e-9, kept, whole=True)
    assert found.highest == min(limit, high)
    assert found.lowest_broken == (None if limit >= high else limit + 1)


async def test_where_nothing_is_kept_there_is_no_highest() -> None:
    async def kept(_value: float) -> bool:
        return False

    found = await highest(2, 9, 0.1, kept)
    assert (found.highest, found.lowest_broken) == (None, 2)


@pytest.mark.parametrize(
    ("text", "figure", "quantity", "most"),
    [
        ("p99 ttft <= 500 ms", "p99", "ttft", 0.5),
        ("P50 ITL<=50ms", "p50", "itl", 0.05),
        ("mean e2e <= 2.5 s", "mean", "e2e", 2.5),
        ("p999 tpot <= 0.04", "p999", "tpot", 0.04),
    ],
)
def test_bounds_are_read_as_people_write_them(text: str, figure: str, quantity: str, most: float) -> None:
    found = bound(text)
    assert (found.figure, found.quantity, found.most) == (figure, quantity, most)
    assert bound(str(found)) == found


@pytest.mark.parametrize("text", ["ttft <= 1 s", "p99 ttft < 1 s", "p98 ttft <= 1 s", "p99 ttft <= 1 min", ""])
def test_what_is_no_bound_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no bound"):
        bound(text)


def test_a_sweep_has_a_run_for_each_value(start_double: Start, leobench: Command, tmp_path: Path) -> None:
    """The server has four places: more users wait."""
    words = ("--values", "8,1,4", "--requests", "40", "--output-tokens", "5", "--scrape-every", "0.1")
    for _ in range(TRIES):
        double = start_double(slots=4, first=[0.05], gaps=[0.0125], metrics=True)
        told = leobench("sweep", "--url", double.url, *words, "--out", "sweep.json")
        assert told.code == 0, told.stderr
        sweep = result(tmp_path)
        if not any(run.client.warnings for run in sweep.runs):  # in each of them the client kept up
            break
    assert (sweep.axis, sweep.values, sweep.search) == ("concurrency", [1, 4, 8], {})
    one, four, eight = (run.summary for run in sweep.runs)
    assert [run.load["concurrency"] for run in sweep.runs] == [1, 4, 8]
    log = double.log()
    for place, summary in ((0, eight), (1, one), (2, four)):
        measured = log[place * 44 + 4 : place * 44 + 44]
        seconds = max(sent["events"][-1] for sent in measured) - min(sent["arrived"] for sent in measured)
        assert summary["throughput"]["requests_s"] == pytest.approx(40 / seconds, rel=0.05)
    assert four["throughput"]["requests_s"] > 2.5 * one["throughput"]["requests_s"]
    assert (four["server"]["waiting"]["max"], eight["server"]["waiting"]["max"]) == (0, 4)
    assert eight["ttft"]["p50"] > 2 * four["ttft"]["p50"]
    prompts = [str(sent["body"]["messages"]) for sent in log]
    assert len(set(prompts)) == len(prompts) == 3 * 44, "no value sends what another did: a cache would know it"
    assert len([line for line in told.stdout.splitlines() if line.lstrip().startswith(("1 ", "4 ", "8 "))]) == 3


def test_the_highest_rate_that_keeps_an_slo_is_where_the_server_is_full(
    start_double: Start, leobench: Command, tmp_path: Path
) -> None:
    """Four places of 0.4 s each serve 10 a second. Above that the queue grows for as long as the load lasts."""
    double = start_double(slots=4, first=[0.2], gaps=[0.05])
    words = ("--axis", "rate", "--search", "4:16", "--keep", "p50 ttft <= 400 ms", "--keep", "p99 itl <= 400 ms")
    more = ("--tolerance", "0.1", "--duration", "4", "--cv", "0", "--output-tokens", "5", "--warmup", "0")
    told = leobench("sweep", "--url", double.url, *words, *more, "--out", "sweep.json")
    assert told.code == 0, told.stderr
    sweep = result(tmp_path)
    search = sweep.search
    assert 9 <= search["highest"] < search["lowest_broken"] <= 11.5
    assert search["lowest_broken"] <= search["highest"] * 1.1 * (1 + 1e-9)
    assert [step["value"] for step in search["steps"][:2]] == [4, 16]
    assert [step["kept"] for step in search["steps"][:2]] == [True, False]
    assert sweep.values == sorted(step["value"] for step in search["steps"])
    assert search["keep"] == ["p50 ttft <= 400 ms", "p99 itl <= 400 ms"]
    assert f"rate {search['highest']:.4g} keeps p50 ttft <= 400 ms and p99 itl <= 400 ms" in told.stdout


def test_a_rate_at_which_requests_fail_is_not_kept(start_double: Start, leobench: Command, tmp_path: Path) -> None:
    words = ("--axis", "rate", "--search", "20:40", "--keep", "p99 e2e <= 10 s", "--requests", "20", "--warmup", "0")
    double = start_double(fail=10)
    told = leobench("sweep", "--url", double.url, *words, "--out", "sweep.json")
    assert told.code == 1
    assert result(tmp_path).search["highest"] is None
    assert "not even rate 20 keeps" in told.stdout
    assert leobench("sweep", "--url", double.url, *words, "--most-failed", "0.1").code == 0


def test_ctrl_c_ends_the_sweep_and_keeps_what_was_measured(start_double: Start, tmp_path: Path) -> None:
    double = start_double(first=[0.02], stall_at=1.75, stall=1000)  # in the second run, which has no end then
    words = ("--url", double.url, "--values", "1,2,3", "--duration", "1", "--warmup", "0", "--out", "sweep.json")
    process = subprocess.Popen(
        command("sweep", *words),
        env=clean_environment(),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (log := double.log()) or log[-1]["arrived"] - log[0]["arrived"] < 1.5:
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, stderr
    sweep = result(tmp_path)
    assert sweep.values == [1, 2]
    assert any("interrupted" in warning for warning in sweep.runs[-1].client.warnings)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((), "give either --values or --search"),
        (("--values", "1", "--search", "1:2"), "give either --values or --search"),
        (("--search", "1:2"), "--search needs at least one --keep"),
        (("--search", "3:2", "--keep", "p99 ttft <= 1 s"), "is not LOW:HIGH"),
        (("--values", "1.5"), "a concurrency is a whole number"),
        (("--values", "1", "--rate", "3"), "unrecognized arguments"),
        (("--search", "1:2", "--keep", "p99 ttft <= 1 s", "--no-stream"), "can only bound e2e"),
    ],
)
def test_what_is_no_sweep_is_one_line_and_exit_code_2(leobench: Command, words: tuple[str, ...], why: str) -> None:
    told = leobench("sweep", *words)
    assert told.code == 2
    assert why in told.stderr
    assert told.stderr.count("\n") == 1
