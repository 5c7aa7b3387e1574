"""Word vectors: cipher vectors beside word2vec, fastText and PPMI-SVD on the same tokens.

All arms have the same dimension, the same cores and the words that occur five times or more. Seconds are from lists of
tokens to vectors.
"""

import itertools
import lzma
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from gensim import models
from scipy import sparse

from benchmarks import probes, render
from benchmarks.harness import Results
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
    model.fit(sentences, workers=os.cpu_count() or 1)
    return WordVectors(model.vocabulary_, model.vectors_)


def gensim(name: str, sentences: Sentences, size: int, **settings: Any) -> WordVectors:
    """Return the vectors of a model of gensim."""
    settings = {"min_count": MIN_COUNT, "workers": os.cpu_count() or 1, **settings}
    vectors = getattr(models, name)(sentences, vector_size=size, **settings).wv
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
    """Train and probe every arm."""
    results = Results(None if quick else docs / "results" / "vectors.jsonl", __name__, progress=progress)
    text = cache(partial(read_text, data / "classics" / "train.txt.xz"))
    size, rows = 20 if quick else SIZE, []
    for name, share in itertools.product(QUICK if quick else ARMS, (1.0,) if quick else SHARES):
        settings = ARMS[name]
        key = {**settings, "dimension": size, "min_count": MIN_COUNT, "share": share, "text": "classics"}
        key |= probes.SETTINGS
        if settings["method"] in ("Word2Vec", "FastText"):
            key["gensim"] = version("gensim")
        rows.append(results.row(key, partial(arm, data, settings, text, share, size), vectors=name, share=share))
    if not quick:
        measures = {"part of speech, accuracy": "pos", "named entities, F1": "ner"}
        panels = {title: render.series(rows, "vectors", "cpu_seconds", name) for title, name in measures.items()}
        styles = {name: {"marker": "o" if name.startswith("cipher") else "s", "linestyle": ":"} for name in ARMS}
        x = "CPU seconds (left end of a line: a tenth of the text)"
        render.curves(docs / "images" / "vectors.png", panels, x, "score of the probe", styles=styles, log="x")
        render.write(docs, "vectors", "Word vectors", *_section(rows), results)
    return {"arms": rows}


def arm(data: Path, settings: dict[str, Any], text: Any, share: float, size: int) -> dict[str, Any]:
    """Train one arm on a share of the paragraphs, and probe its vectors."""
    sentences = text()[: int(share * len(text()))]
    options = {name: value for name, value in settings.items() if name != "method"}
    wall, cpu = time.perf_counter(), time.process_time()
    vectors = METHODS[settings["method"]](sentences, size, **options)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "tokens": sum(map(len, sentences)),
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


def _section(rows: list[dict[str, Any]]) -> tuple[str, str]:
    columns: dict[str, Any] = {"vectors": "vectors", "part of speech": "pos", "entities, F1": "ner"}
    columns |= {pairs: lambda row, pairs=pairs: row["similarity"][pairs][0] for pairs in probes.PAIRS}
    columns |= {"seconds": "seconds", "CPU seconds": "cpu_seconds"}
    whole, tenth = ([row for row in rows if row["share"] == share] for share in SHARES)
    covered = "; ".join(
        f"{arms[0]['share']:.0%} of the text: "
        + ", ".join(f"{name} {share:.0%}" for name, (_, share) in arms[0]["similarity"].items())
        for arms in (whole, tenth)
    )
    best = []
    for kind, is_cipher in (("cipher vectors", True), ("peers", False)):
        arms = [row for row in whole if row["vectors"].startswith("cipher") == is_cipher]
        tagger, similar = max(arms, key=itemgetter("pos")), max(arms, key=columns["MEN"])
        best.append(
            f"{kind} {tagger['pos']:.3f} after {tagger['cpu_seconds']:.0f} CPU seconds ({tagger['vectors']}) and "
            f"{columns['MEN'](similar):.2f} ({similar['vectors']})"
        )
    conclusion = (
        "Best accuracy in the part-of-speech probe, and best correlation with word similarity (MEN): "
        f"{'; '.join(best)}."
    )
    body = f"""Classics, cased words and signs, {whole[0]["tokens"]:,} tokens; words that occur {MIN_COUNT} times or
more; {SIZE} dimensions. word2vec and fastText are those of gensim {version("gensim")}: window {WINDOW},
{GENSIM["epochs"]} epochs. Every arm uses all cores. Seconds are from lists of tokens to vectors; CPU seconds are those
of all threads together. Part of speech: accuracy on UD English EWT, test (17 tags). Entities: F1 on WNUT17,
test. Both are found by logistic regression on the frozen vectors of a token and its two neighbours; its C is the best
of {", ".join(map(str, probes.STRENGTHS))} on the dev split (for entities, 1 at the border in all arms that we looked
at). Word similarity (SimLex to RW): Spearman's correlation with cosines. Pairs that have vectors: {covered}.

All of the text:

{render.rows_table(columns, whole)}
A tenth of the text:

{render.rows_table(columns, tenth)}
![Probes over seconds](images/vectors.png)"""
    return conclusion, body
