"""The command line: `leoserve serve [MODEL]`, `size [MODEL]`, `download [MODEL]`, `chat`, and `leoserve --version`.

Exit codes: 0 after a signal, a download or the end of a chat; 1 after a chat from a pipe with a turn that failed, or
whose reader left, and where no size fits; 2, with one line on stderr, for whatever a user can put right; 130 or 143
when a signal came before the server was up or the download done, or a second one while it was stopping.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import leoserve

SERVE = """\
Serve a model over the OpenAI API. Without MODEL: the bundled German demo model, on http://127.0.0.1:8000.

Every option is also a variable and a key of a YAML file: --max-num-seqs 8 is LEOSERVE_MAX_NUM_SEQS=8, or
`max_num_seqs: 8` in the file that --config names. A flag wins over a variable, a variable over the file, the file over
the default. Options that can be repeated are lists with commas as variables.
"""
DOWNLOAD = """\
Download what serving a hub repository needs, and print its folder. A server that starts with the same options downloads
nothing then, and needs no network. Variables and the file of options count as for `leoserve serve`.
"""
SIZE = """\
Tell which GPUs a model fits and how many chats run on them at once. Nothing is downloaded or computed. Without MODEL:
all of LeoLM's. The options of `leoserve serve` that change the answer count here too, as variables and in the file as
well.
"""
CHAT = """\
Chat in the terminal with a running server. Ctrl-C stops an answer, /new forgets the chat, /exit or Ctrl-D ends it.
"""
SIZED_BY = (
    "dtype", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization", "config",
)  # fmt: skip
FAILED = 1


class Parser(argparse.ArgumentParser):
    """Complains in one line, without the usage above it, and says what was probably meant."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"leoserve: error: {message} (see {self.prog} --help)\n")


def parser() -> Parser:
    main = Parser(prog="leoserve", description="OpenAI-compatible inference server for LeoLM.", allow_abbrev=False)
    main.add_argument("--version", action="version", version=f"leoserve {leoserve.__version__}")
    commands = main.add_subparsers(dest="command", metavar="COMMAND", required=True)
    serve = commands.add_parser(
        "serve",
        help="serve a model over the OpenAI API",
        description=SERVE,
        usage="leoserve serve [MODEL] [options]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    from leoserve.flags import add_options

    add_options(serve)
    download = commands.add_parser(
        "download",
        help="download a model and print its folder",
        description=DOWNLOAD,
        usage="leoserve download [MODEL] [options]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_options(download, ("model", "revision", "hf_token", "download_dir", "config"))
    size = commands.add_parser(
        "size",
        help="tell which GPUs a model fits",
        description=SIZE,
        usage="leoserve size [MODEL] [options]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    size.add_argument("model", nargs="?", metavar="MODEL", default=argparse.SUPPRESS, help="a repository or a folder")
    size.add_argument(
        "--gpu", metavar="NAME|GIB", help="one GPU, by its name or its memory [default: all that are known]"
    )
    add_options(size, SIZED_BY)
    chat = commands.add_parser("chat", help="chat with a running server", description=CHAT, allow_abbrev=False)
    chat.add_argument("--url", default="http://127.0.0.1:8000", help="the server's address [default: %(default)s]")
    chat.add_argument("--model", help="one of the server's models [default: its first]")
    chat.add_argument("--system", help="a system message to begin with [default: none]")
    chat.add_argument("--api-key", help="the server's key [default: the variable LEOSERVE_API_KEY]")
    return main


def parse(arguments: Sequence[str] | None) -> dict[str, Any]:
    """What was given on the command line, by name. Exits with 2 and one line where it makes no sense."""
    known = parser()
    given, strange = known.parse_known_args(arguments)
    if strange:
        from leoserve.elsewhere import INSTEAD
        from leoserve.flags import is_switch
        from leoserve.settings import Settings, flag, suggest

        options = [flag(name) for name in Settings.model_fields if name != "model"]
        options += [flag(f"no_{name}") for name, field in Settings.model_fields.items() if is_switch(field)]
        word = strange[0].partition("=")[0]
        if not word.startswith("-"):
            message = f"{word} is one too many"
        elif word == "--model":
            message = "the model is given without a flag: leoserve serve MODEL"
        elif word in INSTEAD and given.command == "serve":
            message = f"{word} is another server's option: {INSTEAD[word]}"
        else:
            message = f"there is no option {word}{suggest(word, options)}"
        known.exit(2, f"leoserve: error: {message} (see leoserve {given.command} --help)\n")
    return vars(given)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    given = parse(arguments)
    command = {"serve": run_serve, "size": run_size, "download": run_download, "chat": run_chat}[given.pop("command")]
    try:
        return command(given)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # whoever read the output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def run_serve(flags: dict[str, Any]) -> int:
    from leoserve.settings import Settings, SettingsError

    try:
        settings = Settings.load(flags)
    except SettingsError as error:
        return complain(error)
    from leoserve.checkpoint import CheckpointError
    from leoserve.engine.client import EngineFailed
    from leoserve.model.config import UnsupportedModel
    from leoserve.serve import StartError, serve
    from leoserve.text.template import TemplateError
    from leoserve.text.tokenizer import TokenizerError

    try:
        return serve(settings)
    except (
        SettingsError,
        StartError,
        CheckpointError,
        UnsupportedModel,
        TokenizerError,
        TemplateError,
        EngineFailed,
    ) as error:
        return complain(error)


def run_size(flags: dict[str, Any]) -> int:
    from leoserve import size
    from leoserve.model.config import UnsupportedModel
    from leoserve.settings import Settings, SettingsError

    gpu = flags.pop("gpu")
    try:
        return size.run(Settings.load(flags), gpu)
    except (SettingsError, UnsupportedModel) as error:
        return complain(error)


def run_download(flags: dict[str, Any]) -> int:
    # A container's first process does not hear a signal that nobody handles. Nothing is unwound, which would wait for
    # the files that are under way; the next download goes on with them.
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))
    from leoserve.checkpoint import CheckpointError
    from leoserve.serve import locate
    from leoserve.settings import Settings, SettingsError

    try:
        folder, _ = locate(Settings.load(flags))
    except (SettingsError, CheckpointError) as error:
        return complain(error)
    print(folder)
    return 0


def run_chat(flags: dict[str, Any]) -> int:
    from leoserve import chat

    key = flags["api_key"] or os.environ.get("LEOSERVE_API_KEY")
    try:
        well = chat.run(flags["url"], model=flags["model"], system=flags["system"], api_key=key)
    except chat.ChatError as error:
        return complain(error)
    return 0 if well or sys.stdin.isatty() else FAILED


def complain(error: Exception) -> int:
    """The one line for what a user can put right, and its exit code."""
    print(f"leoserve: error: {error}", file=sys.stderr)
    return 2
