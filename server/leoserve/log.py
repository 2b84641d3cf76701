"""Log lines: one per event, on stderr, as text for people or JSON for machines.

Whatever a caller passes as `extra={...}` follows the message as `key=value`, or stands as a key of the JSON object.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime
from typing import Literal

Format = Literal["text", "json"]

# What every record has; the rest came from the caller's `extra`.
STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}

# Other people's loggers that say more than one line per event, and from which level on they are heard.
LOUD = {"uvicorn": logging.WARNING, "httpx2": logging.WARNING, "filelock": logging.WARNING, "asyncio": logging.WARNING}


def configure(format: Format, level: str, *, requests: bool = True) -> None:
    """Send every logger of this process to stderr. `requests` False silences the line per request."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name, least in LOUD.items():
        logging.getLogger(name).setLevel(logging.NOTSET if level == "debug" else least)
    logging.getLogger("leoserve.request").disabled = not requests


def fields(record: logging.LogRecord) -> dict[str, object]:
    """What the caller passed as `extra`."""
    return {key: value for key, value in vars(record).items() if key not in STANDARD}


class TextFormatter(logging.Formatter):
    """`2026-01-31 12:00:00.123 info leoserve.request: message key=value …`"""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).isoformat(sep=" ", timespec="milliseconds")
        pairs = [f"{key}={plain(value)}" for key, value in fields(record).items()]
        line = " ".join([f"{time} {record.levelname.lower()} {record.name}: {one_line(record.getMessage())}", *pairs])
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """One object a line; `time` is ISO 8601 with the offset from UTC. A traceback is the string `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **fields(record),
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return json.dumps(event, ensure_ascii=False, default=str)


def one_line(text: str) -> str:
    """Line breaks as `\\n`: a client's text must not be able to forge a second log line."""
    return text.replace("\r", "\\r").replace("\n", "\\n")


def plain(value: object) -> str:
    """A value on one line, quoted when it has spaces; floats with the digits that matter."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = one_line(str(value))
    return json.dumps(text, ensure_ascii=False) if not text or " " in text or '"' in text else text
