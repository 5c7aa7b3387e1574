"""Counting speed: kernels beside the machine, scipy and gensim; growing texts; seconds and memory of the bit cipher.

Programs that are compared work on the same text on one core, in turn. A speed is reported only if counts are equal.
"""

import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from benchmarks import bounds, contextual, render, scaling
from benchmarks.harness import Results, Workers, alone
from benchmarks.throughput_section import section
from bitcipher import codes
from warmstart import accumulators, contexts
from warmstart.corpus import Corpus
from warmstart.near_shallow.model import cipher_vectors
from warmstart.progress import Progress, peak_memory

SPLIT = r"\n\n"  # a blank line between books
LAGS = 4  # a target is counted with each of the 4 tokens before it
COUNTING = {"tokens": 4_000_000, "repetitions": 3, "bits": 256, "lags": LAGS, "vocabulary": 8192}
CIPHER = {"vocabulary": 1_000_000, "bits": 1024}
CONTEXTUAL: dict[str, Any] = {"share": 0.25, "repetitions": 3}
GROWING = (1_000_000, 4_000_000, 16_000_000, 100_000_000)
LIMIT = "8G"

Chunks = list[tuple[NDArray[np.int64], NDArray[np.int64]]]  # inputs (lags, n) and targets (n,)


def count(chunks: Chunks, vectors: sparse.csr_array) -> list[NDArray[np.int64]]:
    """Count every lag with the package's kernel, (b, V) each."""
    unit = accumulators.code_unit(np.diff(vectors.indptr))
    F = [accumulators.empty(vectors.shape[1], vectors.shape[0], unit) for _ in range(LAGS)]
    for inputs, targets in chunks:
        for lag in range(LAGS):
            accumulators.update_pairs(F[lag], inputs[lag], targets, vectors)
    return [f.F for f in F]


def count_scipy(chunks: Chunks, vectors: sparse.csr_array) -> list[sparse.csr_array]:
    """Count every lag as one-hot targets, transposed, times vectors, (V, b) each: the fastest form that we know."""
    weights = np.diff(vectors.indptr)
    units = np.repeat(accumulators.code_unit(weights) // weights, weights)
    rows = sparse.csr_array((units, vectors.indices, vectors.indptr), shape=vectors.shape)
    F = [sparse.csr_array(vectors.shape, dtype=np.int64) for _ in range(LAGS)]
    for inputs, targets in chunks:
        one_hot = (np.ones(targets.size, np.int64), targets, np.arange(targets.size + 1))
        Y = sparse.csr_array(one_hot, shape=(targets.size, vectors.shape[0])).T.tocsr()
        for lag in range(LAGS):
            F[lag] = F[lag] + Y @ rows[inputs[lag]]
    return F


def read_tokens(data: Path, vocabulary: int) -> scaling.Text:
    """Return the tokens of the classics, the positions of their separators and the size of the vocabulary."""
    corpus = Corpus.build(data / "classics" / "train.txt.xz", vocab_size=vocabulary, split_documents=SPLIT)
    return np.asarray(corpus.tokens), np.asarray(corpus.documents), corpus.vocab_size


def counting(text: Callable[[], scaling.Text], settings: dict[str, int]) -> dict[str, Any]:
    """Count tokens at every lag both ways, in turn; raise RuntimeError if the counts differ."""
    n = settings["tokens"]
    tokens, documents, vocab_size = text()
    vectors = cipher_vectors(vocab_size, settings["bits"])
    read = contexts.read_all(tokens[: n + 1], documents, LAGS)
    chunks = [(chunk.radial(LAGS, int(tokens[0])), chunk.targets) for chunk in read]
    for ours, theirs in zip(count(chunks, vectors), count_scipy(chunks, vectors), strict=True):  # also compiles
        if not np.array_equal(ours.T, theirs.toarray()):
            raise RuntimeError("the kernel and scipy disagree on the counts; no speed is reported")
    speeds: dict[str, list[float]] = {"warmstart": [], "scipy": []}
    for _ in range(settings["repetitions"]):
        for name, function in (("warmstart", count), ("scipy", count_scipy)):
            start = time.process_time()  # CPU time: other work on the machine does not count
            function(chunks, vectors)
            speeds[name].append(LAGS * n / (time.process_time() - start) / 1e6)
    ratio = median(a / b for a, b in zip(speeds["warmstart"], speeds["scipy"], strict=True))
    return {"pairs": LAGS * n, "million_pairs_per_second": speeds, "ratio": ratio}


def cipher(vocab_size: int, bits: int) -> dict[str, float]:
    """Assign codes; return CPU seconds, and the MiB that this adds to the peak memory of a fresh process."""
    codes.assign_codes(1000, bits)  # compiles
    before, start = peak_memory(), time.process_time()
    codes.assign_codes(vocab_size, bits)
    return {"seconds": time.process_time() - start, "mib": (peak_memory() - before) / 2**20}


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Measure kernels beside the machine and other programs; count growing texts; assign codes."""
    results = Results(None if quick else docs / "results" / "throughput.jsonl", __name__, progress=progress)
    pairs = COUNTING | ({"tokens": 40_000, "repetitions": 3} if quick else {})
    sizes = CIPHER | ({"vocabulary": 50_000} if quick else {})
    vectors = CONTEXTUAL | ({"share": 1.0} if quick else {})
    growing = (20_000, 40_000) if quick else GROWING
    text = cache(partial(read_tokens, data, pairs["vocabulary"]))
    keys: dict[str, dict[str, Any]] = {
        "counting": {"counting": "radial contexts", **pairs},
        "cipher": {"cipher": "codes", **sizes},
        "bounds": {"bounds": "kernels", **pairs},
        "contextual": {"vectors": "contextual", **vectors},
        "processes": {"processes": 2, "tokens": growing[-1]},
    }
    output: dict[str, Any] = {
        "bounds": results.do(
            keys["bounds"], lambda: bounds.measure(text(), pairs["tokens"], pairs["repetitions"], pairs["bits"])
        ),
        "contextual": results.do(keys["contextual"], partial(contextual.measure, data, **vectors)),
        "growing": [
            results.row(
                {"growing": kind, "tokens": n, "limit": LIMIT},
                lambda k=kind, n=n: alone(scaling.grow, text(), k, n, LIMIT),  # type: ignore[misc]
                kind=kind,
                n=n,
            )
            for kind in scaling.KINDS
            for n in growing
        ],
        "counting": results.do(keys["counting"], partial(counting, text, pairs)),
        "processes": results.do(keys["processes"], lambda: scaling.processes(text(), growing[-1])),
    }
    with Workers(results, processes=1) as workers:
        output["cipher"] = sizes | workers.do(keys["cipher"], cipher, *sizes.values())
    if not quick:
        marks = {name: results.mark(key) for name, key in keys.items()}
        render.write(docs, "throughput", "Counting speed", *section(output, COUNTING, marks), results)
    return output
