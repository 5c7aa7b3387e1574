"""Counting more and more text: n-grams of order 5 of repeated books and of fresh text; two processes beside one.

Fresh text is drawn from a model of order 3 of the same books, so that new n-grams keep coming.
"""

import itertools
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numba as nb
import numpy as np

from warmstart._ngram_kernels import find
from warmstart.budget import Budget, parse_size
from warmstart.ngrams import Ids, count_ngrams
from warmstart.progress import peak_memory, resident_memory

ORDER = 5
TIMES = 3
DISCOUNT = 0.75  # of the model that writes fresh text
KINDS = ("shuffled books", "fresh text")

Text = tuple[Ids, Ids, int]  # tokens, documents, vocabulary size


def shuffled(text: Text, n: int, seed: int = 0) -> Text:
    """Return the books in a new random order, again and again, cut to ``n`` targets.

    Examples
    --------
    >>> tokens, documents, _ = shuffled((np.array([0, 1, 2, 0, 3, 0]), np.array([0, 3, 5]), 4), 7)
    >>> sorted(tokens[1:6].tolist()), tokens.size, documents.size
    ([0, 0, 1, 2, 3], 8, 4)
    """
    tokens, documents, vocab_size = text
    books = [tokens[a:b] for a, b in itertools.pairwise(documents)]
    rng, parts, size = np.random.default_rng(seed), [], 0
    while size < n:
        for book in rng.permutation(len(books)).tolist():
            parts.append(books[book])
            size += books[book].size
    return _closed(np.concatenate(parts)[:n], int(tokens[0]), vocab_size)


def fresh(text: Text, n: int, seed: int = 0) -> Text:
    """Return text of ``n`` targets drawn from trigrams with absolute discounting: new n-grams keep coming."""
    tokens, documents, vocab_size = text
    levels = count_ngrams(tokens, documents, vocab_size, 3).levels
    sums = [np.concatenate([np.zeros(1, np.int64), np.cumsum(level.counts, dtype=np.int64)]) for level in levels]
    separator = int(tokens[0])
    written = np.empty(n, tokens.dtype)
    arrays: tuple[Any, ...] = (levels[1].last, levels[2].last, *sums, levels[0].offsets, levels[1].offsets)
    write: Any = draw
    write(written, separator, *arrays, DISCOUNT, seed)
    return _closed(written, separator, vocab_size)


def _closed(tokens: Ids, separator: int, vocab_size: int) -> Text:
    tokens = np.append(tokens, tokens.dtype.type(separator))
    tokens[0] = separator
    return tokens, np.flatnonzero(tokens == separator), vocab_size


@nb.njit(cache=True, nogil=True)
def draw(
    out: Ids, separator: int, last2: Ids, last3: Ids, sums1: Ids, sums2: Ids, sums3: Ids, offsets1: Ids, offsets2: Ids,
    discount: float, seed: int,
) -> None:  # fmt: skip
    """Write tokens, each drawn from the counts after two tokens; what a discount cuts off goes on to one, and to none.

    sums: cumulative counts of each level from 0; offsets and last: see `warmstart.ngrams`.
    """
    np.random.seed(seed)  # noqa: NPY002 - the generator of numba
    previous: Any = np.int64(separator)
    pair: Any = np.int64(-1)
    token: Any = np.int64(-1)
    at: Any = np.int64(-1)
    for i in range(out.size):
        at = np.int64(-1)
        if pair >= 0:
            at = place(sums3, np.int64(offsets2[pair]), np.int64(offsets2[pair + 1]), discount)
        token = np.int64(last3[at]) if at >= 0 else np.int64(-1)
        if at < 0:
            at = place(sums2, np.int64(offsets1[previous]), np.int64(offsets1[previous + 1]), discount)
            token = np.int64(last2[at]) if at >= 0 else place(sums1, 0, sums1.size - 1, 0.0)
        pair = find(last2, offsets1[previous], offsets1[previous + 1], token) if token != separator else np.int64(-1)
        out[i] = token
        previous = token


@nb.njit(cache=True, nogil=True)
def place(sums: Ids, low: Any, high: Any, discount: float) -> Any:
    """Return a place in ``low ... high`` drawn by its count, -1 if there is none or the draw is in the discount."""
    if sums[high] == sums[low]:
        return np.int64(-1)
    x = sums[low] + np.random.random() * (sums[high] - sums[low])  # noqa: NPY002 - the generator of numba
    at = np.searchsorted(sums[low : high + 1], x, side="right") + low - 1
    return at if x - sums[at] >= discount else np.int64(-1)


def grow(text: Text, kind: str, n: int, memory: str) -> dict[str, Any]:
    """Count ``n`` tokens within a limit of memory; return CPU seconds, n-grams and memory. For a fresh process.

    The seconds are the median of `TIMES`.
    """
    tokens, documents, vocab_size = (shuffled if kind == KINDS[0] else fresh)(text, n)
    _compile(tokens, vocab_size)
    budget = Budget(parse_size(memory))
    before = resident_memory()
    budget.counting(n, documents.size, vocab_size, ORDER)
    cpu, n_ngrams = [], 0
    for _ in range(TIMES):
        start = time.process_time()
        n_ngrams = sum(count_ngrams(tokens, documents, vocab_size, ORDER).sizes)
        cpu.append(time.process_time() - start)
    return {
        "cpu_seconds": median(cpu), "ngrams": n_ngrams, "before_bytes": before,
        "peak_bytes": peak_memory(), "estimate_bytes": budget.estimate, "limit_bytes": budget.limit,
    }  # fmt: skip


def _compile(tokens: Ids, vocab_size: int) -> None:
    """Count a few tokens, so that all kernels are there."""
    few = np.append(tokens[:100], tokens[0])
    few[1:-1][few[1:-1] == few[0]] = (int(few[0]) + 1) % vocab_size
    count_ngrams(few, np.array([0, 100]), vocab_size, ORDER)


def processes(text: Text, n: int) -> dict[str, Any]:
    """Count two halves of ``n`` tokens one after the other in one process, and in two processes at the same time.

    The halves are files, as shards are. Seconds are medians of `TIMES`.
    """
    tokens, _, vocab_size = shuffled(text, n)
    separator, load = int(tokens[0]), os.getloadavg()[0]
    halves = [_closed(part.copy(), separator, vocab_size) for part in (tokens[: n // 2], tokens[n // 2 : n])]
    wall, cpu = {}, {}
    with TemporaryDirectory(prefix="warmstart-bench-") as folder:
        paths = [Path(folder, f"{i}.npz") for i in range(2)]
        few = _closed(tokens[:1000].copy(), separator, vocab_size)
        for path, half in zip([*paths, Path(folder, "few.npz")], [*halves, few], strict=True):
            np.savez(path, tokens=half[0], documents=half[1], vocab_size=vocab_size)
        for workers in (1, 2):
            with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
                list(pool.map(_count, [Path(folder, "few.npz")] * 4 * workers))  # compiles
                seconds, cpus = [], []
                for _ in range(TIMES):
                    start = time.perf_counter()
                    cpus.append(sum(pool.map(_count, paths)))
                    seconds.append(time.perf_counter() - start)
                wall[str(workers)], cpu[str(workers)] = median(seconds), median(cpus)
    return {"tokens": n, "wall_seconds": wall, "cpu_seconds": cpu, "load": load, "cores": os.cpu_count()}


def _count(path: Path) -> float:
    """Return the CPU seconds of reading and counting a text."""
    start = time.process_time()
    with np.load(path) as file:
        count_ngrams(file["tokens"], file["documents"], int(file["vocab_size"]), ORDER)
    return time.process_time() - start
