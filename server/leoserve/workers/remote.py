"""The engine as a worker sees it: behind the supervisor, which others share."""

from __future__ import annotations

from collections.abc import Callable

from leoserve.engine.request import EngineStats, Refused, ToEngine, TokenTable
from leoserve.engine.streams import EngineDied, Streams, stalled, unavailable
from leoserve.workers.records import Close, Ended, EngineState, Line, Outputs, ToWorker
from leoserve.workers.shared import View


class RemoteEngine(Streams):
    """The requests of this worker; all else that is told of the engine is the server's."""

    def __init__(self, view: View, stall_timeout: float) -> None:
        super().__init__()
        self.line: Line[ToWorker] = Line(ToWorker, self.take)
        self.on_close: Callable[[bool], None] | None = None  # told when the supervisor wants an end; True for at once
        self._stall_timeout = stall_timeout
        self._view = view

    @property
    def in_flight(self) -> int:
        return self._view.in_flight

    @property
    def stats(self) -> EngineStats:
        return self._view.stats

    @property
    def restarts(self) -> int:
        return self._view.restarts

    @property
    def pid(self) -> int | None:
        return self._view.pid

    @property
    def healthy(self) -> bool:
        return not self._view.hopeless and not stalled(self._view.unanswered_since, self._stall_timeout)

    def take(self, message: ToWorker) -> None:
        """A record of the supervisor has come."""
        match message:
            case Outputs():
                self._hand_out(message.outputs)
            case Refused():
                self._refuse(message)
            case Ended():
                stream = self._streams.get(message.request_id)
                if stream is not None:
                    error = EngineDied(message.message) if message.state is None else unavailable(message.state)
                    stream.put(error)
            case EngineState():
                self.state, self.ready = message.state, message.ready
            case Close():
                if self.on_close is not None:
                    self.on_close(message.at_once)

    def _send(self, message: ToEngine) -> bool:
        return not isinstance(message, TokenTable) and self.line.send(message)
