"""Arrivals are what the options say, and the same for the same seed."""

from __future__ import annotations

import argparse
from itertools import islice

import numpy as np
import pytest

from leobench import load as loads
from leobench.load import BadLoad, Load, Span


def options(*words: str, workload: str = "random") -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    loads.add_arguments(parser)
    return argparse.Namespace(**vars(parser.parse_args(words)), workload=workload, seed=7)


def load(*words: str, workload: str = "random") -> Load:
    return loads.from_options(options(*words, workload=workload))


def gaps(*words: str) -> np.ndarray:
    return np.diff([0.0, *islice(load(*words).arrivals(), 20_000)])


@pytest.mark.parametrize(("cv", "pattern"), [("1", "poisson"), ("3", "gamma"), ("0.5", "gamma"), ("0", "constant")])
def test_gaps_have_the_mean_and_variation_that_were_asked_for(cv: str, pattern: str) -> None:
    assert load("--rate", "50", "--cv", cv).pattern == pattern
    found = gaps("--rate", "50", "--cv", cv)
    assert found.mean() == pytest.approx(1 / 50, rel=0.07)
    assert found.std() / found.mean() == pytest.approx(float(cv), rel=0.07, abs=1e-9)


def test_poisson_gaps_are_exponential() -> None:
    """The share of gaps above the mean is 1/e."""
    found = gaps("--rate", "10")
    assert (found > 0.1).mean() == pytest.approx(1 / np.e, abs=0.01)


def test_a_ramp_arrives_as_it_says() -> None:
    """From 0.1 to 100 a second over 100 seconds: 5005 in all, a quarter of them in the first half."""
    arrivals = np.array(list(load("--rate", "0.1:100", "--duration", "100").arrivals()))
    assert len(arrivals) == pytest.approx(5005, rel=0.05)
    assert (arrivals < 50).mean() == pytest.approx(0.25, abs=0.03)
    assert (np.diff(arrivals) >= 0).all()
    falling = np.array(list(load("--rate", "100:0.1", "--duration", "100").arrivals()))
    assert (falling < 50).mean() == pytest.approx(0.75, abs=0.03)


def test_a_ramp_without_a_duration_takes_its_requests_to_get_there() -> None:
    arrivals = list(islice(load("--rate", "1:9", "--requests", "500", "--cv", "0").arrivals(), 500))
    assert arrivals[-1] == pytest.approx(100, rel=1e-6), "500 at 5 a second on average"


def test_the_seed_decides() -> None:
    first, again = list(islice(load("--rate", "5").arrivals(), 50)), list(islice(load("--rate", "5").arrivals(), 50))
    other = Load("poisson", rate=Span(5, 5), seed=8)
    assert first == again != list(islice(other.arrivals(), 50))


def test_a_closed_loop_grows_from_its_first_to_its_last_user() -> None:
    grown = load("--concurrency", "1:5", "--duration", "8")
    assert [grown.users(now) for now in (0, 1.9, 2, 4, 8, 100)] == [1, 1, 2, 3, 5, 5]
    assert (grown.pattern, load("--concurrency", "3").pattern) == ("ramp", "closed")


def test_what_is_told_is_what_applies() -> None:
    assert load().parameters == {"pattern": "closed", "concurrency": 8, "requests": 100, "seed": 7}
    assert load("--rate", "1:4", "--duration", "5").parameters == {
        "pattern": "ramp", "rate": [1, 4], "cv": 1.0, "duration": 5, "seed": 7,
    }  # fmt: skip
    assert load("--speed", "2", workload="trace").parameters == {"pattern": "trace", "speed": 2.0, "seed": 7}
    assert load("--rate", "4", workload="trace").pattern == "poisson"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--rate", "4", "--concurrency", "4"), "give one of them"),
        (("--concurrency", "1:8"), "needs --duration"),
        (("--concurrency", "0.5"), "at least 1"),
    ],
)
def test_what_is_no_load_is_refused(words: tuple[str, ...], why: str) -> None:
    with pytest.raises(BadLoad, match=why):
        load(*words)


@pytest.mark.parametrize(
    "words", [("--rate", "0"), ("--rate", "a"), ("--cv", "-1"), ("--requests", "1.5"), ("--rate", "nan")]
)
def test_what_is_no_number_is_refused(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load(*words)
    assert f"argument {words[0]}" in capsys.readouterr().err
