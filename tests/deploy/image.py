"""The CPU image, built by buildah from deploy/Dockerfile on a base that Debian's packages give, without a registry."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

BASE = "localhost/base"
PATHS = ("cert", "find-links", "extra-index-url", "index-url")


@dataclass(frozen=True)
class Image:
    """`root` has its files, `config` what a container engine reads of it, in Docker's terms."""

    root: Path
    config: dict[str, Any]

    @property
    def packages(self) -> Path:
        """Its site-packages."""
        (found,) = self.root.glob("opt/leoserve/lib/python3*/site-packages")
        return found


def build(folder: Path) -> Image:
    """Build in `folder`, which has everything afterwards: some two minutes of one core, and 4 GB."""
    store = storage(folder)
    make = (*store, "bud", "--isolation", "chroot", "--format", "docker", "--pull-never", "--quiet")
    run(*make, "--tag", BASE, str(base(folder)))
    arguments = ["--build-arg", f"BASE={BASE}", "--build-arg", "VARIANT=cpu", *as_here(folder)]
    run(*make, *arguments, "--tag", "localhost/leoserve", "--file", "deploy/Dockerfile", ".")
    container = run(*store, "from", "localhost/leoserve")
    config = json.loads(run(*store, "inspect", "--type", "image", "localhost/leoserve"))["Docker"]["config"]
    return Image(Path(run(*store, "mount", container)), config)


def run(*command: str) -> str:
    """What a command prints. What it complains is in the test's report when it fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def release(folder: Path) -> None:
    """Unmount what `build` mounted, and remove it all."""
    run(*storage(folder), "umount", "--all")
    run("rm", "-rf", str(folder))


def storage(folder: Path) -> list[str]:
    """buildah with its images in `folder`: as overlays where the kernel can put one there, else as copies."""
    for driver in ("overlay", "vfs"):
        store = ["buildah", "--root", f"{folder}/{driver}", "--runroot", f"{folder}/run", "--storage-driver", driver]
        try:
            run(*store, "info")
        except RuntimeError:
            if driver == "vfs":
                raise
        else:
            break
    return store


def base(folder: Path) -> Path:
    """The folder of a base image: this machine's release of Debian with its Python, in place of the official one."""
    context = folder / "base"
    context.mkdir()
    bare = [f"--dpkgopt=path-exclude=/usr/share/{unread}/*" for unread in ("man", "doc", "locale")]
    release = platform.freedesktop_os_release()["VERSION_CODENAME"]
    packages = "--include=python3-venv,ca-certificates"
    run("mmdebstrap", "--quiet", "--variant=minbase", packages, *bare, release, str(context / "base.tar"))
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    (context / "Dockerfile").write_text(f"FROM scratch\nADD base.tar /\nENV {path}\n")
    return context


def as_here(folder: Path) -> list[str]:
    """Arguments that let pip in the build find packages where this machine's pip does: settings, and local folders."""
    said = run(sys.executable, "-m", "pip", "config", "list")
    every = re.findall(r"^\S+\.([a-z-]+)='(.*)'$", said, re.MULTILINE)
    settings = {key: value for key, value in every if key in PATHS}
    file = folder / "pip.conf"
    file.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()))
    arguments = ["--secret", f"id=pip,src={file}"]
    for key, value in settings.items():
        for place in value.split():
            path = Path(place.removeprefix("file://"))
            if path.is_absolute() and path.exists():
                shared = path.parent if key.endswith("index-url") else path  # an index links to files beside it
                arguments += ["--volume", f"{shared}:{shared}:ro"]
                if key == "find-links":
                    arguments += ["--build-arg", f"TORCH_CPU_INDEX=file://{path}"]
    return arguments
