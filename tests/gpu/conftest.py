"""What only a GPU can show. Without one everything here is skipped, and still imported, so that it cannot rot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

MISSING = None if torch.cuda.is_available() else "no GPU: torch.cuda.is_available() is false"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if MISSING:
        for item in items:
            if item.path.is_relative_to(Path(__file__).parent):
                item.add_marker(pytest.mark.skip(reason=MISSING))
