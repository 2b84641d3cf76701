"""A real HTTP server on a free port, in the test's own event loop, with an engine double behind it."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from openai import AsyncOpenAI
from tokenizers import AddedToken, decoders, models, normalizers, trainers
from tokenizers import Tokenizer as Backend

from leoserve.api.app import create_app
from leoserve.api.connection import Connection
from leoserve.api.context import ServerContext
from leoserve.engine.request import Request
from leoserve.metrics import Metrics
from leoserve.settings import Settings
from leoserve.text.template import ChatTemplate
from leoserve.text.tokenizer import Tokenizer
from tests.conftest import PATIENCE

from .conformance import check_response
from .double import EngineDouble

SENTENCES = ["Die Hauptstadt von Frankreich ist Paris. Grüße aus Köln, schön und groß, über alle Straßen hinweg."]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer as Llama-2's chat models have it: BPE with byte fallback, then the ChatML tokens."""
    folder = tmp_path_factory.mktemp("checkpoint")
    specials = ["<unk>", "<s>", "</s>"]
    backend = Backend(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=[*specials, *(f"<0x{b:02X}>" for b in range(256))], show_progress=False
    )
    backend.train_from_iterator([sentence.replace(" ", " ▁") for sentence in SENTENCES], trainer)
    model = json.loads(backend.to_str())["model"]
    bpe = models.BPE(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        byte_fallback=True,
        unk_token="<unk>",
        fuse_unk=True,
    )
    tokenizer = Backend(bpe)
    tokenizer.normalizer = backend.normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in specials])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<|im_start|>", "<|im_end|>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "eos_token_id": 2}))
    return folder


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Path) -> Tokenizer:
    return Tokenizer.load(checkpoint)


@dataclass
class Running:
    """A server, its engine, and clients of it."""

    url: str
    context: ServerContext
    engine: EngineDouble
    http: httpx.AsyncClient
    openai: AsyncOpenAI

    def says(self, *texts: str) -> None:
        """Choice j answers with the j-th text (the last one for all further), and then ends its turn."""
        tokenizer = self.context.tokenizer
        end = control(tokenizer, "<|im_end|>")

        def answer(request: Request, index: int) -> Sequence[int]:
            return [*pieces(tokenizer, texts[min(index, len(texts) - 1)]), end]

        self.engine.answer = answer

    async def chat(self, **body: Any) -> httpx.Response:
        message = {"role": "user", "content": "Hallo"}
        return await self.http.post("/v1/chat/completions", json={"model": "leo", "messages": [message]} | body)

    async def complete(self, **body: Any) -> httpx.Response:
        return await self.http.post("/v1/completions", json={"model": "leo", "prompt": "Hallo"} | body)

    async def events(self, path: str = "/v1/chat/completions", **body: Any) -> list[Any]:
        """The data of every event of a streamed answer; [DONE] as it is."""
        default = {"messages": [{"role": "user", "content": "Hallo"}]} if "chat" in path else {"prompt": "Hallo"}
        response = await self.http.post(path, json={"model": "leo", "stream": True} | default | body)
        assert response.status_code == 200, response.text
        return parse_events(response.text)


def pieces(tokenizer: Tokenizer, text: str) -> list[int]:
    """The text as it is generated in the middle of a turn, without a space before it."""
    return tokenizer.encode("\n" + text, add_bos=False)[2:]


def control(tokenizer: Tokenizer, name: str) -> int:
    """The id of a control token."""
    token = tokenizer.token_id(name)
    assert token is not None
    return token


def parse_events(text: str) -> list[Any]:
    assert text.endswith("\n\n")
    data = [event.removeprefix("data: ") for event in text[:-2].split("\n\n") if not event.startswith(":")]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


Start = Callable[..., Awaitable[Running]]


@asynccontextmanager
async def serving(checkpoint: Path, tokenizer: Tokenizer, **options: Any) -> AsyncIterator[Running]:
    settings = Settings(**options)
    engine = EngineDouble(tokenizer, lambda request, index: [])
    template = ChatTemplate.load(checkpoint, settings.chat_template, tokenizer)
    context = ServerContext(settings, engine, tokenizer, template, ["leo", "leo-alias"], int(time.time()), Metrics())
    config = uvicorn.Config(
        create_app(context),
        http=Connection,
        limit_concurrency=settings.max_connections,
        log_config=None,
        lifespan="on",
        timeout_graceful_shutdown=5,
        root_path=settings.root_path,
    )
    server = uvicorn.Server(config)
    # Said to be TCP, or else asyncio leaves Nagle's algorithm on, which holds answers up for 40 ms.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.001)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        key = settings.api_key[0] if settings.api_key else "none"
        async with (
            httpx.AsyncClient(base_url=url, timeout=PATIENCE, event_hooks={"response": [check_response]}) as http,
            AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as sdk,
        ):
            running = Running(url, context, engine, http, sdk)
            running.says("Paris.")
            yield running
        engine.resume.set()
        server.should_exit = True
        await task


@pytest.fixture
async def start(checkpoint: Path, tokenizer: Tokenizer) -> AsyncIterator[Start]:
    """Start a server with these settings."""
    async with AsyncExitStack() as stack:

        async def begin(**options: Any) -> Running:
            return await stack.enter_async_context(serving(checkpoint, tokenizer, **options))

        yield begin


@pytest.fixture
async def server(start: Start) -> Running:
    """A server with all settings at their defaults."""
    return await start()
