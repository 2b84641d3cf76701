"""A process in which a grammar is compiled before the engine compiles it: what is too much there harms nobody.

llguidance bounds most of its work by counting, and not all: a schema of a thousand characters whose patterns are to
hold together keeps it busy for half a minute, and thousands of rules that refer to each other overflow its stack, which
ends the process. Neither can be stopped from within.

Started as `python -m leoserve.engine.trial` with the first grammar of a server. A line of its standard input is the
`TokenTable`, each further one a `Grammar`; for each of these it writes a line: why it was refused, or null.
"""

from __future__ import annotations

import math
import os
import resource
import signal
import subprocess
import sys
import threading
from typing import IO

import msgspec

from leoserve.model.grammar import GrammarError, Grammars
from leoserve.model.step import Grammar, TokenTable

TRIAL = ("-m", "leoserve.engine.trial")  # what Python runs as the trial
SECONDS = 2  # of a processor, for one grammar
STACK_BYTES = 4 << 20  # half of what the engine's threads have, so that what fits here fits there
TOO_MUCH = {
    -signal.SIGXCPU: f"compiling it takes more than {SECONDS} s",
    -signal.SIGSEGV: "its rules are nested too deeply",
    -signal.SIGABRT: "its rules are nested too deeply",  # as Rust ends a process whose stack overflows
}


class TrialFailed(Exception):
    """The process ended for another reason than the grammar, such as a want of memory."""


class Trial:
    """One such process, started when it is needed and again after its end. For one thread."""

    def __init__(self, table: TokenTable) -> None:
        self._table = msgspec.json.encode(table)
        self._process: subprocess.Popen[bytes] | None = None

    def check(self, grammar: Grammar) -> None:
        """Raises GrammarError where the grammar cannot be compiled with what a trial may take; TrialFailed, OSError."""
        process = self._process = self._process or self._start()
        told = exchange(process, msgspec.json.encode(grammar))
        if not told:
            self._process = None
            code = process.wait()
            if code in TOO_MUCH:
                raise GrammarError(TOO_MUCH[code])
            raise TrialFailed(f"the trial of a grammar ended with code {code}")
        fault = msgspec.json.decode(told, type=str | None)
        if fault is not None:
            raise GrammarError(fault)

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, *TRIAL], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        exchange(process, self._table)
        return process


def exchange(process: subprocess.Popen[bytes], line: bytes) -> bytes:
    """The line that answers `line`, empty when the process has ended."""
    stdin, stdout = process.stdin, process.stdout
    if stdin is None or stdout is None:
        raise RuntimeError("the process was started without pipes")
    try:
        stdin.write(line + b"\n")
        stdin.flush()
    except BrokenPipeError:
        return b""
    return stdout.readline()


def answer(stdin: IO[bytes], stdout: IO[bytes]) -> None:
    """Try one grammar after the other, until nobody asks any more."""
    grammars = Grammars(msgspec.json.decode(stdin.readline(), type=TokenTable))
    tell(stdout, None)
    for line in stdin:
        bound_time()
        fault = None
        try:
            grammars.compile(msgspec.json.decode(line, type=Grammar)).start()
        except GrammarError as error:
            fault = str(error)
        tell(stdout, fault)


def tell(stdout: IO[bytes], fault: str | None) -> None:
    stdout.write(msgspec.json.encode(fault) + b"\n")
    stdout.flush()


def bound_time() -> None:
    """From now on this process may compute for `SECONDS`, and up to a second more."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = math.ceil(used.ru_utime + used.ru_stime) + SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the engine says when it ends, by ending this one's input
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(5)  # the steps of others come first
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=answer, args=(sys.stdin.buffer, sys.stdout.buffer))
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
