"""Bearer keys."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest

from leoserve.api.app import routes
from leoserve.api.keys import Keys
from leoserve.settings import Settings

from .conftest import Running, Start
from .test_errors import error_of

OPEN = {"/health", "/ready", "/metrics"}


@pytest.fixture
async def locked(start: Start, tmp_path: Path) -> Running:
    (tmp_path / "keys").write_text("# of the second client\nkey-zwei\nschlüssel\n", encoding="utf-8")
    return await start(api_key=["key-eins"], api_key_file=tmp_path / "keys")


async def test_every_route_but_three_needs_a_key(locked: Running) -> None:
    anyone, keyed = (
        {(method, route.path) for route in router.routes for method in route.methods}  # type: ignore[attr-defined]
        for router in routes(Keys(Settings()))
    )
    assert anyone == {(method, path) for method in ("GET", "HEAD") for path in OPEN}
    paths = {path for _, path in keyed}
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/version", "/docs", "/openapi.json"} < paths
    for method, path in anyone:
        assert (await locked.http.request(method, path)).status_code == 200
    for method, path in keyed:
        answer = await locked.http.request(method, path.replace("{model:path}", "leo"))
        assert answer.status_code == 401, path
        assert method == "HEAD" or error_of(answer)["code"] == "invalid_api_key", path
        assert answer.headers["www-authenticate"] == "Bearer"


async def test_each_key_opens(locked: Running) -> None:
    assert (
        await locked.openai.chat.completions.create(model="leo", messages=[{"role": "user", "content": "Hallo"}])
    ).id
    for header in ("Bearer key-eins", "bearer key-zwei", "Bearer schlüssel"):
        assert (await locked.http.get("/v1/models", headers=[(b"Authorization", header.encode())])).status_code == 200


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer key", "Bearer key-einss", "Basic key-eins", "key-eins", "Bearer k\u00e9y"]
)
async def test_nothing_else_opens(locked: Running, header: str) -> None:
    answer = await locked.http.get("/v1/models", headers=[(b"Authorization", header.encode("latin-1"))])
    assert answer.status_code == 401
    assert "key-eins" not in answer.text


@pytest.mark.parametrize(
    "path", ["/v1/models?x=/health", "//v1/models", "/v1/models/", "/health/../v1/models", "/v1/models/x/metrics"]
)
async def test_no_spelling_of_a_url_gets_around_the_key(locked: Running, path: str) -> None:
    answer = await locked.http.get(locked.url + path)
    assert answer.status_code in (401, 404)
    assert "leo-alias" not in answer.text


async def test_the_sdk_raises_its_authentication_error(locked: Running) -> None:
    with pytest.raises(openai.AuthenticationError):
        await locked.openai.with_options(api_key="wrong").models.list()


async def test_clients_with_different_keys_share_no_cached_prompts(locked: Running) -> None:
    for key in ("key-eins", "key-zwei", "key-eins"):
        locked.http.headers["Authorization"] = f"Bearer {key}"
        await locked.chat()
    salts = [request.salt for request in locked.engine.requests]
    assert salts[0] == salts[2] != salts[1]
    assert not any("key" in salt for salt in salts)
