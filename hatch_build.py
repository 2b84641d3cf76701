"""Builds the CPU's library into the package, where there is a compiler. Without one the package is made without it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = "kernels/leokernels/native"


class NativeLibrary(BuildHookInterface[Any]):
    """Runs before a wheel, or an editable installation, is put together."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """See hatchling. `version` is "editable" for an installation that uses the sources as they stand."""
        recipe = _recipe(Path(self.root))
        try:
            made = recipe.build()
        except recipe.CannotBuild as error:
            print(f"leokernels.native was not built, torch will do its work: {error}", file=sys.stderr)
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        for file in made:
            build_data["force_include"][str(file)] = f"leokernels/native/{file.name}"


def _recipe(root: Path) -> ModuleType:
    """build.py of the sources: the package that it belongs to is not there yet."""
    spec = importlib.util.spec_from_file_location("leonative_build", root / NATIVE / "build.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{NATIVE}/build.py is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
