"""The API process's end of the line to one engine process: the process, two sockets, and the folder they live in.

ZeroMQ over unix sockets of mode 0600 in a folder of mode 0700; msgspec-encoded records, never pickle, never TCP. The
engine ends when its standard input does, so it never outlives the server, however that ends.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq

from leoserve.engine.config import EngineConfig
from leoserve.engine.request import FromEngine, ToEngine

ENGINE = ("-m", "leoserve.engine.process")  # what Python runs as the engine
EVENTS, READABLE = int(zmq.EVENTS), int(zmq.POLLIN)  # an operation on enumerations takes longer than the question
LONGEST_SOCKET_PATH = 100  # of the 107 bytes that a unix socket's path may have


class Launch(msgspec.Struct, frozen=True):
    """The first line of the engine's standard input."""

    config: EngineConfig
    requests: str  # where the engine pulls from
    results: str  # where the engine pushes to


class Connection:
    """Starts an engine process on construction. `listen` needs an event loop; nothing else does."""

    def __init__(self, config: EngineConfig) -> None:
        """Raises OSError when no process or folder can be made; nothing is left behind then."""
        self._folder = _socket_folder()
        self._context = zmq.Context()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)
        try:
            self._requests = self._bind(zmq.PUSH, "requests")
            self._results = self._bind(zmq.PULL, "results")
            self.process = self._launch(config)
        except BaseException:  # a signal's SystemExit too
            self._context.destroy(linger=0)
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def send(self, message: ToEngine) -> bool:
        """Never blocks: what may wait is bounded by admission. False when the engine is gone."""
        try:
            self._requests.send(self._encoder.encode(message), zmq.NOBLOCK)
        except zmq.Again:  # a socket without a peer would block
            return False
        return True

    def listen(self, loop: asyncio.AbstractEventLoop, take: Callable[[FromEngine], None]) -> None:
        """Call `take` in the event loop with each message of the engine, from now until `hang_up`."""
        self._loop = loop
        loop.add_reader(self._results.fileno(), self.drain, take)
        loop.call_soon(self.drain, take)  # what came before is not announced

    def drain(self, take: Callable[[FromEngine], None]) -> None:
        """Call `take` with all that has come. The socket announces only that it is no longer empty."""
        while not self._results.closed:
            try:
                message = self._results.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            take(self._decoder.decode(message))
            # Mostly one message has come. To ask costs less than the exception that ends the loop otherwise.
            if not self._results.closed and not int(self._results.getsockopt(EVENTS)) & READABLE:
                return

    def wait(self) -> int:
        """Block until the process ends; its exit code, negative for a signal."""
        return self.process.wait()

    def hang_up(self) -> None:
        """Close the sockets and remove them. Belongs to the event loop that listens, if one does."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._results.fileno())
        self._context.destroy(linger=0)
        shutil.rmtree(self._folder, ignore_errors=True)

    def end(self, grace: float = 5.0) -> None:
        """End the process: it goes by itself when its standard input ends, and is killed after `grace` seconds."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(grace)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _launch(self, config: EngineConfig) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, *ENGINE],
            stdin=subprocess.PIPE,
            env=_engine_environment(),
            start_new_session=True,  # the terminal's Ctrl-C is the server's to handle
        )
        launch = Launch(config, f"ipc://{self._folder}/requests", f"ipc://{self._folder}/results")
        if process.stdin is None:
            raise RuntimeError("the engine has no standard input")
        process.stdin.write(msgspec.json.encode(launch) + b"\n")
        process.stdin.flush()
        return process

    def _bind(self, kind: int, name: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.set_hwm(0)
        socket.bind(f"ipc://{self._folder}/{name}")
        (self._folder / name).chmod(0o600)
        return socket


def _engine_environment() -> dict[str, str]:
    """This process's, with its import path, and huge pages for torch: packing weights is 2 to 10 times faster."""
    path = os.pathsep.join(path for path in sys.path if path)
    return {"THP_MEM_ALLOC_ENABLE": "1"} | os.environ | {"PYTHONPATH": path}


def _socket_folder() -> Path:
    """A new folder of mode 0700 whose path leaves room for a socket's name."""
    folder = Path(tempfile.mkdtemp(prefix="leoserve-"))
    if len(str(folder)) > LONGEST_SOCKET_PATH - len("/requests"):
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="leoserve-", dir="/tmp"))
    return folder
