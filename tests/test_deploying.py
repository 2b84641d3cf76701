"""docs/deploy.md: its commands fit the chart and the command line, its tables are what the code computes.

`python -m tests.test_deploying` makes the tables again.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import httpx2
import pytest
import yaml

from leoserve.cli import parse
from leoserve.model import footprint, published
from leoserve.model.capacity import GPU_MEMORY
from leoserve.settings import Settings, flag
from leoserve.size import lines as size_lines
from leoserve.size import measure, models
from tests.conftest import PATIENCE, ROOT, Server, clean_environment
from tests.helm.engine import CHART, Rendering, at, merged, render

PAGE = ROOT / "docs" / "deploy.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
SHELL = [line for language, text in BLOCKS if language == "bash" for line in text.splitlines()]
VALUES = [text for language, text in BLOCKS if language == "yaml" and text.startswith("# values")]
SPANS = sorted(set(re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", TEXT, flags=re.MULTILINE | re.DOTALL))))
NAMESPACE = "leo"
HELM_FLAGS = {
    "--namespace",
    "--create-namespace",
    "--values",
    "--set",
    "--install",
    "--reset-then-reuse-values",
    "--logs",
}
HELM_COMMANDS = {"install", "upgrade", "history", "rollback", "test"}
OTHER_FLAGS = {"--gpu", "--help", "--version"}  # of `leoserve size`, of every command, of helm
# GB/s: a line of 1 and of 10 Gbit/s, a network disk and an NVMe disk of the usual kind.
SPEEDS = {"1 Gbit/s": 0.125, "10 Gbit/s": 1.25, "disk, 0.5 GB/s": 0.5, "disk, 3 GB/s": 3.0}


def size_table() -> str:
    """What `leoserve size` prints."""
    settings = Settings.load({})
    return "\n".join(size_lines(*measure(models(None), GPU_MEMORY, settings), settings))


def cold_starts() -> str:
    """Minutes until the weights have come, by what they come over."""
    rows = [["Model", "Weights", *SPEEDS], ["---", "--:", *["--:"] * len(SPEEDS)]]
    for short, repository in published.SHORT.items():
        gigabytes = footprint.weight_bytes(published.NETWORKS[repository], 2) / 1e9
        rows.append([short, f"{gigabytes:.1f} GB", *(f"{gigabytes / speed / 60:.1f}" for speed in SPEEDS.values())])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


TABLES = {"leoserve size": size_table, "cold start": cold_starts}


def with_tables(text: str) -> str:
    for name, make in TABLES.items():
        begin = f"<!-- {name} -->\n"
        before, _, rest = text.partition(begin)
        _, end, after = rest.partition("<!-- end -->")
        assert end, name
        text = f"{before}{begin}{make()}\n{end}{after}"
    return text


def test_the_tables_are_what_the_code_computes() -> None:
    assert with_tables(TEXT) == TEXT, "make them again: python -m tests.test_deploying"


@cache
def defaults() -> Rendering:
    return render({}, name="leo", namespace=NAMESPACE)


def differs(values: dict[str, Any]) -> bool:
    """Whether the chart makes something else of `values` than of its defaults. Its generated key is always another."""
    found = render(values, name="leo", namespace=NAMESPACE)
    return without_keys(found) != without_keys(defaults())


def without_keys(rendering: Rendering) -> list[dict[str, Any]]:
    return [one for one in rendering.objects if one["kind"] != "Secret"]


def helm_values(words: list[str]) -> dict[str, Any]:
    """The values that a command line of Helm gives."""
    layers: list[dict[str, Any]] = []
    for option, value in zip(words, words[1:], strict=False):
        if option == "--values" and value != "values.yaml":  # the reader's own
            layers.append(yaml.safe_load((ROOT / value).read_text(encoding="utf-8")))
        elif option == "--set":
            path, _, given = value.partition("=")
            layers.append(at(path, yaml.safe_load(given)))
    return merged(*layers)


HELM = [line for line in SHELL if line.startswith("helm ")]
KUBECTL = [part.strip() for line in SHELL for part in re.split(r"\||\$\(", line) if part.strip().startswith("kubectl ")]
LEOSERVE = [line for line in SHELL if line.startswith("leoserve ")]


def test_every_command_is_of_a_kind_that_is_checked() -> None:
    kinds = ("helm ", "kubectl ", "leoserve ", "curl ", "export LEOSERVE_API_KEY=$(kubectl ")
    assert [line for line in SHELL if not line.startswith(kinds)] == []
    assert [language for language, _ in BLOCKS if language not in ("bash", "yaml", "text")] == []


@pytest.mark.parametrize("line", HELM)
def test_helm_takes_the_command_and_the_chart_its_values(line: str) -> None:
    _, command, release, *words = shlex.split(line)
    assert command in HELM_COMMANDS
    assert release == "leo"
    assert {word for word in words if word.startswith("-")} <= HELM_FLAGS
    assert words[words.index("--namespace") + 1] == NAMESPACE
    if command in ("install", "upgrade"):
        assert ROOT / words[0] == CHART
        given = helm_values(words)
        assert differs(given) == bool(given)


@pytest.mark.parametrize("text", VALUES)
def test_the_chart_takes_the_values_that_are_shown(text: str) -> None:
    assert differs(yaml.safe_load(text))


@pytest.mark.parametrize("line", KUBECTL)
def test_what_kubectl_asks_for_is_what_the_chart_makes(line: str) -> None:
    words = shlex.split(line.rstrip("&").rstrip(")"))
    made = {f"{one['kind'].lower()}/{one['metadata']['name']}" for one in defaults().objects}
    if words[1] == "apply":
        assert words[2:] == ["-f", "-"]
        return
    assert words[1:3] == ["-n", NAMESPACE]
    named = [word for word in words if re.fullmatch(r"(deployment|service)/\S+", word)]
    assert set(named) <= made
    if words[3:5] == ["get", "secret"]:
        (path,) = re.findall(r"jsonpath=\{\.data\.(\w+)\}", line)
        assert path in defaults().one("Secret", words[5])["data"]
    elif words[3:5] == ["create", "secret"]:
        assert words[5] == "generic"
        assert words[words.index("--from-file") + 1] == "keys=keys.txt"
    elif words[3] == "logs":
        assert words[words.index("-c") + 1] == defaults().serving[0].server["name"]
    else:
        assert words[3] in ("rollout", "port-forward")
        assert named


def test_the_five_commands_are_those_that_the_chart_tells_after_its_installation() -> None:
    install, *others = SHELL[:5]
    assert install == "helm install leo helm/leoserve --namespace leo --create-namespace"
    assert all(one.removesuffix(" &") in defaults().notes for one in others)


def test_the_key_is_found_among_comments_and_limits() -> None:
    (line,) = [line for line in SHELL if line.startswith("export ")]
    (secret,) = re.findall(r"kubectl [^|]+", line)
    (keys,) = [text for language, text in BLOCKS if language == "text"]
    for content in (keys, "  # first\nsk-team-eins requests_per_minute=1\n"):
        coded = base64.b64encode(content.encode()).decode()
        script = line.replace(secret, f"printf %s {coded} ") + '; printf %s "$LEOSERVE_API_KEY"'
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout == "sk-team-eins"


def test_the_chat_says_paris(demo_server: Server) -> None:
    (line,) = [line for line in SHELL if line.startswith("curl ")]
    words = shlex.split(line)
    body = json.loads(words[words.index("-d") + 1])
    assert body["model"] == yaml.safe_load((CHART / "values.yaml").read_text())["model"]["hub"]["id"]
    url = words[1].replace("http://127.0.0.1:8000", demo_server.url)
    answer = httpx2.post(url, json=body | {"model": "leoserve-demo", "temperature": 0}, timeout=PATIENCE)
    assert "Paris" in answer.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize("line", LEOSERVE)
def test_the_commands_of_leoserve_run_or_have_options_that_exist(line: str) -> None:
    words = shlex.split(line)[1:]
    if words[0] == "size":
        command = [sys.executable, "-m", "leoserve", *words]
        done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("| Model | GPU |")
        return
    flags = parse(words)
    assert flags.pop("command") == "download"
    Settings.load(flags)


def named_values() -> Iterator[str]:
    """What looks like a value of the chart: `cache.size`, `options.kv_dtype: int8`, `models:`."""
    for span in SPANS:
        match = re.fullmatch(r"([a-z][A-Za-z]*(?:\.[A-Za-z_]+)+)(?:: \S+)?|([a-z][A-Za-z]+):", span)
        if match and not span.endswith((".py", ".md", ".yaml")):
            yield match[1] or match[2]


@pytest.mark.parametrize("path", list(named_values()))
def test_values_that_the_page_names_exist(path: str) -> None:
    first, *rest = path.split(".")
    if first == "options":
        assert rest[0] in Settings.model_fields
        return
    place: Any = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    parents = [place, *(value for value in place.values() if isinstance(value, dict))]
    assert any(has(parent, [first, *rest]) for parent in parents), "neither a value nor one of a group of values"


def has(place: Any, path: list[str]) -> bool:
    for key in path:
        if not isinstance(place, dict) or key not in place:
            return False
        place = place[key]
    return True


def test_options_and_files_that_the_page_names_exist() -> None:
    ours = {flag(name) for name in Settings.model_fields} | OTHER_FLAGS
    flags = {word for span in SPANS for word in re.findall(r"(?<!\S)--[a-z-]+", span)}
    assert flags <= ours
    assert [span for span in SPANS if re.fullmatch(r"tests/\S+", span) and not (ROOT / span).exists()] == []


def test_the_numbers_in_the_text_are_the_charts() -> None:
    (pod,) = defaults().serving
    seconds = pod.spec["terminationGracePeriodSeconds"]
    assert f"15 s at most, {seconds} s" in " ".join(TEXT.split())
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert values["probes"]["startupSeconds"] == 15 * 60


if __name__ == "__main__":
    PAGE.write_text(with_tables(TEXT), encoding="utf-8")
