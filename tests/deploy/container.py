"""A container of the image, run by runc as a Compose file's service says, with a network of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import PATIENCE, Server

from .image import Image

# What every engine mounts into a container.
MOUNTS: list[dict[str, Any]] = [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
    {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "nodev", "mode=1777"]},
]
HIDDEN = ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"]
FROZEN = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


@dataclass(frozen=True)
class Container:
    """A running one. Its network is its own, and has loopback alone."""

    name: str
    state: Path
    server: Server

    def inside(self, *command: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command of the image in the container, as its user."""
        runc = ["runc", "--root", str(self.state), "exec", self.name]
        return subprocess.run([*runc, *command], input=text, capture_output=True, text=True, timeout=PATIENCE)

    def beside(self, code: str) -> subprocess.CompletedProcess[str]:
        """Run Python of this machine in the container's network."""
        told = subprocess.run(
            ["runc", "--root", str(self.state), "state", self.name], capture_output=True, text=True, check=True
        )
        enter = ["nsenter", f"--net=/proc/{json.loads(told.stdout)['pid']}/ns/net"]
        return subprocess.run([*enter, sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)


def specification(image: Image, service: dict[str, Any], user: str) -> dict[str, Any]:
    """The OCI runtime's config.json of `service`, which has to be read-only and without rights. `user` is uid:gid."""
    uid, gid = user.split(":")
    variables = {**dict(value.split("=", 1) for value in image.config["Env"]), **service.get("environment", {})}
    return {
        "ociVersion": "1.0.2",
        "root": {"path": str(image.root), "readonly": service["read_only"]},
        "process": {
            "user": {"uid": int(uid), "gid": int(gid)},
            "args": [*image.config["Entrypoint"], *service.get("command", image.config["Cmd"])],
            "env": [f"{name}={value}" for name, value in variables.items()],
            "cwd": image.config["WorkingDir"],
            "capabilities": {} if service["cap_drop"] == ["ALL"] else None,
            "noNewPrivileges": "no-new-privileges:true" in service["security_opt"],
        },
        "mounts": MOUNTS + [memory(entry) for entry in service["tmpfs"]],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")],
            "maskedPaths": HIDDEN,
            "readonlyPaths": FROZEN,
        },
    }


def memory(entry: str) -> dict[str, Any]:
    """The mount of one of a service's tmpfs entries, `/place:option,option`."""
    place, _, options = entry.partition(":")
    return {
        "destination": place,
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "nodev", *options.split(",")],
    }


@contextmanager
def running(image: Image, service: dict[str, Any], folder: Path, user: str | None = None) -> Iterator[Container]:
    """Start, wait until the server is ready, and stop with the image's own signal. `user` stands for the image's."""
    name = f"leoserve-{uuid.uuid4().hex[:8]}"
    bundle = folder / name
    bundle.mkdir()
    (bundle / "config.json").write_text(json.dumps(specification(image, service, user or image.config["User"])))
    state = folder / "state"
    runc = ["runc", "--root", str(state)]
    process = subprocess.Popen([*runc, "run", "--bundle", str(bundle), name], stderr=subprocess.PIPE, text=True)
    server = Server(process)
    try:
        server.wait_for(r"leoserve is ready")
        yield Container(name, state, server)
        subprocess.run([*runc, "kill", name, image.config["StopSignal"]], check=True)
        assert process.wait(PATIENCE) == 0, server.stderr
    finally:
        subprocess.run([*runc, "delete", "--force", name], capture_output=True)
        process.wait(PATIENCE)
