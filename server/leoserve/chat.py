"""A chat in the terminal against a running server: streamed, with history.

Ctrl-C stops the answer, Ctrl-D or /exit ends the chat, /new starts another.
"""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import unicodedata
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any

import httpx2

HELP = "Ctrl-C stops an answer · /new forgets the chat · /exit or Ctrl-D ends"
CONNECT_TIMEOUT = 5.0  # seconds; an answer itself may take as long as it likes


class ChatError(Exception):
    """The server cannot be talked to, or refused: one line that says what to do."""


class Chat:
    """One conversation with the server at `url` (with or without the final /v1). Raises ChatError for no address."""

    def __init__(self, url: str, *, model: str | None, system: str | None, api_key: str | None) -> None:
        base = (url if "://" in url else f"http://{url}").rstrip("/").removesuffix("/v1")
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        timeout = httpx2.Timeout(None, connect=CONNECT_TIMEOUT)
        try:
            self.http = httpx2.Client(base_url=base, headers=headers, timeout=timeout)
        except httpx2.InvalidURL:
            raise ChatError(f"{url} is no address; it looks like http://127.0.0.1:8000") from None
        self.opening = [{"role": "system", "content": system}] if system else []
        self.messages = list(self.opening)
        self.model = model or ""

    def choose_model(self) -> None:
        """Check that the server is there, and take its first model when none was named. Raises ChatError."""
        at = self.http.base_url
        try:
            response = self.http.get("/v1/models")
            if response.is_error:
                raise ChatError(complaint(response))
            served = [entry["id"] for entry in response.json()["data"]]
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            raise ChatError(f"no server at {at}; start one with `leoserve serve`, or give its --url") from None
        except (httpx2.HTTPError, ValueError, KeyError, TypeError):
            raise ChatError(f"{at} is no OpenAI-compatible server; give the server's address as --url") from None
        if not served:
            raise ChatError(f"{at} serves no model")
        if self.model and self.model not in served:
            raise ChatError(f"{self.model} is not served; --model can be {', '.join(served)}")
        self.model = self.model or served[0]

    def forget(self) -> None:
        self.messages = list(self.opening)

    def say(self, text: str) -> None:
        """One turn: print the answer while it arrives and remember both. Ctrl-C ends it and keeps what came.

        Raises ChatError; the turn is then forgotten.
        """
        self.messages.append({"role": "user", "content": text})
        answer = ""
        try:
            with closing(self.stream()) as pieces:
                for piece in pieces:
                    answer += piece
                    print(printable(piece), end="", flush=True)
        except KeyboardInterrupt:
            print(" [stopped]", end="")
        except ChatError:
            self.messages.pop()
            raise
        finally:
            print(flush=True)
        if answer:
            self.messages.append({"role": "assistant", "content": answer})
        else:  # stopped before anything came: as if it had not been asked
            self.messages.pop()

    def stream(self) -> Generator[str]:
        """The answer to `messages`, piece by piece. Raises ChatError."""
        body = {"model": self.model, "messages": self.messages, "stream": True}
        try:
            with self.http.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.is_error:
                    response.read()
                    raise ChatError(complaint(response))
                for line in response.iter_lines():
                    if line.startswith("data: ") and line != "data: [DONE]":
                        yield from delta(json.loads(line.removeprefix("data: ")))
        except httpx2.ConnectError:
            raise ChatError("the server is gone") from None
        except httpx2.HTTPError as error:
            raise ChatError(f"the connection broke: {error}") from None


def printable(text: str) -> str:
    """Without control characters: a model's text must not steer the terminal."""
    return "".join(char for char in text if char in "\n\t" or unicodedata.category(char) != "Cc")


def delta(event: dict[str, Any]) -> Iterator[str]:
    """The text of one event. Raises ChatError for an error event."""
    if "error" in event:
        raise ChatError(str(event["error"].get("message", event["error"])))
    for choice in event.get("choices", []):
        if text := choice["delta"].get("content"):
            yield text


def complaint(response: httpx2.Response) -> str:
    """The server's own words for a refused request, with what can be done."""
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"the server answered {response.status_code} {response.reason_phrase}"
    if response.status_code == 401:
        return f"{message} (give the key with --api-key or LEOSERVE_API_KEY)"
    if response.status_code == 503 and "retry-after" in response.headers:
        return f"{message} (try again in {response.headers['retry-after']} s)"
    return message


def run(url: str, *, model: str | None, system: str | None, api_key: str | None) -> bool:
    """The chat, until the user ends it. False when a turn failed. Raises ChatError when there is no server."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # what is no text cannot be sent
    well = True
    chat = Chat(url, model=model, system=system, api_key=api_key)
    with closing(chat.http):
        chat.choose_model()
        asked = sys.stdin.isatty()
        if asked:
            print(f"{chat.model} at {chat.http.base_url}\n{HELP}")
        if asked and importlib.util.find_spec("readline"):
            importlib.import_module("readline")  # gives input() a line editor and a history
        while (line := ask("\n> " if asked else "")) is not None:
            match line.strip():
                case "":
                    continue
                case "/exit" | "/quit":
                    break
                case "/new":
                    chat.forget()
                    print("a new chat")
                case command if command.startswith("/"):
                    print(HELP)
                case text:
                    try:
                        chat.say(text)
                    except ChatError as error:
                        well = False
                        print(f"leoserve: error: {error}", file=sys.stderr)
    return well


def ask(prompt: str) -> str | None:
    """The next line; None at the end of input. Ctrl-C drops what was typed and asks again."""
    while True:
        try:
            return input(prompt)
        except KeyboardInterrupt:
            print()
        except EOFError:
            if prompt:
                print()
            return None
