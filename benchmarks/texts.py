"""Sparse inputs and more classes: intents of CLINC150 from bags of words, parts of speech of UD English EWT.

Part of `python -m benchmarks classifier`. Nothing is chosen by the test split; every model has its defaults.
"""

import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import LabelEncoder

from benchmarks import report
from benchmarks.probes import Sentence, read_conllu
from benchmarks.report import Book
from warmstart.errors import InputError
from warmstart.estimators import ExplicitClassifier

Split = tuple[sparse.csr_array, NDArray[Any]]


def intents(data: Path) -> tuple[Split, Split]:
    """Return counts of words and intents (150) of CLINC150, train and test, out-of-scope sentences left out."""
    path = data / "clinc150" / "data_full.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        texts, labels = zip(*(zip(*content[split], strict=True) for split in ("train", "test")), strict=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected lists of [text, intent] named train and test, got: {error}") from error
    vectorizer = CountVectorizer(analyzer=str.split)
    X, X_test = vectorizer.fit_transform(texts[0]), vectorizer.transform(texts[1])
    return (sparse.csr_array(X), np.array(labels[0])), (sparse.csr_array(X_test), np.array(labels[1]))


def tags(data: Path) -> tuple[Split, Split]:
    """Return indicators of a word, its ending and its neighbours, and tags (17) of UD English EWT, train and test."""
    vectorizer = DictVectorizer(dtype=np.float32)
    splits = [read_conllu(data / "ud-english-ewt" / f"en_ewt-ud-{split}.conllu") for split in ("train", "test")]
    X, X_test = vectorizer.fit_transform(_windows(splits[0])), vectorizer.transform(_windows(splits[1]))
    y, y_test = (np.array([tag for sentence in split for _, tag in sentence]) for split in splits)
    return (sparse.csr_array(X), y), (sparse.csr_array(X_test), y_test)


def _windows(sentences: Sequence[Sentence]) -> Iterator[dict[str, str]]:
    for sentence in sentences:
        words = ["", *(word.lower() for word, _ in sentence), ""]
        for i, (word, _) in enumerate(sentence, start=1):
            shape = {"ending": words[i][-3:], "capital": str(word[:1].isupper())}
            yield {"word": words[i], "before": words[i - 1], "after": words[i + 1], **shape}


TASKS: dict[str, Callable[[Path], tuple[Split, Split]]] = {
    "CLINC150, 150 intents": intents,
    "UD EWT, 17 parts of speech": tags,
}


def models() -> dict[str, Any]:
    """Return the classifiers to compare."""
    return {
        "explicit solution": ExplicitClassifier(),
        "explicit solution, temperature 1": ExplicitClassifier(temperature=1),
        "multinomial naive Bayes": MultinomialNB(),
        "logistic regression (L-BFGS, tol 0.001)": LogisticRegression(tol=1e-3, max_iter=1000),
    }


def fit_and_measure(model: Any, X: Any, y: NDArray[Any], X_test: Any, y_test: NDArray[Any]) -> dict[str, float | None]:
    """Fit a classifier; return the seconds it took and what `measure` returns."""
    began = time.perf_counter()
    with warnings.catch_warnings():  # features that never vary matter to the discriminant, which is not used
        warnings.filterwarnings("ignore", message="self.within_class_std_dev_ has at least 1 zero")
        model.fit(X, y)
    return {"seconds": time.perf_counter() - began, **measure(model, X_test, y_test)}


def measure(model: Any, X: Any, y: NDArray[Any]) -> dict[str, float | None]:
    """Return accuracy, and cross-entropy in nats an example where the model is one of probabilities."""
    nats = None
    if not isinstance(model, NearestCentroid):  # its probabilities are those of another model, a linear discriminant
        nats = -float(model.predict_log_proba(X)[np.arange(y.size), y].mean())
    return {"accuracy": float((model.predict(X) == y).mean()), "cross_entropy": nats}


def compare(data: Path, book: Book, progress: Callable[[str, int, int], None]) -> list[dict[str, Any]]:
    """Return a row for each task and model."""
    rows = []
    for task, read in TASKS.items():
        (X, y), (X_test, y_test) = read(data)
        encoder = LabelEncoder().fit(y)
        arms = models()
        for i, (name, model) in enumerate(arms.items()):
            progress(task, i, len(arms))
            job = partial(fit_and_measure, model, X, encoder.transform(y), X_test, encoder.transform(y_test))
            rows.append({"task": task, "name": name, **book.do(f"{task}, {name}", job)})
    return rows


def section(rows: list[dict[str, Any]]) -> str:
    """Return the tables as Markdown."""
    keys = ("name", "accuracy", "cross_entropy", "seconds")
    heads = ["model", "accuracy", "cross-entropy (nats)", "fit (s)"]
    parts = [
        f"{task}:\n\n{report.table(heads, [[row[k] for k in keys] for row in rows if row['task'] == task])}"
        for task in TASKS
    ]
    return "\n".join(["Sparse inputs, test splits, every model with its defaults.\n", *parts])
