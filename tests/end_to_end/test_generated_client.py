"""A client that a generator makes of the served description works."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import PATIENCE, Server

MODEL = "leoserve-demo"
QUESTION = "Was ist die Hauptstadt von Frankreich?"


@pytest.fixture(scope="module")
def generated(demo_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The function that imports a part of the generated package."""
    folder: Path = tmp_path_factory.mktemp("generated")
    (folder / "openapi.json").write_text(
        httpx.get(f"{demo_server.url}/openapi.json", timeout=PATIENCE).text, encoding="utf-8"
    )
    command = ["generate", "--path", "openapi.json", "--meta", "none", "--output-path", "leo_client"]
    (folder / "config.yaml").write_text("post_hooks: []\n", encoding="utf-8")  # they format, with tools of the PATH
    whole = [sys.executable, "-m", "openapi_python_client", *command, "--config", "config.yaml", "--fail-on-warning"]
    subprocess.run(whole, cwd=folder, check=True, timeout=PATIENCE)
    sys.path.insert(0, str(folder))
    yield lambda name: importlib.import_module(f"leo_client.{name}")
    sys.path.remove(str(folder))


def test_a_chat(demo_server: Server, generated: Any) -> None:
    body = generated("models").ChatRequest.from_dict(
        {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "logprobs": True}
    )
    with generated("client").Client(base_url=demo_server.url) as client:
        answer = generated("api.chat.create_chat_completion").sync(client=client, body=body)
    choice = answer.choices[0]
    assert "Paris" in choice.message.content
    assert choice.finish_reason == "stop"
    assert "".join(token.token for token in choice.logprobs.content) == choice.message.content


def test_a_completion_a_tokenization_and_the_models(demo_server: Server, generated: Any) -> None:
    models, api = generated("models"), "api"
    with generated("client").Client(base_url=demo_server.url) as client:
        body = models.CompletionRequest.from_dict({"model": MODEL, "prompt": QUESTION, "max_tokens": 3})
        completion = generated(f"{api}.completions.create_completion").sync(client=client, body=body)
        assert completion.usage.completion_tokens <= 3
        body = models.TokenizeRequest.from_dict({"model": MODEL, "prompt": QUESTION})
        tokens = generated(f"{api}.tokens.tokenize").sync(client=client, body=body)
        assert tokens.count == len(tokens.tokens) == completion.usage.prompt_tokens
        listed = generated(f"{api}.models.list_models").sync(client=client)
        assert [card.id for card in listed.data] == [MODEL]


def test_an_error(demo_server: Server, generated: Any) -> None:
    body = generated("models").CompletionRequest.from_dict({"model": "unbekannt", "prompt": "a"})
    with generated("client").Client(base_url=demo_server.url) as client:
        answer = generated("api.completions.create_completion").sync_detailed(client=client, body=body)
    assert answer.status_code == 404
    assert answer.parsed.error.code == "model_not_found"
    assert MODEL in answer.parsed.error.message
