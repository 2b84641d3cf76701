"""The options of a target and of a result, which `run` and `sweep` share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import msgspec

from leobench.load import nonnegative, positive
from leobench.slo import slo
from leobench.workloads import whole

DEFAULT_URL = "http://127.0.0.1:8000"
KEY_VARIABLE = "LEOBENCH_API_KEY"
SECRET = {"api_key", "header"}  # options that no result may hold


class Unusable(Exception):
    """The options, or the server, allow no run. One line that says what to do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a target."""
    group = parser.add_argument_group("target: who is asked, and how")
    group.add_argument(
        "--url",
        action="append",
        metavar="URL",
        help=f"the server's address, with or without /v1; several take turns [default: {DEFAULT_URL}]",
    )
    group.add_argument("--model", metavar="NAME", help="one of the server's models [default: its first]")
    group.add_argument(
        "--endpoint", choices=["chat", "completions"], default="chat", help="which of OpenAI's APIs [default: chat]"
    )
    group.add_argument("--no-stream", dest="stream", action="store_false", help="wait for whole answers")
    group.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="of every request's body, as in temperature=0 or ignore_eos=true; null leaves out what is sent otherwise",
    )
    group.add_argument("--header", action="append", default=[], metavar="NAME=VALUE", help="of every request")
    group.add_argument("--api-key", metavar="KEY", help=f"the server's key [default: the variable {KEY_VARIABLE}]")
    group.add_argument(
        "--timeout",
        type=positive,
        default=600.0,
        metavar="S",
        help="a request is given up after so long [default: 600]",
    )


def add_result_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of measuring and of what is left of it."""
    group = parser.add_argument_group("measuring")
    group.add_argument(
        "--warmup",
        type=whole,
        default=4,
        metavar="N",
        help="requests before measuring begins, as long as those measured, of other texts [default: 4]",
    )
    group.add_argument(
        "--slo",
        type=slo,
        metavar="BOUNDS",
        help="what a good request keeps, for goodput: ttft=500ms,itl=50ms,tpot=40ms,e2e=10s, any of them; itl is the "
        "99th percentile of the request's own gaps [default: none]",
    )
    group.add_argument(
        "--scrape-every",
        type=nonnegative,
        default=0.5,
        metavar="S",
        help="seconds between two looks at the server's /metrics; 0: none [default: 0.5]",
    )
    group.add_argument("--name", metavar="TEXT", help="of the result [default: workload and load]")
    group.add_argument("--out", type=Path, metavar="FILE", help="write the result as JSON, every request with it")


def check(options: argparse.Namespace) -> None:
    """What no single option can tell. Raises Unusable."""
    bounds = options.slo
    if bounds is not None and not options.stream and (bounds.ttft or bounds.itl or bounds.tpot):
        raise Unusable("without streaming nobody sees when tokens come: --slo can only bound e2e")
    if options.trace is not None and options.workload != "trace":
        raise Unusable("--trace belongs to --workload trace")
    if options.out is not None and not options.out.parent.is_dir():
        raise Unusable(f"there is no folder {options.out.parent} for --out")


def urls(options: argparse.Namespace) -> list[str]:
    """The servers' addresses, without /v1. Raises Unusable."""
    found = []
    for text in options.url or [DEFAULT_URL]:
        url = (text if "://" in text else f"http://{text}").rstrip("/").removesuffix("/v1")
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            usable = False
        if not usable:
            raise Unusable(f"{text} is no address; it looks like {DEFAULT_URL}")
        found.append(url)
    return found


def without_password(url: str) -> str:
    """An address as results may show it."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def fields(options: argparse.Namespace) -> dict[str, Any]:
    """What --field adds to every body. Raises Unusable."""
    found: dict[str, Any] = {}
    for text in options.field:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise Unusable(f"--field {text} has no value: NAME=JSON")
        try:
            found[name] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            raise Unusable(f"--field {name}: {value} is no JSON; a text needs quotes, as in {name}='\"…\"'") from None
    return found


def headers(options: argparse.Namespace) -> dict[str, str]:
    """What every request carries, the key included. Raises Unusable."""
    found = {}
    if key := options.api_key or os.environ.get(KEY_VARIABLE):
        found["authorization"] = f"Bearer {key}"
    for text in options.header:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise Unusable(f"--header {text} has no value: NAME=VALUE")
        found[name] = value
    return found


def told(options: argparse.Namespace) -> dict[str, Any]:
    """The options as a result holds them: without secrets, and all that JSON does not know as the text it was."""
    settings = {}
    for name, value in sorted(vars(options).items()):
        if name in SECRET or value is None:
            continue
        if name == "url":
            value = [without_password(url) for url in value]
        settings[name] = value if isinstance(value, str | int | float | bool | list) else str(value)
    return settings
