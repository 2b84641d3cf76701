"""What the pages under docs/ show runs as it stands there, on the demo model."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PATIENCE

from .conftest import ROOT, Server

WHERE = "http://127.0.0.1:8000"
PAGES = sorted((ROOT / "docs").glob("*.md"))
SNIPPETS = [
    (page, code)
    for page in PAGES
    for code in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    if WHERE in code
]


@pytest.mark.parametrize(("page", "code"), SNIPPETS, ids=lambda part: part.stem if isinstance(part, Path) else "")
def test_what_a_page_shows_runs(page: Path, code: str, demo_server: Server, tmp_path: Path) -> None:
    file = tmp_path / "snippet.py"
    file.write_text(code.replace(WHERE, demo_server.url), encoding="utf-8")
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "it prints what it got"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link
