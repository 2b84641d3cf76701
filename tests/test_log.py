"""leoserve.log: one line per event, for people or for machines."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import datetime

import pytest

from leoserve import log


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("leoserve.request").disabled = False


def test_text_has_time_level_logger_message_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("text", "info")
    logging.getLogger("leoserve.request").info("done", extra={"tokens": 12, "reason": "stop", "seconds": 0.123456})
    line = capsys.readouterr().err
    assert line.endswith(" info leoserve.request: done tokens=12 reason=stop seconds=0.1235\n")
    assert datetime.fromisoformat(line[:23])


def test_json_is_one_object_a_line_with_the_fields_as_keys(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("json", "info")
    logging.getLogger("leoserve.request").info("done", extra={"tokens": 12, "model": "Löwe"})
    event = json.loads(capsys.readouterr().err)
    assert datetime.fromisoformat(event.pop("time")).tzinfo is not None
    assert event == {"level": "info", "logger": "leoserve.request", "message": "done", "tokens": 12, "model": "Löwe"}


@pytest.mark.parametrize("format", ["text", "json"])
def test_what_a_client_sends_cannot_forge_a_line(capsys: pytest.CaptureFixture[str], format: log.Format) -> None:
    log.configure(format, "info")
    logging.getLogger("leoserve").info("a\nb", extra={"id": "c\r\nd"})
    assert capsys.readouterr().err.count("\n") == 1


def test_a_traceback_stays_in_the_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("json", "info")
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("leoserve").exception("failed")
    assert "ValueError: broken" in json.loads(capsys.readouterr().err)["exception"]


def test_quiet_by_default_and_silent_about_requests_when_told(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("text", "info", requests=False)
    logging.getLogger("uvicorn.error").info("Started server process")
    logging.getLogger("httpx2").info("GET /")
    logging.getLogger("leoserve.request").info("done")
    logging.getLogger("leoserve").debug("detail")
    assert capsys.readouterr().err == ""
