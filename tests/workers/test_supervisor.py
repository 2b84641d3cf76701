"""A server whose workers cannot start says so, and ends."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.checkpoints import write_checkpoint
from tests.conftest import PATIENCE, clean_environment

SCRIPT = """
import sys
from leoserve import cli
from leoserve.workers import member
member.WORKER = {worker!r}
sys.exit(cli.main(["serve", {folder!r}, "--port", "0", "--threads", "1", "--api-workers", "2"]))
"""

FAILING = "import sys; sys.stderr.write('no room for a worker\\n'); sys.exit(1)"


def test_workers_that_end_before_they_have_answered_are_the_servers_end_and_a_line_that_says_so(
    tmp_path: Path,
) -> None:
    folder = write_checkpoint(tmp_path / "leo", "7b")
    script = SCRIPT.format(worker=("-c", FAILING), folder=str(folder))
    done = subprocess.run(
        [sys.executable, "-c", script], env=clean_environment(), capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 2
    assert "no room for a worker" in done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(r"^leoserve: error: API worker [12] ended with code 1 before it had answered$", done.stderr, re.M)
