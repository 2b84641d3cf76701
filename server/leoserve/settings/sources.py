"""Where options come from beside the command line: variables and a YAML file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic_settings import EnvSettingsSource

from leoserve.settings.messages import SettingsError, reason, suggest
from leoserve.settings.option import PREFIX, variable

# What Kubernetes sets in every pod beside a Service called "leoserve": LEOSERVE_PORT=tcp://10.0.0.1:8000 and these.
SERVICE_LINK = re.compile(r"(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_TCP(_PROTO|_PORT|_ADDR)?)")


def without_service_link(variables: EnvSettingsSource) -> None:
    """Take out of `variables` the port that Kubernetes, not a user, has set."""
    port = variable("port").lower()
    if (variables.env_vars.get(port) or "").startswith("tcp://"):
        variables.env_vars = {name: value for name, value in variables.env_vars.items() if name != port}


def unknown_variables(environ: Mapping[str, str], names: Iterable[str]) -> list[str]:
    """A line for each LEOSERVE_ variable that is none of the options `names` (a typing error would otherwise pass
    unseen)."""
    known = [variable(name) for name in names]
    strange = [
        name
        for name in sorted(environ)
        if name.startswith(PREFIX) and name not in known and not SERVICE_LINK.fullmatch(name.removeprefix(PREFIX))
    ]
    return [f"{name} is no option and has no effect{suggest(name, known)}" for name in strange]


def read_file(path: Path, names: Iterable[str]) -> dict[str, Any]:
    """The options of a YAML file, keys with `_` or `-`, all of them among `names`. Raises SettingsError."""
    import yaml  # only for those who use a file

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise SettingsError(f"--config {path}: no valid YAML{line}: {error.problem}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"--config {path}: {reason(error)}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"--config {path}: expected lines like `port: 8000`, found a {type(content).__name__}")
    options = {str(key).replace("-", "_"): value for key, value in content.items() if value is not None}
    if "config" in options:
        raise SettingsError(f"--config {path}: a file cannot name another file (key config)")
    known = list(names)
    for key in options.keys() - set(known):
        raise SettingsError(f"--config {path}: there is no option {key}{suggest(key, known)}")
    return options
