"""A worker's process: the HTTP API in front of an engine that the supervisor has.

Started as `python -m leoserve.workers.process` by `member.py`, which writes a `Launch` to its standard input.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

import msgspec
import uvloop

from leoserve import log
from leoserve.api.app import create_app
from leoserve.api.context import ServerContext
from leoserve.board import Board
from leoserve.lifecycle import freeze
from leoserve.settings import Settings, SettingsError
from leoserve.text.template import ChatTemplate
from leoserve.text.tokenizer import Tokenizer
from leoserve.webserver import WebServer, web_server
from leoserve.workers.records import Launch
from leoserve.workers.remote import RemoteEngine
from leoserve.workers.shared import Shared

logger = logging.getLogger("leoserve.workers")

STDIN = 0
CANNOT_START = 2


def read_launch() -> Launch:
    """The first line of standard input."""
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(STDIN, 1 << 16)
        if not part:
            leave(0)  # the supervisor has gone meanwhile
        line += part
    return msgspec.json.decode(line, type=Launch)


def leave_with_supervisor() -> None:
    """End this process when its standard input ends: the supervisor is gone, however that ended."""
    while os.read(STDIN, 1 << 12):
        pass
    leave(0)


def leave(code: int) -> NoReturn:
    """End at once: an orderly exit would wait for threads that are at work on a text that nobody waits for."""
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)


def make_server(launch: Launch) -> tuple[WebServer, RemoteEngine]:
    """Raises SettingsError when the file of keys cannot be read."""
    settings = Settings(**launch.settings)
    log.configure(settings.log_format, settings.log_level, requests=settings.log_requests)
    shared = Shared(Board(launch.board, rows=launch.rows, row=launch.row))
    engine = RemoteEngine(shared.view, settings.stall_timeout)
    folder = Path(launch.folder)
    tokenizer = Tokenizer.load(folder)
    context = ServerContext(
        settings=settings,
        engine=engine,
        tokenizer=tokenizer,
        template=ChatTemplate.load(folder, settings.chat_template, tokenizer),
        model_ids=launch.names,
        created=launch.created,
        metrics=shared.metrics,
        board=shared.board,
        part=f"{launch.row}.{launch.life}",
    )

    def tick() -> None:
        shared.pulse.own[0] = time.monotonic()
        shared.several.use.tick()

    first = launch.row == 1 and launch.life == 0
    return web_server(create_app(context), settings, tick, tell=first), engine


async def live(server: WebServer, engine: RemoteEngine, launch: Launch) -> None:
    """Answer until the supervisor wants an end."""

    def close(at_once: bool) -> None:
        if at_once:
            server.hurry()
        server.should_exit = True

    engine.on_close = close
    line = socket.socket(fileno=launch.line)
    line.setblocking(False)
    await asyncio.get_running_loop().create_unix_connection(lambda: engine.line, sock=line)
    await server.serve(sockets=[socket.socket(fileno=launch.listener)])


def main() -> NoReturn:
    """Serve until the supervisor wants an end, or is gone. Exit code 2, and a line in the log, when it cannot start."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # whoever sends them to all processes means the supervisor
    launch = read_launch()
    threading.Thread(target=leave_with_supervisor, name="stdin", daemon=True).start()
    try:
        server, engine = make_server(launch)
    except SettingsError as error:
        logger.error("API worker %d cannot start: %s", launch.row, error)
        leave(CANNOT_START)
    freeze()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(live(server, engine, launch))
    leave(0)


if __name__ == "__main__":
    main()
