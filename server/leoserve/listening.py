"""The sockets on which clients come: one, or one for each of several processes at the same address.

Several have SO_REUSEPORT: the kernel assigns each connection, by a hash of both its ends, to the queue of one socket
(https://lwn.net/Articles/542629/). With one socket that all processes inherit, whichever wakes first takes all that
wait at that moment, so that a client which opens many connections at once has them all at one process, where they stay.
A socket stays open while its process is being replaced: whom the kernel sends there waits, and is not turned away.
"""

from __future__ import annotations

import errno
import socket

BACKLOG = 2048  # connections that may wait to be accepted


class StartError(Exception):
    """The server cannot start: one line that says what to do."""


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address, IPv4 where a name has both. Raises StartError."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise StartError(f"--host {host}: {error.strerror}") from None
    family, *_, address = min(addresses)
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise StartError(cannot_bind(host, port, error)) from None
    return listener


def listen(listener: socket.socket, count: int = 1) -> list[socket.socket]:
    """Open the socket to clients, or `count` others in its place, at its address. Raises StartError when another server
    listens there."""
    host, port = listener.getsockname()[:2]
    group: list[socket.socket] = []
    try:
        if count > 1:
            group += (sibling(listener) for _ in range(count))
        # Another server's group would let ours in. This socket shares with none, and may listen only where none does.
        listener.listen(BACKLOG)
        if not group:
            return [listener]
        listener.close()
        for one in group:
            one.listen(BACKLOG)
    except OSError as error:
        for one in group:
            one.close()
        raise StartError(cannot_bind(host, port, error)) from None
    return group


def sibling(listener: socket.socket) -> socket.socket:
    """Another socket bound to the same address, which listens beside others of its kind."""
    made = socket.socket(listener.family, socket.SOCK_STREAM)
    for name in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        made.setsockopt(socket.SOL_SOCKET, name, 1)
    made.bind(listener.getsockname())
    return made


def cannot_bind(host: str, port: int, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} on {host} is in use; stop what listens there, or choose another with --port"
        case errno.EACCES:
            return f"port {port} needs privileges; choose one from 1024 on with --port"
        case errno.EADDRNOTAVAIL:
            return f"--host {host}: this machine has no such address; 0.0.0.0 listens on all it has"
        case _:
            return f"cannot listen on {host} port {port}: {error.strerror}"


def reachable(listener: socket.socket) -> str:
    """`address:port` that a client on this machine can use."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def loopback(listener: socket.socket) -> bool:
    host = str(listener.getsockname()[0])
    return host.startswith("127.") or host == "::1"
