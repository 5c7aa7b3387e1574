"""The choice of the defaults of `CooccurrenceEmbedding` and `BitCipherVectorizer`, each row with one setting changed.

Word vectors are made from texts of 30,000 to 12 million words. They are compared by word similarity and by a probe for
parts of speech. The probe is a ridge classifier, which is fast enough for many settings. It trains on every sixth
sentence of its treebank, because defaults matter most where tagged text is rare. Vectors of documents are compared by
the accuracy of a logistic regression.
"""

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.preprocessing import StandardScaler

from benchmarks import probes, render, vectors
from benchmarks.harness import Results
from benchmarks.probes import WordVectors
from benchmarks.vectors import Sentences
from bitcipher import CooccurrenceEmbedding
from warmstart import BitCipherVectorizer
from warmstart.progress import Progress

ALPHAS = (10.0, 100.0, 1000.0, 10000.0)  # strengths of the ridge; chosen on the dev split
EVERY = 6  # one of so many sentences of the treebank trains the probe
DIMENSION = 300  # of the random vectors: the same as that of the defaults
PLAIN: dict[str, Any] = {"bits": 100, "sides": "both", "transform": None, "components": None}
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "bits=128": {"bits": 128},
    "bits=256": {"bits": 256},
    "radii=(1,)": {"radii": (1,)},
    "radii=(5,)": {"radii": (5,)},
    'sides="both"': {"sides": "both"},
    'transform="sqrt"': {"transform": "sqrt"},
    "transform=None": {"transform": None},
    'distance_weights="harmonic"': {"distance_weights": "harmonic"},
    "min_count=5": {"min_count": 5},
    "components=100": {"components": 100},
    "components=200": {"components": 200},
    "sums of the paper: 100 bits, both sides, no transform, no compression": PLAIN,
}
VECTORIZERS: dict[str, Any] = {
    "CountVectorizer()": CountVectorizer(),
    "TfidfVectorizer()": TfidfVectorizer(),
    "BitCipherVectorizer()": BitCipherVectorizer(),
    "its embedding with components=100": BitCipherVectorizer(CooccurrenceEmbedding(components=100)),
    "its embedding with bits=256": BitCipherVectorizer(CooccurrenceEmbedding(bits=256)),
    "its embedding with radii=(5,)": BitCipherVectorizer(CooccurrenceEmbedding(radii=(5,))),
    "its embedding as sums of the paper": BitCipherVectorizer(CooccurrenceEmbedding(**PLAIN)),
}
Train = Callable[[Sentences], WordVectors]
Documents = list[list[str]]  # pairs of text and label


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Train and probe every setting on every text; ``quick``: three of them on two texts, no documents."""
    word2vec = partial(vectors.gensim, "Word2Vec", workers=1, seed=1)
    arms: dict[str, Train] = {
        **{name: partial(_cipher, settings) for name, settings in SETTINGS.items()},
        "random numbers": _random,
        "word2vec (gensim), its defaults": partial(word2vec, size=100, min_count=5),
        "word2vec (gensim), min_count=1, vector_size=300": partial(word2vec, size=300, min_count=1),
    }
    if quick:
        arms = dict(list(arms.items())[::7])
    results = Results(None if quick else docs / "results" / "defaults.jsonl", __name__, progress=progress)
    treebank = [probes.read_conllu(data / "ud-english-ewt" / f"en_ewt-ud-{split}.conllu") for split in probes.SPLITS]
    splits = [treebank[0][::EVERY], *treebank[1:]]
    rows = []
    for text, sentences in _texts(data, treebank[0], quick):
        for name, train in arms.items():
            key: dict[str, Any] = {"text": text, "arm": name}
            if name in SETTINGS:
                key |= CooccurrenceEmbedding(**SETTINGS[name]).get_params()
            key |= {"dimension": DIMENSION, "every": EVERY, "alphas": ALPHAS}
            rows.append(results.row(key, partial(_measure, train, sentences, splits, data), text=text, name=name))
    documents = []
    for task, (train_set, test_set) in ({} if quick else _document_tasks(data)).items():
        for name, vectorizer in VECTORIZERS.items():
            key = {"text": task, "arm": name, "features": repr(vectorizer), "max_iter": 300}
            work = partial(_classify, vectorizer, train_set, test_set)
            documents.append(results.row(key, work, text=task, name=name))
    if not quick:
        title = "Word vectors and document vectors: the choice of the defaults"
        render.write(docs, "defaults", title, *_section(rows, documents), results)
    return {"arms": rows, "documents": documents}


def _texts(data: Path, treebank: list[probes.Sentence], quick: bool) -> Iterator[tuple[str, Sentences]]:
    """Yield the name and the sentences of each text, from small to large."""
    words = [[word for word, _ in sentence] for sentence in treebank]
    yield "treebank, a sixth", words[::6]
    yield "treebank, a half", words[::2]
    if not quick:
        classics = vectors.read_text(data / "classics" / "train.txt.xz")
        yield "classics, a tenth", classics[: len(classics) // 10]
        lines = (data / "wikitext-2" / "train.txt").read_text(encoding="utf-8").split("\n")
        yield "WikiText-2", [line.split() for line in lines if line.strip()]
        yield "classics", classics


def _measure(train: Train, sentences: Sentences, splits: list[list[probes.Sentence]], data: Path) -> dict[str, Any]:
    trained = train(sentences)
    return {
        "tokens": sum(map(len, sentences)),
        "dimension": trained.vectors.shape[1],
        "pos": _part_of_speech(trained, splits),
        "similarity": probes.similarity(trained, data / "wordsim"),
    }


def _part_of_speech(vectors: WordVectors, splits: list[list[probes.Sentence]]) -> float:
    """Return the accuracy of a ridge classifier on the vectors of a token and its two neighbours."""
    train, dev, test = (vectors.features(split) for split in splits)
    scaler = StandardScaler().fit(train)
    tags = [[tag for sentence in split for _, tag in sentence] for split in splits]
    inputs = scaler.transform(train)
    models = [RidgeClassifier(alpha=alpha, solver="cholesky").fit(inputs, tags[0]) for alpha in ALPHAS]
    inputs = scaler.transform(dev)
    best = max(models, key=lambda model: model.score(inputs, tags[1]))
    return float(best.score(scaler.transform(test), tags[2]))


def _cipher(settings: dict[str, Any], sentences: Sentences) -> WordVectors:
    model = CooccurrenceEmbedding(**settings).fit(sentences)
    return WordVectors(model.vocabulary_, model.vectors_)


def _random(sentences: Sentences) -> WordVectors:
    words = sorted({word for sentence in sentences for word in sentence})
    rows = {word: row for row, word in enumerate(words)}
    return WordVectors(rows, np.random.default_rng(0).standard_normal((len(words), DIMENSION)).astype(np.float32))


def _document_tasks(data: Path) -> dict[str, tuple[Documents, Documents]]:
    """Return the training and the test documents of each task."""
    intents = json.loads((data / "clinc150" / "data_full.json").read_text(encoding="utf-8"))
    lines = (data / "lamp" / "lamp.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    lamp = {split: [row[:2] for row in rows if row[2] == split] for split in ("train", "test")}
    genres = {}
    for split in ("train", "test"):  # the genre of a sentence is in its comments
        text = (data / "ud-english-ewt" / f"en_ewt-ud-{split}.conllu").read_text(encoding="utf-8")
        pairs = re.findall(r"^# sent_id = (\w+)-.*?^# text = (.*?)$", text, re.MULTILINE | re.DOTALL)
        genres[split] = [[sentence, genre] for genre, sentence in pairs]
    return {
        "CLINC150, 150 intents": (intents["train"], intents["test"]),
        "a tenth of CLINC150": (intents["train"][::10], intents["test"]),
        "UD EWT, 5 genres": (genres["train"], genres["test"]),
        "lamp, 3 commands": (lamp["train"], lamp["test"]),
    }


def _classify(vectorizer: Any, train: Documents, test: Documents) -> dict[str, Any]:
    """Return the accuracy of a logistic regression on the features."""
    (texts, labels), (test_texts, test_labels) = zip(*train, strict=True), zip(*test, strict=True)
    features = vectorizer.fit_transform(texts)
    model = LogisticRegression(max_iter=1000).fit(features, labels)
    return {"accuracy": float(model.score(vectorizer.transform(test_texts), test_labels))}


def _table(rows: list[dict[str, Any]], measure: Callable[[dict[str, Any]], Any], heading: str = "setting") -> str:
    """Return a table with a row for each name and a column for each text."""
    texts = list(dict.fromkeys(row["text"] for row in rows))
    lines: dict[str, dict[str, Any]] = {}
    for row in rows:
        lines.setdefault(row["name"], row | {"cells": {}})["cells"][row["text"]] = measure(row)
    columns: dict[str, Any] = {heading: "name"}
    if heading == "setting":
        columns["d"] = "dimension"
    columns |= {text: lambda line, text=text: line["cells"][text] for text in texts}
    return render.rows_table(columns, list(lines.values()))


def _section(rows: list[dict[str, Any]], documents: list[dict[str, Any]]) -> tuple[str, str]:
    rows = [row | {"text": f"{row['text']}: {row['tokens']:,} tokens"} for row in rows]
    large = [row for row in rows if row["tokens"] >= 1_000_000]
    probed = [row for row in rows if row["name"] in SETTINGS]
    defaults = {row["text"]: row["pos"] for row in rows if row["name"] == "defaults"}
    gain = max(row["pos"] - defaults[row["text"]] for row in probed)
    conclusion = (
        f"Changing one default raises the accuracy of the part-of-speech probe by at most {gain:.3f} on any text, "
        f"where the defaults have {min(defaults.values()):.3f} to {max(defaults.values()):.3f}."
    )
    body = f"""Each row changes one default of `CooccurrenceEmbedding`. Part of speech: accuracy on UD English EWT test,
by a ridge classifier on the vectors of a token and its two neighbours, trained on every {EVERY}th sentence:

{_table(rows, itemgetter("pos"))}
Word similarity, MEN: Spearman's correlation with cosines, over the pairs that have vectors:

{_table(large, lambda row: row["similarity"]["MEN"][0])}
Documents: accuracy of `LogisticRegression()` on the test split. The features have their defaults except where named:

{_table(documents, itemgetter("accuracy"), "features")}"""
    return conclusion, body
