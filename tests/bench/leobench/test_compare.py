"""A difference is claimed where there is one, and by chance about as often as the 95% interval says."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leobench import cli
from leobench.compare.blocks import Blocks, independent
from leobench.compare.differences import Difference, differences
from leobench.compare.quantities import ANSWERS
from leobench.compare.sides import unfair
from leobench.compare.student import student, welch
from leobench.records import Run, Slo, Sweep, write
from leobench.summary import measured, summarize

from . import made
from .browser import CHROMIUM, Browser

SEEDS = 60


def short(seed: int, **options: Any) -> Run:
    return made.run(f"seed {seed}", seed=seed, **{"rate": 8.0, "seconds": 45.0, "tokens": 6, "faults": 0.05} | options)


def by_name(found: Sequence[Difference]) -> dict[str, Difference]:
    return {each.quantity.name: each for each in found}


@pytest.mark.parametrize("repeated", [1, 4], ids=["one run a side", "four runs a side"])
def test_equal_sides_show_a_difference_about_as_often_as_the_interval_says(repeated: int) -> None:
    shown: Counter[str] = Counter()
    for seed in range(SEEDS):
        seeds = range(2 * repeated * seed, 2 * repeated * (seed + 1))
        runs = [short(each, seconds=45.0 if repeated == 1 else 12.0) for each in seeds]
        for each in differences(runs[:repeated], runs[repeated:]):
            shown[each.quantity.name] += each.verdict != "no difference shown"
    assert len(shown) == 11
    assert 0.01 < shown.total() / (11 * SEEDS) < 0.08
    assert max(shown.values()) / SEEDS < 0.15


def test_a_server_at_its_limit_is_not_said_to_differ_from_itself() -> None:
    """Where the queue wanders over the whole run, which is when one run says the least."""
    shown: Counter[str] = Counter()
    for seed in range(40):
        found = differences(*([short(2 * seed + side, rate=40.0, slots=6, seconds=30.0)] for side in (0, 1)))
        shown.update(each.quantity.name for each in found if each.verdict != "no difference shown")
    waits = ("TTFT p50", "TTFT p99", "end to end p50", "end to end p99", "goodput")
    assert sum(shown[name] for name in waits) / (len(waits) * 40) <= 0.06
    assert max(shown.values()) / 40 <= 0.1


@pytest.mark.parametrize("repeated", [1, 3], ids=["one run a side", "three runs a side"])
@pytest.mark.parametrize(("change", "verdict"), [(0.9, "faster"), (1.1, "slower")])
def test_a_tenth_is_found_in_both_directions_and_its_size_is_right(repeated: int, change: float, verdict: str) -> None:
    right = covered = 0
    for seed in range(20):
        first = [short(1000 + 2 * repeated * seed + each) for each in range(repeated)]
        other = [short(1000 + 2 * repeated * seed + repeated + each, step=0.02 * change) for each in range(repeated)]
        gaps = by_name(differences(first, other))["ITL p50"]
        right += gaps.verdict == verdict
        covered += gaps.low <= change <= gaps.high
    assert right >= 19
    assert covered >= 17, "of 20, at 95%"


def test_what_did_not_change_is_not_said_to() -> None:
    found = by_name(differences([short(1)], [short(2, step=0.016)]))
    assert found["ITL p50"].verdict == found["ITL p99"].verdict == found["TPOT p50"].verdict == "faster"
    assert found["TTFT p50"].verdict == found["TTFT p99"].verdict == found["failed"].verdict == "no difference shown"


def test_ratios_are_those_of_the_summaries() -> None:
    first, other = short(1), short(2)
    summaries = summarize(first), summarize(other)
    found = by_name(differences([first], [other]))
    assert found["TTFT p99"].first == pytest.approx(summaries[0]["ttft"]["p99"])
    assert found["TTFT p99"].change == pytest.approx(summaries[1]["ttft"]["p99"] / summaries[0]["ttft"]["p99"])
    rates = [summary["throughput"]["output_tokens_s"] for summary in summaries]
    assert found["output tokens/s"].change == pytest.approx(rates[1] / rates[0])
    goodputs = [summary["goodput"]["share"] for summary in summaries]
    assert found["goodput"].change == pytest.approx(goodputs[1] - goodputs[0])


def test_shares_are_better_or_worse() -> None:
    found = by_name(differences([short(1, faults=0.02)], [short(2, faults=0.4)]))
    assert found["failed"].verdict == found["goodput"].verdict == "worse"
    found = by_name(differences([short(2, faults=0.4)], [short(1, faults=0.02)]))
    assert found["failed"].verdict == found["goodput"].verdict == "better"


def test_the_same_requests_at_the_same_times_are_compared_in_pairs() -> None:
    """Two per cent are far below what arrivals alone change, and show where arrivals are the same."""
    first, same, another = short(1), short(1, prefill=0.102), short(2, prefill=0.102)
    assert Blocks(first, same).paired
    assert not Blocks(first, another).paired
    assert by_name(differences([first], [same]))["TTFT p50"].verdict == "slower"
    assert by_name(differences([first], [another]))["TTFT p50"].verdict == "no difference shown"
    closed = [short(1), short(1)]
    for run in closed:
        run.load = {"pattern": "closed", "concurrency": 8}
    assert not Blocks(closed[0], closed[1]).paired


def test_a_file_against_itself_differs_in_nothing() -> None:
    run = short(1)
    assert {each.verdict for each in differences([run], [run])} == {"no difference shown"}
    assert {each.change for each in differences([run], [run])} == {0.0, 1.0}


def test_one_run_against_several_has_their_spread() -> None:
    several = [short(seed) for seed in range(5)]
    found = by_name(differences(several, [short(9, prefill=0.2)]))
    assert found["TTFT p50"].verdict == "slower"
    assert found["ITL p50"].verdict == "no difference shown"
    spread = np.std([np.log(summarize(run)["ttft"]["p50"]) for run in several], ddof=1)
    width = np.log(found["TTFT p50"].high / found["TTFT p50"].low) / 2
    assert width == pytest.approx(student(4) * spread * np.sqrt(1 + 1 / 5))


def test_blocks_that_hang_together_count_as_few() -> None:
    random = np.random.default_rng(0)
    assert independent(np.arange(20.0)) < 3
    assert np.mean([independent(random.normal(size=20)) for _ in range(200)]) > 15
    assert independent(np.zeros(20)) == 20


def test_the_correlation_of_few_blocks_is_not_taken_for_smaller_than_it_is() -> None:
    """Blocks of which each is 0.8 times the one before and something new: of 20, 2.2 independent ones are left."""
    random = np.random.default_rng(0)
    counts = []
    for _ in range(400):
        blocks = [random.normal() / 0.6]
        while len(blocks) < 20:
            blocks.append(0.8 * blocks[-1] + random.normal())
        counts.append(independent(np.array(blocks)))
    assert np.median(counts) == pytest.approx(20 * (1 - 0.8) / (1 + 0.8), rel=0.2)


def test_goodput_has_no_more_blocks_than_the_waits_that_decide_it() -> None:
    """All requests of one run are good and none of the other's: that says nothing of how far the queue wandered."""
    first, other = (short(seed, rate=60.0, slots=6, seconds=30.0, faults=0.0) for seed in (1, 2))
    first.slo = other.slo = Slo(ttft=1000.0)
    goodput = by_name(differences([first], [other]))["goodput"]
    assert goodput.blocks == by_name(differences([first], [other]))["TTFT p50"].blocks
    assert goodput.blocks is not None
    assert goodput.blocks < 3


def test_an_open_loops_throughput_varies_as_its_arrivals_do() -> None:
    """Answers of a full server end at an even pace, which says nothing of how many there might have been."""
    runs = [short(seed, faults=0.0) for seed in (1, 2)]
    for run in runs:
        counted = measured(run)
        ends = np.linspace(run.measured_from, run.measured_until, len(counted)).tolist()
        for record, ended in zip(counted, ends, strict=True):
            record.ended = ended
    margin, _ = Blocks(*runs).margin(ANSWERS)
    for run in runs:
        run.load = {"pattern": "closed", "concurrency": 6}
    even, _ = Blocks(*runs).margin(ANSWERS)
    assert margin > 2 * even


def test_when_the_last_answer_came_is_no_difference_of_throughput() -> None:
    """The same requests at the same times, which took a little longer or shorter: the measured time ends a little later
    or earlier, and nothing else tells the runs' throughput apart."""
    random = np.random.default_rng(0)
    shown = 0
    for seed in range(40):
        runs = [short(seed, faults=0.0) for _ in range(2)]
        for run in runs:
            for record in run.requests:
                record.ended += abs(random.normal(0, 0.1))
            run.measured_until = max(record.ended for record in run.requests)
        blocks = Blocks(*runs)
        assert blocks.paired
        rates = [summarize(run)["throughput"]["requests_s"] for run in runs]
        shown += abs(np.log(rates[1] / rates[0])) > blocks.margin(ANSWERS)[0]
    assert shown <= 4


def test_a_queue_that_only_grows_is_said_to_make_one_run_worth_little(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    over = [short(seed, rate=60.0, slots=6, seconds=30.0) for seed in (1, 2)]
    assert cli.main(["compare", *files(tmp_path, a=over[0], b=over[1])]) == 0
    (basis,) = [line for line in capsys.readouterr().out.splitlines() if "hang together" in line]
    assert "TTFT p50, TTFT p99," in basis
    assert "ITL" not in basis
    assert cli.main(["compare", *files(tmp_path, a=short(1), b=short(2))]) == 0
    assert "hang together" not in capsys.readouterr().out


def test_students_t_is_that_of_the_tables() -> None:
    for freedom, point in {1: 12.706, 3: 3.182, 7: 2.365, 12: 2.179, 20: 2.086, 60: 2.000, 1e9: 1.960}.items():
        assert student(freedom) == pytest.approx(point, rel=3e-3)
    assert welch([1.0, 1.0], [10, 10]) == pytest.approx(student(20) * 2**0.5)
    assert welch([1.0, 0.0], [4, 10]) == pytest.approx(student(4))
    assert welch([0.0, 0.0], [4, 10]) == 0


def test_unfair_comparisons_are_called_so() -> None:
    first, other = short(1), short(2, rate=12.0, model="another", slo=Slo(ttft=1.0))
    other.client.warnings.append("its event loop was late")
    other.measured_until -= 20
    assert unfair([first], [other]) == [
        "load.rate differs: 8.0 against 12.0",
        "slo.itl differs: 0.05 s against nothing",
        "slo.ttft differs: 0.5 s against 1 s",
        "target.model differs: leoserve-demo against another",
        "workload.seed differs: 1 against 2",
        "the runs were not measured for equally long",
        "seed 2: its event loop was late",
    ]
    assert unfair([short(1), short(2)], [short(2), short(1)]) == []


def files(folder: Path, **results: Run | Sweep) -> list[str]:
    paths = []
    for name, result in results.items():
        paths.append(folder / f"{name}.json")
        write(result, paths[-1])
    return list(map(str, paths))


def test_results_of_one_name_are_repetitions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = {f"{name}{seed}": short(seed + 5 * (name == "new")) for name in ("old", "new") for seed in range(2)}
    for name, run in runs.items():
        run.name = name[:-1]
    assert cli.main(["compare", *files(tmp_path, **runs)]) == 0
    told = capsys.readouterr().out
    assert told.startswith("new against old\n")
    assert "Spread between runs: 2 runs against 2 runs." in told


def test_labels_name_repetitions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, c = files(tmp_path, a=short(1), b=short(2), c=short(3))
    assert cli.main(["compare", a, "--label", f"mine={b},{c}", "--json", str(tmp_path / "out.json")]) == 0
    (comparison,) = json.loads((tmp_path / "out.json").read_text())
    assert (comparison["first"], comparison["other"], comparison["runs"]) == ("seed 1", "mine", [1, 2])
    assert "mine against seed 1" in capsys.readouterr().out


def test_files_of_one_name_alone_are_sides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, other = short(1), short(2)
    first.name = other.name = "same"
    a, b = files(tmp_path, a=first, b=other)
    assert cli.main(["compare", a, b]) == 0
    assert capsys.readouterr().out.startswith(f"{b} against {a}\n")


def test_sweeps_are_compared_at_the_values_they_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweeps = {"a": made.sweep("a", rates=(4, 8)), "b": made.sweep("b", rates=(8, 16, 4))}
    assert cli.main(["compare", *files(tmp_path, **sweeps)]) == 0
    titles = [line for line in capsys.readouterr().out.splitlines() if " against a, " in line]
    assert titles == ["b against a, 4 requests/s", "b against a, 8 requests/s"]


def test_what_cannot_be_compared_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, sweep, far = files(tmp_path, run=short(1), sweep=made.sweep(rates=(4,)), far=made.sweep("far", rates=(5,)))
    for arguments, why in (
        ([run], "two sides"),
        ([run, sweep], "a run and a sweep"),
        ([sweep, far], "no value"),
        ([run, str(tmp_path / "missing.json")], "No such file"),
        (["--label", f"x={run},{sweep}", far], "not repetitions"),
    ):
        assert cli.main(["compare", *arguments]) == 2
        error = capsys.readouterr().err
        assert why in error
        assert error.count("\n") == 1
    with pytest.raises(SystemExit):
        cli.main(["compare", run, "--label", "nameless"])
    assert "is not NAME=FILE" in capsys.readouterr().err


def test_the_terminals_columns_are_aligned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", *files(tmp_path, a=short(1), b=short(2))]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if "shown" in line or line.endswith(("faster", "slower", "better", "worse"))]
    assert len(table) == 11
    assert len({line.rindex("  ") for line in table}) == 1


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_its_page_has_the_same_rows_and_keeps_names_text(tmp_path: Path) -> None:
    hostile = short(1)
    hostile.name = "<img src=x onerror=window.broken=1>"
    out = tmp_path / "page.html"
    assert cli.main(["compare", *files(tmp_path, a=hostile, b=short(2)), "--html", str(out)]) == 0
    with Browser(tmp_path / "profile") as browser:
        browser.open(out)
        assert browser.said == []
        assert browser.asked == [out.as_uri()]
        assert browser.count("tbody tr") == 11
        assert browser.count("#comparison-0 path.interval") == 9, "of each ratio"
        assert browser.count("img") == 0
        assert browser.text("h1") == f"seed 2 against {hostile.name}"
