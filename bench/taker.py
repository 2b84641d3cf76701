"""The other end of an engine's socket: a process that takes what comes, and looks at nothing."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from leoserve.engine.config import EngineConfig
from leoserve.engine.connection import Launch
from leoserve.engine.process import Line

TAKER = "import sys, zmq; s = zmq.Context().socket(zmq.PULL); s.bind(sys.argv[1]); print(flush=True)\nwhile 1: s.recv()"


@contextmanager
def taker() -> Iterator[Line]:
    """The engine's end of the socket, as long as the process is there. Raises RuntimeError when it does not start."""
    with tempfile.TemporaryDirectory() as folder:
        launch = Launch(EngineConfig(model=""), f"ipc://{folder}/requests", f"ipc://{folder}/results")
        process = subprocess.Popen([sys.executable, "-c", TAKER, launch.results], stdout=subprocess.PIPE)
        try:
            if process.stdout is None or not process.stdout.readline():  # a line says that it listens
                raise RuntimeError("the process at the other end of the socket did not start")
            line = Line(launch)
            yield line
            line.close()
        finally:
            process.kill()
            process.wait()
