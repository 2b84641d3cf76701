"""A real Prometheus: started on a free port, asked over HTTP."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.conftest import PATIENCE

INTERVAL = 1  # seconds between two scrapes, and between two evaluations of the rules

Sample = tuple[dict[str, str], float]
Series = tuple[dict[str, str], list[tuple[float, float]]]  # labels, and pairs of time and value


@dataclass
class Prometheus:
    """Asks a running Prometheus."""

    url: str

    def get(self, path: str, **parameters: object) -> Any:
        """The `data` of an answer. Fails on what Prometheus refuses."""
        told = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=PATIENCE).json()
        assert told["status"] == "success", told
        return told["data"]

    def now(self, expression: str) -> list[Sample]:
        """What the expression is now, by labels."""
        found = self.get("query", query=expression)["result"]
        return [(one["metric"], float(one["value"][1])) for one in found]

    def number(self, expression: str) -> float:
        """Its only value now; 0 where it has none."""
        return sum(value for _, value in self.now(expression))

    def range(self, expression: str, start: float, end: float) -> list[Series]:
        """Its series between two times in Unix seconds."""
        found = self.get("query_range", query=expression, start=start, end=end, step=INTERVAL)["result"]
        return [(one["metric"], [(time, float(value)) for time, value in one["values"]]) for one in found]


@contextmanager
def prometheus(program: str, folder: Path, jobs: Mapping[str, Mapping[str, Any]], rules: Path) -> Iterator[Prometheus]:
    """A Prometheus that scrapes `jobs`, static targets by the job's name, and evaluates `rules`. It ends with the
    context."""
    configuration = {
        "global": {"scrape_interval": f"{INTERVAL}s", "evaluation_interval": f"{INTERVAL}s"},
        "rule_files": [str(rules)],
        "scrape_configs": [{"job_name": name, "static_configs": [target]} for name, target in jobs.items()],
    }
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(configuration), encoding="utf-8")
    command = [program, f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"]
    with subprocess.Popen(
        [*command, "--web.listen-address=127.0.0.1:0"], stderr=subprocess.PIPE, text=True, cwd=folder
    ) as process:
        try:
            yield Prometheus(f"http://{listening(process)}")
        finally:
            process.terminate()


def listening(process: subprocess.Popen[str]) -> str:
    """Where it listens, which its log says. What it logs from then on is read and dropped."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if found := re.search(r'"Listening on".* address=([\d.]+:\d+)', line):
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return found[1]
    raise AssertionError(f"Prometheus does not listen:\n{''.join(said)}")
