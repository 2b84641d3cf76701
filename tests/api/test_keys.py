"""The file of keys is read again when it changes, and a broken one closes nobody out."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import pytest

from leoserve.api.keys import Keys, Signature, settled, signature
from leoserve.keyfile import Quota
from leoserve.settings import Settings, SettingsError

from .conftest import Start


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("eins\n", encoding="utf-8")
    return path


def opening(keys: Keys, *candidates: str) -> set[str]:
    return {key for key in candidates if keys.client(key.encode()) is not None}


def test_a_key_is_found_wherever_it_stands_and_only_whole() -> None:
    keys = Keys(Settings(api_key=["a", "b", "schlüssel"]))
    assert opening(keys, "a", "b", "schlüssel", "", "A", "ab", "c", "schlussel") == {"a", "b", "schlüssel"}
    found = keys.client(b"a")
    assert found is not None
    assert found.key_hash is not None
    assert keys.needed
    assert not Keys(Settings()).needed


def test_a_file_written_anew_opens_for_its_new_keys_and_no_longer_for_the_old(path: Path) -> None:
    keys = Keys(Settings(api_key=["flag"], api_key_file=path))
    path.write_text("zwei\n", encoding="utf-8")  # of the same length, at once
    assert opening(keys, "flag", "eins", "zwei") == {"flag", "zwei"}


def test_a_file_put_in_its_place_is_read(path: Path) -> None:
    keys = Keys(Settings(api_key_file=path))
    other = path.with_name("other")
    other.write_text("drei\n", encoding="utf-8")
    other.replace(path)
    assert opening(keys, "eins", "drei") == {"drei"}


def test_a_link_that_is_turned_to_another_folder_is_followed_as_kubernetes_mounts_secrets(tmp_path: Path) -> None:
    for name, key in (("..2026_1", "eins"), ("..2026_2", "zwei")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys").write_text(key, encoding="utf-8")
    (tmp_path / "..data").symlink_to("..2026_1")
    (tmp_path / "keys").symlink_to("..data/keys")
    keys = Keys(Settings(api_key_file=tmp_path / "keys"))
    assert opening(keys, "eins", "zwei") == {"eins"}
    (tmp_path / "..data_tmp").symlink_to("..2026_2")
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")
    assert opening(keys, "eins", "zwei") == {"zwei"}


@pytest.mark.parametrize("broken", ["", "# none\n", "a b\n", None])
def test_a_broken_file_keeps_the_old_keys_and_says_so_once(
    path: Path, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    keys = Keys(Settings(api_key_file=path))
    if broken is None:
        path.unlink()
    else:
        path.write_text(broken, encoding="utf-8")
    for _ in range(5):
        assert opening(keys, "eins", "a") == {"eins"}
    (warning,) = [entry for entry in caplog.records if entry.levelno == logging.WARNING]
    assert f"--api-key-file {path}" in warning.message
    assert "the keys stay as they were" in warning.message
    path.write_text("zwei\n", encoding="utf-8")
    assert opening(keys, "eins", "zwei") == {"zwei"}


def test_a_file_that_rests_is_not_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keys(Settings(api_key_file=path))
    stale = time.time_ns() + 10_000_000_000  # as if ten seconds had passed
    monkeypatch.setattr(time, "time_ns", lambda: stale)
    assert opening(keys, "eins") == {"eins"}

    def read(*args: object, **kwargs: object) -> str:
        raise AssertionError("read again")

    monkeypatch.setattr(Path, "read_text", read)
    assert opening(keys, "eins") == {"eins"}


def test_a_file_just_changed_may_change_again_unseen() -> None:
    def found(changed: int) -> Signature:
        return (1, 2, 3, changed, changed)

    assert not settled(found(time.time_ns()))
    assert settled(found(time.time_ns() - 10_000_000_000))
    assert settled(())


def test_what_a_key_has_spent_outlives_a_new_file_unless_its_limits_change(path: Path) -> None:
    path.write_text("eins tokens_per_minute=10\nzwei tokens_per_minute=10\n", encoding="utf-8")
    keys = Keys(Settings(api_key_file=path))
    before = keys.client(b"eins"), keys.client(b"zwei")
    path.write_text("eins tokens_per_minute=10\nzwei tokens_per_minute=20\n", encoding="utf-8")
    assert keys.client(b"eins") is before[0]
    changed = keys.client(b"zwei")
    assert changed is not None
    assert changed is not before[1]
    assert changed.allowance.quota == Quota(None, 20)


def test_a_file_that_is_broken_at_the_start_is_an_error(path: Path) -> None:
    path.write_text("", encoding="utf-8")
    with pytest.raises(SettingsError, match="holds no key"):
        Keys(Settings(api_key_file=path))


def test_the_signature_of_a_file_tells_any_other_from_it(path: Path) -> None:
    first = signature(path)
    assert first == signature(path)
    os.utime(path, ns=(0, 0))
    assert signature(path) != first
    path.unlink()
    assert signature(path) == ()


async def test_a_running_server_takes_a_new_key_and_refuses_the_old_one(start: Start, path: Path) -> None:
    server = await start(api_key_file=path)

    async def status(key: str) -> int:
        return (await server.http.get("/v1/models", headers={"Authorization": f"Bearer {key}"})).status_code

    assert [await status(key) for key in ("eins", "zwei")] == [200, 401]
    path.write_text("zwei\n", encoding="utf-8")
    assert [await status(key) for key in ("eins", "zwei")] == [401, 200]
