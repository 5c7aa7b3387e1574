"""The section of `python -m benchmarks beside` in docs/benchmarks.md: its table and sentences."""

from pathlib import Path
from typing import Any
from benchmarks.harness import Results

Row = dict[str, Any]


def write(rows: list[Row], docs: Path, results: Results) -> None:
    """Write."""
