"""Update rules of memories: time and peak memory over the length, in chunks, by recurrence, and of softmax attention.

Every point is measured in a fresh process with one thread. The recurrence is the bare loop over positions, without the
checks of `delta_step`. Recurrence and chunks are timed in turns, because the speed of a machine changes from minute to
minute. A turn is one pass of the recurrence and ten of the chunks, which take about as long, or one pass of each: the
chunks then find caches and heap as the recurrence has left them.
"""

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import render
from benchmarks.harness import Results, Workers
from warmstart.memory.feature_maps import softmax_attention, sum_normalise
from warmstart.memory.rules import delta_rule, sum_rule
from warmstart.memory.ttt import ttt_rule
from warmstart.progress import Progress, peak_memory

HEADS, DIM = 4, 64
SHAPE = {"heads": HEADS, "dim": DIM}
LENGTHS = (1024, 2048, 4096, 8192, 16384)
LONGEST_SOFTMAX = 4096  # four times the length takes sixteen times the memory
TURNS, PASSES, REPEATS = 40, 10, 3  # turns are of the shortest length


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
    """Return CPU seconds, the least of some passes, of ``forward`` and ``training``, and the ``bytes`` of training."""
    tensors = _tensors(length)
    _seconds(arm, [x[:, :, :64] for x in tensors], "training")  # makes PyTorch load its parts
    before = peak_memory()
    _seconds(arm, tensors, "training")
    added = peak_memory() - before
    kinds = ("forward", "training")
    return {kind: min(_seconds(arm, tensors, kind) for _ in range(repeats)) for kind in kinds} | {"bytes": added}


def compare(rule: str, length: int, turns: int, passes: int) -> dict[str, list[float]]:
    """Time in turns one pass of the recurrence of a rule and some passes of its chunks.

    The keys are ``recurrence, forward``, ``chunks, forward`` and the same of ``training``; the values are the CPU
    seconds of a pass in each turn.
    """
    tensors = _tensors(length)
    timed: dict[str, list[float]] = {}
    for kind in ("forward", "training"):
        for form, times in (("recurrence", 1), ("chunks", passes)) * (turns + 1):
            seconds = _seconds(f"{rule}, {form}", tensors, kind, times)
            timed.setdefault(f"{form}, {kind}", []).append(seconds)
    return {name: seconds[1:] for name, seconds in timed.items()}  # the first turn warms up


def _tensors(length: int) -> list[Tensor]:
    """Return q, k, v and beta."""
    torch.manual_seed(0)
    q, k = (sum_normalise(torch.rand(1, HEADS, length, DIM)).requires_grad_() for _ in range(2))
    v = torch.randn(1, HEADS, length, DIM, requires_grad=True)
    return [q, k, v, torch.rand(1, HEADS, length, requires_grad=True)]


def _seconds(arm: str, tensors: list[Tensor], kind: str, passes: int = 1) -> float:
    """Return the CPU seconds of a pass, forwards or, to train, forwards and backwards; the mean of some passes."""
    began = time.process_time()
    for _ in range(passes):
        with torch.set_grad_enabled(kind == "training"):
            output = ARMS[arm](*tensors)
        if kind == "training":
            output.sum().backward()  # type: ignore[no-untyped-call]
    return (time.process_time() - began) / passes


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Measure every arm at every length, and recurrence and chunks in turns; no data set is read."""
    results = Results(None if quick else docs / "results" / "memory.jsonl", __name__, progress=progress)

    def do(key: dict[str, Any], function: Callable[..., Any], *arguments: Any) -> Any:
        if quick:
            return results.do(key, lambda: function(*arguments))
        with Workers(results, processes=1) as workers:  # a fresh process: its peak memory is that of the point
            return workers.do(key, function, *arguments)

    points = []
    for arm, length in itertools.product(ARMS, (64,) if quick else LENGTHS):
        if length <= (LONGEST_SOFTMAX if arm == "softmax attention" else LENGTHS[0] if "recurrence" in arm else length):
            key = {"arm": arm, "length": length, "repeats": REPEATS, **SHAPE}
            point = do(key, measure, arm, length, REPEATS)
            points.append({**key, **point, "mib": point["bytes"] / 2**20, "mark": results.mark(key)})
    turns = []
    for rule, passes in itertools.product(("sum rule", "delta rule"), (PASSES, 1)):
        key = {"turns": rule, "length": LENGTHS[0], "n": TURNS, "passes": passes, **SHAPE}
        key |= {"length": 64, "n": 2} if quick else {}
        seconds = do(key, compare, rule, key["length"], key["n"], passes)
        turns.append({"rule": rule, "passes": passes, "mark": results.mark(key), **seconds})
    if not quick:
        measures = {"seconds of training": "training", "peak memory (MiB)": "mib"}
        panels = {title: render.series(points, "arm", "length", name) for title, name in measures.items()}
        styles = {arm: {"marker": "o", "markersize": 4} for arm in ARMS}
        render.curves(docs / "images" / "memory.png", panels, "length (tokens)", "", styles=styles, log="xy")
        render.write(docs, "memory", "Memories: time and memory over the length", *_section(points, turns), results)
    return {"points": points, "turns": turns}


def _section(points: list[dict[str, Any]], turns: list[dict[str, Any]]) -> tuple[str, str]:
    medians = []
    for row in turns:
        for kind in ("forward", "training"):
            ratios = np.divide(row[f"recurrence, {kind}"], row[f"chunks, {kind}"])
            low, median, high = np.quantile(ratios, (0.25, 0.5, 0.75))
            row[kind] = f"{median:.1f} ({low:.1f} to {high:.1f})"
            medians.append(float(median))
    columns = {"rule": "rule", "passes of the chunks": "passes", "forward": "forward", "training": "training"}
    speeds = render.rows_table(columns, turns)
    growth = []
    for arm in (arm for arm in ARMS if "recurrence" not in arm):
        at = [point for point in points if point["arm"] == arm]
        growth.append(at[-1] | {"time": slope(at, "training"), "memory": slope(at, "bytes")})
    columns = {"arm": "arm", "longest": "length", "exponent, time": "time", "exponent, memory": "memory"}
    columns |= {"training at the longest (s)": "training", "peak (MiB)": "mib"}
    powers = [f"{row['time']:.2f} and {row['memory']:.2f}" for row in growth]
    conclusion = (
        f"Chunks are {min(medians):.0f} to {max(medians):.0f} times as fast as the recurrence; their time and memory "
        f"grow with the length to the power {powers[1]} (sum rule), those of softmax attention to {powers[0]}."
    )
    body = f"""Batch 1, {HEADS} heads, keys and values of dimension {DIM}, float32, CPU time of one thread. Training is
a pass forwards and backwards. How many times as fast the chunks are as the recurrence, at length {LENGTHS[0]:,}: the
median of {TURNS} turns and their middle half. A turn is one pass of the recurrence and {PASSES} passes, or one, of the
chunks.

{speeds}
Growth over the longest three lengths: the exponent p, where time or memory grows as the length to the power p. Each
time is the least of {REPEATS}.

{render.rows_table(columns, growth)}
![Time and memory over the length](images/memory.png)"""
    return conclusion, body


def slope(points: list[dict[str, Any]], measured: str) -> float:
    """Return the slope of the logarithm of a measure over the logarithm of the length, at the last three points."""
    lengths, values = (np.log([float(point[name]) for point in points[-3:]]) for name in ("length", measured))
    return float(np.polyfit(lengths, values, 1)[0])
