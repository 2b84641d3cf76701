"""schemathesis against the OpenAPI document that a real server serves of itself: every route, by every check.

Whatever the document allows is answered as it says, and whatever it forbids is refused. The same requests are sent in
every run; `SCHEMA_EXAMPLES=500 pytest tests/fuzz/test_schema.py` sends so many new ones to each route instead.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import write_checkpoint
from tests.conftest import Serve, Server

from .schemathesis_hooks import MODEL

EXAMPLES = os.environ.get("SCHEMA_EXAMPLES")  # of each route, beside some for every bound of every field
HANG = 60  # seconds, far above what an answer takes
KEY = "schluessel"

WITHOUT = {
    "positive_data_acceptance": "it wants every body that is valid by its schema to be served. No schema can say that "
    "two fields contradict each other, that a prompt is longer than this model's context, or that its vocabulary has "
    "no such token. `refused_for_what_no_schema_says` takes its place: for nothing else is such a body refused.",
}


@pytest.fixture(scope="module")
def server(serve_once: Serve, tmp_path_factory: pytest.TempPathFactory) -> Server:
    folder = write_checkpoint(tmp_path_factory.mktemp("models") / MODEL, "70b")
    small = ("--dtype", "float32", "--num-kv-blocks", "128", "--max-model-len", "40", "--max-choices", "2")
    return serve_once(folder, *small, "--api-key", KEY, "--log-level", "warning")


def configuration() -> str:
    hooks = Path(__file__).with_name("schemathesis_hooks.py")
    seed = random.SystemRandom().randrange(2**32) if EXAMPLES else 1
    return f"""
hooks = "{hooks}"
seed = {seed}
request-timeout = {2 * HANG}
headers = {{ Authorization = "Bearer {KEY}" }}
generation = {{ max-examples = {EXAMPLES or 10}, database = "none" }}
"""


@pytest.mark.timeout(3600)
def test_every_route_is_as_the_document_says(server: Server, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(configuration())
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml", "run"]
    options = ["--exclude-checks", ",".join(WITHOUT), "--max-response-time", str(HANG), "--warnings", "off"]
    options += ["--suppress-health-check", "too_slow"]  # of making requests, on a machine that does much else
    done = subprocess.run(
        [*command, f"{server.url}/openapi.json", *options, "--continue-on-failure", "--no-color"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"Tested: (\d+)", done.stdout)[1] == re.search(r"Selected: (\d+)", done.stdout)[1]  # type: ignore[index]
