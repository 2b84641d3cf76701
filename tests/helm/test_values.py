"""The chart's values say one thing in four places, and its options are the server's."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

import leoserve
from leoserve.settings import Settings, SettingsError
from tests.conftest import PATIENCE, ROOT, clean_environment
from tests.helm.engine import CHART, EXAMPLES, Object, example, render

VALUES = ROOT / "helm" / "values.py"
SCHEMA: Object = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
OPTIONS: Object = SCHEMA["properties"]["options"]["properties"]
# What the chart says itself. Nothing else of the server's options may be missing.
NOT_THE_USERS = {
    *("api_key", "api_key_file", "config", "download_dir", "hf_token", "host", "model", "port", "revision"),
    "shutdown_grace",
}


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("chart_values", VALUES)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_made_of_the_values_is_current() -> None:
    done = subprocess.run(
        [sys.executable, str(VALUES), "--check"],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize("name", ["values.yaml", "values.schema.json", "README.md"])
def test_what_is_stale_is_named_and_made_again(
    generator: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    for file in ("values.yaml", "values.schema.json", "README.md"):
        (tmp_path / file).write_bytes((CHART / file).read_bytes())
    stale = tmp_path / name
    current = stale.read_text(encoding="utf-8")
    stale.write_text(current.replace("max_num_seqs" if "max_num_seqs" in current else "replicas", "changed"), "utf-8")
    monkeypatch.setattr(generator, "CHART", tmp_path)
    assert generator.main(["--check"]) == 1
    assert capsys.readouterr().out == f"{stale} is stale: run python helm/values.py\n"
    assert generator.main([]) == 0
    assert stale.read_text(encoding="utf-8") == current


def test_the_options_are_the_servers() -> None:
    assert set(OPTIONS) == set(Settings.model_fields) - NOT_THE_USERS
    for name, schema in OPTIONS.items():
        assert Settings.model_fields[name].description in schema["description"], name


def verdict(tmp_path: Path, options: dict[str, Any]) -> str:
    """What the server says of a file of these options; nothing where it takes them."""
    file = tmp_path / "options.yaml"
    file.write_text(yaml.safe_dump(options), encoding="utf-8")
    try:
        Settings.load({"config": str(file)})
    except SettingsError as error:
        return str(error)
    return ""


def candidates(schema: Object) -> list[Any]:
    """Values within and beyond what `schema` allows."""
    bounds = [schema[key] for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum") if key in schema]
    around = [int(bound) + step for bound in bounds for step in (-1, 0, 1)]
    return [*schema.get("enum", []), *around, 1, 0.5, "nonsense", True, {}, ["a"]]


@pytest.mark.parametrize("name", OPTIONS)
def test_the_schema_takes_what_the_server_takes(tmp_path: Path, name: str) -> None:
    """A value of the right type; of the wrong one the server takes some, such as a number in quotes."""
    check = jsonschema.Draft7Validator(OPTIONS[name])
    types = OPTIONS[name]["type"]
    of_type = jsonschema.Draft7Validator({"type": types})
    for value in candidates(OPTIONS[name]):
        # Two options say something of another one as well: that is not a schema's.
        said = verdict(tmp_path, {"max_num_seqs": 1, name: value})
        refused = bool(said) and "no tensor parallelism yet" not in said
        if check.is_valid(value):
            assert not refused, f"{name}: {value!r}: {said}"
        elif of_type.is_valid(value):
            assert refused, f"{name}: {value!r}"


@pytest.mark.parametrize("name", ["", *(path.stem for path in EXAMPLES)])
def test_the_server_takes_the_options_that_are_rendered(tmp_path: Path, name: str) -> None:
    values = example(name) if name else {}
    for config in render(values).of("ConfigMap"):
        text = config["data"].get("options.yaml")
        if text is None:
            continue
        said = verdict(tmp_path, yaml.safe_load(text))
        assert ("no tensor parallelism yet" in said) if name.startswith("70b") else said == ""


def test_every_value_is_described_and_nothing_else_is_taken() -> None:
    def walk(schema: Object, path: str) -> None:
        assert schema.get("description", "").endswith("."), path
        if "properties" in schema:
            assert schema["additionalProperties"] is False, path
            for name, child in schema["properties"].items():
                walk(child, f"{path}.{name}")
        if isinstance(schema.get("items"), dict) and "properties" in schema["items"]:
            assert schema["items"]["additionalProperties"] is False, path
            for name, child in schema["items"]["properties"].items():
                walk(child, f"{path}[].{name}")

    assert SCHEMA["additionalProperties"] is False
    for name, schema in SCHEMA["properties"].items():
        walk(schema, name)


def test_the_chart_has_the_servers_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["appVersion"] == leoserve.__version__


def test_every_example_is_in_the_readme() -> None:
    readme = (CHART / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in EXAMPLES if f"(examples/{path.name})" not in readme] == []
