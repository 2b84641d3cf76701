"""A stage's own process: measurements go to standard output, a line of JSON each; everything else to standard error."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

import torch

from gpustages.place import Place
from gpustages.stages import Stage


def run_stage(stage: Stage, options: argparse.Namespace) -> int:
    """Run it until it ends or its time is up."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print
    sys.stdout = sys.stderr
    deadline = time.monotonic() + options.seconds
    place = Place.here(tiny=options.tiny, scratch=options.scratch, ceilings=options.ceilings, deadline=deadline)
    with torch.inference_mode():
        for measurement in stage.load()(place):
            print(json.dumps(measurement), file=lines, flush=True)
            if place.seconds_left <= 0:
                rest = {"name": "the rest", "note": "left out if there was any: the stage's time was up"}
                print(json.dumps(rest), file=lines, flush=True)
                break
    return 0
