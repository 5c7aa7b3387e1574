"""Draw plots with matplotlib, without a display and without global state, and save them as PNG files."""

from pathlib import Path
from typing import Any

from warmstart.errors import InputError
from warmstart.files import replacing


def figure(panels: int) -> tuple[Any, Any]:
    """Return a matplotlib figure with panels side by side, and the axes of the panels.

    Raises
    ------
    InputError
        matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # pyplot would need a display
    except ImportError as error:
        raise InputError("expected matplotlib for the plot, found none; pip install 'warmstart[plot]'") from error
    drawing = Figure(figsize=(2 + 3.5 * panels, 3.6), dpi=150, layout="constrained")
    return drawing, drawing.subplots(1, panels, squeeze=False)[0]


def save_figure(drawing: Any, path: Path) -> None:
    """Write a figure in the format of the name's ending, PNG without one, whole or not at all.

    Raises
    ------
    InputError
        matplotlib does not know the format.
    """
    kinds = drawing.canvas.get_supported_filetypes()
    kind = path.suffix[1:].lower() or "png"
    if kind not in kinds:
        raise InputError(f"{path}: expected a name that ends in one of {', '.join(sorted(kinds))}, got {path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        drawing.savefig(file, format=kind)
