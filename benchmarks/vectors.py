"""Word vectors: cipher vectors beside word2vec, fastText and PPMI-SVD on the same tokens.

All arms have the same dimension, the same cores and the words that occur five times or more. Seconds are from lists of
tokens to vectors.
"""

import importlib.metadata
import itertools
import lzma
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from benchmarks import probes, render
from benchmarks.harness import Results
from benchmarks.needs import AbsentError, need
from benchmarks.probes import WordVectors
from bitcipher import CooccurrenceEmbedding
from warmstart import baselines
from warmstart.progress import Progress

WORDS = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")  # cased words with their apostrophes; other signs one by one
SIZE, MIN_COUNT, WINDOW = 200, 5, 5
SHARES = (1.0, 0.1)  # of the paragraphs, from the beginning

COMPRESSED = {"method": "cipher", "radii": (1, WINDOW), "sides": "separate", "transform": "log_ratio"}
GENSIM = {"window": WINDOW, "epochs": 5, "seed": 1}
ARMS: dict[str, dict[str, Any]] = {
    "cipher 512, compressed": {**COMPRESSED, "bits": 512},
    "word2vec CBOW": {**GENSIM, "method": "Word2Vec", "sg": 0},
    "cipher 256, compressed": {**COMPRESSED, "bits": 256},
    "cipher 100, left and right": {"method": "cipher", "radii": (1,), "sides": "separate", "transform": "sqrt"},
    "cipher 2048, both sides, radius 5": {**COMPRESSED, "bits": 2048, "radii": (WINDOW,), "sides": "both"},
    "PPMI-SVD": {"method": "PPMI-SVD", "window": WINDOW},
    "word2vec skip-gram": {**GENSIM, "method": "Word2Vec", "sg": 1},
    "fastText skip-gram": {**GENSIM, "method": "FastText", "sg": 1},
}
QUICK = ("cipher 512, compressed", "word2vec CBOW", "PPMI-SVD")

Sentences = list[list[str]]


def cipher(sentences: Sentences, size: int, **settings: Any) -> WordVectors:
    """Return cipher vectors; without ``bits`` they are not compressed, and each side has half of the dimension."""
    width: dict[str, Any] = {"components": size} if "bits" in settings else {"bits": size // 2, "components": None}
    model = CooccurrenceEmbedding(min_count=MIN_COUNT, **width, **settings)
    vectors = model.fit(sentences, workers=os.cpu_count() or 1).vectors_
    return WordVectors(model.vocabulary_, vectors)


def gensim(name: str, sentences: Sentences, size: int, **settings: Any) -> WordVectors:
    """Return the vectors of a model of gensim."""
    need("gensim")
    from gensim import models

    model = getattr(models, name)
    vectors = model(sentences, vector_size=size, min_count=MIN_COUNT, workers=os.cpu_count() or 1, **settings).wv
    return WordVectors(vectors.key_to_index, vectors.vectors)


def ppmi_svd(sentences: Sentences, size: int, window: int) -> WordVectors:
    """Return the truncated SVD of the positive pointwise mutual information of pairs within a window."""
    counts = Counter(token for sentence in sentences for token in sentence)
    rows = {token: i for i, (token, count) in enumerate(counts.most_common()) if count >= MIN_COUNT}
    pairs = sparse.csr_array((len(rows), len(rows)), dtype=np.float32)
    for start in range(0, len(sentences), 20_000):
        part = sentences[start : start + 20_000]
        ids = np.array([i for s in part for i in [*(rows.get(token, -1) for token in s), *[-1] * window]], np.int32)
        for distance in range(1, window + 1):
            known = (ids[:-distance] >= 0) & (ids[distance:] >= 0)
            left, right = ids[:-distance][known], ids[distance:][known]
            pairs += sparse.coo_array((np.ones(left.size, np.float32), (left, right)), shape=pairs.shape).tocsr()
    return WordVectors(rows, baselines.ppmi_svd(pairs, size))


METHODS: dict[str, Callable[..., WordVectors]] = {
    "cipher": cipher,
    "Word2Vec": partial(gensim, "Word2Vec"),
    "FastText": partial(gensim, "FastText"),
    "PPMI-SVD": ppmi_svd,
}


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Train and probe every arm; an arm whose package is not installed is named and left out."""
    results = Results(None if quick else docs / "results" / "vectors.jsonl", __name__, progress=progress)
    text = cache(partial(read_text, data / "classics" / "train.txt.xz"))
    size = 20 if quick else SIZE
    output: dict[str, Any] = {"arms": [], "left_out": {}}
    for name, share in itertools.product(QUICK if quick else ARMS, (1.0,) if quick else SHARES):
        settings = ARMS[name]
        key = {**settings, "dimension": size, "min_count": MIN_COUNT, "share": share, "text": "classics"}
        key |= probes.SETTINGS
        if settings["method"] in ("Word2Vec", "FastText"):
            key["gensim"] = _version()
        try:
            row = results.row(key, partial(arm, data, settings, text, share, size), vectors=name, share=share)
            output["arms"].append(row)
        except AbsentError as error:
            output["left_out"][name] = str(error)
    for name, reason in output["left_out"].items():
        sys.stderr.write(f"left out: {name}: {reason}\n")
    if not quick:
        panels = {
            "part of speech, accuracy": render.series(output["arms"], "vectors", "cpu_seconds", "pos"),
            "named entities, F1": render.series(output["arms"], "vectors", "cpu_seconds", "ner"),
        }
        styles = {name: {"marker": "o" if name.startswith("cipher") else "s", "linestyle": ":"} for name in ARMS}
        x = "CPU seconds (left end of a line: a tenth of the text)"
        render.curves(docs / "images" / "vectors.png", panels, x, "score of the probe", styles=styles, log="x")
        render.write(docs, "vectors", "Word vectors", *_section(output), results)
    return output


def arm(data: Path, settings: dict[str, Any], text: Any, share: float, size: int) -> dict[str, Any]:
    """Train one arm on a share of the paragraphs, and probe its vectors."""
    sentences = text()[: int(share * len(text()))]
    options = {name: value for name, value in settings.items() if name != "method"}
    wall, cpu = time.perf_counter(), time.process_time()
    vectors = METHODS[settings["method"]](sentences, size, **options)
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


def read_text(path: Path) -> Sentences:
    """Return the paragraphs of a file as lists of tokens."""
    lines = lzma.decompress(path.read_bytes()).decode().split("\n")
    return [tokens for line in lines if (tokens := WORDS.findall(line))]


def _version() -> str:
    try:
        return importlib.metadata.version("gensim")
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _section(output: dict[str, Any]) -> tuple[str, str]:
    columns: dict[str, Any] = {"vectors": "vectors", "part of speech": "pos", "entities, F1": "ner"}
    columns |= {pairs: lambda row, pairs=pairs: row["similarity"][pairs][0] for pairs in probes.PAIRS}
    columns |= {"seconds": "seconds", "CPU seconds": "cpu_seconds"}
    arms = {share: [row for row in output["arms"] if row["share"] == share] for share in SHARES}
    tables = {share: render.rows_table(columns, rows) for share, rows in arms.items()}
    covered = "; ".join(
        f"{share:.0%} of the text: " + ", ".join(f"{p} {rows[0]['similarity'][p][1]:.0%}" for p in probes.PAIRS)
        for share, rows in arms.items()
    )
    best = {"cipher vectors": "none", "peers": "none"}
    for kind in best:
        if rows := [row for row in arms[1.0] if row["vectors"].startswith("cipher") == (kind == "cipher vectors")]:
            tagger, similar = max(rows, key=itemgetter("pos")), max(rows, key=columns["MEN"])
            scores = f"{tagger['pos']:.3f} after {tagger['cpu_seconds']:.0f} CPU seconds ({tagger['vectors']})"
            best[kind] = f"{scores} and {columns['MEN'](similar):.2f} ({similar['vectors']})"
    conclusion = (
        "Best accuracy in the part-of-speech probe, and best correlation with word similarity (MEN): "
        f"{'; '.join(f'{kind} {scores}' for kind, scores in best.items())}."
    )
    left_out = "".join(f"\n{name} is left out: {reason}.\n" for name, reason in output["left_out"].items())
    body = f"""Classics, cased words and signs, {arms[1.0][0]["tokens"]:,} tokens; words that occur {MIN_COUNT} times or
more; {SIZE} dimensions. word2vec and fastText are those of gensim {_version()}: window {WINDOW}, {GENSIM["epochs"]}
epochs. All arms have a thread for each core. Seconds are from lists of tokens to vectors; CPU seconds are those of all
threads together. Part of speech: accuracy on UD English EWT, test (17 tags). Entities: F1 on WNUT17, test. Both are
found by logistic regression on the frozen vectors of a token and its two neighbours; its C is the best of
{", ".join(map(str, probes.STRENGTHS))} on the dev split (for entities, 1 at the border in all arms that we looked at).
Word similarity (SimLex to RW):
Spearman's correlation with cosines. Pairs that have vectors: {covered}.

All of the text:

{tables[1.0]}
A tenth of the text:

{tables[0.1]}{left_out}
![Probes over seconds](images/vectors.png)"""
    return conclusion, body
