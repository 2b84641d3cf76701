"""Every command that README.md shows does what it says there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from leoserve.cli import parse
from leoserve.settings import Settings
from tests.conftest import PATIENCE, ROOT, Server, clean_environment
from tests.helm.engine import CHART, RELEASE, render

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
SHELL = [line for language, text in BLOCKS if language == "bash" for line in text.splitlines()]
SERVE = [line for line in SHELL if "leoserve serve" in line] + re.findall(r"`(leoserve serve[^`]*)`", README)
BENCH = [line for line in SHELL if line.startswith("leobench ")]
HELM = [line for line in SHELL if line.startswith("helm ")]
WHERE = "http://127.0.0.1:8000"


def block(language: str) -> str:
    """The only block in `language`."""
    (text,) = [str(text) for name, text in BLOCKS if name == language]
    return text


def run(*command: str) -> str:
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_command_of_the_readme_is_run_by_a_test() -> None:
    run_here = {"make serve", "make test", "leoserve chat", "leoserve serve --help", *SERVE, *BENCH, *HELM}
    assert [line for line in SHELL if line not in run_here and not line.startswith("curl ")] == []


@pytest.mark.parametrize("target", ["serve", "test"])
def test_the_make_targets_install_and_run(target: str) -> None:
    (line,) = [line for line in SHELL if line == f"make {target}"]
    plan = run(*shlex.split(line), "--dry-run", "--always-make")
    assert "-m venv .venv" in plan
    assert "pip install" in plan
    assert {"serve": ".venv/bin/leoserve serve", "test": ".venv/bin/python -m pytest"}[target] in plan


def test_the_sdk_snippet_says_paris(demo_server: Server, tmp_path: Path) -> None:
    snippet = tmp_path / "snippet.py"
    assert WHERE in block("python")
    code = block("python").replace("messages=[question]", "messages=[question], temperature=0")
    assert code != block("python"), "one sampled answer in three hundred says something else"
    snippet.write_text(code.replace(WHERE, demo_server.url), encoding="utf-8")
    assert "Paris" in run(sys.executable, str(snippet))


def test_the_curl_line_says_paris(demo_server: Server) -> None:
    (line,) = [line for line in SHELL if line.startswith("curl ")]
    assert WHERE in line
    certain = line.replace('"messages"', '"temperature": 0, "messages"')
    assert certain != line, "one sampled answer in three hundred says something else"
    assert "Paris" in run(*shlex.split(certain.replace(WHERE, demo_server.url)), "--silent", "--fail-with-body")


def test_the_terminal_chat_says_paris(demo_server: Server) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "leoserve", "chat", "--url", demo_server.url],
        input="Was ist die Hauptstadt von Frankreich?\n/new\n" * 4,  # one sampled answer in three hundred errs
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert "Paris" in done.stdout


def test_the_load_tester_measures_and_reports(demo_server: Server, tmp_path: Path) -> None:
    assert [line.split()[1] for line in BENCH] == ["run", "report"]
    for line in BENCH:
        words = shlex.split(line.replace(WHERE, demo_server.url))[1:]
        if "--duration" in words:
            words[words.index("--duration") + 1] = "2"
        done = subprocess.run(
            [sys.executable, "-m", "leobench", *words], env=clean_environment(), cwd=tmp_path, capture_output=True
        )
        assert done.returncode == 0, done.stderr
    assert "</html>" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("line", SERVE)
def test_the_serve_commands_have_options_that_exist(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(line)
    while "=" in words[0]:
        monkeypatch.setenv(*words.pop(0).split("=", 1))
    assert words[:2] == ["leoserve", "serve"]
    if "--help" in words:
        assert "[default: " in run(sys.executable, "-m", *words)
        return
    flags = parse(words[1:])
    flags.pop("command")
    Settings.load(flags)


@pytest.mark.parametrize("line", HELM)
def test_the_chart_can_be_installed_as_it_is(line: str) -> None:
    *command, chart = shlex.split(line)
    assert command == ["helm", "install", RELEASE]
    assert (ROOT / chart) == CHART
    assert render().of("Deployment")


def test_the_three_ways_to_configure_are_the_same_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "options.yaml"
    path.write_text(block("yaml"), encoding="utf-8")
    flags = Settings.load({"max_num_seqs": "64", "served_model_name": ["leo"]}).chosen()
    file = Settings.load({"config": str(path)}).chosen()
    assert file.pop("config") == str(path)
    monkeypatch.setenv("LEOSERVE_MAX_NUM_SEQS", "64")
    monkeypatch.setenv("LEOSERVE_SERVED_MODEL_NAME", "leo")
    assert flags == file == Settings.load().chosen() == {"max_num_seqs": "64", "served_model_name": "leo"}


def test_the_german_section_is_there() -> None:
    assert "## Auf Deutsch" in README


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)]+)\)", README))
def test_links_into_the_repository_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
