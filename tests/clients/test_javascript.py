"""The `openai` package of npm under Node.js: javascript/client.test.mjs, run by Node's own test runner."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.conftest import PATIENCE


def test_the_openai_package_of_npm_works(node: Path, addresses: dict[str, str]) -> None:
    command = ["node", "--test", "--test-reporter=spec", "client.test.mjs"]
    done = subprocess.run(command, cwd=node, env=addresses, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    written = len(re.findall(r"^  test\(", (node / "client.test.mjs").read_text(encoding="utf-8"), re.MULTILINE))
    assert re.search(rf"^ℹ pass {written}$", done.stdout, re.MULTILINE), "none was skipped"
