"""Every option of the server, once: its flag, its LEOSERVE_ variable, its key in a YAML file, its bounds and its help.

A field `max_num_seqs` is the flag `--max-num-seqs`, the variable `LEOSERVE_MAX_NUM_SEQS` and the YAML key
`max_num_seqs`. A flag wins over a variable, a variable over the file, the file over the default.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from leoserve.engine.config import EngineConfig

PREFIX = "LEOSERVE_"
GIB = 1 << 30

# What Kubernetes sets in every pod beside a Service called "leoserve": LEOSERVE_PORT=tcp://10.0.0.1:8000 and these.
SERVICE_LINK = re.compile(r"(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_TCP(_PROTO|_PORT|_ADDR)?)")


class SettingsError(Exception):
    """An option that cannot be accepted: one line that names it, its value and what would be right."""


def option(
    default: Any,
    group: str,
    description: str,
    *,
    unit: str = "",
    unset: str = "",
    metavar: str = "",
    secret: bool = False,
    **bounds: Any,
) -> Any:
    """A field of `Settings`.

    `unit` follows the default in the help; `unset` says there what no value means; a `secret` is never printed.
    `bounds` are pydantic's (ge, gt, le, lt).
    """
    extra: dict[str, JsonValue] = {"group": group, "unit": unit, "unset": unset, "metavar": metavar, "secret": secret}
    factory = {"default_factory": list} if default == [] else {"default": default}
    return Field(**factory, description=description, json_schema_extra=extra, repr=not secret, **bounds)


def split_commas(value: object) -> object:
    """Lists come from a variable as `a,b`, from repeated flags as ["a", "b"], from YAML as either."""
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return value


Names = Annotated[list[str], NoDecode, BeforeValidator(split_commas)]


def as_prefix(path: str) -> str:
    """Without a slash at the end. Raises ValueError for one that does not begin with a slash."""
    if path and not path.startswith("/"):
        raise ValueError(f"should begin with a slash, like /{path}")
    return path.rstrip("/")


class Settings(BaseSettings):
    """The server's options. `Settings()` reads variables; `Settings.load` reads flags, variables and the file."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, validate_default=False
    )

    model: str | None = option(
        None,
        "Model",
        "What to serve: a folder, or a hub id such as LeoLM/leo-hessianai-7b-chat, which is downloaded and cached.",
        unset="the bundled demo model",
        metavar="MODEL",
    )
    revision: str | None = option(
        None,
        "Model",
        "Branch, tag or commit of the hub repository. Set a commit to serve the same weights for ever.",
        unset="the repository's main branch",
    )
    hf_token: str | None = option(
        None,
        "Model",
        "Access token for gated or private hub repositories. Prefer the variable: flags show in process lists.",
        unset="HF_TOKEN or the login of `hf auth login`",
        secret=True,
    )
    download_dir: Path | None = option(
        None,
        "Model",
        "Folder of the hub cache. Change it when the home folder is small or not shared between machines.",
        unset="HF_HOME's cache",
        metavar="DIR",
    )
    device: Literal["auto", "cpu", "cuda"] = option(
        "auto", "Model", "Where the network runs; auto takes a GPU when there is one. Set cpu to leave a GPU alone."
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = option(
        "auto",
        "Model",
        "Type of weights and cache; auto follows the checkpoint and the device. float32 doubles the memory and is for "
        "comparing numbers.",
    )
    max_model_len: int | None = option(
        None,
        "Model",
        "Longest prompt and answer together. Lower it when memory holds too few blocks for one full context.",
        unit="tokens",
        unset="the checkpoint's context length",
        ge=1,
    )
    chat_template: str | None = option(
        None,
        "Model",
        "Jinja chat template, a file or the template itself. Needed where the checkpoint has none and its tokenizer "
        "has no ChatML tokens.",
        unset="the checkpoint's own, else ChatML",
        metavar="FILE|TEMPLATE",
    )

    host: str = option(
        "127.0.0.1",
        "Server",
        "Address to listen on. 0.0.0.0 (or ::) opens the server to the network: set --api-key with it.",
        metavar="ADDRESS",
    )
    port: int = option(
        8000, "Server", "Port to listen on; 0 takes a free one. Change it when it is in use.", ge=0, le=65535
    )
    served_model_name: Names = option(
        [],
        "Server",
        "Name under which clients ask for the model; repeat it for more. Set it to keep client code unchanged.",
        unset="the hub id, or the folder's name",
        metavar="NAME",
    )
    api_key: Names = option(
        [],
        "Server",
        "Bearer key that clients must send; repeat it for more. Set one whenever the server is not on loopback; "
        "prefer the variable or --api-key-file, since flags show in process lists.",
        unset="no key needed",
        metavar="KEY",
        secret=True,
    )
    api_key_file: Path | None = option(
        None,
        "Server",
        "File with one bearer key a line ('#' starts a comment), read again when it changes. Behind a key may stand "
        "requests_per_minute=N and tokens_per_minute=N. For keys kept as a mounted secret.",
        unset="none",
        metavar="FILE",
    )
    cors_origin: Names = option(
        [],
        "Server",
        "Web origin whose pages may call the server; repeat it for more, '*' for all. For chat pages in a browser.",
        unset="none",
        metavar="ORIGIN",
    )
    root_path: Annotated[str, AfterValidator(as_prefix)] = option(
        "",
        "Server",
        "Path under which a proxy serves this server, such as /llm. Set it when the proxy strips that path.",
        metavar="PATH",
    )
    keep_alive: float = option(
        15.0,
        "Server",
        "Silence on a stream after which a comment is sent. Lower it below the idle timeout of a proxy in front.",
        unit="s",
        gt=0,
    )
    shutdown_grace: float = option(
        60.0,
        "Server",
        "How long running answers may finish after Ctrl-C or SIGTERM. In Kubernetes keep it below "
        "terminationGracePeriodSeconds.",
        unit="s",
        ge=0,
    )
    stall_timeout: float = option(
        300.0,
        "Server",
        "How long work may wait without a finished step before /health turns false. Raise it where one step of a long "
        "prompt takes minutes.",
        unit="s",
        gt=0,
    )
    log_format: Literal["text", "json"] = option(
        "text", "Server", "Shape of a log line. json for machines that collect logs."
    )
    log_level: Literal["debug", "info", "warning", "error"] = option(
        "info", "Server", "Least severity that is logged. debug when hunting a fault."
    )
    log_requests: bool = option(
        True, "Server", "Log one line per request at its end. Turn it off when a proxy already logs them."
    )

    max_num_seqs: int = option(
        256,
        "Engine",
        "Most answers computed at the same time. Lower it for faster single answers under load, raise it for "
        "throughput on a large GPU.",
        ge=1,
    )
    max_num_batched_tokens: int | None = option(
        None,
        "Engine",
        "Token budget of one step, prompts and answers together. Lower it for smoother streams while long prompts "
        "arrive, raise it for faster prompts.",
        unit="tokens",
        unset="by device",
        ge=1,
    )
    prefill_stretch: float | None = option(
        None,
        "Engine",
        "How many times as long a step may take with a part of a long prompt as without, while answers are being "
        "generated. Lower it for smoother streams while long prompts arrive, raise it for faster long prompts.",
        unset="2.5 on a CPU, no bound on a GPU",
        ge=1,
    )
    kv_dtype: Literal["auto", "int8", "fp8"] = option(
        "auto",
        "Engine",
        "How the key/value cache is stored: auto as --dtype, int8 or fp8 with a scale for each token and head. 8 bits "
        "hold nearly twice the tokens and are read in half the time, for a small loss of precision; int8 loses less.",
    )
    block_size: int | None = option(
        None,
        "Engine",
        "Tokens in one block of the key/value cache. Change it only to compare kernels.",
        unit="tokens",
        unset="what the attention kernel likes best",
        ge=1,
        le=1024,
    )
    num_kv_blocks: int | None = option(
        None,
        "Engine",
        "Blocks of the key/value cache, instead of sizing it by memory. For tests and exact capacity planning.",
        unit="blocks",
        unset="as memory allows",
        ge=1,
    )
    kv_cache_memory: float | None = option(
        None,
        "Engine",
        "Memory of the key/value cache. Lower it when other programs need the memory, raise it for more or longer "
        "chats at once.",
        unit="GiB",
        unset="as memory allows",
        gt=0,
    )
    gpu_memory_utilization: float = option(
        0.9,
        "Engine",
        "Share of the GPU's memory that weights, cache and work space may take. Lower it when the GPU is shared.",
        gt=0,
        le=1,
    )
    enable_prefix_caching: bool = option(
        True,
        "Engine",
        "Keep computed prompt beginnings and share them between requests. Turn it off to measure without it.",
    )
    deterministic: bool | None = option(
        None,
        "Engine",
        "Give a request the same tokens and log-probabilities, bit by bit, whatever runs beside it. On a GPU it "
        "needs Triton and costs speed; elsewhere it costs only that generated tokens are not shared as prompt "
        "beginnings. Turn it off to share them.",
        unset="with the cpu attention yes, else no",
    )
    async_scheduling: bool = option(
        True,
        "Engine",
        "Plan and launch a GPU's next step while it computes the one before. Turn it off to debug.",
    )
    enforce_eager: bool = option(
        False,
        "Engine",
        "Launch a GPU's decode steps kernel by kernel instead of as CUDA graphs: slower, for debugging, and to start "
        "faster with less memory.",
    )
    attention: str = option(
        "auto",
        "Engine",
        "Attention kernel: native, cpu, triton, flash_attn, torch_varlen or reference; auto takes the fastest that "
        "runs here and says why. Name another to compare, or to step around a faulty one.",
        metavar="NAME",
    )
    threads: int | None = option(
        None,
        "Engine",
        "Threads that compute on the CPU. Lower it when other programs need the cores.",
        unset="one per core this process may use",
        ge=1,
    )
    seed: int = option(
        0,
        "Engine",
        "Base of the seeds drawn for requests that bring none. Change it for other answers from the same requests.",
        ge=0,
        lt=2**63,
    )

    max_waiting_requests: int = option(
        1024,
        "Limits",
        "Answers that may wait for a place; beyond it a client gets 429 at once. Raise it for large batch jobs.",
        ge=0,
    )
    max_waiting_tokens: int = option(
        4_000_000,
        "Limits",
        "Prompt tokens that may wait for a place; beyond it a client gets 429 at once. Raise it for large batch jobs.",
        unit="tokens",
        ge=0,
    )
    requests_per_minute: int | None = option(
        None,
        "Limits",
        "Requests that each key may send in a minute, or all clients together where no key is needed; beyond it a "
        "client gets 429. Set it where one client could starve the others.",
        unset="no limit",
        ge=1,
        le=10**9,
    )
    tokens_per_minute: int | None = option(
        None,
        "Limits",
        "Tokens of prompts and answers that each key may use in a minute, or all clients together where no key is "
        "needed; beyond it a client gets 429. Set it where one client could starve the others.",
        unit="tokens",
        unset="no limit",
        ge=1,
        le=10**12,
    )
    request_timeout: float | None = option(
        None,
        "Limits",
        "How long one request may take from its arrival to the end of its answer; a longer one is ended with 504, or "
        "with an error in its stream. Set it where nobody waits longer anyway.",
        unit="s",
        unset="no limit",
        gt=0,
        le=10**7,
    )
    max_choices: int = option(
        128,
        "Limits",
        "Most answers one prompt may ask for (n or best_of). Lower it on a shared server.",
        ge=1,
        le=1024,
    )
    max_connections: int = option(
        2048,
        "Limits",
        "Client connections that are served; on further ones all but /health, /ready and /metrics is a 503. Raise it "
        "for very many streams.",
        ge=1,
    )
    max_body_bytes: int = option(
        8 << 20,
        "Limits",
        "Largest request body; a larger one gets 413. Raise it for batches of very long prompts.",
        unit="bytes",
        ge=1024,
    )
    unknown_fields: Literal["reject", "warn"] = option(
        "reject",
        "Limits",
        "What happens to a request with a field nobody knows: reject it with 400, or serve it and name the field in a "
        "warning header. warn for clients that send fields of other servers.",
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
        variables = cast(EnvSettingsSource, env_settings)
        port_variable = (PREFIX + "PORT").lower()
        if (variables.env_vars.get(port_variable) or "").startswith("tcp://"):  # a service link, no setting of ours
            variables.env_vars = {k: v for k, v in variables.env_vars.items() if k != port_variable}
        path = init_settings().get("config") or variables().get("config")
        file = InitSettingsSource(settings_cls, read_file(Path(path)) if path else {})
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
            raise SettingsError("; ".join(describe(item, flags) for item in error.errors())) from None
        settings.check()
        return settings

    def check(self) -> None:
        """What one option says about another. Raises SettingsError."""
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


def read_file(path: Path) -> dict[str, Any]:
    """The options of a YAML file, keys with `_` or `-`. Raises SettingsError."""
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
    for key in options.keys() - Settings.model_fields.keys():
        raise SettingsError(f"--config {path}: there is no option {key}{suggest(key, Settings.model_fields)}")
    return options


def reason(error: Exception) -> str:
    """What the operating system says, without its error number and the path again."""
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)).lower()


def suggest(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """`; did you mean …?` when one of `known` is close to `name`, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def describe(error: ErrorDetails, flags: Mapping[str, Any]) -> str:
    """One error of pydantic, as `--flag value: what would be right`, said where the value came from."""
    name = str(error["loc"][0])
    variable = (PREFIX + name).upper()
    value = "•••" if extra(Settings.model_fields[name])["secret"] else show(error["input"])
    if name in flags:
        where = f"{flag(name)} {value}" if name != "model" else f"MODEL {value}"
    elif os.environ.get(variable):
        where = f"{variable}={value}"
    else:
        file = flags.get("config") or os.environ.get(PREFIX + "CONFIG")
        where = f"--config {file}: {name}: {value}"
    message = re.sub(r"^Input should be", "should be", error["msg"].removeprefix("Value error, "))
    return f"{where}: {message[:1].lower()}{message[1:]}"


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """A line for each LEOSERVE_ variable that is no option (a typing error would otherwise pass unseen)."""
    known = [(PREFIX + name).upper() for name in Settings.model_fields]
    strange = [
        name
        for name in sorted(environ)
        if name.startswith(PREFIX) and name not in known and not SERVICE_LINK.fullmatch(name.removeprefix(PREFIX))
    ]
    return [f"{name} is no option and has no effect{suggest(name, known)}" for name in strange]


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def extra(field: FieldInfo) -> dict[str, Any]:
    return cast(dict[str, Any], field.json_schema_extra)


def show(value: object) -> str:
    """A value as one would type it."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int):
        return f"{value:_}" if value >= 1_000_000 else str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
