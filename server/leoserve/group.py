"""Whether this process is one of several that were started together, as LeaderWorkerSet or torchrun tells it.

LeaderWorkerSet sets LWS_LEADER_ADDRESS, LWS_GROUP_SIZE and LWS_WORKER_INDEX in each pod
(https://lws.sigs.k8s.io/docs/reference/labels-annotations-and-environment-variables/). torchrun sets WORLD_SIZE, RANK,
LOCAL_RANK, MASTER_ADDR and MASTER_PORT in each process (https://docs.pytorch.org/docs/stable/elastic/run.html), and may
run inside such pods, then with the same number of processes in each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from leoserve.settings import SettingsError

NUMBER = re.compile(r"[0-9]{1,9}")
LARGEST_PORT = 65535


@dataclass(frozen=True, slots=True)
class Group:
    """The processes that were started to serve one model together, and the place of this one among them."""

    size: int = 1  # processes
    rank: int = 0  # of this process, 0 to size - 1
    local_rank: int = 0  # among those of its pod or machine
    leader: str | None = None  # the host of rank 0
    port: int | None = None  # where rank 0 listens for the others
    told_by: str | None = None  # the variable that gives the size

    def require_alone(self) -> None:
        """Raises SettingsError for one process of several: each would load the whole model and answer for itself."""
        if self.size > 1:
            raise SettingsError(
                f"{self.told_by}={self.size}: this process, number {self.rank}, was started as one of {self.size} that "
                f"share a model, and this version has no tensor parallelism yet: start groups of one process each, "
                f"with a model that fits one device"
            )


def read_group(environ: Mapping[str, str]) -> Group:
    """What the variables of LeaderWorkerSet and of torchrun say. An empty variable counts as not set.

    Raises SettingsError, which names the variable, for one that is malformed, missing or contradicts another.
    """
    told = {name: value.strip() for name, value in environ.items() if value.strip()}
    pods, processes = _leader_worker_set(told), _torchrun(told)
    if pods is None or processes is None:
        return processes or pods or Group()
    each, rest = divmod(processes.size, pods.size)
    if rest or each == 0:
        raise SettingsError(
            f"WORLD_SIZE={processes.size} contradicts LWS_GROUP_SIZE={pods.size}: as many processes cannot be spread "
            f"evenly over {pods.size} pods"
        )
    if processes.rank // each != pods.rank:
        raise SettingsError(
            f"RANK={processes.rank} contradicts LWS_WORKER_INDEX={pods.rank}: with {each} of WORLD_SIZE="
            f"{processes.size} processes in each pod, it belongs to pod {processes.rank // each}"
        )
    return processes


def _leader_worker_set(told: Mapping[str, str]) -> Group | None:
    names = ("LWS_GROUP_SIZE", "LWS_WORKER_INDEX", "LWS_LEADER_ADDRESS")
    if not told.keys() & set(names):
        return None
    for name in names:
        _require(told, name, beside=next(other for other in names if other in told))
    size, rank = _place(told, "LWS_GROUP_SIZE", "LWS_WORKER_INDEX")
    return Group(size, rank, leader=told["LWS_LEADER_ADDRESS"], told_by="LWS_GROUP_SIZE")


def _torchrun(told: Mapping[str, str]) -> Group | None:
    """MASTER_ADDR and MASTER_PORT alone say where a group would meet, not that there is one."""
    for name in ("RANK", "LOCAL_RANK"):
        if name in told:
            _require(told, "WORLD_SIZE", beside=name)
    if "WORLD_SIZE" not in told:
        return None
    if _number(told, "WORLD_SIZE") == 1 and "RANK" not in told:
        return Group(told_by="WORLD_SIZE")
    _require(told, "RANK", beside="WORLD_SIZE")
    size, rank = _place(told, "WORLD_SIZE", "RANK")
    if size > 1:
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            _require(told, name, beside="WORLD_SIZE")
    local = _number(told, "LOCAL_RANK") if "LOCAL_RANK" in told else 0
    if local > rank:
        raise SettingsError(f"LOCAL_RANK={local} contradicts RANK={rank}: it is at most the rank among all")
    return Group(size, rank, local, told.get("MASTER_ADDR"), _port(told), told_by="WORLD_SIZE")


def _place(told: Mapping[str, str], size_name: str, rank_name: str) -> tuple[int, int]:
    """The size of the group and the place in it. Raises SettingsError."""
    size, rank = _number(told, size_name), _number(told, rank_name)
    if size == 0:
        raise SettingsError(f"{size_name}=0: a group has at least one process")
    if rank >= size:
        raise SettingsError(f"{rank_name}={rank} contradicts {size_name}={size}: it should be {size - 1} or less")
    return size, rank


def _port(told: Mapping[str, str]) -> int | None:
    if "MASTER_PORT" not in told:
        return None
    port = _number(told, "MASTER_PORT")
    if not 0 < port <= LARGEST_PORT:
        raise SettingsError(f"MASTER_PORT={port}: should be a port from 1 to {LARGEST_PORT}")
    return port


def _number(told: Mapping[str, str], name: str) -> int:
    if not NUMBER.fullmatch(told[name]):
        raise SettingsError(f"{name}={told[name]}: should be a whole number from 0 on")
    return int(told[name])


def _require(told: Mapping[str, str], name: str, *, beside: str) -> None:
    if name not in told:
        raise SettingsError(f"{beside} is set and {name} is not: set both, or neither")
