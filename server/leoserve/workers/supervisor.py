"""The process above the workers: starts them, again if need be, passes on what they and the engine say, ends them."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from pathlib import Path

import msgspec

from leoserve.api.ledger import Ledger, ledger_bytes
from leoserve.board import Board, shared_memory
from leoserve.engine.client import EngineClient
from leoserve.settings import Settings
from leoserve.workers import WorkerFailed
from leoserve.workers.member import Member
from leoserve.workers.records import Close, Launch
from leoserve.workers.shared import SUPERVISOR, Shared

logger = logging.getLogger("leoserve.workers")

CLOSE_SECONDS = 8  # for workers to end: more than a web server takes to let the last bytes leave
LAST_WORDS_SECONDS = 3  # the same after a second signal
LONGEST_BACKOFF = 2.0  # seconds between a worker's end and its restart: those whom the kernel sends there wait
STABLE_AFTER = 60.0  # seconds of life after which a death counts as the first one again
HOPELESS_AFTER = 5  # starts of a worker in a row that failed: from then on the server is not healthy
LONGEST_WATCH = 5.0  # seconds between two looks at the workers' pulses


class Workers:
    """All workers of a server: a `lifecycle.Front`. Belongs to the event loop."""

    def __init__(self, settings: Settings, engine: EngineClient, folder: Path, names: list[str], created: int) -> None:
        """`folder`, `names`: the model's; `created`: Unix time of the server's start."""
        rows = 1 + settings.api_workers
        self._file = shared_memory(rows, ledger_bytes(rows))
        self._board = Board(self._file, rows=rows, row=SUPERVISOR)
        self._ledger = Ledger(self._board)
        self._shared = Shared(self._board)
        self._engine = engine
        engine.on_step = self._shared.metrics.step
        engine.on_news = self._changed
        self._launch = Launch(
            settings=settings.model_dump(mode="json", exclude={"config"}),
            folder=str(folder),
            names=names,
            created=created,
            line=-1,
            listener=-1,
            board=self._file,
            rows=rows,
            row=-1,
            life=0,
        )
        self._stall_timeout = settings.stall_timeout
        self._members = [Member(row, engine, self._changed) for row in range(1, rows)]
        self._failed_starts = dict.fromkeys(range(1, rows), 0)  # in a row
        self._keepers: list[asyncio.Task[None]] = []
        self._failure: WorkerFailed | None = None
        self._flushing = False  # soon
        self._hurried = False
        self._exit = asyncio.Event()

    @property
    def should_exit(self) -> bool:
        return self._exit.is_set()

    @should_exit.setter
    def should_exit(self, value: bool) -> None:
        if value:
            self._exit.set()

    async def serve(self, sockets: list[socket.socket]) -> None:
        """A worker on each of the sockets, until the end. Raises WorkerFailed."""
        loop = asyncio.get_running_loop()
        for member, listener in zip(self._members, sockets, strict=True):
            self._keepers.append(loop.create_task(self._keep(member, listener)))
        watching = loop.create_task(self._watch_pulses())
        try:
            await self._exit.wait()
        finally:
            watching.cancel()
            for listener in sockets:
                listener.close()
            await self._close()
        if self._failure is not None:
            raise self._failure

    async def answering(self) -> None:
        """Until every worker has answered, or the end has come."""
        while not all(self._pulse(member) for member in self._members) and not self.should_exit:
            await asyncio.sleep(0.01)

    def hurry(self) -> None:
        """End now."""
        self._hurried = True
        self.should_exit = True
        for member in self._members:
            member.send(Close(at_once=True))
            asyncio.get_running_loop().call_later(LAST_WORDS_SECONDS, member.kill)

    async def _keep(self, member: Member, listener: socket.socket) -> None:
        """Have a worker on this socket, one after the other, until the end."""
        launch = msgspec.structs.replace(self._launch, row=member.row, listener=listener.fileno())
        backoff, ever_answered = 0.0, False
        while not self.should_exit:
            begun = time.monotonic()
            fate = await self._live(member, launch)
            answered = self._pulse(member) > 0
            cut_off = member.bury()
            self._board.clear(member.row)
            self._ledger.forgive(member.row)
            if self.should_exit:
                return
            ever_answered = ever_answered or answered
            if not ever_answered:
                self._failure = WorkerFailed(f"API worker {member.row} {fate} before it had answered")
                self.should_exit = True
                return
            self._failed_starts[member.row] = 0 if answered else self._failed_starts[member.row] + 1
            if time.monotonic() - begun > STABLE_AFTER:
                backoff = 0.0
            self._shared.several.restarts.add()
            logger.error(
                "API worker %d %s; answers cut off: %d; restarting it in %g s", member.row, fate, cut_off, backoff
            )
            await self._pause(backoff)
            backoff = min(LONGEST_BACKOFF, 2 * backoff + 0.5)

    async def _live(self, member: Member, launch: Launch) -> str:
        """One life of a worker, from its start to its end; how it ended."""
        try:
            process = await member.start(launch)
        except OSError as error:
            return f"cannot be started: {error}"
        if self.should_exit:
            member.send(Close(at_once=self._hurried))
        return f"ended with code {await process.wait()}"

    async def _pause(self, seconds: float) -> None:
        """So long, or until the end."""
        try:
            await asyncio.wait_for(self._exit.wait(), seconds)
        except TimeoutError:
            return

    async def _close(self) -> None:
        """End all workers, those first that have not answered yet, and those at last by force that do not end."""
        for member in self._members:
            if self._pulse(member):
                member.send(Close(at_once=self._hurried))
            else:
                member.kill()
        if self._keepers:
            await asyncio.wait(self._keepers, timeout=CLOSE_SECONDS)
            for member in self._members:
                member.kill()
            await asyncio.wait(self._keepers)
        os.close(self._file)

    async def _watch_pulses(self) -> None:
        """End workers that hang, so that they are started again.

        Looks are counted, not seconds: where all processes were held up, this one may be the first to run again.
        """
        pause = min(LONGEST_WATCH, self._stall_timeout / 4)
        before: dict[int, float] = {}
        looks: dict[int, int] = {}  # since the pulse was last another
        while True:
            await asyncio.sleep(pause)
            for member in self._members:
                pulse = self._pulse(member)
                looks[member.row] = looks.get(member.row, 0) + 1 if pulse == before.get(member.row) else 0
                before[member.row] = pulse
                if pulse and looks[member.row] >= self._stall_timeout / pause:
                    logger.error("API worker %d has hung for %g s: it is ended", member.row, self._stall_timeout)
                    member.kill()

    def _pulse(self, member: Member) -> float:
        """The time of its last sign of life; 0 when it has not answered yet."""
        return self._shared.pulse.rows[member.row][0]

    def _changed(self) -> None:
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Send what has gathered since the last time, and show how it is with the engine."""
        self._flushing = False
        hopeless = max(self._failed_starts.values()) >= HOPELESS_AFTER
        self._shared.view.show(self._engine, hopeless=hopeless)
        self._shared.several.use.tick()
        for member in self._members:
            member.flush()
