"""From settings to a running server: check everything cheap, start the engine, then hand over to the lifecycle.

The order is for speed: the engine process starts as soon as its configuration is known and loads the weights while
this process imports its web framework.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import leoserve
from leoserve import checkpoint, demo, log
from leoserve.engine.client import EngineClient
from leoserve.engine.request import Ready
from leoserve.group import read_group
from leoserve.keyfile import configured
from leoserve.listening import StartError, bind, listen, loopback, reachable
from leoserve.model.config import ModelConfig
from leoserve.settings import Settings, unknown_variables
from leoserve.text.template import ChatTemplate
from leoserve.text.tokenizer import Tokenizer
from leoserve.workers import WorkerFailed

if TYPE_CHECKING:
    from leoserve.api.threads import TextThreads
    from leoserve.lifecycle import Front

logger = logging.getLogger("leoserve")

__all__ = ["StartError", "serve"]

DEMO_NAME = "leoserve-demo"


def serve(settings: Settings) -> int:
    """Serve until a signal ends it. Returns the exit code.

    Raises StartError, EngineFailed, and the errors of what it reads: SettingsError, CheckpointError, UnsupportedModel,
    TokenizerError, TemplateError.
    """
    started = time.monotonic()
    signal.signal(signal.SIGTERM, terminate)
    log.configure(settings.log_format, settings.log_level, requests=settings.log_requests)
    for line in unknown_variables(os.environ):
        logger.warning(line)
    read_group(os.environ).require_alone()
    keyed = bool(configured(settings))  # an unreadable key file is better known now than at the first request
    with ExitStack() as opened:
        listener = opened.enter_context(bind(settings.host, settings.port))
        folder, names = locate(settings)
        ModelConfig.from_folder(folder)
        tokenizer = Tokenizer.load(folder)
        template = ChatTemplate.load(folder, settings.chat_template, tokenizer)
        listeners = [opened.enter_context(one) for one in listen(listener, settings.api_workers)]
        tell_configuration(settings, folder, listeners[0])
        progress = settings.log_format == "text"
        config = settings.engine_config(folder, tokenizer.id_ranges, progress=progress)
        engine = EngineClient(config, tokens=tokenizer.token_table(), stall_timeout=settings.stall_timeout)
        try:
            with signals_held():
                engine.spawn()
            # The engine process is loading now; these imports happen meanwhile.
            from leoserve import lifecycle

            front, threads = make_front(settings, engine, folder, names, tokenizer, template)

            def announce(ready: Ready) -> None:
                seconds = time.monotonic() - started
                tell_ready(settings, listeners[0], names[0], template, ready, seconds, keyed)

            code = lifecycle.run(front, engine, listeners, settings.shutdown_grace, announce)
        except WorkerFailed as error:
            raise StartError(str(error)) from None
        finally:
            with signals_held():
                asyncio.run(engine.stop())  # again, and without effect, where the lifecycle came to its end
    return lifecycle.leave(code, threads)


def make_front(
    settings: Settings,
    engine: EngineClient,
    folder: Path,
    names: list[str],
    tokenizer: Tokenizer,
    template: ChatTemplate,
) -> tuple[Front, TextThreads | None]:
    """What answers clients, and the threads that work for it in this process."""
    created = int(time.time())
    if settings.api_workers > 1:
        from leoserve.workers.supervisor import Workers

        return Workers(settings, engine, folder, names, created), None
    from leoserve.api.app import create_app
    from leoserve.api.context import ServerContext
    from leoserve.metrics import Metrics
    from leoserve.webserver import web_server

    context = ServerContext(settings, engine, tokenizer, template, names, created, Metrics())
    engine.on_step = context.metrics.step
    return web_server(create_app(context), settings), context.threads


def terminate(number: int, frame: FrameType | None) -> None:
    """SIGTERM before the event loop runs: unwind, so that nothing stays behind."""
    raise SystemExit(128 + number)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """What SIGINT and SIGTERM would do, they do at the end: in between lies what must not be done by halves."""
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)
    for one in came:
        signal.raise_signal(one)


def locate(settings: Settings) -> tuple[Path, list[str]]:
    """The model's folder, and the names it is served under. Raises CheckpointError."""
    if settings.model is None:
        folder, name = demo.model_path(), DEMO_NAME
    else:
        folder = checkpoint.resolve(
            settings.model, revision=settings.revision, cache=settings.download_dir, token=settings.hf_token
        )
        name = folder.resolve().name if Path(settings.model).expanduser().is_dir() else settings.model
    return folder, settings.served_model_name or [name]


def tell_configuration(settings: Settings, folder: Path, listener: socket.socket) -> None:
    """What is about to be served and where, and which options are not at their default."""
    chosen = settings.chosen()
    address = f"http://{reachable(listener)}"
    if settings.log_format == "json":
        extra = {"version": leoserve.__version__, "folder": str(folder), "address": address, "options": chosen}
        logger.info("starting", extra=extra)
        return
    options = ", ".join(f"{name} {value}" for name, value in chosen.items() if name != "model")
    lines = (
        f"leoserve {leoserve.__version__}",
        f"  model      {folder}",
        f"  address    {address}",
        f"  options    {options or 'all at their defaults'}",
    )
    print("\n".join(lines), file=sys.stderr, flush=True)


def tell_ready(
    settings: Settings,
    listener: socket.socket,
    model: str,
    template: ChatTemplate,
    ready: Ready,
    seconds: float,
    keyed: bool,
) -> None:
    """The block that a new user acts on: where the server is, and a line to paste."""
    base = f"http://{reachable(listener)}/v1"  # without a proxy's path, which the proxy strips
    room = ready.num_blocks * ready.block_size
    if settings.log_format == "json":
        extra = {"base_url": base, "model": model, "device": ready.device, "dtype": ready.dtype, "seconds": seconds}
        logger.info("ready", extra=extra)
    else:
        block = f"""
leoserve is ready after {seconds:.1f} s

  base URL   {base}
  model id   {model}
  runs on    {ready.device}, {ready.dtype}, {ready.attention} attention
  context    {ready.max_model_len:_} tokens each, {room:_} in all ({ready.num_blocks:_} blocks of {ready.block_size})

  {curl(base, model, chat=template.missing is None, keyed=keyed)}

Ctrl-C stops it.
"""
        print(block, file=sys.stderr, flush=True)
    if not keyed and not loopback(listener):
        logger.warning("open to the network without a key: whoever reaches this port may use it (see --api-key)")


def curl(base: str, model: str, *, chat: bool, keyed: bool) -> str:
    """A command line that asks the server something."""
    question = "Was ist die Hauptstadt von Frankreich?"
    path = "chat/completions" if chat else "completions"
    body: dict[str, object] = {"model": model}
    body |= {"messages": [{"role": "user", "content": question}]} if chat else {"prompt": question}
    key = ' -H "Authorization: Bearer $LEOSERVE_API_KEY"' if keyed else ""
    data = shlex.quote(json.dumps(body, ensure_ascii=False))
    return f"curl {base}/{path} -H 'Content-Type: application/json'{key} -d {data}"
