"""Several API processes, called workers, in front of one engine.

The command's own process starts and ends them, and the engine. It sees every request and every token, but only passes
them on, which takes a tenth of what a worker does with them. What has to hold for the server as a whole stands in
memory that all share (`leoserve.board`).

    client ── worker 1 ──┐
    client ── worker 2 ──┼── supervisor ── engine
    client ── worker 3 ──┘
"""


class WorkerFailed(Exception):
    """A worker ended before it had ever answered; the message says what to do."""
