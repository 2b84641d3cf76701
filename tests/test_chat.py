"""leoserve.chat, typed into a real terminal, against a server of canned answers."""

from __future__ import annotations

import codecs
import fcntl
import json
import os
import pty
import re
import select
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.conftest import PATIENCE, ROOT, clean_environment


class CannedServer:
    """Answers a chat with the words of its last message, one chunk a word, and then, if told, does not end.

    bodies: the requests it got
    """

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.endless = threading.Event()
        self.left = threading.Event()  # the client of an endless answer went away
        self.failure: tuple[int, dict[str, str], dict[str, Any]] | None = None
        self.url = ""

    @contextmanager
    def running(self) -> Iterator[CannedServer]:
        canned = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                canned.keys.append(self.headers["authorization"])
                self.answer({"data": [{"id": "leo"}, {"id": "leo-2"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                canned.bodies.append(body)
                if canned.failure is not None:
                    status, headers, error = canned.failure
                    self.answer({"error": error}, status, headers)
                    return
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.end_headers()
                self.wfile.write(b": keep-alive\n\n")
                self.event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
                for word in body["messages"][-1]["content"].split():
                    self.event({"choices": [{"index": 0, "delta": {"content": word + " "}}]})
                if canned.endless.is_set():
                    self.rfile.read(1)  # returns when the client goes away
                    canned.left.set()
                    return
                self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
                self.wfile.write(b"data: [DONE]\n\n")

            def event(self, content: dict[str, Any]) -> None:
                self.wfile.write(f"data: {json.dumps(content)}\n\n".encode())
                self.wfile.flush()

            def answer(self, content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> None:
                data = json.dumps(content).encode()
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            server.daemon_threads = True
            self.url = f"http://127.0.0.1:{server.server_port}"
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            yield self
            server.shutdown()
            thread.join()


class Terminal:
    """`leoserve chat` in a terminal of its own: what is typed into it, and what it shows."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        self.shown = ""
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "leoserve", "chat", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=clean_environment(TERM="dumb"),
            cwd=ROOT,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C is a signal to it
        )
        os.close(slave)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, pattern: str, *, again: str = "") -> None:
        """Wait until what was shown since the last match matches, and forget up to there.

        While nothing is shown, `again` is typed every few seconds: input() misses a Ctrl-C that comes in the instant
        before it waits for a key.
        """
        end = time.monotonic() + PATIENCE
        while (match := re.search(pattern, self.shown)) is None:
            if select.select([self.master], [], [], 3.0 if again else PATIENCE)[0]:
                self.read(pattern)
            elif again and time.monotonic() < end:
                self.type(again)
            else:
                pytest.fail(f"{pattern!r} was never shown, but {self.shown!r}")
        self.shown = self.shown[match.end() :]

    def read(self, pattern: str) -> None:
        try:
            self.shown += self.decoder.decode(os.read(self.master, 4096))
        except OSError:  # the program ended
            pytest.fail(f"{pattern!r} was never shown, but {self.shown!r}")

    def close(self) -> int:
        code = self.process.wait(PATIENCE)
        os.close(self.master)
        return code


@pytest.fixture
def server() -> Iterator[CannedServer]:
    with CannedServer().running() as server:
        yield server


def roles(body: dict[str, Any]) -> list[str]:
    return [f"{message['role']}: {message['content']}" for message in body["messages"]]


def test_a_chat_streams_and_remembers_and_ends_with_ctrl_d(server: CannedServer) -> None:
    terminal = Terminal("--url", server.url, "--system", "Kurz.")
    terminal.expect("leo at http://.*\r\n.*Ctrl-D ends")
    terminal.expect("> ")
    terminal.type("Grüß dich\n")
    terminal.expect("Grüß dich \r\n\r\n> ")
    terminal.type("und nun\n")
    terminal.expect("und nun \r\n\r\n> ")
    terminal.type("\x04")
    assert terminal.close() == 0
    assert [body["model"] for body in server.bodies] == ["leo", "leo"]
    assert roles(server.bodies[1]) == ["system: Kurz.", "user: Grüß dich", "assistant: Grüß dich ", "user: und nun"]


def test_ctrl_c_stops_the_answer_and_not_the_program(server: CannedServer) -> None:
    server.endless.set()
    terminal = Terminal("--url", server.url)
    terminal.expect("> ")
    terminal.type("lange Rede\n")
    terminal.expect("lange Rede $")
    terminal.type("\x03")
    terminal.expect(r"\[stopped\]\r\n\r\n> ")
    assert server.left.wait(PATIENCE), "the connection of the stopped answer stayed open"
    server.endless.clear()
    terminal.type("kurz\n")
    terminal.expect("kurz \r\n\r\n> ")
    terminal.type("/exit\n")
    assert terminal.close() == 0
    assert roles(server.bodies[1]) == ["user: lange Rede", "assistant: lange Rede ", "user: kurz"]


def test_ctrl_c_at_the_prompt_drops_the_line(server: CannedServer) -> None:
    terminal = Terminal("--url", server.url)
    terminal.expect("> ")
    terminal.type("vergiss das")
    terminal.expect("vergiss das")
    terminal.type("\x03")
    terminal.expect("> ", again="\x03")
    terminal.type("eins\n")
    terminal.expect("eins \r\n\r\n> ")
    terminal.type("/exit\n")
    assert terminal.close() == 0
    assert roles(server.bodies[0]) == ["user: eins"]


def test_new_forgets_the_chat_but_not_the_system_message(server: CannedServer) -> None:
    terminal = Terminal("--url", server.url, "--system", "Kurz.", "--model", "leo-2")
    terminal.expect("> ")
    for line in ("eins\n", "/new\n", "zwei\n", "/exit\n"):
        terminal.type(line)
    assert terminal.close() == 0
    assert roles(server.bodies[1]) == ["system: Kurz.", "user: zwei"]
    assert server.bodies[1]["model"] == "leo-2"


def test_a_refused_question_is_explained_and_forgotten(server: CannedServer) -> None:
    terminal = Terminal("--url", server.url)
    terminal.expect("> ")
    server.failure = (503, {"retry-after": "5"}, {"message": "the model is loading"})
    terminal.type("eins\n")
    terminal.expect(r"leoserve: error: the model is loading \(try again in 5 s\)\r\n\r\n> ")
    server.failure = None
    terminal.type("zwei\n")
    terminal.expect("zwei \r\n\r\n> ")
    terminal.type("/exit\n")
    assert terminal.close() == 0
    assert roles(server.bodies[1]) == ["user: zwei"]


def pipe(*arguments: str, text: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "leoserve", "chat", *arguments],
        input=text,
        env=clean_environment(**variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=ROOT,
    )


def test_questions_can_be_piped_in_and_only_answers_come_out(server: CannedServer) -> None:
    done = pipe("--url", server.url + "/v1", text="eins zwei\ndrei\n", LEOSERVE_API_KEY="k")
    assert (done.returncode, done.stdout, done.stderr) == (0, "eins zwei \ndrei \n", "")
    assert server.keys == ["Bearer k"]


def test_what_a_model_writes_cannot_steer_the_terminal(server: CannedServer) -> None:
    assert pipe("--url", server.url, text="a\x1b[2Jb\n").stdout == "a[2Jb \n"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:9", "no server at http://127.0.0.1:9; start one with `leoserve serve`, or give its --url"),
        ("127.0.0.1:9", "no server at http://127.0.0.1:9; start one with `leoserve serve`, or give its --url"),
        ("http://host:x", "http://host:x is no address; it looks like http://127.0.0.1:8000"),
        ("ftp://127.0.0.1", "ftp://127.0.0.1 is no OpenAI-compatible server; give the server's address as --url"),
    ],
)
def test_without_a_server_one_line_says_what_to_do(url: str, message: str) -> None:
    done = pipe("--url", url)
    assert done.returncode == 2
    assert done.stderr.startswith("leoserve: error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_model_that_is_not_served_is_refused_with_those_that_are(server: CannedServer) -> None:
    done = pipe("--url", server.url, "--model", "gpt")
    assert (done.returncode, done.stderr) == (2, "leoserve: error: gpt is not served; --model can be leo, leo-2\n")
