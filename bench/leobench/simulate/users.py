"""Who sends a workload's requests, and when: the load patterns of a run, in simulated time."""

from __future__ import annotations

from collections.abc import Iterator

from leobench.load import Load
from leobench.simulate.cluster import Cluster
from leobench.workloads import Planned, Workload, sessions

CHECKS = 200  # times that a ramp of users is looked at


class Users:
    """Sends sessions as a load says: so many at a time, or at moments that do not wait for answers."""

    def __init__(self, cluster: Cluster, load: Load, workload: Workload) -> None:
        self._cluster = cluster
        self._load = load
        self._sessions: Iterator[list[Planned]] = sessions(workload.requests())
        self._sent = 0
        self._active = 0  # sessions, of a closed loop

    def begin(self) -> None:
        """Have everything happen that does not follow from something else."""
        load = self._load
        if load.concurrency is not None:
            checks = 1 if load.concurrency.steady or load.duration is None else CHECKS
            for check in range(checks):
                self._cluster.at((load.duration or 0.0) * check / checks, self._fill)
        elif load.rate is not None:
            self._arrive_next(load.arrivals())
        else:
            self._follow_trace(next(self._sessions, None))

    def _over(self, now: float) -> bool:
        """Whether the load sends nothing any more."""
        load = self._load
        if load.requests is not None and self._sent >= load.requests:
            return True
        return load.duration is not None and now >= load.duration

    def _fill(self, now: float) -> None:
        """As many sessions as the closed loop has now."""
        while self._active < self._load.users(now) and not self._over(now):
            turns = next(self._sessions, None)
            if turns is None:
                return
            self._active += 1
            self._take_turn(turns, 0, now)

    def _arrive_next(self, arrivals: Iterator[float]) -> None:
        when = next(arrivals, None)
        if when is not None:
            self._cluster.at(when, lambda now: self._arrive(arrivals, now))

    def _arrive(self, arrivals: Iterator[float], now: float) -> None:
        turns = None if self._over(now) else next(self._sessions, None)
        if turns is not None:
            self._take_turn(turns, 0, now)
            self._arrive_next(arrivals)

    def _follow_trace(self, turns: list[Planned] | None) -> None:
        if turns is not None:
            self._cluster.at((turns[0].arrival or 0.0) / self._load.speed, lambda now: self._replay(turns, now))

    def _replay(self, turns: list[Planned], now: float) -> None:
        if not self._over(now):
            self._take_turn(turns, 0, now)
            self._follow_trace(next(self._sessions, None))

    def _take_turn(self, turns: list[Planned], turn: int, now: float) -> None:
        if self._over(now):
            self._active -= 1
            return
        self._sent += 1
        self._cluster.send(turns[turn], now, lambda ended: self._answered(turns, turn, ended))

    def _answered(self, turns: list[Planned], turn: int, now: float) -> None:
        if turn + 1 < len(turns):
            then = now + turns[turn + 1].after
            self._cluster.at(then, lambda when: self._take_turn(turns, turn + 1, when))
            return
        self._active -= 1
        if self._load.concurrency is not None:
            self._fill(now)
