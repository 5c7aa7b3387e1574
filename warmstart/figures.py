"""Plots as PNG files: matplotlib without a display and without global state."""

from pathlib import Path
from typing import Any

from warmstart.errors import InputError
from warmstart.files import replacing


def figure(panels: int) -> tuple[Any, Any]:
    """Return a matplotlib figure and its axes (panels,), side by side.

    Raises
    ------
    InputError
        matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # without pyplot: no display, no global state; PNG is drawn by Agg
    except ImportError as error:
        raise InputError("expected matplotlib for the plot, found none; pip install 'warmstart[plot]'") from error
    made = Figure(figsize=(2 + 3.5 * panels, 3.6), dpi=150, layout="constrained")
    return made, made.subplots(1, panels, squeeze=False)[0]


def save_figure(drawn: Any, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        drawn.savefig(file, format="png")
