"""Counting speed: radial contexts through `accumulators.update_pairs` beside scipy's sparse product; the bit cipher.

Both count the same chunks of the same text on one core, in turn, and no time is reported unless the counts are equal.
"""

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from benchmarks import report
from bitcipher import codes
from warmstart import accumulators, contexts
from warmstart.corpus import Corpus
from warmstart.near_shallow import cipher_vectors
from warmstart.progress import Progress

SPLIT = r"\n\n"  # a blank line between books
CODE = ("bitcipher/codes.py", *(f"warmstart/{name}.py" for name in ("accumulators", "_kernels", "contexts")))
BITS, LAGS, TOKENS, REPETITIONS = 256, 4, 4_000_000, 7

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
    """Count every lag as one-hot targets, transposed, times vectors, (V, b) each: the fastest form that was found.

    Transposing once a chunk and adding sparse matrices is several times as fast as adding to a dense one.
    """
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


def pairs(data: Path, n: int, repetitions: int, progress: Progress | None) -> dict[str, Any]:
    """Count ``n`` tokens at every lag, both ways in turn.

    Raises
    ------
    RuntimeError
        The counts differ.
    """
    corpus = Corpus.build(data / "classics" / "train.txt.xz", split_documents=SPLIT, progress=progress)
    vectors = cipher_vectors(corpus.vocab_size, BITS)
    read = contexts.read_all(corpus.tokens[: n + 1], corpus.documents, LAGS)
    chunks = [(chunk.radial(LAGS, corpus.separator), chunk.targets) for chunk in read]
    ours, theirs = count(chunks, vectors), count_scipy(chunks, vectors)  # also compiles
    if not all(np.array_equal(a.T, b.toarray()) for a, b in zip(ours, theirs, strict=True)):
        raise RuntimeError("the kernel and scipy disagree on the counts; no speed is reported")
    del ours, theirs
    ways: dict[str, Callable[[Chunks, sparse.csr_array], object]] = {"warmstart": count, "scipy": count_scipy}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(repetitions):
        for name, way in ways.items():
            start = time.process_time()  # of one thread: other work on the machine does not enter
            way(chunks, vectors)
            rates[name].append(LAGS * n / (time.process_time() - start) / 1e6)
        if progress:
            progress("counting", i + 1, repetitions)
    return {
        "vocab_size": corpus.vocab_size,
        "pairs": LAGS * n,
        "million_pairs_per_second": rates,
        "ratio": median(a / b for a, b in zip(rates["warmstart"], rates["scipy"], strict=True)),
    }


def cipher(vocab_size: int, bits: int) -> dict[str, float]:
    """Assign codes in a process of its own; return seconds and MiB at the peak above what the process had before."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_cipher, vocab_size, bits).result()


def _cipher(vocab_size: int, bits: int) -> dict[str, float]:
    codes.assign_codes(1000, bits)  # compile
    before, start = _peak(), time.process_time()
    codes.assign_codes(vocab_size, bits)
    return {"seconds": time.process_time() - start, "mib": _peak() - before}


def _peak() -> float:
    """Peak resident memory of this process in MiB (Linux; getrusage would count the parent's)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Measure, and write ``results/throughput.jsonl`` and a section of ``benchmarks.md``.

    Parameters
    ----------
    data : Path
        Folder with ``classics``.
    docs : Path
        Folder to write to.
    quick : bool
        A hundredth of the tokens, three repetitions, a small cipher; nothing is written.
    progress : callable of (stage, done, total), optional

    Returns
    -------
    dict
        ``counting``: million pairs a second by way and repetition, and the median ratio; ``cipher``: seconds and MiB.
    """
    book = report.Book(None if quick else docs / "results" / "throughput.jsonl", report.code_digest(*CODE))
    size = (50_000, 1024) if quick else (1_000_000, 1024)
    less = (TOKENS // 100, 3) if quick else (TOKENS, REPETITIONS)
    results = {
        "counting": book.do("counting", partial(pairs, data, *less, progress)),
        "cipher": {"vocab_size": size[0], "bits": size[1], **book.do("cipher", partial(cipher, *size))},
    }
    if not quick:
        report.write(docs, "throughput", _section(results))
    return results


def _section(results: dict[str, Any]) -> str:
    counting, made = results["counting"], results["cipher"]
    rows = [
        [name, median(rates), min(rates), max(rates)] for name, rates in counting["million_pairs_per_second"].items()
    ]
    table = report.table(["way", "M pairs/s (median)", "lowest", "highest"], rows)
    return (
        f"## Throughput: counting\n\n{counting['pairs']:,} pairs of a target and a token 1 to {LAGS} before it "
        f"(classics, V = {counting['vocab_size']:,}, b = {BITS}, chunks of {contexts.TARGETS_PER_CHUNK:,} targets), "
        "in CPU seconds of one core, repetitions in turn, after both had given equal counts. scipy: one-hot targets, "
        f"transposed, times sparse cipher vectors, in its fastest form that was found.\n\n{table}\n"
        f"Median ratio: **{counting['ratio']:.2f}**.\n\n"
        f"Bit cipher of {made['vocab_size']:,} tokens and {made['bits']:,} bits: {made['seconds']:.1f} CPU seconds, "
        f"{made['mib']:.0f} MiB at the peak, the codes included."
    )
