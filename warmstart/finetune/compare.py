"""Comparison of fine-tuning runs by their logs: loss at equal tokens, tokens to equal loss, crossing of two curves.

Losses are in nats a token and interpolated linearly between two validations.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from warmstart import figures
from warmstart.errors import InputError
from warmstart.finetune.log import LOG, read

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  # tokens, nats


def curve(run: Path) -> Curve:
    """Return tokens and nats of a run, given its folder or its log.

    Raises
    ------
    InputError
        The log is missing, damaged or empty.
    """
    path = run / LOG if run.is_dir() else run
    records = read(path)
    if not records:
        raise InputError(f"{path}: expected at least one validation, found none; start the run first")
    return np.array([r["tokens"] for r in records], float), np.array([r["nats"] for r in records])


def reached(run: Curve, nats: float) -> float | None:
    """Return the tokens after which a run first is at or below a loss, None if it never is.

    Examples
    --------
    >>> reached((np.array([0.0, 100.0, 200.0]), np.array([9.0, 5.0, 4.0])), 7.0)
    50.0
    """
    tokens, values = run
    below = np.flatnonzero(values <= nats)
    if not below.size:
        return None
    i = int(below[0])
    if i == 0:
        return float(tokens[0])
    return float(tokens[i - 1] + (values[i - 1] - nats) / (values[i - 1] - values[i]) * (tokens[i] - tokens[i - 1]))


def crossing(a: Curve, b: Curve) -> float | None:
    """Return the tokens after which the better of two runs is no longer better, None if it always is.

    Examples
    --------
    >>> tokens = np.array([0.0, 100.0])
    >>> crossing((tokens, np.array([5.0, 4.0])), (tokens, np.array([8.0, 3.0])))
    75.0
    """
    last = min(a[0][-1], b[0][-1])
    tokens = np.union1d(a[0], b[0])
    tokens = tokens[tokens <= last]
    gap = np.interp(tokens, *a) - np.interp(tokens, *b)
    sign = next((np.sign(g) for g in gap if g), 0.0)
    changed = np.flatnonzero(gap * sign < 0)
    if not changed.size:
        return None
    i = int(changed[0])
    return float(tokens[i - 1] + gap[i - 1] / (gap[i - 1] - gap[i]) * (tokens[i] - tokens[i - 1]))


def compare(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Compare runs with the first one.

    Returns
    -------
    list of dict
        For every run: ``run``, ``start`` and ``end`` (nats), ``tokens`` at the end, ``at_equal_tokens`` (nats at the
        last token count that all runs reached), ``to_equal_nats`` (tokens until the loss of the first run at its end,
        None if never), ``crossing`` (tokens at the crossing with the first run, None if there is none).
    """
    curves = [curve(run) for run in runs]
    common, goal = min(c[0][-1] for c in curves), float(curves[0][1][-1])
    return [
        {
            "run": str(run),
            "start": float(c[1][0]),
            "end": float(c[1][-1]),
            "tokens": int(c[0][-1]),
            "at_equal_tokens": float(np.interp(common, *c)),
            "to_equal_nats": reached(c, goal),
            "crossing": crossing(curves[0], c),
        }
        for run, c in zip(runs, curves, strict=True)
    ]


def draw(runs: Sequence[Path], path: Path, names: Sequence[str] | None = None) -> None:
    """Draw nats over tokens of all runs as a PNG."""
    figure, (axis,) = figures.figure(1)
    for run, name in zip(runs, names or [str(run) for run in runs], strict=True):
        tokens, nats = curve(run)
        axis.plot(tokens / 1e6, nats, ".-", label=name.encode(errors="backslashreplace").decode())
    axis.set(xlabel="million tokens", ylabel="nats a token, validation")
    axis.grid(alpha=0.3)
    axis.legend()
    figures.save_figure(figure, path)
