"""Every option of the server, once: its flag, its LEOSERVE_ variable, its key in a YAML file, its bounds and its help.

A field `max_num_seqs` is the flag `--max-num-seqs`, the variable `LEOSERVE_MAX_NUM_SEQS` and the YAML key
`max_num_seqs`. A flag wins over a variable, a variable over the file, the file over the default.

The fields stand in `model.py`, `server.py`, `engine.py` and `limits.py`, one group of the help each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from leoserve.engine.config import EngineConfig
from leoserve.settings import sources
from leoserve.settings.engine import EngineOptions
from leoserve.settings.limits import LimitOptions
from leoserve.settings.messages import SettingsError, describe, reason, suggest
from leoserve.settings.model import ModelOptions
from leoserve.settings.option import PREFIX, extra, flag, option, show
from leoserve.settings.server import ServerOptions

__all__ = [
    "PREFIX",
    "Settings",
    "SettingsError",
    "extra",
    "flag",
    "reason",
    "show",
    "suggest",
    "unknown_variables",
]

GIB = 1 << 30


# The help shows the groups in the order of the fields, and pydantic takes those of the last base first.
class Settings(LimitOptions, EngineOptions, ServerOptions, ModelOptions, BaseSettings):
    """The server's options. `Settings()` reads variables; `Settings.load` reads flags, variables and the file."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, validate_default=False
    )

    config: Path | None = option(
        None,
        "Files",
        "YAML file of options, keys spelled as here without the dashes in front. For a configuration kept in a "
        "repository.",
        unset="none",
        metavar="FILE",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then variables, then the file that one of those names."""
        sources.without_service_link(cast(EnvSettingsSource, env_settings))
        path = init_settings().get("config") or env_settings().get("config")
        file = InitSettingsSource(settings_cls, sources.read_file(Path(path), cls.model_fields) if path else {})
        return init_settings, env_settings, file

    @classmethod
    def load(cls, flags: Mapping[str, Any] | None = None) -> Settings:
        """Settings from the flags given on the command line (by field name), the variables and the file.

        Raises SettingsError.
        """
        flags = flags or {}
        try:
            settings = cls(**flags)
        except ValidationError as error:
            said = (describe(item, cls.model_fields, flags) for item in error.errors())
            raise SettingsError("; ".join(said)) from None
        settings.check()
        return settings

    def check(self) -> None:
        """What one option says about another. Raises SettingsError."""
        if self.tensor_parallel_size > 1:
            raise SettingsError(
                f"--tensor-parallel-size {self.tensor_parallel_size}: this version has no tensor parallelism yet: "
                f"leave it at 1, and take a model that fits one device (`leoserve size` tells which do)"
            )
        tokens, answers = self.max_num_batched_tokens, self.max_num_seqs
        if tokens is not None and tokens < answers:
            raise SettingsError(
                f"--max-num-batched-tokens {tokens} is less than --max-num-seqs {answers}, and each of those answers "
                f"takes a token of every step: set --max-num-seqs to {tokens} or less, or --max-num-batched-tokens to "
                f"{answers} or more"
            )

    def engine_config(
        self, model: Path, token_ranges: Sequence[tuple[int, int]], *, progress: bool = True
    ) -> EngineConfig:
        """The engine's part. `token_ranges`: the [start, stop) ids of the tokenizer."""
        memory = None if self.kv_cache_memory is None else int(self.kv_cache_memory * GIB)
        same = {name: getattr(self, name) for name in EngineConfig.__struct_fields__ if name in type(self).model_fields}
        same.update(model=str(model), kv_cache_memory_bytes=memory, token_ranges=list(token_ranges), progress=progress)
        return EngineConfig(**same)

    def chosen(self) -> dict[str, str]:
        """The options that were set, by whom does not matter, and their values; secrets as dots."""
        fields = type(self).model_fields
        return {
            name: "•••" if extra(field)["secret"] else show(getattr(self, name))
            for name, field in fields.items()
            if name in self.model_fields_set and getattr(self, name) != field.get_default(call_default_factory=True)
        }


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """A line for each LEOSERVE_ variable that is no option."""
    return sources.unknown_variables(environ, Settings.model_fields)
