"""Word vectors: cipher vectors beside word2vec, fastText, PPMI-SVD and GloVe on the same tokens, cores and dimension.

Seconds are from lists of tokens to vectors. Every arm has the words that occur five times or more. Finished arms are
kept in ``docs/results/vectors.jsonl``, the peers' in ``vectors_peers.jsonl``, and not run again by the same code.
"""

import functools
import importlib.metadata
import lzma
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from benchmarks import probes, report
from benchmarks.needs import AbsentError, need
from benchmarks.probes import WordVectors
from benchmarks.report import Book
from bitcipher import CooccurrenceEmbedding
from warmstart import figures
from warmstart.baselines import ppmi_svd
from warmstart.progress import Progress

WORDS = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")  # cased words with their apostrophes; other signs one by one
SIZE, MIN_COUNT, WINDOW, EPOCHS = 200, 5, 5, 5
SHARES = (1.0, 0.1)  # of the paragraphs, from the beginning

Sentences = list[list[str]]
Train = Callable[[Sentences, int], WordVectors]


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Train, probe and write; ``quick``: three arms at d = 50, nothing is written.

    A peer that is not installed is named with what it needs, and left out.
    """
    size = 50 if quick else SIZE
    kept = docs / "results"
    own = Book(None if quick else kept / "vectors.jsonl", report.code_digest("bitcipher"))
    peers = Book(None if quick else kept / "vectors_peers.jsonl", f"gensim {_version()}")
    tried = ["cipher 512, compressed", "word2vec CBOW", "PPMI-SVD"] if quick else list(ARMS)
    jobs = [(name, share) for name in tried for share in ((1.0,) if quick else SHARES)]
    results: dict[str, Any] = {"arms": [], "left_out": {}}
    for i, (name, share) in enumerate(jobs):
        if progress:
            progress(f"{name}, {share:.0%} of the text", i, len(jobs))
        book = own if name.startswith("cipher") else peers
        try:
            job = functools.partial(_arm, ARMS[name], data, share, size)
            found = book.do(f"{name}, {share:.0%}, d = {size}", job)
            results["arms"].append({"name": name, "share": share, **found})
        except AbsentError as error:
            if name not in results["left_out"]:
                sys.stderr.write(f"left out: {name}: {error}\n")
            results["left_out"][name] = str(error)
        if not quick:
            _write(results, docs)
    return results


def _arm(train: Train, data: Path, share: float, size: int) -> dict[str, Any]:
    """Train and probe one arm."""
    sentences = _text(data / "classics" / "train.txt.xz")
    sentences = sentences[: int(share * len(sentences))]
    wall, cpu = time.perf_counter(), time.process_time()
    vectors = train(sentences, size)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "tokens": sum(map(len, sentences)),
        "words": len(vectors.rows),
        "dimension": vectors.vectors.shape[1],
        "seconds": wall,
        "cpu_seconds": cpu,
        "pos": probes.part_of_speech(vectors, data / "ud-english-ewt"),
        "ner": probes.named_entities(vectors, data / "wnut17"),
        "similarity": probes.similarity(vectors, data / "wordsim"),
    }


@functools.lru_cache(1)
def _text(path: Path) -> Sentences:
    """Return the paragraphs of a file as lists of tokens."""
    return [
        tokens for line in lzma.decompress(path.read_bytes()).decode().split("\n") if (tokens := WORDS.findall(line))
    ]


def _cipher(sentences: Sentences, size: int, **settings: Any) -> WordVectors:
    model = CooccurrenceEmbedding(min_count=MIN_COUNT, **settings)
    vectors = model.fit(sentences, workers=os.cpu_count() or 1).vectors_
    return WordVectors(model.vocabulary_, vectors)


def _plain(sentences: Sentences, size: int) -> WordVectors:
    """Left and right neighbour, square roots: half the dimension each."""
    return _cipher(sentences, size, bits=size // 2, radii=(1,), sides="separate", transform="sqrt", components=None)


def _compressed(bits: int, radii: tuple[int, ...] = (1, WINDOW), sides: str = "separate") -> Train:
    """Log ratios, compressed; by default left and right, radius 1 and 5."""

    def train(sentences: Sentences, size: int) -> WordVectors:
        return _cipher(sentences, size, bits=bits, radii=radii, sides=sides, transform="log_ratio", components=size)

    return train


def _gensim(name: str, sg: int) -> Train:
    def train(sentences: Sentences, size: int) -> WordVectors:
        need("gensim")
        from gensim import models

        settings = {"vector_size": size, "window": WINDOW, "min_count": MIN_COUNT, "epochs": EPOCHS, "seed": 1}
        made = getattr(models, name)(sentences, sg=sg, workers=os.cpu_count() or 1, **settings).wv
        return WordVectors(made.key_to_index, made.vectors)

    return train


def _ppmi_svd(sentences: Sentences, size: int) -> WordVectors:
    """Count the pairs within the window, for `warmstart.baselines.ppmi_svd`."""
    counts = Counter(token for sentence in sentences for token in sentence)
    rows = {token: i for i, (token, count) in enumerate(counts.most_common()) if count >= MIN_COUNT}
    pairs = sparse.csr_array((len(rows), len(rows)), dtype=np.float32)
    for start in range(0, len(sentences), 20_000):
        part = sentences[start : start + 20_000]
        ids = np.array([i for s in part for i in [*(rows.get(token, -1) for token in s), *[-1] * WINDOW]], np.int32)
        for distance in range(1, WINDOW + 1):
            known = (ids[:-distance] >= 0) & (ids[distance:] >= 0)
            left, right = ids[:-distance][known], ids[distance:][known]
            pairs += sparse.coo_array((np.ones(left.size, np.float32), (left, right)), shape=pairs.shape).tocsr()
    return WordVectors(rows, ppmi_svd(pairs, size))


def _glove(sentences: Sentences, size: int) -> WordVectors:
    """Run the binaries of stanfordnlp/GloVe in the folder WARMSTART_GLOVE."""
    if not (folder := os.environ.get("WARMSTART_GLOVE")):
        raise AbsentError("expected the binaries of GloVe, found none; set WARMSTART_GLOVE to their folder")
    threads = ["-threads", str(os.cpu_count()), "-seed", "1"]
    with tempfile.TemporaryDirectory() as work:
        text = "\n".join(map(" ".join, sentences)).encode()
        vocabulary = _binary(work, folder, "vocab_count", ["-min-count", str(MIN_COUNT)], text)
        (Path(work) / "vocab.txt").write_bytes(vocabulary)
        counted = _binary(work, folder, "cooccur", ["-window-size", "10", "-vocab-file", "vocab.txt"], text)
        (Path(work) / "shuffled.bin").write_bytes(_binary(work, folder, "shuffle", ["-seed", "1"], counted))
        options = ["-input-file", "shuffled.bin", "-vocab-file", "vocab.txt", "-save-file", "vectors", "-iter", "15"]
        _binary(work, folder, "glove", [*options, "-vector-size", str(size), *threads])
        lines = [line.split(" ") for line in (Path(work) / "vectors.txt").read_text().splitlines()]
    return WordVectors({line[0]: i for i, line in enumerate(lines)}, np.array([line[1:] for line in lines], np.float32))


def _binary(work: str, folder: str, name: str, options: list[str], text: bytes = b"") -> bytes:
    command = [str(Path(folder).resolve() / name), "-verbose", "0", *options]
    return subprocess.run(command, input=text, cwd=work, capture_output=True, check=True).stdout  # noqa: S603 - given


ARMS: dict[str, Train] = {
    "cipher 512, compressed": _compressed(512),
    "word2vec CBOW": _gensim("Word2Vec", 0),
    "cipher 256, compressed": _compressed(256),
    "cipher 100, left and right": _plain,
    "cipher 2048, both sides, radius 5": _compressed(2048, (WINDOW,), "both"),
    "PPMI-SVD": _ppmi_svd,
    "word2vec skip-gram": _gensim("Word2Vec", 1),
    "fastText skip-gram": _gensim("FastText", 1),
    "GloVe": _glove,
}


def _version() -> str:
    try:
        return importlib.metadata.version("gensim")
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _write(results: dict[str, Any], docs: Path) -> None:
    """Write the section of docs/benchmarks.md and the plot."""
    arms = results["arms"]
    headers = ["vectors", "d", "part of speech", "entities, F1", *probes.PAIRS, "s", "CPU s"]
    tables = {share: report.table(headers, _rows(arm for arm in arms if arm["share"] == share)) for share in SHARES}
    whole, part = (next((arm for arm in arms if arm["share"] == share), None) for share in SHARES)
    covered = "; ".join(
        f"{share:.0%} of the text: " + ", ".join(f"{name} {arm['similarity'][name][1]:.0%}" for name in probes.PAIRS)
        for share, arm in ((1.0, whole), (0.1, part))
        if arm
    )
    left_out = "".join(f"\n{name} is left out: {reason}.\n" for name, reason in results["left_out"].items())
    body = f"""## Word vectors

Classics, cased words and signs, {whole["tokens"] if whole else 0:,} tokens; words that occur {MIN_COUNT} times or more.
Peers (gensim {_version()}): window {WINDOW}, {EPOCHS} epochs; {os.cpu_count()} threads for all arms.
Seconds from lists of tokens to vectors;
CPU seconds are of all threads together. Part of speech: accuracy on UD English EWT test (17 tags); entities: F1 of
WNUT17 test; both by logistic regression on the frozen vectors of a token and its two neighbours. Word similarity:
Spearman's correlation with cosines. Pairs covered, {covered}.

All of the text:

{tables[1.0]}
A tenth of the text:

{tables[0.1]}{left_out}
![Part of speech over seconds](images/vectors.png)"""
    _draw(docs / "images" / "vectors.png", arms)
    report.write(docs, "vectors", body)


def _rows(arms: Iterable[dict[str, Any]]) -> list[list[Any]]:
    return [
        [arm["name"], arm["dimension"], arm["pos"], arm["ner"]]
        + [arm["similarity"][name][0] for name in probes.PAIRS]
        + [arm["seconds"], arm["cpu_seconds"]]
        for arm in arms
    ]


def _draw(path: Path, arms: list[dict[str, Any]]) -> None:
    figure, axes = figures.figure(2)
    for axis, measure, label in zip(
        axes, ("pos", "ner"), ("part of speech, accuracy", "named entities, F1"), strict=True
    ):
        for arm in arms:
            style = "o" if arm["name"].startswith("cipher") else "s"
            faint = 1.0 if arm["share"] == 1 else 0.4
            axis.plot(arm["cpu_seconds"], arm[measure], style, alpha=faint, color="C0" if style == "o" else "C1")
            axis.annotate(arm["name"], (arm["cpu_seconds"], arm[measure]), fontsize=6, alpha=faint)
        axis.set(xscale="log", xlabel="CPU seconds to train (faint: a tenth of the text)", ylabel=label)
        axis.grid(alpha=0.3)
    figures.save_figure(figure, path)
