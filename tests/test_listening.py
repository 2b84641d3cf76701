"""leoserve.listening: one address for several processes, and for one server only."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest

from leoserve.listening import StartError, bind, listen

CONNECTIONS = 64


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("others", [1, 2])
def test_a_server_is_not_let_in_where_another_listens_be_it_that_it_has_bound_before(count: int, others: int) -> None:
    with ExitStack() as opened:
        first = opened.enter_context(bind("127.0.0.1", 0))
        port = first.getsockname()[1]
        second = opened.enter_context(bind("127.0.0.1", port))  # nobody listens yet
        group = [opened.enter_context(one) for one in listen(first, others)]
        assert [one.getsockname() for one in group] == [("127.0.0.1", port)] * others
        with pytest.raises(StartError, match=f"port {port} on 127.0.0.1 is in use"):
            listen(second, count)
        with pytest.raises(StartError, match=f"port {port} on 127.0.0.1 is in use"):
            opened.enter_context(bind("127.0.0.1", port))


def test_every_socket_of_a_group_gets_connections_and_each_connection_one_socket() -> None:
    with ExitStack() as opened:
        group = [opened.enter_context(one) for one in listen(bind("127.0.0.1", 0), 2)]
        address = group[0].getsockname()
        clients = [opened.enter_context(socket.create_connection(address)) for _ in range(CONNECTIONS)]
        accepted: list[list[int]] = [[], []]
        for one, ports in zip(group, accepted, strict=True):
            one.setblocking(False)
            while True:
                try:
                    made, (_, port) = one.accept()
                except BlockingIOError:
                    break
                ports.append(port)
                made.close()
        assert all(accepted)
        assert sorted(accepted[0] + accepted[1]) == sorted(client.getsockname()[1] for client in clients)
