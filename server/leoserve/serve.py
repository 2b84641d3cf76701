"""From settings to a running server: check everything cheap, start the engine, then hand over to the lifecycle.

The order is for speed: the engine process starts as soon as its configuration is known and loads the weights while
this process imports its web framework.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import leoserve
from leoserve import checkpoint, demo, log
from leoserve.engine.client import EngineClient
from leoserve.engine.request import Ready
from leoserve.group import read_group
from leoserve.keyfile import configured
from leoserve.model.config import ModelConfig
from leoserve.settings import Settings, unknown_variables
from leoserve.text.template import ChatTemplate
from leoserve.text.tokenizer import Tokenizer

logger = logging.getLogger("leoserve")

BACKLOG = 2048  # connections that may wait to be accepted
DEMO_NAME = "leoserve-demo"


class StartError(Exception):
    """The server cannot start: one line that says what to do."""


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
    with bind(settings.host, settings.port) as listener:
        folder, names = locate(settings)
        ModelConfig.from_folder(folder)
        tokenizer = Tokenizer.load(folder)
        template = ChatTemplate.load(folder, settings.chat_template, tokenizer)
        listen(listener)
        tell_configuration(settings, folder, listener)
        progress = settings.log_format == "text"
        config = settings.engine_config(folder, tokenizer.id_ranges, progress=progress)
        engine = EngineClient(config, tokens=tokenizer.token_table(), stall_timeout=settings.stall_timeout)
        try:
            with signals_held():
                engine.spawn()
            # The engine process is loading now; these imports happen meanwhile.
            from leoserve import lifecycle
            from leoserve.api.app import create_app
            from leoserve.api.context import ServerContext
            from leoserve.metrics import Metrics

            context = ServerContext(
                settings=settings,
                engine=engine,
                tokenizer=tokenizer,
                template=template,
                model_ids=names,
                created=int(time.time()),
                metrics=Metrics(),
            )
            engine.on_step = context.metrics.step

            def announce(ready: Ready) -> None:
                tell_ready(settings, listener, names[0], template, ready, time.monotonic() - started, keyed)

            code = lifecycle.run(create_app(context), engine, listener, settings, announce)
        finally:
            with signals_held():
                asyncio.run(engine.stop())  # again, and without effect, where the lifecycle came to its end
    return lifecycle.leave(code, context.threads)


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


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address, IPv4 where a name has both. Raises StartError."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise StartError(f"--host {host}: {error.strerror}") from None
    family, *_, address = min(addresses)
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise StartError(cannot_bind(host, port, error)) from None
    return listener


def listen(listener: socket.socket) -> None:
    """Open the socket to clients. Raises StartError when another server did so first."""
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        host, port = listener.getsockname()[:2]
        raise StartError(cannot_bind(host, port, error)) from None


def cannot_bind(host: str, port: int, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} on {host} is in use; stop what listens there, or choose another with --port"
        case errno.EACCES:
            return f"port {port} needs privileges; choose one from 1024 on with --port"
        case errno.EADDRNOTAVAIL:
            return f"--host {host}: this machine has no such address; 0.0.0.0 listens on all it has"
        case _:
            return f"cannot listen on {host} port {port}: {error.strerror}"


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


def reachable(listener: socket.socket) -> str:
    """`address:port` that a client on this machine can use."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def loopback(listener: socket.socket) -> bool:
    host = str(listener.getsockname()[0])
    return host.startswith("127.") or host == "::1"
