"""The measure of what a step costs beside its forward pass, on a step of next to nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_every_part_of_a_step_is_counted_and_a_line_goes_through_the_numbers(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    command = [sys.executable, str(ROOT / "bench" / "engineoverhead.py"), "--vocab", "64", "--sequences", "1", "3"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'server'}{os.pathsep}{ROOT / 'kernels'}"}
    subprocess.run([*command, "--out", str(out)], env=environment, check=True, capture_output=True)
    found = json.loads(out.read_text())["vocab"]["64"]
    assert found.keys() == {"greedy", "drawn", "top_p", "sampled"}
    for parts in found.values():
        assert parts.keys() == {"total", "receive", "plan", "batch", "forward", "sample", "complete", "send"}
        for part in parts.values():
            assert part["us"].keys() == {"1", "3"}
            assert all(value > 0 for value in part["us"].values())
            at_three = part["line"]["fixed"] + 3 * part["line"]["each"]
            assert at_three == pytest.approx(part["us"]["3"], abs=0.2)
