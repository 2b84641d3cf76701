"""leoserve.keyfile: which keys are configured, and what each may spend."""

from __future__ import annotations

from pathlib import Path

import pytest

from leoserve.keyfile import MAX_FILE_BYTES, Quota, configured
from leoserve.settings import Settings, SettingsError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def test_keys_come_from_flags_and_from_the_file(path: Path) -> None:
    path.write_text("# team one\nsecret-1\n\nsecret-2  \n", encoding="utf-8")
    settings = Settings(api_key=["secret-0"], api_key_file=path)
    assert configured(settings) == dict.fromkeys(["secret-0", "secret-1", "secret-2"], Quota())
    assert configured(Settings()) == {}


def test_a_line_of_the_file_may_have_limits_of_its_own(path: Path) -> None:
    lines = (
        "plain",
        "one requests_per_minute=60",
        "two\ttokens_per_minute=7  requests_per_minute=8 # a comment",
        "free requests_per_minute=0 tokens_per_minute=0",
        "given tokens_per_minute=9",
    )
    path.write_text("\n".join(lines), encoding="utf-8")
    settings = Settings(api_key=["flag", "given"], api_key_file=path, requests_per_minute=5, tokens_per_minute=50)
    assert configured(settings) == {
        "flag": Quota(5, 50),
        "plain": Quota(5, 50),
        "one": Quota(60, 50),
        "two": Quota(8, 7),
        "free": Quota(None, None),
        "given": Quota(5, 9),
    }


@pytest.mark.parametrize(
    "line", ["a b", "a requests=5", "a requests_per_minute", "a tokens_per_minute=-1", "a tokens_per_minute=1e3"]
)
def test_a_line_that_makes_no_sense_is_refused_by_its_number_and_never_shown(path: Path, line: str) -> None:
    path.write_text(f"fine\nsecret{line}\n", encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        configured(Settings(api_key_file=path))
    message = str(caught.value)
    assert "line 2" in message
    assert "requests_per_minute=NUMBER and tokens_per_minute=NUMBER" in message
    assert "secret" not in message


def test_a_key_file_without_a_key_does_not_open_the_server(path: Path) -> None:
    path.write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(SettingsError, match="holds no key"):
        configured(Settings(api_key_file=path))
    with pytest.raises(SettingsError, match="no such file"):
        configured(Settings(api_key_file=path.parent / "none"))
    with pytest.raises(SettingsError, match="the key is empty"):
        configured(Settings(api_key=[" "]))


def test_a_file_that_can_be_no_list_of_keys_is_not_read(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(SettingsError, match="larger than"):
        configured(Settings(api_key_file=path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=f"--api-key-file {path}"):
        configured(Settings(api_key_file=path))
