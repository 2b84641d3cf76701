"""`leoserve chat` in a pipe, against a real server."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import PATIENCE, Server, clean_environment


def piped(server: Server, text: bytes) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "leoserve", "chat", "--url", server.url]
    return subprocess.run(command, input=text, capture_output=True, env=clean_environment(), timeout=PATIENCE)


def test_questions_from_a_pipe_are_answered_one_a_line(demo_server: Server) -> None:
    done = piped(demo_server, b"Was ist die Hauptstadt von Frankreich?\n" * 2)
    assert done.returncode == 0
    assert len(done.stdout.decode().strip().splitlines()) == 2


def test_bytes_that_are_no_text_are_replaced(demo_server: Server) -> None:
    done = piped(demo_server, b"Hallo \xff\xfe\n")
    assert done.returncode == 0
    assert done.stdout.strip()
    assert done.stderr == b""


def test_a_turn_that_fails_is_one_line_and_exit_code_1(demo_server: Server) -> None:
    done = piped(demo_server, b"Hallo Welt " * 3000 + b"\n")
    assert done.returncode == 1
    assert b"maximum context length" in done.stderr
    assert done.stderr.count(b"\n") == 1
