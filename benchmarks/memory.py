"""Update rules in time and memory: chunks beside the recurrence, and both beside softmax attention, over the length.

Every point is a process of its own with one thread, so peak memory is that of the point; points are kept in
``docs/results/memory.jsonl`` and not measured again by the same code. The recurrence is the bare loop over positions,
without the checks that `delta_step` makes. It and the chunks are timed in turns, in one process, as the speed of a
machine changes from minute to minute. A turn is a pass of the recurrence, then ten of the chunks, so that both work
about as long; and once more with one pass each, where the chunks find what the recurrence has left in caches and heap.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import report
from warmstart import figures
from warmstart.memory import delta_rule, softmax_attention, sum_normalise, sum_rule, ttt_rule
from warmstart.progress import Progress, peak_memory

HEADS, DIM = 4, 64
LENGTHS = (1024, 2048, 4096, 8192, 16384)
SQUARE = 4096  # softmax attention to this length: four times as long takes sixteen times the memory
AT = 1024  # the recurrence is timed here
REPEATS, TURNS, PASSES = 3, 40, 10
CODE = (
    "import json, sys; from benchmarks import memory as m;"
    "print(json.dumps(getattr(m, sys.argv[1])(*json.loads(sys.argv[2]))))"
)


def _recurrent_sum(q: Tensor, k: Tensor, v: Tensor, _: Tensor) -> Tensor:
    S, z, reads = v.new_zeros(*v.shape[:2], v.shape[-1], k.shape[-1]), k.new_zeros(*k.shape[:2], k.shape[-1]), []
    for q_t, k_t, v_t in zip(q.unbind(2), k.unbind(2), v.unbind(2), strict=True):
        S = S + v_t[..., None] * k_t[..., None, :]
        z = z + k_t
        reads.append((S @ q_t[..., None])[..., 0] / (z * q_t).sum(-1, keepdim=True))
    return torch.stack(reads, dim=2)


def _recurrent_delta(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    S, reads = v.new_zeros(*v.shape[:2], v.shape[-1], k.shape[-1]), []
    for q_t, k_t, v_t, beta_t in zip(q.unbind(2), k.unbind(2), v.unbind(2), beta.unbind(2), strict=True):
        u = beta_t[..., None] * (v_t - (S @ k_t[..., None])[..., 0])
        S = S + u[..., None] * k_t[..., None, :]
        reads.append((S @ q_t[..., None])[..., 0])
    return torch.stack(reads, dim=2)


def _ttt(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    norm = torch.ones(DIM), torch.zeros(DIM)
    return ttt_rule(q, k, v, beta, [torch.zeros(DIM, DIM)], norm)[0]


ARMS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "softmax attention": lambda q, k, v, _: softmax_attention(q, k, v),
    "sum rule, chunks": lambda q, k, v, _: sum_rule(q, k, v)[0],
    "sum rule, recurrence": _recurrent_sum,
    "delta rule, chunks": lambda q, k, v, beta: delta_rule(q, k, v, beta)[0],
    "delta rule, recurrence": _recurrent_delta,
    "TTT linear, mini-batch 16": _ttt,
}


def measure(arm: str, length: int, repeats: int) -> dict[str, float]:
    """Time an arm forwards, and forwards with backwards; and what the latter adds to peak memory.

    Returns
    -------
    dict
        ``forward`` and ``training``, the fastest of the repeats in CPU seconds; ``bytes``.
    """
    tensors = _tensors(length)
    _pass(arm, [x[:, :, :64] for x in tensors], "training")  # what PyTorch loads
    before = peak_memory()
    _pass(arm, tensors, "training")
    added = peak_memory() - before
    parts = ("forward", "training")
    return {part: min(_seconds(arm, tensors, part) for _ in range(repeats)) for part in parts} | {"bytes": added}


def compare(rule: str, length: int, turns: int, passes: int) -> dict[str, list[float]]:
    """Time a pass of the recurrence of a rule and some of its chunks in turns.

    Returns
    -------
    dict
        ``recurrence, forward``, ``chunks, forward`` and the same of ``training``: CPU seconds of a pass in each turn.
    """
    tensors = _tensors(length)
    found: dict[str, list[float]] = {}
    for part in ("forward", "training"):
        for form, times in (("recurrence", 1), ("chunks", passes)) * (turns + 1):
            seconds = _seconds(f"{rule}, {form}", tensors, part, times)
            found.setdefault(f"{form}, {part}", []).append(seconds)
    return {name: seconds[1:] for name, seconds in found.items()}  # the first is to warm up


def _tensors(length: int) -> list[Tensor]:
    """Return q, k, v and beta."""
    torch.manual_seed(0)
    q, k = (sum_normalise(torch.rand(1, HEADS, length, DIM)).requires_grad_() for _ in range(2))
    v = torch.randn(1, HEADS, length, DIM, requires_grad=True)
    return [q, k, v, torch.rand(1, HEADS, length, requires_grad=True)]


def _pass(arm: str, tensors: list[Tensor], part: str) -> None:
    with torch.set_grad_enabled(part == "training"):
        output = ARMS[arm](*tensors)
    if part == "training":
        output.sum().backward()  # type: ignore[no-untyped-call]


def _seconds(arm: str, tensors: list[Tensor], part: str, passes: int = 1) -> float:
    """CPU seconds of a pass, the mean of some."""
    began = time.process_time()
    for _ in range(passes):
        _pass(arm, tensors, part)
    return (time.process_time() - began) / passes


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Measure all points; write ``results/memory.jsonl``, ``images/memory.png`` and a section of ``benchmarks.md``.

    Parameters
    ----------
    data : Path
        Not read: what is in the tensors does not matter.
    docs : Path
        Folder to write to.
    quick : bool
        One short length, few repetitions; nothing is written.
    progress : callable of (stage, done, total), optional

    Returns
    -------
    dict
        ``points``: rows of arm, length, ``forward`` and ``training`` in seconds, ``bytes``; ``turns``: for each rule
        the seconds of the recurrence and of the chunks, turn by turn.
    """
    lengths = (64,) if quick else LENGTHS
    jobs = [
        (arm, length)
        for arm in ARMS
        for length in lengths
        if length <= {"softmax attention": SQUARE}.get(arm, length) and ("recurrence" not in arm or length <= AT)
    ]
    book = report.Book(None if quick else docs / "results" / "memory.jsonl", report.code_digest("warmstart/memory"))
    points = []
    for i, (arm, length) in enumerate(jobs):
        name = f"{arm}, length {length}"
        if progress:
            progress(name, i, len(jobs))
        point = book.do(name, partial(_alone, "measure", arm, length, 2 if quick else REPEATS))
        points.append({"arm": arm, "length": length, **point})
    at, turns = (64, 2) if quick else (AT, TURNS)
    compared = {
        f"{rule}{once}": book.do(
            f"{rule}{once}, in turns, length {at}", partial(_alone, "compare", rule, at, turns, passes)
        )
        for rule in ("sum rule", "delta rule")
        for once, passes in (("", PASSES), (", one pass", 1))
    }
    if not quick:
        _draw(docs / "images" / "memory.png", points)
        report.write(docs, "memory", _section(points, compared))
    return {"points": points, "turns": compared}


def _alone(function: str, *arguments: str | int) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, "-c", CODE, function, json.dumps(arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603 - ours
    if result.returncode:
        raise RuntimeError(f"{function} {arguments} failed: {result.stderr.strip()}")
    return dict(json.loads(result.stdout))


def _section(points: list[dict[str, Any]], compared: dict[str, dict[str, list[float]]]) -> str:
    rows = []
    for rule, seconds in compared.items():
        row: list[Any] = [rule]
        for part in ("forward", "training"):
            slow, fast = (np.array(seconds[f"{form}, {part}"]) for form in ("recurrence", "chunks"))
            low, middle, high = np.quantile(slow / fast, (0.25, 0.5, 0.75))
            row += [
                1e3 * float(np.median(slow)),
                1e3 * float(np.median(fast)),
                f"{middle:.1f} ({low:.1f} to {high:.1f})",
            ]
        rows.append(row)
    parts = (("recurrence, " + part + " (ms)", "chunks", "times as fast") for part in ("forward", "training"))
    headers = ["", *(header for part in parts for header in part)]
    growth = [
        [arm, *rows_of[-1][:1], *(_slope(rows_of, i) for i in (1, 2)), 1e3 * rows_of[-1][1], rows_of[-1][2] / 2**20]
        for arm in ARMS
        if "recurrence" not in arm
        for rows_of in [[(p["length"], p["training"], p["bytes"]) for p in points if p["arm"] == arm]]
    ]
    return (
        "## Memories: time and memory over the length\n\n"
        f"Batch 1, {HEADS} heads, d = d_phi = {DIM}, float32, one thread; "
        f"CPU time. Training is a pass forwards and backwards. Length {AT:,}, medians of {TURNS} turns, a pass of the "
        f"recurrence, then {PASSES} of the chunks or one; times as fast: the median of the turns, and the middle half "
        "of them:\n\n"
        f"{report.table(headers, rows)}\nGrowth over the longest three lengths: the exponent p of time or memory as "
        f"length to the power p, each time the fastest of {REPEATS}.\n\n"
        + report.table(
            ["", "longest", "exponent, time", "exponent, memory", "training at the longest (ms)", "peak (MiB)"], growth
        )
        + "\n![Time and memory over the length](images/memory.png)"
    )


def _slope(rows: list[tuple[int, float, float]], i: int) -> float:
    """Return the slope of the logarithm of column i over that of the length, in the last three rows."""
    tail = np.log(np.array(rows[-3:], dtype=float))
    return float(np.polyfit(tail[:, 0], tail[:, i], 1)[0])


def _draw(path: Path, points: list[dict[str, Any]]) -> None:
    figure, axes = figures.figure(2)
    for arm in ARMS:
        rows = [row for row in points if row["arm"] == arm]
        lengths = [row["length"] for row in rows]
        style = "o--" if "recurrence" in arm else "o-"
        axes[0].plot(lengths, [row["training"] for row in rows], style, markersize=3, label=arm)
        axes[1].plot(lengths, [row["bytes"] / 2**20 for row in rows], style, markersize=3, label=arm)
    for axis, name in zip(axes, ("seconds, forwards and backwards", "peak memory added (MiB)"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="length (tokens)", ylabel=name)
        axis.set_xticks(LENGTHS[::2], [str(length) for length in LENGTHS[::2]])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    figures.save_figure(figure, path)
