"""Classifiers: the explicit solution beside naive Bayes, nearest mean and logistic regression.

The data sets are images of MNIST (dense features) and, with sparse features, intents of CLINC150 and parts of speech of
UD English EWT. No setting is chosen with test examples: the temperature is fitted on training examples, and the other
models have their defaults. `benchmarks.networks` adds plain networks on MNIST.
"""

import gzip
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import clone
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import LabelEncoder

from benchmarks import networks, render
from benchmarks.harness import Results
from benchmarks.probes import Sentence, read_conllu
from warmstart.estimators.classifier import ExplicitClassifier
from warmstart.progress import Progress

Data = tuple[Any, NDArray[Any], Any, NDArray[Any]]  # training inputs and classes, test inputs and classes
CURVE = {"from": 1, "to": 10_000, "points": 25}  # values of k


def mnist(data: Path, every: int = 1) -> Data:
    """Return images (n, 784) in [0, 1] and their digits; of the training images only every so many."""

    def read(name: str, header: int) -> NDArray[np.uint8]:
        content = gzip.decompress((data / "mnist" / f"{name}-ubyte.gz").read_bytes())
        return np.frombuffer(content, np.uint8, offset=header)

    X, X_test = (read(f"{part}-images-idx3", 16).reshape(-1, 784) / np.float32(255) for part in ("train", "t10k"))
    y, y_test = (read(f"{part}-labels-idx1", 8) for part in ("train", "t10k"))
    return X[::every], y[::every], X_test, y_test


def intents(data: Path) -> Data:
    """Return word counts and intents (150) of CLINC150, without its out-of-scope sentences."""
    content = json.loads((data / "clinc150" / "data_full.json").read_text(encoding="utf-8"))
    texts, labels = zip(*(zip(*content[split], strict=True) for split in ("train", "test")), strict=True)
    return _encoded(CountVectorizer(analyzer=str.split), texts, labels)


def tags(data: Path) -> Data:
    """Return indicators of a word, its ending and its neighbours, and tags (17) of UD English EWT."""
    inputs, labels = [], []
    for split in ("train", "test"):
        sentences = read_conllu(data / "ud-english-ewt" / f"en_ewt-ud-{split}.conllu")
        labels.append([tag for sentence in sentences for _, tag in sentence])
        inputs.append([features for sentence in sentences for features in _features(sentence)])
    return _encoded(DictVectorizer(dtype=np.float32), inputs, labels)


def _features(sentence: Sentence) -> Iterator[dict[str, str]]:
    words = ["", *(word.lower() for word, _ in sentence), ""]
    for (word, _), before, lower, after in zip(sentence, words, words[1:], words[2:], strict=False):
        shape = {"ending": lower[-3:], "capital": str(word[:1].isupper())}
        yield {"word": lower, "before": before, "after": after, **shape}


def _encoded(vectorizer: Any, inputs: Sequence[Any], labels: Sequence[Sequence[str]]) -> Data:
    X, X_test = vectorizer.fit_transform(inputs[0]), vectorizer.transform(inputs[1])
    encoder = LabelEncoder().fit(labels[0])
    return sparse.csr_array(X), encoder.transform(labels[0]), sparse.csr_array(X_test), encoder.transform(labels[1])


DATA: dict[str, Callable[[Path], Data]] = {
    "MNIST": mnist,
    "CLINC150, 150 intents": intents,
    "UD EWT, 17 parts of speech": tags,
}
MODELS = {
    "explicit solution": ExplicitClassifier(),
    "explicit solution, temperature 1": ExplicitClassifier(temperature=1),
    "naive Bayes (multinomial)": MultinomialNB(),
    "logistic regression (L-BFGS, tol 0.001)": LogisticRegression(tol=1e-3, max_iter=1000),  # 1e-4: 5 times as long
}
DENSE = {
    "explicit solution, k = 1": ExplicitClassifier(k=1),
    "explicit solution, k infinite": ExplicitClassifier(k=np.inf),
    "nearest mean": NearestCentroid(),
}


def fit_and_measure(model: Any, examples: Callable[[], Data]) -> dict[str, float | None]:
    """Fit a classifier; return the seconds that it took and what `measure` returns."""
    X, y, X_test, y_test = examples()
    if isinstance(model, ExplicitClassifier):
        clone(model).fit(X[:100], y[:100])  # compiles
    began = time.perf_counter()
    with warnings.catch_warnings():  # features that never vary matter to the discriminant only, which is not used
        warnings.filterwarnings("ignore", message="self.within_class_std_dev_ has at least 1 zero")
        model.fit(X, y)
    return {"seconds": time.perf_counter() - began, **measure(model, X_test, y_test)}


def measure(model: Any, X: Any, y: NDArray[Any]) -> dict[str, float | None]:
    """Return accuracy, and cross-entropy in nats an example."""
    nats = None
    if not isinstance(model, NearestCentroid):  # its probabilities are those of a linear discriminant
        nats = -float(model.predict_log_proba(X)[np.arange(y.size), y].mean())
    return {"accuracy": float((model.predict(X) == y).mean()), "cross_entropy": nats}


def curve(points: int, images: Callable[[], Data]) -> list[dict[str, Any]]:
    """Count once and solve for values of k; return a row for each k and temperature."""
    X, y, X_test, y_test = images()
    model, rows = ExplicitClassifier().fit(X, y), []
    for k in np.geomspace(CURVE["from"], CURVE["to"], points).tolist():
        for temperature in ("fit", 1):
            model.set_params(k=k, temperature=temperature).solve()
            rows.append({"k": k, "temperature": temperature, **measure(model, X_test, y_test)})
    return rows


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Fit and measure every model on every data set; draw accuracy over k; train the networks."""
    results = Results(None if quick else docs / "results" / "classifier.jsonl", __name__, progress=progress)
    images = cache(partial(mnist, data, 60 if quick else 1))
    rows = []
    for name, read in DATA.items():
        examples = images if read is mnist else cache(partial(read, data))
        for label, model in (MODELS | (DENSE if read is mnist else {})).items():
            key = {"data": name, "model": repr(model)}
            rows.append(results.row(key, partial(fit_and_measure, model, examples), data=name, model=label))
    settings = CURVE | ({"points": 5} if quick else {})
    by_k = results.do({"data": "MNIST", "curve over k": settings}, partial(curve, settings["points"], images))
    output = {"arms": rows, "curve": by_k, "networks": networks.compare(images, results, quick)}
    if not quick:
        measures = {"accuracy": "accuracy", "cross-entropy (nats)": "cross_entropy"}
        rows = [{**row, "line": f"temperature {row['temperature']}"} for row in by_k]
        panels = {title: render.series(rows, "line", "k", name) for title, name in measures.items()}
        render.curves(docs / "images" / "mnist_k.png", panels, "k", "on the test images", log="x")
        render.write(docs, "classifier", "Classifiers and plain networks", *_section(output), results)
    return output


def _section(output: dict[str, Any]) -> tuple[str, str]:
    columns = {"model": "model", "accuracy": "accuracy", "cross-entropy (nats)": "cross_entropy", "fit (s)": "seconds"}
    arms = [[row for row in output["arms"] if row["data"] == name] for name in DATA]
    images, intents, tags = (render.rows_table(columns, rows) for rows in arms)
    explicit, _, bayes, logistic = (
        ", ".join(f"{row['accuracy']:.3f}" for row in rows) for rows in zip(*arms, strict=False)
    )
    conclusion = (
        f"Accuracy on MNIST, CLINC150 and UD EWT: explicit solution {explicit}; naive Bayes {bayes}; logistic "
        f"regression {logistic}; {networks.conclusion(output['networks'])}"
    )
    body = f"""MNIST: 60,000 training images, 10,000 test images, pixels divided by 255.

{images}
The counts are made once; each k below is only solved again. k is the number of features per prediction; the default is
the mean L1 norm of an image. "Temperature fit" is the default, too.

![Accuracy and cross-entropy over k](images/mnist_k.png)

CLINC150: sentences as word counts, 150 intents.

{intents}
UD English EWT: a word, its ending and its neighbours as indicators, 17 parts of speech.

{tags}
{networks.section(output["networks"])}"""
    return conclusion, body
