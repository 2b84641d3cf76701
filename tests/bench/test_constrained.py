"""The measure of what constrained rows cost a step, on the demo model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PATIENCE

ROOT = Path(__file__).parents[2]


def test_steps_of_every_kind_of_set_are_measured_against_free_ones() -> None:
    command = [sys.executable, str(ROOT / "bench" / "constrained_steps.py"), str(ROOT / "server/leoserve/demo/model")]
    done = subprocess.run(
        [*command, "--rows", "2", "3", "--rounds", "1"], check=True, capture_output=True, text=True, timeout=PATIENCE
    )
    found = json.loads(done.stdout)
    assert found.keys() == {"2", "3"}
    for kinds in found.values():
        assert kinds.keys() == {"free", "half", "constrained"}
        assert kinds["free"]["ratio"] == 1
        for each in kinds.values():
            assert each["ms"] > 0
            assert each["ratio"] == pytest.approx(each["ms"] / kinds["free"]["ms"], abs=0.02)
