"""How clients reach the server, and how it lives, ends and tells of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel

from leoserve.settings.option import Names, option


def as_prefix(path: str) -> str:
    """Without a slash at the end. Raises ValueError for one that does not begin with a slash."""
    if path and not path.startswith("/"):
        raise ValueError(f"should begin with a slash, like /{path}")
    return path.rstrip("/")


class ServerOptions(BaseModel):
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
    api_workers: int = option(
        1,
        "Server",
        "Processes that answer HTTP, in front of one engine. Raise it where one no longer keeps up with the tokens of "
        "a fast GPU, at some 50,000 a second; it must have a core for each.",
        ge=1,
        le=64,
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
