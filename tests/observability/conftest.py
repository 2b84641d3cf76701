"""What tests of alerts and dashboards share: the tools of Debian's package prometheus."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import PATIENCE

Promtool = Callable[..., "subprocess.CompletedProcess[str]"]


def found(program: str) -> str:
    """The program's path. Skips the test where it is missing."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is missing; Debian's package prometheus has it")
    return path


@pytest.fixture(scope="session")
def promtool() -> Promtool:
    """Runs promtool with these arguments and gives back how it ended."""
    path = found("promtool")

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([path, *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE)

    return run
