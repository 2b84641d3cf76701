"""Sends a workload under a load, and keeps a record of each request.

A closed loop's user waits for an answer before it asks again. An open loop sends when the load says so; a request that
is due while the client or the server is stuck still counts from when it was due.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from leobench.client import Client
from leobench.load import Load
from leobench.records import RequestRecord
from leobench.workloads import Planned, Prompt, Workload, sessions

REFUSED_PAUSE = 0.1  # seconds that a closed loop's user waits after a failure: nobody hammers a server that refuses
RAMP_STEP = 0.05  # seconds between two looks at how many users a ramp wants


@dataclass(slots=True)
class Transcript:
    """What was said in a conversation."""

    said: Prompt = ""

    def with_prompt(self, prompt: Prompt) -> Prompt:
        """The whole prompt of the next turn."""
        if not self.said:
            return prompt
        if isinstance(self.said, list) and isinstance(prompt, list):
            return [*self.said, *prompt]
        return f"{self.said}\n\n{prompt}"

    def answered(self, prompt: Prompt, answer: str) -> None:
        """`prompt` was the whole prompt, and `answer` came."""
        if isinstance(prompt, list):
            self.said = [*prompt, {"role": "assistant", "content": answer}]
        else:
            self.said = f"{prompt}{answer}"


@dataclass(slots=True)
class Drive:
    """One load, running. What ends is in `records`, in the order of its ending.

    warmup: its requests do not count
    lateness: of an open loop, seconds from when a request was due to when the client began with it
    """

    client: Client
    load: Load
    now: Callable[[], float]
    warmup: bool = False
    records: list[RequestRecord] = field(default_factory=list)
    lateness: list[float] = field(default_factory=list)
    begin: float = 0.0
    started: int = 0
    failed: int = 0  # of the records, counted as they come: whoever shows progress must not hold the loop up
    tokens: int = 0  # of their answers
    _sessions: int = 0

    @property
    def running(self) -> int:
        return self.started - len(self.records)

    async def run(self, workload: Workload) -> None:
        """To the end of the load and of every request."""
        self.begin = self.now()
        todo = sessions(workload.requests())
        async with asyncio.TaskGroup() as group:
            if self.load.concurrency is not None:
                await self._closed(todo, group)
            elif self.load.rate is not None:
                await self._open(zip(self.load.arrivals(), todo, strict=False), group)
            else:
                await self._open((((turns[0].arrival or 0.0) / self.load.speed, turns) for turns in todo), group)

    def _over(self, when: float) -> bool:
        """Whether the load has no request more for that moment."""
        load = self.load
        if load.requests is not None and self.started >= load.requests:
            return True
        return load.duration is not None and when - self.begin >= load.duration

    def _admit(self) -> bool:
        """Whether the load has one more request now; it is then counted."""
        if self._over(self.now()):
            return False
        self.started += 1
        return True

    async def _closed(self, todo: Iterator[list[Planned]], group: asyncio.TaskGroup) -> None:
        """As many users as the load has at each moment."""
        users: list[asyncio.Task[None]] = []
        while True:
            for number in range(len(users), self.load.users(self.now() - self.begin)):
                users.append(group.create_task(self._user(number, todo)))
            if self.load.concurrency is None or self.load.concurrency.steady or all(user.done() for user in users):
                return
            await asyncio.sleep(RAMP_STEP)

    async def _user(self, number: int, todo: Iterator[list[Planned]]) -> None:
        """One session after the other, while the load has so many users."""
        while number < self.load.users(self.now() - self.begin):
            turns = next(todo, None)
            if turns is None or not self._admit():
                return
            if not await self._session(turns, self.now()):
                await asyncio.sleep(REFUSED_PAUSE)

    async def _open(self, todo: Iterator[tuple[float, list[Planned]]], group: asyncio.TaskGroup) -> None:
        """Each session when it is due."""
        for arrival, turns in todo:
            due = self.begin + arrival
            if self._over(due):
                return
            if (left := due - self.now()) > 0:
                await asyncio.sleep(left)
            self.started += 1
            group.create_task(self._session(turns, due))

    async def _session(self, turns: list[Planned], due: float) -> bool:
        """A session's turns; its first was admitted. False when one failed: the user does not go on after that."""
        transcript = Transcript()
        url = self._sessions % len(self.client.target.urls)
        self._sessions += 1
        for planned in turns:
            if planned is not turns[0]:
                due = self.now() + planned.after
                await asyncio.sleep(planned.after)
                if not self._admit():
                    return True
            prompt = transcript.with_prompt(planned.prompt)
            record = self._record(planned, due, url)
            answer = await self.client.send(self.client.target.body(prompt, planned.output_tokens), record)
            self.records.append(record)
            self.tokens += record.output_tokens or 0
            if record.error is not None:
                self.failed += 1
                return False
            transcript.answered(prompt, answer)
        return True

    def _record(self, planned: Planned, due: float, url: int) -> RequestRecord:
        now = self.now()
        if self.load.concurrency is None:
            self.lateness.append(now - due)
        return RequestRecord(
            planned.index,
            due,
            now,
            now,
            group=planned.group,
            session=planned.session,
            turn=planned.turn,
            url=url,
            warmup=self.warmup,
        )
