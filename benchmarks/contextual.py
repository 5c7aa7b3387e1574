"""Contextual vectors of the paper beside gensim's CBOW and scipy's sparse matrices, from lists of strings."""

import itertools
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from benchmarks.vectors import Sentences, read_text
from bitcipher import CooccurrenceEmbedding, codes

WINDOW, SIZE, MIN_COUNT = 10, 100, 5
PAPER: dict[str, Any] = {"bits": SIZE, "radii": (WINDOW,), "sides": "both", "transform": None, "components": None}
POSITIONS = 1 << 20  # whose pairs scipy counts at once


def ours(sentences: Sentences) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the sums (V, bits) and the vectors of the paper."""
    model = CooccurrenceEmbedding(min_count=MIN_COUNT, **PAPER).fit(sentences)
    return model.sums_[:, 0, 0], model.vectors_


def gensim(sentences: Sentences) -> Any:
    """Return a CBOW model after one epoch."""
    from gensim.models import Word2Vec

    return Word2Vec(sentences, vector_size=SIZE, window=WINDOW, min_count=MIN_COUNT, epochs=1, workers=1, seed=1)


def by_scipy(sentences: Sentences) -> NDArray[np.int64]:
    """Return the same sums (V, bits) by a sparse matrix of pairs times codes: the fastest form that we know."""
    counts = Counter(itertools.chain.from_iterable(sentences))
    ranked = sorted((-count, token) for token, count in counts.items() if count >= MIN_COUNT)
    rows = {token: row for row, (_, token) in enumerate(ranked)}
    known = map(rows.get, itertools.chain.from_iterable(sentences), itertools.repeat(-1))
    ids = np.fromiter(known, np.int32)
    sentence = np.repeat(np.arange(len(sentences), dtype=np.int32), np.fromiter(map(len, sentences), np.int64))
    size = len(rows)
    pairs = sparse.csr_array((size, size), dtype=np.int64)
    for start in range(0, ids.size, POSITIONS):
        block = slice(start, start + POSITIONS + WINDOW)
        entries = [_apart(ids[block], sentence[block], distance) for distance in range(1, WINDOW + 1)]
        left, right = (np.concatenate(side) for side in zip(*entries, strict=True))
        pairs = pairs + sparse.coo_array((np.ones(left.size, np.int64), (left, right)), shape=pairs.shape).tocsr()
    assigned = codes.assign_codes(size, SIZE)
    weights = codes.code_weights(assigned)
    indptr, indices = codes.code_indices(assigned)
    units = np.repeat(np.lcm.reduce(weights) // weights, weights)
    code = sparse.csr_array((units, indices, indptr), shape=(size, SIZE))
    both: NDArray[np.int64] = ((pairs + pairs.T) @ code).toarray()
    return both


def _apart(ids: NDArray[np.int32], sentence: NDArray[np.int32], distance: int) -> tuple[Any, Any]:
    """Return the rows of the first `POSITIONS` tokens and of those at a distance after them in the same sentence."""
    first, second = ids[:-distance][:POSITIONS], ids[distance:][:POSITIONS]
    same = sentence[:-distance][:POSITIONS] == sentence[distance:][:POSITIONS]
    kept = same & (first >= 0) & (second >= 0)
    return first[kept], second[kept]


def measure(data: Path, share: float, repetitions: int) -> dict[str, Any]:
    """Make the vectors of a share of the paragraphs in turn; raise RuntimeError if ours and scipy's sums differ."""
    sentences = read_text(data / "classics" / "train.txt.xz")
    sentences = sentences[: int(share * len(sentences))]
    if not np.array_equal(ours(sentences)[0], by_scipy(sentences)):  # also compiles
        raise RuntimeError("the kernel and scipy disagree on the sums; no speed is reported")
    works: dict[str, Callable[[], Any]] = {
        name: partial(work, sentences)
        for name, work in (("bitcipher", ours), ("gensim CBOW", gensim), ("scipy", by_scipy))
    }
    cpu: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repetitions):
        for name, work in works.items():
            start = time.process_time()
            work()
            cpu[name].append(time.process_time() - start)
    return {"tokens": sum(map(len, sentences)), "cpu_seconds": cpu}
