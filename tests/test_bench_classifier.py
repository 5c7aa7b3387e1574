"""The classifier bench: its readers, and a whole run on small data that keeps, writes and renders."""

import gzip
import json
import struct

import numpy as np
import pytest
from sklearn.datasets import load_digits

from benchmarks import classifier, needs, networks
from warmstart.estimators import ExplicitClassifier


def idx(array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def data(tmp_path):
    """Digits of scikit-learn in the format of MNIST; two intents and three tags in those of CLINC150 and CoNLL-U."""
    for folder in ("mnist", "clinc150", "ud-english-ewt"):
        (tmp_path / folder).mkdir()
    images, labels = load_digits(return_X_y=True)
    wide = np.zeros((images.shape[0], 28, 28))
    wide[:, :24, :24] = np.kron(images.reshape(-1, 8, 8), np.ones((3, 3))) * 15
    for name, part in (("train", slice(0, 1500)), ("t10k", slice(1500, None))):
        (tmp_path / "mnist" / f"{name}-images-idx3-ubyte.gz").write_bytes(idx(wide[part]))
        (tmp_path / "mnist" / f"{name}-labels-idx1-ubyte.gz").write_bytes(idx(labels[part]))
    rows = [["call my mother", "call"], ["what is the time", "time"]] * 30
    (tmp_path / "clinc150" / "data_full.json").write_text(json.dumps({"train": rows, "test": rows[:10]}))
    lines = ["1\tthe\tthe\tDET", "1-2\tdogs\t_\t_", "2\tdog\tdog\tNOUN", "", "1\tbarks\tbark\tVERB", "", ""]
    for split in ("train", "test"):
        (tmp_path / "ud-english-ewt" / f"en_ewt-ud-{split}.conllu").write_text("\n".join(lines * 20))
    return tmp_path


def test_data_sets_are_read(data):
    X, y, X_test, y_test = classifier.mnist(data, every=10)
    assert (X.shape, X_test.shape) == ((150, 784), (297, 784))
    assert X.max() == pytest.approx(240 / 255)
    assert (y == load_digits().target[:1500:10]).all()
    assert (y_test == load_digits().target[1500:]).all()
    X, y, X_test, _ = classifier.intents(data)
    assert (X.shape, X_test.shape) == ((60, 7), (10, 7))
    assert X[0].sum() == 3
    assert y.tolist() == [0, 1] * 30
    X, y, *_ = classifier.tags(data)
    assert y[:3].tolist() == [0, 1, 2]
    assert (X.sum(axis=1) == 5).all()  # a word, two neighbours, an ending, a capital or none


def test_a_run_keeps_results_and_writes_tables_and_a_picture(data, monkeypatch):
    monkeypatch.setattr(networks, "SETTINGS", networks.SETTINGS | {"steps": (0, 20), "rates": (0.01,)})
    monkeypatch.setattr(networks, "SHAPES", ((784, 10), (784, 64, 10)))
    docs = data / "docs"
    output = classifier.run(data, docs)
    lines = (docs / "results" / "classifier.jsonl").read_text().splitlines()
    assert len(lines) == len({json.dumps(json.loads(line)["key"]) for line in lines}) == 7 + 1 + 2 * 4 + 5
    monkeypatch.setattr(classifier, "fit_and_measure", lambda *_: pytest.fail("is kept"))
    assert classifier.run(data, docs) == output
    assert (docs / "images" / "mnist_k.png").read_bytes().startswith(b"\x89PNG")
    assert "images/mnist_k.png" in (docs / "benchmarks.md").read_text()
    arms = {(row["data"], row["model"]): row for row in output["arms"]}
    explicit, published = (arms["MNIST", f"explicit solution{end}"] for end in ("", ", temperature 1"))
    assert explicit["accuracy"] > 0.8
    assert explicit["cross_entropy"] < published["cross_entropy"]
    assert {row["accuracy"] for row in output["arms"] if row["data"] != "MNIST"} == {1.0}
    nets = {(row["network"], row["start"], row["steps"]): row for row in output["networks"]}
    assert nets["784-64-10", "warm_start", 0]["accuracy"] > nets["784-10", "warm_start", 0]["accuracy"] > 0.8
    assert nets["784-10", "default", 0]["accuracy"] < 0.4


def test_a_rate_at_the_border_of_its_grid_is_an_error(data):
    settings = networks.SETTINGS | {"steps": (20,), "rates": (1e-6, 1e-5)}
    with pytest.raises(RuntimeError, match="widen"):
        networks.arm((784, 10), "default", settings, lambda: classifier.mnist(data))


@pytest.mark.data
@pytest.mark.slow
def test_mnist_reaches_the_published_accuracy():
    try:
        needs.check("classifier", quick=True)
    except needs.AbsentError as error:
        pytest.skip(str(error))
    X, y, X_test, y_test = classifier.mnist(needs.data_folder())
    model = ExplicitClassifier().fit(X, y)
    assert model.score(X_test, y_test) >= 0.83
    assert -model.predict_log_proba(X_test)[np.arange(y_test.size), y_test].mean() <= 0.60
