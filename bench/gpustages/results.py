"""What came out: one JSON file, written again with every piece of news, and a table made from it.

A measurement is a dictionary. The table shows those with `tokens_s`, `gb_s` or `tflop_s` (a rate), beside the ceiling
of the same unit; those with `ms` alone; checks, which have `ok`; and notes, which have `note`. `ceiling_tokens_s` of a
measurement is what the machine's copy bandwidth would allow.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpustages.stages import Measurement, Stage

# By the datasheet of an H200 (SXM), for machines on which the first stage did not say what it reaches.
NOMINAL = {"gb_s": 4800.0, "tflop_s": 989.0}
UNITS = {"gb_s": "GB/s", "tflop_s": "TFLOP/s", "tokens_s": "tok/s"}


@dataclass(slots=True)
class StageResult:
    """A stage's end, or the beginning of one that still runs."""

    name: str
    number: int
    title: str
    status: str = "running"  # done, failed, cut (its time was up), running
    seconds: float = 0.0
    error: str = ""
    measurements: list[Measurement] = field(default_factory=list)


@dataclass(slots=True)
class Results:
    """Everything so far. `folder` gets results.json and results.md."""

    folder: Path
    tiny: bool
    stages: list[StageResult] = field(default_factory=list)

    def begin(self, stage: Stage) -> StageResult:
        self.stages.append(StageResult(stage.name, stage.number, stage.title))
        self.write()
        return self.stages[-1]

    @property
    def ceilings(self) -> dict[str, float]:
        """By unit, as the first stage measured them."""
        found: dict[str, float] = {}
        for stage in self.stages:
            for measurement in stage.measurements:
                if "ceiling" in measurement:
                    found[measurement["ceiling"]] = measurement[measurement["ceiling"]]
        return found

    @property
    def succeeded(self) -> bool:
        checks = [entry.get("ok", True) for stage in self.stages for entry in stage.measurements]
        return all(stage.status == "done" for stage in self.stages) and all(checks)

    def write(self) -> None:
        """Both files, each replaced at once, so that whoever cuts the run finds them whole."""
        content: dict[str, Any] = {
            "tiny": self.tiny,
            "ceilings": self.ceilings,
            "stages": [asdict(stage) for stage in self.stages],
        }
        _replace(self.folder / "results.json", json.dumps(content, indent=1) + "\n")
        _replace(self.folder / "results.md", self.table())

    def table(self) -> str:
        """Markdown: every stage with its rates against the measured and the nominal ceiling."""
        lines = ["# Measured on this machine", ""]
        if self.tiny:
            lines += ["Tiny sizes: nothing here is a measurement.", ""]
        for stage in self.stages:
            lines += [f"## {stage.number}. {stage.title}: {stage.status}, {stage.seconds:.0f} s", ""]
            if stage.error:
                lines += ["```", stage.error, "```", ""]
            found = stage.measurements
            lines += [*_rates(found, self.ceilings), *_checks(found), *_notes(found)]
        return "\n".join(lines) + "\n"


def _rates(measurements: list[Measurement], ceilings: dict[str, float]) -> list[str]:
    lines = []
    for entry in measurements:
        unit = next((unit for unit in ("tokens_s", "gb_s", "tflop_s") if unit in entry), None)
        if unit is None and "ms" not in entry:
            continue
        spread = entry.get("spread_ms")
        ms = f"{entry['ms']:.4g}" if "ms" in entry else ""
        ms += f" ({spread[0]:.4g} to {spread[1]:.4g})" if spread else ""
        rate = f"{entry[unit]:.4g} {UNITS[unit]}" if unit else ""
        measured, nominal = _shares(entry, unit, ceilings)
        lines.append(f"| {entry['name']} | {ms} | {rate} | {measured} | {nominal} |")
    if not lines:
        return []
    head = ["| what | ms (10 to 90 %) | rate | of measured ceiling | of datasheet |", "|---|---|---|---|---|"]
    return [*head, *lines, ""]


def _shares(entry: Measurement, unit: str | None, ceilings: dict[str, float]) -> tuple[str, str]:
    if unit == "tokens_s":
        bound, bandwidth = entry.get("ceiling_tokens_s"), ceilings.get("gb_s")
        if bound is None:
            return "", ""
        nominal = f"{entry[unit] / bound * bandwidth / NOMINAL['gb_s']:.1%}" if bandwidth else ""
        return f"{entry[unit] / bound:.1%}", nominal
    if unit is None:
        return "", ""
    measured = f"{entry[unit] / ceilings[unit]:.1%}" if ceilings.get(unit) else ""
    return measured, f"{entry[unit] / NOMINAL[unit]:.1%}"


def _checks(measurements: list[Measurement]) -> list[str]:
    checks = [entry for entry in measurements if "ok" in entry]
    if not checks:
        return []
    wrong = [entry for entry in checks if not entry["ok"]]
    lines = [f"{len(checks) - len(wrong)} of {len(checks)} checks hold.", ""]
    for entry in wrong:
        details = ", ".join(f"{key} {value}" for key, value in entry.items() if key not in ("name", "ok"))
        lines.append(f"- **WRONG: {entry['name']}** ({details})")
    return [*lines, ""] if wrong else lines


def _notes(measurements: list[Measurement]) -> list[str]:
    lines = [f"- {entry['name']}: {entry['note']}" for entry in measurements if "note" in entry]
    return [*lines, ""] if lines else []


def _replace(file: Path, content: str) -> None:
    draft = file.with_suffix(file.suffix + ".new")
    draft.write_text(content, encoding="utf-8")
    os.replace(draft, file)
