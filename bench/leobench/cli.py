"""The command line: `leobench run`, `sweep`, `report`, `compare`, `simulate`.

Exit codes: 0; 1 when nothing succeeded; 2, with one line on stderr, for whatever a user can put right; 130 after a
second Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import leobench

# Each module has add_arguments(parser) and main(options), and is imported only when its command is given.
COMMANDS = {
    "run": ("leobench.run", "load a server and measure it"),
    "sweep": ("leobench.sweep", "one run for each of many loads, or the highest rate that keeps an SLO"),
    "report": ("leobench.report.command", "make a page of what runs measured"),
    "compare": ("leobench.compare", "put runs side by side, and say which differences are more than noise"),
    "simulate": ("leobench.simulate.command", "plan capacity: the scheduler in simulated time on hardware you name"),
}
OVERVIEW = "\n".join(f"  {name:<10}{about}" for name, (_, about) in COMMANDS.items())


class Parser(argparse.ArgumentParser):
    """Complains in one line, without the usage above it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"leobench: error: {message} (see {self.prog} --help)\n")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command and its options. Exits with 2 and one line where they make no sense."""
    main_parser = Parser(
        prog="leobench",
        description="Load an OpenAI-compatible server, measure it, and plan with what was measured.",
        epilog=f"commands:\n{OVERVIEW}\n\nleobench COMMAND --help tells its options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="leobench COMMAND [options]",
        allow_abbrev=False,
    )
    main_parser.add_argument("--version", action="version", version=f"leobench {leobench.__version__}")
    main_parser.add_argument("command", choices=list(COMMANDS), metavar="COMMAND", help="see below")
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = main_parser.parse_args(words[:1]).command
    module, about = COMMANDS[command]
    parser = Parser(prog=f"leobench {command}", description=f"{about[0].upper()}{about[1:]}.", allow_abbrev=False)
    importlib.import_module(module).add_arguments(parser)
    options = parser.parse_args(words[1:])
    options.command = command
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    try:
        options = parse(arguments)
        return int(importlib.import_module(COMMANDS[options.command][0]).main(options))
    except ModuleNotFoundError as error:
        if error.name != "aiohttp":
            raise
        print("leobench: error: aiohttp is missing; pip install 'leoserve[bench]' brings it", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # whoever read the output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
