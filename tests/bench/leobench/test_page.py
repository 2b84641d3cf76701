"""Every command that docs/bench.md shows for a server and for results runs, in the order of the page."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

from tests.conftest import PATIENCE, ROOT, Server, clean_environment

from .conftest import command

PAGE = (ROOT / "docs" / "bench.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
LINES = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines() if line.startswith("leobench ")]
TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:15:4{at // 5}.{at % 5 * 2}000000,{30 + at},{4 + at}\n" for at in range(30)
)


def words_of(line: str, url: str) -> list[str]:
    """The command as it stands, for another server, and for two seconds where it would take a minute."""
    words = shlex.split(line, comments=True)[1:]
    if words[0] in ("run", "sweep"):
        words = [url if word.startswith("http://") else word for word in words]
        words += [] if "--url" in words else ["--url", url]
        if "--duration" in words:
            words[words.index("--duration") + 1] = "2"
    return words


def test_the_pages_commands_do_what_they_say(demo_server: Server, tmp_path: Path) -> None:
    (tmp_path / "AzureLLMInferenceTrace_conv.csv").write_text(TRACE)
    shown = [line for line in LINES if line.split()[1] in ("run", "sweep", "report", "compare")]
    assert {line.split()[1] for line in shown} == {"run", "sweep", "report", "compare"}
    for line in shown:
        words = words_of(line, demo_server.url)
        if words[0] in ("report", "compare"):  # of results that a user would have: any will do
            for name in re.findall(r"[\w-]+\.json", line):
                if not (tmp_path / name).exists():
                    (tmp_path / name).write_bytes((tmp_path / "result.json").read_bytes())
        done = subprocess.run(
            command(*words), env=clean_environment(), cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE
        )
        searched = "--search" in words  # the machine of the tests may be too slow for the page's bounds
        assert done.returncode in ((0, 1) if searched else (0,)), f"{line}\n{done.stdout}{done.stderr}"
        assert done.stdout.strip(), line
        assert "Traceback" not in done.stderr
        if "--out" in words:
            assert (tmp_path / words[words.index("--out") + 1]).stat().st_size > 0


def test_the_page_names_only_options_that_exist() -> None:
    for name in ("run", "sweep"):
        done = subprocess.run(
            command(name, "--help"),
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE,
        )
        for line in (line for line in LINES if line.split()[1] == name):
            for option in re.findall(r"(?<= )--[\w-]+", line):
                assert option in done.stdout, line
