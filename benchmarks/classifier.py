"""MNIST and two texts: the explicit solution beside naive Bayes, nearest mean and logistic regression.

No setting was chosen by the test images: the temperature is fitted on training images, the peers have their defaults.
The texts are in `benchmarks.texts`, plain networks in `benchmarks.networks`.
"""

import gzip
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB
from sklearn.neighbors import NearestCentroid

from benchmarks import networks, report, texts
from benchmarks.report import Book
from benchmarks.texts import fit_and_measure, measure
from warmstart import figures
from warmstart.errors import InputError
from warmstart.estimators import ExplicitClassifier

Images = NDArray[np.float32]
Labels = NDArray[np.uint8]
Data = tuple[Images, Labels, Images, Labels]
Progress = Callable[[str, int, int], None]

FILES = ("accumulators", "_kernels", "solution", "adapters/plain", "estimators/classifier")
CODE = tuple(f"warmstart/{name}.py" for name in FILES)


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read a gzipped idx file of bytes.

    Raises
    ------
    InputError
        The file is missing, no gzip, not of unsigned bytes in so many dimensions, or of another length than it says.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: expected a gzipped idx file, got: {error}") from error
    start = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < start:
        raise InputError(f"{path}: expected an idx file of bytes in {dimensions} dimensions, it begins {content[:4]!r}")
    shape = np.frombuffer(content, ">u4", dimensions, offset=4).astype(int)
    if len(content) - start != shape.prod():
        raise InputError(f"{path}: expected {shape.prod()} bytes for shape {tuple(shape)}, got {len(content) - start}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def mnist(data: Path) -> Data:
    """Return training images (60000, 784) in [0, 1], their labels, test images (10000, 784), their labels."""
    parts: list[Any] = []
    for name in ("train", "t10k"):
        images = read_idx(data / "mnist" / f"{name}-images-idx3-ubyte.gz", 3)
        labels = read_idx(data / "mnist" / f"{name}-labels-idx1-ubyte.gz", 1)
        if len(images) != len(labels):
            raise InputError(f"{data / 'mnist'}: expected a label for each of {len(images)} images, got {len(labels)}")
        parts += [(images.reshape(len(images), -1) / np.float32(255)), labels]
    return parts[0], parts[1], parts[2], parts[3]


def models() -> dict[str, Any]:
    """Return the classifiers to compare."""
    return {
        "explicit solution": ExplicitClassifier(),
        "explicit solution, temperature 1": ExplicitClassifier(temperature=1),
        "explicit solution, k = 1": ExplicitClassifier(k=1),
        "explicit solution, k infinite": ExplicitClassifier(k=np.inf),
        "nearest mean": NearestCentroid(),
        "multinomial naive Bayes": MultinomialNB(),
        "logistic regression (L-BFGS, tol 0.001)": LogisticRegression(tol=1e-3, max_iter=1000),  # 1e-4: 5 times as long
    }


def compare(data: Data, book: Book, progress: Progress) -> list[dict[str, Any]]:
    """Fit and measure every model: one row each."""
    X, y, *_ = data
    ExplicitClassifier().fit(X[:100], y[:100])  # compile
    rows = []
    arms = models()
    for i, (name, model) in enumerate(arms.items()):
        progress("models", i, len(arms))
        rows.append({"name": name, **book.do(f"MNIST, {name}", partial(fit_and_measure, model, *data))})
    progress("models", len(arms), len(arms))
    return rows


def curve(data: Data, steps: int, progress: Progress) -> list[dict[str, Any]]:
    """Count once and solve for every k from 1 to 10,000: a row for each k and temperature."""
    X, y, X_test, y_test = data
    model = ExplicitClassifier().fit(X, y)
    rows = []
    for i, k in enumerate(np.geomspace(1, 1e4, steps)):
        progress("curve over k", i, steps)
        for temperature in ("fit", 1):
            model.set_params(k=float(k), temperature=temperature).solve()
            rows.append({"k": float(k), "temperature": temperature, **measure(model, X_test, y_test)})
    progress("curve over k", steps, steps)
    return rows


def draw(path: Path, rows: list[dict[str, Any]], rule: float) -> None:
    """Draw accuracy and cross-entropy over k and mark the k-rule."""
    figure, axes = figures.figure(2)
    for axis, measured in zip(axes, ("accuracy", "cross_entropy"), strict=True):
        for temperature, style in (("fit", "o-"), (1, "s--")):
            points = [(row["k"], row[measured]) for row in rows if row["temperature"] == temperature]
            label = "temperature fitted" if temperature == "fit" else "temperature 1"
            axis.plot(*zip(*points, strict=True), style, markersize=3.5, label=label)
        axis.axvline(rule, color="grey", linestyle=":", label=f"k-rule: mean L1 norm = {rule:.1f}")
        axis.set(xscale="log", xlabel="k (features per prediction)")
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="accuracy on the test images")
    axes[1].set(ylabel="cross-entropy on the test images (nats)", ylim=(0, None))
    axes[0].legend(loc="lower right")
    figures.save_figure(figure, path)


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Compare, and write ``results/classifier.jsonl``, ``images/mnist_k.png`` and a section of ``benchmarks.md``.

    Parameters
    ----------
    data : Path
        Folder with ``mnist``, ``clinc150`` and ``ud-english-ewt``.
    docs : Path
        Folder to write to.
    quick : bool
        A tenth of the training images and five values of k; nothing is written.
    progress : callable of (stage, done, total), optional

    Returns
    -------
    dict
        ``arms``, ``curve``, ``texts`` and ``networks``, lists of rows, and ``k_rule``.
    """
    show = progress or (lambda stage, done, total: None)
    X, y, X_test, y_test = mnist(data)
    if quick:
        X, y = X[::10], y[::10]
    book = Book(None if quick else docs / "results" / "classifier.jsonl", report.code_digest(*CODE))
    images = (X, y, X_test, y_test)
    arms = compare(images, book, show)
    rows = book.do("MNIST, curve over k", partial(curve, images, 5 if quick else 25, show))
    rule = float(X.sum(dtype=np.float64) / len(X))
    results = {"arms": arms, "curve": rows, "k_rule": rule, "images": [len(X), len(X_test)]}
    results["texts"] = texts.compare(data, book, show)
    results["networks"] = networks.compare(images, book, quick, show)
    if not quick:
        draw(docs / "images" / "mnist_k.png", rows, rule)
        report.write(docs, "classifier", _section(results))
    return results


def _section(results: dict[str, Any]) -> str:
    train, test = results["images"]
    columns = ("name", "accuracy", "cross_entropy", "seconds")
    table = report.table(
        ["model", "accuracy", "cross-entropy (nats)", "fit (s)"],
        [[row[column] for column in columns] for row in results["arms"]],
    )
    return (
        f"## Classifier: MNIST\n\n{train:,} training images, {test:,} test images, pixels divided by 255. Nothing was "
        f"tuned on the test images.\n\n{table}\nThe counts are made once; every k below is only solved again.\n\n"
        "![Accuracy and cross-entropy over k](images/mnist_k.png)\n\n"
        f"{texts.section(results['texts'])}\n{networks.section(results['networks'])}"
    )
