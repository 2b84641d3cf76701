"""What clients have spent stands in one place, whichever of several processes has served them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from leoserve.api.errors import ApiError
from leoserve.api.ledger import Ledger, ledger_bytes
from leoserve.api.rates import Allowance, Charge
from leoserve.board import Board, shared_memory
from leoserve.keyfile import Quota
from tests.conftest import PATIENCE, clean_environment

ROWS, MOST = 3, 4  # processes, clients
QUOTA = Quota(requests_per_minute=2, tokens_per_minute=100)


@pytest.fixture
def file() -> Iterator[int]:
    file = shared_memory(ROWS, ledger_bytes(ROWS, MOST))
    yield file
    os.close(file)


def ledger(file: int, row: int) -> Ledger:
    return Ledger(Board(file, rows=ROWS, row=row), MOST)


def test_what_a_client_spends_here_is_missing_there_and_nobody_else_pays(file: int) -> None:
    here, there = (Allowance(QUOTA, ledger(file, row), b"eins") for row in (1, 2))
    Charge(here).begin()
    Charge(there).begin()
    with pytest.raises(ApiError, match="Limit 2, Used 2"):
        Charge(here).begin()
    Charge(Allowance(QUOTA, ledger(file, 1), b"zwei")).begin()
    assert here.headers()["x-ratelimit-remaining-requests"] == "0" == there.headers()["x-ratelimit-remaining-requests"]


def test_other_limits_begin_another_account(file: int) -> None:
    Charge(Allowance(QUOTA, ledger(file, 1), b"eins")).begin()
    other = Allowance(Quota(requests_per_minute=5), ledger(file, 2), b"eins")
    assert other.headers()["x-ratelimit-remaining-requests"] == "5"


def test_what_a_process_that_has_ended_had_set_aside_is_free_again(file: int) -> None:
    ended, other, owner = (ledger(file, row) for row in (1, 2, 0))
    Charge(Allowance(QUOTA, ended, b"eins")).reserve(60)
    charge = Charge(Allowance(QUOTA, other, b"eins"))
    charge.reserve(30)
    with pytest.raises(ApiError):
        charge.reserve(30)
    owner.forgive(1)
    charge.reserve(70)
    charge.settle(10)
    assert Allowance(QUOTA, ended, b"eins").buckets["tokens"].left == 90


def test_a_client_for_whom_there_is_no_room_is_counted_by_each_process_and_that_is_said_once(
    file: int, caplog: pytest.LogCaptureFixture
) -> None:
    accounts = [Allowance(QUOTA, ledger(file, 1), str(number).encode()) for number in range(MOST)]
    for allowance in accounts:
        Charge(allowance).begin()
    full = ledger(file, 2)
    for number in (MOST, MOST + 1):
        late = Allowance(QUOTA, full, str(number).encode())
        Charge(late).begin()
        assert late.buckets["requests"].left == 1
    assert [entry.levelno for entry in caplog.records] == [logging.WARNING]
    assert Allowance(QUOTA, full, b"0").buckets["requests"].left == 1


SPENDER = """
import sys
from leoserve.api.errors import ApiError
from leoserve.api.ledger import Ledger
from leoserve.api.rates import Allowance, Charge
from leoserve.board import Board
from leoserve.keyfile import Quota

file, rows, row, limit = map(int, sys.argv[1:])
charge = Charge(Allowance(Quota(tokens_per_minute=limit), Ledger(Board(file, rows=rows, row=row), 4), b"eins"))
print("ready", flush=True)
sys.stdin.readline()
granted = 0
try:
    while True:
        charge.reserve(1)
        granted += 1
except ApiError:
    print(granted)
"""


def test_two_processes_that_reserve_at_once_are_granted_the_limit_and_not_one_more(file: int) -> None:
    limit = 20_000  # of what is set aside nothing comes back by itself
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SPENDER, *map(str, (file, ROWS, row, limit))],
            env=clean_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(file,),
            text=True,
        )
        for row in (1, 2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    granted = [int(process.communicate(timeout=PATIENCE)[0]) for process in processes]
    assert sum(granted) == limit
