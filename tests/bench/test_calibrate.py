"""Calibrating: prices are found again from steps that they were paid for, and the program runs on a real engine."""

from __future__ import annotations

from pathlib import Path

import calibrate
import pytest
from taker import taker

from leobench.simulate.calibrated import Calibrated, Calibration
from leobench.simulate.work import Work
from leoserve.engine.config import EngineConfig
from tests.checkpoints import write_checkpoint

KNOWN = Calibration(
    model="known",
    machine={},
    engine={},
    tokens=[1, 2, 8, 64],
    seconds=[0.010, 0.011, 0.012, 0.050],
    prompt=0.002,
    sampled=0.0003,
    key=2e-6,
    pair=3e-7,
    near=2400,
    far=1e-6,
)


def test_a_fit_finds_the_prices_that_steps_were_paid_with() -> None:
    works = [Work(rows, rows * keys, (), rows) for rows in (1, 2, 8, 64) for keys in (20, 300)]
    works += [Work(0, 0, ((count, start),), int(start == 0)) for count in (2, 8, 64) for start in (0, 500, 900)]
    steps = [(work, Calibrated(KNOWN).cost(work).device) for work in works]
    found = calibrate.fit(steps, None)
    assert found["tokens"] == KNOWN.tokens
    assert found["seconds"] == pytest.approx(KNOWN.seconds)
    assert found["near"] == KNOWN.near
    for price in calibrate.PRICES:
        assert found[price] == pytest.approx(getattr(KNOWN, price)), price


def test_no_price_is_below_zero() -> None:
    """Where more keys took less time, keys are free."""
    works = [Work(rows, rows * keys, (), rows) for rows in (1, 2, 8) for keys in (20, 300)]
    works += [Work(0, 0, ((8, start),), 1) for start in (0, 500)]
    steps = [(work, 0.01 * work.tokens - 1e-6 * work.decode_keys) for work in works]
    found = calibrate.fit(steps, None)
    assert found["key"] == 0
    assert min(found["seconds"]) >= 0


def test_the_engine_is_asked_for_every_kind_of_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real engine of a small checkpoint; fewer tokens than a calibration has, and no look at how long they took."""
    write_checkpoint(tmp_path / "model", "7b")
    monkeypatch.setattr(calibrate, "CONTEXTS", (8, 24))
    monkeypatch.setattr(calibrate, "PROMPTS", (2, 16))
    monkeypatch.setattr(calibrate, "LONG", 48)
    config = EngineConfig(
        model=str(tmp_path / "model"), threads=1, max_num_seqs=4, max_num_batched_tokens=16, max_model_len=64,
        num_kv_blocks=64, progress=False,
    )  # fmt: skip
    with taker() as line:
        engine = calibrate.Engine(config, line)
        steps = calibrate.measure(engine, (1, 4), 64)
    kinds = {(work.decode_rows, work.prefills) for work, _ in steps}
    assert {(1, ()), (4, ()), (0, ((2, 0),)), (0, ((16, 0),)), (0, ((16, 32),))} <= kinds
    assert all(seconds > 0 for _, seconds in steps)
    engine.loop.scheduler.check()
