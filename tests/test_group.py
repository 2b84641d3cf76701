"""leoserve.group and --tensor-parallel-size: who is alone serves, who is one of several is told that it cannot yet."""

from __future__ import annotations

import subprocess
import sys

import httpx2
import pytest

from leoserve.group import Group, read_group
from leoserve.settings import SettingsError
from tests.conftest import PATIENCE, Serve, clean_environment

POD = {"LWS_LEADER_ADDRESS": "leo-0.leo.default", "LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": "1"}
PROCESS = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
ALONE_IN_A_POD = POD | {"LWS_GROUP_SIZE": "1", "LWS_WORKER_INDEX": "0"}
ALONE = PROCESS | {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}


@pytest.mark.parametrize(
    ("environ", "group"),
    [
        ({}, Group()),
        (dict.fromkeys(POD | PROCESS, ""), Group()),
        ({"MASTER_ADDR": "somewhere", "MASTER_PORT": "1"}, Group()),
        (POD, Group(2, 1, leader="leo-0.leo.default", told_by="LWS_GROUP_SIZE")),
        (PROCESS, Group(4, 3, 1, "10.0.0.1", 29500, told_by="WORLD_SIZE")),
        (POD | PROCESS, Group(4, 3, 1, "10.0.0.1", 29500, told_by="WORLD_SIZE")),
        ({"WORLD_SIZE": "1"}, Group(told_by="WORLD_SIZE")),
    ],
)
def test_a_group_is_read_from_either_launcher_or_one_inside_the_other(environ: dict[str, str], group: Group) -> None:
    assert read_group({"HOME": "/"} | environ) == group


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (POD | {"LWS_GROUP_SIZE": "two"}, "LWS_GROUP_SIZE=two: should be a whole number from 0 on"),
        (POD | {"LWS_GROUP_SIZE": "-2"}, "LWS_GROUP_SIZE=-2: should be a whole number"),
        (POD | {"LWS_GROUP_SIZE": "0"}, "LWS_GROUP_SIZE=0: a group has at least one process"),
        (POD | {"LWS_GROUP_SIZE": "9" * 5000}, "LWS_GROUP_SIZE=9"),
        (POD | {"LWS_WORKER_INDEX": "2"}, "LWS_WORKER_INDEX=2 contradicts LWS_GROUP_SIZE=2: it should be 1 or less"),
        (POD | {"LWS_WORKER_INDEX": " "}, "LWS_GROUP_SIZE is set and LWS_WORKER_INDEX is not"),
        (POD | {"LWS_LEADER_ADDRESS": ""}, "LWS_GROUP_SIZE is set and LWS_LEADER_ADDRESS is not"),
        ({"LWS_WORKER_INDEX": "0"}, "LWS_WORKER_INDEX is set and LWS_GROUP_SIZE is not"),
        ({"RANK": "1"}, "RANK is set and WORLD_SIZE is not"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK is set and WORLD_SIZE is not"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set and RANK is not"),
        (PROCESS | {"WORLD_SIZE": "1.5"}, "WORLD_SIZE=1.5: should be a whole number"),
        (PROCESS | {"WORLD_SIZE": "0", "RANK": "0"}, "WORLD_SIZE=0: a group has at least one process"),
        (PROCESS | {"RANK": "4"}, "RANK=4 contradicts WORLD_SIZE=4: it should be 3 or less"),
        (PROCESS | {"RANK": "1", "LOCAL_RANK": "2"}, "LOCAL_RANK=2 contradicts RANK=1"),
        (PROCESS | {"MASTER_ADDR": ""}, "WORLD_SIZE is set and MASTER_ADDR is not"),
        (PROCESS | {"MASTER_PORT": ""}, "WORLD_SIZE is set and MASTER_PORT is not"),
        (PROCESS | {"MASTER_PORT": "tcp"}, "MASTER_PORT=tcp: should be a whole number"),
        (PROCESS | {"MASTER_PORT": "70000"}, "MASTER_PORT=70000: should be a port from 1 to 65535"),
        (POD | PROCESS | {"WORLD_SIZE": "5"}, "WORLD_SIZE=5 contradicts LWS_GROUP_SIZE=2: as many processes cannot"),
        (POD | ALONE, "WORLD_SIZE=1 contradicts LWS_GROUP_SIZE=2"),
        (POD | PROCESS | {"RANK": "1"}, "RANK=1 contradicts LWS_WORKER_INDEX=1: with 2 of WORLD_SIZE=4"),
    ],
)
def test_variables_that_make_no_sense_are_refused_by_name(environ: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_group(environ)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def refusal(*arguments: str, **variables: str) -> str:
    """The one line with which `leoserve serve` ends."""
    done = subprocess.run(
        [sys.executable, "-m", "leoserve", "serve", "--port", "0", *arguments],
        env=clean_environment(**variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["--tensor-parallel-size", "2"], {}, "--tensor-parallel-size 2: this version has no tensor parallelism yet"),
        ([], POD, "LWS_GROUP_SIZE=2: this process, number 1, was started as one of 2"),
        ([], PROCESS, "WORLD_SIZE=4: this process, number 3, was started as one of 4"),
        ([], POD | {"LWS_WORKER_INDEX": "x"}, "LWS_WORKER_INDEX=x: should be a whole number"),
    ],
    ids=["option", "LeaderWorkerSet", "torchrun", "malformed"],
)
def test_a_server_that_should_be_one_of_several_ends_at_once(
    arguments: list[str], variables: dict[str, str], message: str
) -> None:
    said = refusal(*arguments, **variables)
    assert said.startswith(f"leoserve: error: {message}")
    assert "no tensor parallelism yet" in said or "x:" in said


def test_a_group_of_one_is_served(serve: Serve) -> None:
    server = serve(None, "--tensor-parallel-size", "1", env=ALONE_IN_A_POD | ALONE)
    assert httpx2.get(f"{server.url}/ready", timeout=PATIENCE).status_code == 200
    assert server.stop() == 0
