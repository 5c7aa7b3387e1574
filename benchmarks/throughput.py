"""Counting speed: the package's kernel beside scipy's sparse product; seconds and memory of the bit cipher.

The kernel and scipy count the same pairs of the same text on one core, in turn. A speed is reported only if both give
equal counts.
"""

import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from benchmarks import render
from benchmarks.harness import Results, Workers
from bitcipher import codes
from warmstart import accumulators, contexts
from warmstart.corpus import Corpus
from warmstart.near_shallow.model import cipher_vectors
from warmstart.progress import Progress, peak_memory

SPLIT = r"\n\n"  # a blank line between books
LAGS = 4  # a target is counted with each of the 4 tokens before it
COUNTING = {"tokens": 4_000_000, "repetitions": 7, "bits": 256, "lags": LAGS, "vocabulary": 8192}
CIPHER = {"vocabulary": 1_000_000, "bits": 1024}

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


def counting(data: Path, settings: dict[str, int]) -> dict[str, Any]:
    """Count tokens at every lag both ways, in turn; raise RuntimeError if the counts differ."""
    n = settings["tokens"]
    corpus = Corpus.build(data / "classics" / "train.txt.xz", vocab_size=settings["vocabulary"], split_documents=SPLIT)
    vectors = cipher_vectors(corpus.vocab_size, settings["bits"])
    read = contexts.read_all(corpus.tokens[: n + 1], corpus.documents, LAGS)
    chunks = [(chunk.radial(LAGS, corpus.separator), chunk.targets) for chunk in read]
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
    """Count both ways; assign the codes of a large vocabulary."""
    results = Results(None if quick else docs / "results" / "throughput.jsonl", __name__, progress=progress)
    pairs = COUNTING | ({"tokens": 40_000, "repetitions": 3} if quick else {})
    sizes = CIPHER | ({"vocabulary": 50_000} if quick else {})
    keys = {"counting": "radial contexts", **pairs}, {"cipher": "codes", **sizes}
    output: dict[str, Any] = {"counting": results.do(keys[0], partial(counting, data, pairs))}
    with Workers(results, processes=1) as workers:
        output["cipher"] = sizes | workers.do(keys[1], cipher, *sizes.values())
    if not quick:
        marks = [results.mark(key) for key in keys]
        render.write(docs, "throughput", "Counting speed", *_section(output, marks), results)
    return output


def _section(output: dict[str, Any], marks: list[str]) -> tuple[str, str]:
    pairs, codes_of = output["counting"], output["cipher"]
    speeds = pairs["million_pairs_per_second"].items()
    rows = [[name + marks[0], median(values), min(values), max(values)] for name, values in speeds]
    conclusion = f"The kernel counts {pairs['ratio']:.2f} times as many pairs a second as scipy's sparse product."
    body = f"""{pairs["pairs"]:,} pairs of a target and a token 1 to {LAGS} before it, in the classics:
{COUNTING["vocabulary"]:,} tokens in the vocabulary, {COUNTING["bits"]} bits, chunks of {contexts.TARGETS_PER_CHUNK:,}
targets. CPU seconds of one core, repetitions in turn, after both programs gave equal counts. scipy: one-hot targets,
transposed, times sparse cipher vectors. The ratio above is the median over the repetitions.

{render.table(["program", "million pairs a second (median)", "lowest", "highest"], rows)}
The bit cipher of {codes_of["vocabulary"]:,} tokens and {codes_of["bits"]:,} bits takes {codes_of["seconds"]:.2f} CPU
seconds and adds {codes_of["mib"]:.0f} MiB to the peak memory, the codes included.{marks[1]}"""
    return conclusion, body
