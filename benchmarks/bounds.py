"""Our kernels beside what the machine can do: copies of memory and updates of random cells, one thread, in turn."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from warmstart import accumulators, contexts
from warmstart.near_shallow.model import cipher_vectors
from warmstart.ngrams import Ids, count_ngrams

COPIED = 1 << 26  # bytes of an array that is copied
UPDATES = 1 << 23
LAGS = 4


@nb.njit(cache=True, nogil=True)
def copy(source: NDArray[np.uint64], target: NDArray[np.uint64]) -> None:
    """Copy an array."""
    for i in range(source.size):
        target[i] = source[i]


@nb.njit(cache=True, nogil=True)
def update(cells: NDArray[np.uint64], table: NDArray[np.int64]) -> None:
    """Add 1 to cells of a table. The cells are unsigned: numba tests signed ones for being negative."""
    for i in range(cells.size):
        table[cells[i]] += 1


def bytes_moved(order: int, vocab_size: int) -> int:
    """Return the bytes a token that counting n-grams reads and writes, each element of an array at each pass.

    Counts of single tokens 2; what follows each place 12; sorting 8 and 16 for each digit of 8 bits; what it has in
    common with its neighbour 9; every length 9. The n-grams themselves are not among them.

    Examples
    --------
    >>> bytes_moved(2, 8192), bytes_moved(5, 8192)
    (72, 179)
    """
    digits = -(-(order - 1) * vocab_size.bit_length() // 8)
    return 2 + 12 + 8 + 16 * digits + 9 + 9 * (order - 1)


def seconds(work: Callable[[], Any]) -> float:
    """Return the CPU seconds of a piece of work."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(text: tuple[Ids, Ids, int], n: int, repetitions: int, bits: int) -> dict[str, Any]:
    """Measure machine and kernels in turn on ``n`` tokens; return the values of every repetition.

    Copies and updates are in units a second, n-grams in CPU seconds a token.
    """
    tokens, documents, vocab_size = text
    vectors = cipher_vectors(vocab_size, bits)
    weights = np.diff(vectors.indptr)
    read = contexts.read_all(tokens[: n + 1], documents, LAGS)
    chunks = [(chunk.radial(LAGS, int(tokens[0])), chunk.targets) for chunk in read]
    added = int(sum(weights[inputs].sum() for inputs, _ in chunks))

    F = [accumulators.empty(bits, vocab_size, accumulators.code_unit(weights)) for _ in range(LAGS)]

    def radial() -> None:
        for inputs, targets in chunks:
            for lag in range(LAGS):
                accumulators.update_pairs(F[lag], inputs[lag], targets, vectors)

    part = np.append(tokens[:n], tokens[0])
    borders = np.append(documents[documents < n], n)
    source, target = np.ones(COPIED // 8, np.uint64), np.zeros(COPIED // 8, np.uint64)
    table = np.zeros(bits * vocab_size, np.int64)
    cells = np.random.default_rng(0).integers(0, table.size, UPDATES, np.uint64)
    works: dict[str, tuple[Callable[[], Any], float]] = {
        "copied": (partial(copy, source, target), 2 * COPIED),
        "random": (partial(update, cells, table), UPDATES),
        "radial": (radial, added),
        "pairs": (partial(count_ngrams, part, borders, vocab_size, 2), n),
        "ngrams": (partial(count_ngrams, part, borders, vocab_size, 5), n),
    }
    rates: dict[str, list[float]] = {name: [] for name in works}
    for work, _ in works.values():
        work()  # compiles
    for _ in range(repetitions):
        for name, (work, amount) in works.items():
            rates[name].append(amount / seconds(work))
    return {"rates": rates, "updates_a_pair": added / (LAGS * n)}
