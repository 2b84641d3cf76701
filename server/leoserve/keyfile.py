"""The keys that are configured, and how much each may ask for in a minute.

A line of the file is a key, and behind it, where they are not the server's, its limits:

    sk-team-eins
    sk-team-zwei requests_per_minute=60 tokens_per_minute=100000
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from leoserve.settings import Settings, SettingsError, reason

MAX_FILE_BYTES = 64 << 20
LIMIT = re.compile(r"[0-9]{1,12}")


@dataclass(frozen=True, slots=True)
class Quota:
    """What one client may ask for; None is no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


def configured(settings: Settings) -> dict[str, Quota]:
    """The keys of --api-key and of --api-key-file with what they may spend. Raises SettingsError.

    An empty file or key is an error, since it would otherwise open a server that was meant to be closed.
    """
    default = Quota(settings.requests_per_minute, settings.tokens_per_minute)
    if not all(key.strip() for key in settings.api_key):
        raise SettingsError("--api-key: the key is empty; give one, or leave the option out to let everybody in")
    quotas = dict.fromkeys(settings.api_key, default)
    path = settings.api_key_file
    if path is None:
        return quotas
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise SettingsError(f"--api-key-file {path}: larger than {MAX_FILE_BYTES} bytes")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--api-key-file {path}: {reason(error)}") from None
    found = {}
    for number, line in enumerate(lines, start=1):
        key, *limits = line.split() or [""]
        if key and not key.startswith("#"):
            found[key] = with_limits(default, limits, f"--api-key-file {path}, line {number}")
    if not found:
        raise SettingsError(f"--api-key-file {path}: holds no key; write one a line")
    return quotas | found


def with_limits(default: Quota, limits: Sequence[str], where: str) -> Quota:
    """`default` but for `limits`, each like `tokens_per_minute=1000`; 0 is no limit. Raises SettingsError."""
    given: dict[str, int | None] = {}
    for limit in limits:
        if limit.startswith("#"):
            break
        name, _, value = limit.partition("=")
        if name not in Quota.__slots__ or not LIMIT.fullmatch(value):
            known = " and ".join(f"{each}=NUMBER" for each in Quota.__slots__)
            raise SettingsError(f"{where}: behind a key only {known} may stand")
        given[name] = int(value) or None
    return replace(default, **given)
