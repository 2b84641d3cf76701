"""The page, in a real browser: every chart is there with its data, nothing is asked of a network, nothing gets out of
its place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from leobench import cli
from leobench.records import RequestRecord, Run, ServerSample, Slo, Sweep, write
from leobench.report.page import page
from leobench.report.timeline import timeline
from leobench.report.wording import duration, number, share
from leobench.summary import measured, summarize
from tests.conftest import Server

from . import made
from .browser import CHROMIUM, Browser

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
HOSTILE = "</script><script>window.broken=1</script><img src=x onerror=window.broken=1>\"'&\u2028@@DATA@@"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


def shown(browser: Browser, folder: Path, *results: Run | Sweep, width: int = 1200, dark: bool = False) -> None:
    """The page of results, written by the command and opened."""
    files = []
    for place, result in enumerate(results):
        files.append(folder / f"result-{place}.json")
        write(result, files[-1])
    out = folder / "page.html"
    assert cli.main(["report", *map(str, files), "--out", str(out), "--title", "Title"]) == 0
    browser.open(out, width, dark)
    assert browser.said == []
    assert browser.asked == [out.as_uri()]


@needs_browser
def test_a_runs_charts_have_a_mark_for_every_datum(browser: Browser, tmp_path: Path) -> None:
    run = made.run(faults=0.05)
    shown(browser, tmp_path, run)
    for name in ("ttft", "itl", "e2e"):
        assert browser.count(f"#distribution-{name} .bar") == 48
        assert browser.count(f"#distribution-{name} path.climb") == 1
        assert browser.count(f"#distribution-{name} .rule") == 4, "median and 99th percentile, through both frames"
    answered = [record for record in run.requests if record.error is None]
    assert browser.count("#timeline .dot") == len(answered)
    assert browser.count("#timeline .error") == len(run.requests) - len(answered) > 0
    assert browser.count("#timeline path.mark") == 3 + 3 + 1 + 1, "requests, rates, tokens, cache"
    assert browser.count("#timeline .warmup") == 10, "in each of five frames, before measuring and after it"


@needs_browser
def test_a_run_against_a_real_server_becomes_a_page(browser: Browser, tmp_path: Path, demo_server: Server) -> None:
    file, out = tmp_path / "run.json", tmp_path / "page.html"
    load = ["--requests", "12", "--concurrency", "3", "--warmup", "2", "--output-tokens", "16", "--name", "real"]
    assert cli.main(["run", "--url", demo_server.url, *load, "--scrape-every", "0.05", "--out", str(file)]) == 0
    assert cli.main(["report", str(file), "--out", str(out)]) == 0
    browser.open(out)
    assert browser.said == []
    assert browser.count("#timeline .dot") == 14
    assert browser.count("#timeline path.mark") == 3 + 2 + 1 + 1, "the server said what runs, waits and is cached"
    assert "leoserve" in browser.evaluate("[...document.querySelectorAll('.words')].map((t) => t.textContent).join()")


@needs_browser
def test_bars_are_as_high_as_their_shares(browser: Browser, tmp_path: Path) -> None:
    run = made.run()
    shown(browser, tmp_path, run)
    script = (
        "[...document.querySelectorAll('#distribution-ttft .bar')].map((bar) => Number(bar.getAttribute('height')))"
    )
    heights = browser.evaluate(script)
    shares = browser.evaluate("data.distributions.ttft.runs[0].shares")
    assert sum(shares) == pytest.approx(1, abs=1e-4)
    most = max(range(48), key=lambda bin: shares[bin])
    for height, part in zip(heights, shares, strict=True):
        assert height == pytest.approx(heights[most] * part / shares[most], abs=0.05)


@needs_browser
def test_the_headline_has_the_summarys_figures(browser: Browser, tmp_path: Path) -> None:
    run = made.run(faults=0.05)
    shown(browser, tmp_path, run)
    summary = summarize(run)
    cards = browser.text(".cards")
    assert f"{number(summary['throughput']['output_tokens_s'])} tokens/s" in cards
    assert f"{duration(summary['ttft']['p99'])}median {duration(summary['ttft']['p50'])}" in cards
    assert f"{share(summary['goodput']['share'])} within TTFT ≤ 500 ms, ITL ≤ 50.0 ms" in cards
    assert f"http 429: {summary['requests']['failed']}" in cards


@needs_browser
def test_a_sweep_has_curves_whose_points_are_its_runs(browser: Browser, tmp_path: Path) -> None:
    sweep = made.sweep(slots=16)
    shown(browser, tmp_path, sweep)
    for name in ("ttft", "itl"):
        assert browser.count(f"#against-{name} .point") == 2 * len(sweep.runs)
        assert browser.count(f"#against-{name} path.mark") == 2
        assert browser.count(f"#against-{name} line.bound") == 1
    assert browser.count("#swept-0 svg[role=img] .point") == 2 * len(sweep.runs), "answers, and those within the bounds"
    assert browser.count("#distribution-ttft path.climb") == len(sweep.runs)
    assert browser.count("#timeline") == 1
    assert "kept TTFT ≤ 500 ms, ITL ≤ 50.0 ms: 32 requests/s." in browser.text(".verdict")


@needs_browser
def test_a_searchs_outcome_and_bounds_are_shown(browser: Browser, tmp_path: Path) -> None:
    sweep = made.sweep(slots=16, slo=None)
    sweep.search = {"low": 2, "high": 48, "keep": ["p99 ttft <= 300 ms"], "highest": 32.0, "lowest_broken": 48.0}
    shown(browser, tmp_path, sweep)
    assert "With 32 requests/s it kept p99 ttft <= 300 ms; 48 requests/s did not." in browser.text(".verdict")
    assert browser.text("#against-ttft text.bound") == "p99 bound 300 ms"
    assert browser.count("#against-itl .bound") == 0
    line = "Number(document.querySelector('#against-ttft line.bound').getAttribute('y1'))"
    highest = (
        "Math.min(...[...document.querySelectorAll('#against-ttft .point')].map((p) => p.getBoundingClientRect().y))"
    )
    assert browser.evaluate(
        f"{line} + document.querySelector('#against-ttft svg').getBoundingClientRect().y > {highest}"
    )


@needs_browser
def test_runs_can_be_hidden_and_their_timelines_chosen(browser: Browser, tmp_path: Path) -> None:
    runs = [made.run("first"), made.run("second", rate=12.0, seed=1), made.run("third", seed=2)]
    shown(browser, tmp_path, *runs)
    assert browser.count("#distribution-itl path.climb") == 3
    browser.click(".legend button:nth-child(2)")
    assert browser.count("#distribution-itl path.climb") == 2
    assert (
        browser.evaluate("document.querySelector('.legend button:nth-child(2)').getAttribute('aria-pressed')")
        == "false"
    )
    assert browser.count("#timeline .dot") == len(runs[1].requests), "the run with the most output comes first"
    browser.evaluate(
        "(() => { const s = document.querySelector('select'); s.value = 2; s.dispatchEvent(new Event('change')); })()"
    )
    assert browser.count("#timeline .dot") == len(runs[2].requests)


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_colours_follow_the_system_and_the_button_turns_them(browser: Browser, tmp_path: Path, dark: bool) -> None:
    shown(browser, tmp_path, made.run(), dark=dark)
    colors = "['background-color', 'color'].map((name) => getComputedStyle(document.body).getPropertyValue(name))"
    light_ones, dark_ones = ["rgb(255, 255, 255)", "rgb(27, 32, 39)"], ["rgb(20, 23, 28)", "rgb(228, 232, 238)"]
    bar = "getComputedStyle(document.querySelector('.bar')).fill"
    assert browser.evaluate(colors) == (dark_ones if dark else light_ones)
    before = browser.evaluate(bar)
    browser.click("#theme")
    assert browser.evaluate(colors) == (light_ones if dark else dark_ones)
    assert browser.evaluate(bar) != before


@needs_browser
def test_paper_is_white(browser: Browser, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    out.write_text(page([("a.json", made.sweep(rates=(4, 8)))], "Paper"), encoding="utf-8")
    browser.open(out, 720, dark=True, printed=True)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 720, "there is no scrolling on paper"
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.evaluate("getComputedStyle(document.getElementById('theme')).display") == "none"
    assert browser.count("path.climb") == 3 * 2


@needs_browser
def test_names_from_a_file_stay_text(browser: Browser, tmp_path: Path) -> None:
    run = made.run(HOSTILE, model=HOSTILE, faults=0.1, warnings=[HOSTILE])
    run.settings[HOSTILE] = HOSTILE
    for record in run.requests:
        record.group = HOSTILE + record.group
        if record.error:
            record.error = record.message = HOSTILE
    shown(browser, tmp_path, run, made.run(HOSTILE, seed=1), made.sweep(HOSTILE, rates=(4, 8)))
    assert browser.evaluate("window.broken") is None
    assert browser.count("script") == 2
    assert browser.count("img") == 0
    assert browser.evaluate("data.runs[0].label").startswith(HOSTILE)
    assert HOSTILE in browser.text(".warnings")
    assert browser.text(".legend button").startswith(HOSTILE)


@needs_browser
@pytest.mark.parametrize("width", [400, 760, 1600])
def test_it_fits_its_window(browser: Browser, tmp_path: Path, width: int) -> None:
    run = made.run("a name without spaces " + "x" * 200, faults=0.02, model="m" * 300)
    shown(browser, tmp_path, run, made.sweep(rates=(4, 16)), width=width)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width


@needs_browser
def test_labels_do_not_touch(browser: Browser, tmp_path: Path) -> None:
    script = """[...document.querySelectorAll('figure > svg')].flatMap((svg) => {
        const texts = [...svg.querySelectorAll('text')].map((each) => [each.textContent, each.getBoundingClientRect()]);
        return texts.flatMap(([a, one], at) => texts.slice(at + 1).filter(([, other]) =>
            one.left < other.right - 1 && other.left < one.right - 1
            && one.top < other.bottom - 3 && other.top < one.bottom - 3
        ).map(([b]) => `${svg.parentNode.id}: ${a} / ${b}`));
    })"""
    spread = made.sweep(rates=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 48), slots=16, tokens=200)
    for width in (400, 1200):
        for results in ([made.run(faults=0.02)], [spread], [made.run("a"), made.run("b", rate=20.0, slots=3)]):
            shown(browser, tmp_path, *results, width=width)
            assert browser.evaluate(script) == []


@needs_browser
def test_values_are_read_by_mouse_and_by_keys(browser: Browser, tmp_path: Path) -> None:
    shown(browser, tmp_path, made.run())
    browser.point("#distribution-e2e svg")
    assert browser.text("#distribution-e2e .tip b").startswith("up to ")
    assert browser.evaluate("document.querySelector('#distribution-e2e .tip').hidden") is False
    browser.evaluate("document.querySelector('#timeline > svg').focus()")
    browser.press("ArrowRight")
    browser.press("ArrowRight")
    assert browser.text("#timeline .tip b") == "at 500 ms"
    assert "arrived a second" in browser.text("#timeline .tip")


@needs_browser
def test_every_chart_says_what_it_shows_to_who_cannot_see_it(browser: Browser, tmp_path: Path) -> None:
    shown(browser, tmp_path, made.sweep(rates=(4, 8)))
    labels = browser.evaluate(
        "[...document.querySelectorAll('figure > svg')].map((svg) => svg.getAttribute('aria-label'))"
    )
    assert len(labels) == 2 + 1 + 3 + 1
    assert all(len(label) > 20 for label in labels)
    assert browser.count("figure > figcaption b") == len(labels)
    assert browser.count("table caption") == browser.count("table")


@needs_browser
def test_without_streaming_there_is_one_distribution(browser: Browser, tmp_path: Path) -> None:
    shown(browser, tmp_path, made.run(streamed=False, slo=None))
    assert browser.count("#distribution-e2e .bar") == 48
    assert browser.count("#distribution-ttft") == browser.count("#distribution-itl") == 0
    assert "no answer was streamed" in browser.text(".cards")


@needs_browser
def test_a_run_in_which_everything_failed_has_a_page(browser: Browser, tmp_path: Path) -> None:
    shown(browser, tmp_path, made.run(faults=1.0))
    assert browser.count("#timeline .error") > 0
    assert "(100%) failed" in browser.text(".warnings")


@needs_browser
def test_what_was_simulated_says_so(browser: Browser, tmp_path: Path) -> None:
    shown(browser, tmp_path, made.run("plan", kind="simulated"), made.run("real"))
    assert browser.text("p.simulated").startswith("Simulated: plan.")
    assert browser.text(".legend button:nth-child(1)") == "plan (simulated)"
    assert browser.text(".legend button:nth-child(2)") == "real"


def test_many_requests_are_shown_by_a_part_that_has_the_slowest() -> None:
    run = made.run(rate=400.0, seconds=20.0, slots=400)
    slowest = max(measured(run), key=lambda record: record.ended - record.intended)
    slowest.first = slowest.intended + 99.0
    text = page([("run.json", run)], "Many")
    assert "99.0" in text or "99," in text
    assert len(text) < 400_000


def test_servers_count_together(tmp_path: Path) -> None:
    run = made.run(seconds=10.0)
    run.samples = [
        ServerSample(1.0, 3.0, 0.0, 0.5, preemptions=7.0),
        ServerSample(1.0, 4.0, 1.0, 0.25, url=1),
        ServerSample(2.0, 5.0, 0.0, 0.1, preemptions=9.0),
        ServerSample(2.0, 6.0, url=1),
    ]
    assert timeline(run)["server"] == {
        "times": [1.0, 2.0],
        "running": [7.0, 11.0],
        "waiting": [1.0, 1.0],
        "cache_usage": [0.5, 0.25],
        "preemptions": [0.0, 2.0],
    }


def test_a_timelines_levels_are_means_of_their_slices() -> None:
    run = made.run()
    run.requests = [RequestRecord(0, 0.5, 0.5, 100.0, output_tokens=50), RequestRecord(1, 10.0, 10.25, 10.75)]
    run.measured_until = 100.0
    found = timeline(run)
    assert found["width"] == 1.0
    assert found["in_flight"][:2] == [0.5, 1.0]
    assert found["in_flight"][10] == pytest.approx(1.5)
    assert sum(found["output_tokens"]) == pytest.approx(50)
    assert sum(found["arrived"]) == 2


def test_what_is_no_result_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "other.json"
    file.write_text('{"schema": "other"}')
    assert cli.main(["report", str(file)]) == 2
    empty = made.run(slo=Slo())
    empty.requests = []
    write(empty, file)
    assert cli.main(["report", str(file)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "its schema is 'other'" in lines[0]
    assert "it has no requests" in lines[1]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1234.5, "1,234"), (99.96, "100"), (99.94, "99.9"), (0.01234, "0.0123"), (1.0, "1.00"), (None, "–")],
)
def test_numbers_have_three_digits_that_count(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0213, "21.3 ms"), (0.9996, "1.00 s"), (90, "90.0 s"), (180, "3.00 min")]
)
def test_durations_have_the_unit_that_fits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("part", "text"), [(1, "100%"), (0.99999, ">99.99%"), (0.997, "99.70%"), (0.5, "50.0%"), (0, "0%")]
)
def test_a_share_is_never_rounded_to_all_or_none(part: float, text: str) -> None:
    assert share(part) == text
