"""The engine's process: load the model, say so, then run steps until the server goes away.

Started as `python -m leoserve.engine.process` by `connection.py`, which writes a `Launch` to its standard input.
Two threads: one receives requests and refuses what exceeds the bounds at once, one runs the steps. Grammars are
compiled in threads of their own.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import IO, NoReturn

import msgspec
import zmq

from leoserve import log as logs
from leoserve.engine import trial
from leoserve.engine.compiling import Compiling
from leoserve.engine.connection import Launch
from leoserve.engine.loop import EngineLoop
from leoserve.engine.request import Failed, FromEngine, Request, ToEngine
from leoserve.engine.start import CannotStart, start_engine
from leoserve.model.nativeparsers import parsers_for

log = logging.getLogger("leoserve.engine")

CANNOT_START = 2
CRASHED = 1


class Line:
    """The engine's end of the sockets. Each thread that sends has a socket of its own."""

    def __init__(self, launch: Launch) -> None:
        self._context = zmq.Context()
        self._address = launch.results
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
        self._threads = threading.local()
        self._requests = self._context.socket(zmq.PULL)
        self._requests.set_hwm(0)
        self._requests.connect(launch.requests)

    def send(self, message: FromEngine) -> None:
        """To the API process. Never blocks."""
        socket: zmq.Socket[bytes] | None = getattr(self._threads, "socket", None)
        if socket is None:
            socket = self._threads.socket = self._context.socket(zmq.PUSH)
            socket.set_hwm(0)
            socket.connect(self._address)
        socket.send(self._encoder.encode(message))

    def receive(self) -> ToEngine:
        """The next message of the API process; blocks."""
        return self._decoder.decode(self._requests.recv())

    def close(self) -> None:
        """Deliver what was sent, and close. Only before other threads send."""
        socket: zmq.Socket[bytes] | None = getattr(self._threads, "socket", None)
        if socket is not None:
            socket.close(linger=2000)
        self._requests.close(linger=0)
        self._context.term()


def receive_requests(line: Line, loop: EngineLoop, device: str) -> NoReturn:
    """Admit or refuse what arrives, while the other thread computes. Its failure is the engine's: it is restarted."""
    admission = loop.scheduler.admission
    compiling = Compiling(loop.submit, line.send, admission, parsers_for(device))
    try:
        while True:
            message = line.receive()
            refused = admission.admit(message) if isinstance(message, Request) else None
            if refused is None:
                compiling.take(message)
            else:
                line.send(refused)
    except BaseException:
        log.exception("the thread that receives requests failed")
        leave(CRASHED)


def leave_with(stdin: IO[bytes], launch: Launch) -> NoReturn:
    """End this process when its standard input ends: the server is gone, or wants it gone.

    A server that was killed has left its sockets behind.
    """
    while stdin.read(4096):
        pass
    shutil.rmtree(Path(launch.requests.removeprefix("ipc://")).parent, ignore_errors=True)
    leave(0)


def leave(code: int) -> NoReturn:
    """End at once: an orderly exit would wait for threads that hold sockets and for torch's pools."""
    try:
        sys.stderr.flush()
    finally:
        os._exit(code)


def main() -> NoReturn:
    """Serve until the process ends. Exit code 2 when the engine cannot start: the reason goes to the API process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stdin = sys.stdin.buffer
    threading.stack_size(2 * trial.STACK_BYTES)  # of all threads from here on, which are few
    launch = msgspec.json.decode(stdin.readline(), type=Launch)
    logs.configure(launch.config.log_format, launch.config.log_level)
    threading.Thread(target=leave_with, args=(stdin, launch), name="stdin", daemon=True).start()
    line = Line(launch)
    try:
        loop, ready = start_engine(launch.config, line.send)
    except CannotStart as error:
        line.send(Failed(str(error)))
        line.close()
        leave(CANNOT_START)
    threading.Thread(target=receive_requests, args=(line, loop, ready.device), name="requests", daemon=True).start()
    line.send(ready)
    gc.freeze()  # what is there stays: collections that look through it would hold up a step for a tenth of a second
    loop.run()


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        log.exception("the engine failed")
        leave(CRASHED)
