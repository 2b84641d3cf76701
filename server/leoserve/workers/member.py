"""A worker as the supervisor sees it: its process, the line to it, and its requests on their way through the engine."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable

import msgspec

from leoserve.engine.client import EngineClient
from leoserve.engine.request import Abort, Refused, Request, TokenOutput
from leoserve.engine.streams import EngineError, EngineRefused, EngineUnavailable
from leoserve.workers.records import Ended, EngineState, Launch, Line, Outputs, ToSupervisor, ToWorker

WORKER = ("-m", "leoserve.workers.process")  # what Python runs as a worker


class Relay:
    """One request of a worker. What comes for it goes on to the worker."""

    __slots__ = ("_member", "_request_id", "aborted", "open")

    def __init__(self, member: Member, request: Request) -> None:
        self.open = set(range(request.params.n))
        self.aborted = False
        self._member = member
        self._request_id = request.request_id

    def put(self, item: TokenOutput | EngineError | None) -> None:
        if isinstance(item, TokenOutput):
            if item.index not in self.open:
                return
            if item.finish_reason is not None:
                self.open.discard(item.index)
            self._member.pass_on(item)
        elif item is not None:
            self.open.clear()
            self._member.tell_failure(self._request_id, item)
        if not self.open:
            self._member.end(self._request_id)


class Member:
    """One worker, in one life after the other. `row`: its row of the board, from 1 on."""

    def __init__(self, row: int, engine: EngineClient, changed: Callable[[], None]) -> None:
        """`changed`: called when something has come from the worker, or waits to be sent to it by `flush`."""
        self.row = row
        self.life = 0
        self.process: asyncio.subprocess.Process | None = None
        self._engine = engine
        self._changed = changed
        self._line: Line[ToSupervisor] | None = None
        self._requests: dict[str, Relay] = {}
        self._waiting: list[TokenOutput] = []  # to be sent
        self._state: EngineState | None = None  # as it was last told

    async def start(self, launch: Launch) -> asyncio.subprocess.Process:
        """Begin a life. `launch` lacks the line and the life. Raises OSError."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        line: Line[ToSupervisor] = Line(ToSupervisor, self._take)
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: line, sock=ours)
            launch = msgspec.structs.replace(launch, line=theirs.fileno(), life=self.life)
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                *WORKER,
                stdin=asyncio.subprocess.PIPE,
                pass_fds=(launch.line, launch.listener, launch.board),
                env=environment(),
                start_new_session=True,  # the terminal's Ctrl-C is the supervisor's to handle
            )
        except BaseException:
            line.close()
            raise
        finally:
            theirs.close()
        self.life += 1
        self._line = line
        if self.process.stdin is None:
            raise RuntimeError("the worker has no standard input")
        self.process.stdin.write(msgspec.json.encode(launch) + b"\n")
        self._changed()
        return self.process

    def bury(self) -> int:
        """The process has ended: abort its requests. Returns how many answers there were."""
        line, self._line, self._state = self._line, None, None
        if line is not None:
            line.close()
        self._waiting.clear()
        cut_off = sum(len(relay.open) for relay in self._requests.values())
        for request_id in list(self._requests):
            self._engine.abort(request_id)
        self._changed()
        return cut_off

    def send(self, record: ToWorker) -> None:
        """After all that waits to be sent."""
        if self._line is not None:
            if self._waiting:
                waiting, self._waiting = self._waiting, []
                self._line.send(Outputs(waiting))
            self._line.send(record)

    def flush(self) -> None:
        """Send what waits, and how it is with the engine if that is new."""
        if self._line is None:
            return
        state = EngineState(self._engine.state, self._engine.ready)
        if state != self._state:
            self._state = state
            self.send(state)
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            self._line.send(Outputs(waiting))

    def pass_on(self, output: TokenOutput) -> None:
        self._waiting.append(output)

    def tell_failure(self, request_id: str, error: EngineError) -> None:
        if isinstance(error, EngineRefused):
            self.send(Refused(request_id, error.kind, error.message, error.param))
        else:
            self.flush()  # how it is with the engine comes before what came of it
            self.send(Ended(request_id, str(error), error.state if isinstance(error, EngineUnavailable) else None))

    def end(self, request_id: str) -> None:
        """All choices of this request have ended."""
        self._requests.pop(request_id, None)
        self._engine.end(request_id)

    def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()

    def _take(self, message: ToSupervisor) -> None:
        if isinstance(message, Abort):
            if message.request_id in self._requests:
                self._engine.abort(message.request_id, message.index)
        else:
            try:
                relay = Relay(self, message)
                self._engine.begin(message, relay)
                self._requests[message.request_id] = relay
            except EngineError as error:
                self.tell_failure(message.request_id, error)
        self._changed()


def environment() -> dict[str, str]:
    """This process's, with its import path, and without variables of settings: a worker is told those that hold."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LEOSERVE_")}
    return inherited | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
