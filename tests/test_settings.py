"""leoserve.settings and leoserve.flags: every option once, and errors that say where and what."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

import leokernels
from leoserve.engine.config import EngineConfig
from leoserve.engine.start import KV_DTYPES
from leoserve.flags import add_options
from leoserve.settings import PREFIX, Settings, SettingsError, extra, flag, unknown_variables

FIELDS = Settings.model_fields


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FIELDS:
        monkeypatch.delenv((PREFIX + name).upper(), raising=False)


@pytest.fixture
def yaml(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "options.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def parse(*arguments: str) -> Settings:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_options(parser)
    return Settings.load(vars(parser.parse_args(arguments)))


def help_page() -> str:
    parser = argparse.ArgumentParser(formatter_class=lambda prog: argparse.HelpFormatter(prog, width=100_000))
    add_options(parser)
    return parser.format_help()


@pytest.mark.parametrize("name", FIELDS)
def test_every_option_says_what_it_is_and_when_to_change_it(name: str) -> None:
    description = FIELDS[name].description or ""
    assert description.endswith(".")
    assert len(description.split()) >= 5
    assert extra(FIELDS[name])["group"]


@pytest.mark.parametrize("name", FIELDS)
def test_help_shows_every_option_with_its_description_and_default(name: str) -> None:
    field = FIELDS[name]
    line = next(line for line in help_page().splitlines() if (field.description or "?") in line)
    assert "[default: " in line
    if unit := extra(field)["unit"]:
        assert unit in line.rpartition("[default: ")[2]
    assert (flag(name) if name != "model" else "MODEL") in help_page()


def test_help_groups_the_options() -> None:
    page = help_page()
    positions = [page.index(f"\n{group}:\n") for group in ("Model", "Server", "Engine", "Limits", "Files")]
    assert positions == sorted(positions)


def test_a_flag_wins_over_a_variable_over_the_file_over_the_default(
    monkeypatch: pytest.MonkeyPatch, yaml: Callable[[str], Path]
) -> None:
    assert parse().max_num_seqs == 256
    path = str(yaml("max_num_seqs: 3"))
    assert parse("--config", path).max_num_seqs == 3
    monkeypatch.setenv("LEOSERVE_MAX_NUM_SEQS", "4")
    assert parse("--config", path).max_num_seqs == 4
    assert parse("--config", path, "--max-num-seqs", "5").max_num_seqs == 5


def test_the_file_can_be_named_by_a_variable(monkeypatch: pytest.MonkeyPatch, yaml: Callable[[str], Path]) -> None:
    monkeypatch.setenv("LEOSERVE_CONFIG", str(yaml("port: 9001")))
    assert parse().port == 9001


def test_lists_are_repeated_flags_or_commas_or_yaml_lists(
    monkeypatch: pytest.MonkeyPatch, yaml: Callable[[str], Path]
) -> None:
    assert parse("--api-key", "a", "--api-key", "b").api_key == ["a", "b"]
    monkeypatch.setenv("LEOSERVE_SERVED_MODEL_NAME", "leo, leo-7b")
    assert parse().served_model_name == ["leo", "leo-7b"]
    path = str(yaml("cors_origin: [http://one, http://two]\napi-key: only"))
    assert parse("--config", path).cors_origin == ["http://one", "http://two"]
    assert parse("--config", path).api_key == ["only"]


def test_switches_have_a_flag_for_each_side(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse("--no-enable-prefix-caching").enable_prefix_caching is False
    monkeypatch.setenv("LEOSERVE_LOG_REQUESTS", "false")
    assert parse().log_requests is False
    assert parse("--log-requests").log_requests is True


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEOSERVE_MAX_MODEL_LEN", "")
    assert parse().max_model_len is None


def test_the_port_variable_that_kubernetes_sets_for_a_service_is_not_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEOSERVE_PORT", "tcp://10.96.0.7:8000")
    assert parse().port == 8000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "99999"], "--port 99999: should be less than or equal to 65535"),
        (["--max-num-seqs", "0"], "--max-num-seqs 0: should be greater than or equal to 1"),
        (["--dtype", "half"], "--dtype half: should be 'auto', 'bfloat16', 'float16' or 'float32'"),
        (["--threads", "two"], "--threads two: should be a valid integer, unable to parse string as an integer"),
        (["--gpu-memory-utilization", "1.5"], "--gpu-memory-utilization 1.5: should be less than or equal to 1"),
    ],
)
def test_an_error_names_the_flag_and_the_value(arguments: list[str], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(*arguments)
    assert str(caught.value) == message


def test_a_step_too_small_for_the_answers_is_refused_with_both_flags_and_what_to_set() -> None:
    with pytest.raises(SettingsError) as caught:
        parse("--max-num-batched-tokens", "16", "--max-num-seqs", "64")
    message = str(caught.value)
    assert "\n" not in message
    for part in ("--max-num-batched-tokens 16", "--max-num-seqs 64", "to 16 or less", "to 64 or more"):
        assert part in message
    assert parse("--max-num-batched-tokens", "64", "--max-num-seqs", "64").max_num_batched_tokens == 64


def test_an_error_names_the_variable_or_the_file_it_came_from(
    monkeypatch: pytest.MonkeyPatch, yaml: Callable[[str], Path]
) -> None:
    path = yaml("block_size: -1")
    with pytest.raises(SettingsError, match=f"^--config {path}: block_size: -1: should be greater"):
        parse("--config", str(path))
    monkeypatch.setenv("LEOSERVE_BLOCK_SIZE", "many")
    with pytest.raises(SettingsError, match="^LEOSERVE_BLOCK_SIZE=many: should be a valid integer"):
        parse()


def test_errors_never_show_a_key(yaml: Callable[[str], Path]) -> None:
    with pytest.raises(SettingsError) as caught:
        parse("--config", str(yaml("api_key: [12345]")))
    assert "12345" not in str(caught.value)
    assert "api_key" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prt: 1", "there is no option prt; did you mean port?"),
        ("- port", "expected lines like `port: 8000`, found a list"),
        ("port: [1", "no valid YAML in line 1"),
        ("config: other.yaml", "a file cannot name another file"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(yaml: Callable[[str], Path], text: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse("--config", str(yaml(text)))
    assert message in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--config .*/none.yaml: no such file or directory$"):
        parse("--config", str(tmp_path / "none.yaml"))


def test_variables_that_are_no_option_are_named_with_the_nearest_one() -> None:
    environ = {"LEOSERVE_MAX_MODEL_LENGTH": "1", "LEOSERVE_PORT": "1", "LEOSERVE_SERVICE_PORT_HTTP": "1", "HOME": "/"}
    assert unknown_variables(environ) == [
        "LEOSERVE_MAX_MODEL_LENGTH is no option and has no effect; did you mean LEOSERVE_MAX_MODEL_LEN?"
    ]


def test_keys_and_tokens_are_never_printed() -> None:
    settings = parse("--api-key", "secret-0", "--hf-token", "secret-1", "--port", "1")
    assert "secret" not in repr(settings)
    assert settings.chosen() == {"port": "1", "api_key": "•••", "hf_token": "•••"}


def test_the_engine_gets_every_option_that_is_its_own() -> None:
    settings = parse("--max-num-seqs", "3", "--kv-cache-memory", "0.5", "--no-enable-prefix-caching", "--seed", "7")
    config = settings.engine_config(Path("/models/leo"), [(0, 10), (12, 20)])
    assert config.model == "/models/leo"
    assert config.token_ranges == [(0, 10), (12, 20)]
    assert config.kv_cache_memory_bytes == 1 << 29
    for name in set(EngineConfig.__struct_fields__) & set(FIELDS) - {"model"}:
        assert getattr(config, name) == getattr(settings, name), name


def test_everything_the_engine_can_be_told_is_an_option() -> None:
    given = {"model", "token_ranges", "progress", "kv_cache_memory_bytes"}
    assert set(EngineConfig.__struct_fields__) - given <= set(FIELDS)


def test_the_help_names_every_attention_kernel() -> None:
    assert FIELDS["attention"].description is not None
    assert ", ".join(leokernels.NAMES[:-1]) + f" or {leokernels.NAMES[-1]}" in FIELDS["attention"].description


@pytest.mark.parametrize("dtype", KV_DTYPES)
def test_every_dtype_of_the_cache_is_one_that_the_engine_knows(dtype: str) -> None:
    settings = parse("--kv-dtype", dtype)
    assert settings.engine_config(Path("model"), []).kv_dtype == dtype
