"""Inputs of two kinds in one explicit layer: a digit of MNIST and a noisy caption of it, written from a template.

A caption names the digit, names no digit, or names a wrong one, and some of its letters are mistyped. Every arm has one
setting, which it chooses among five values by the cross-entropy of validation images. The test images are read once.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from benchmarks import claims, classifier, harness, render
from benchmarks.harness import Results
from warmstart.estimators import ExplicitClassifier
from warmstart.progress import Progress

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = ("a {style} {name} written by hand", "this is the digit {name} , {style}", "someone wrote {name} here")
STYLES = ("thin", "thick", "slanted", "neat", "hurried")
UNNAMED, MISTYPED = 0.2, 0.1  # shares of captions without a name, and of words with a wrong letter
WRONG = (0.1, 0.5)  # shares of captions with the name of another digit
SIZES: dict[str, Any] = {"train": 10_000, "valid": 5_000, "seeds": (0, 1, 2)}
QUICK: dict[str, Any] = {"train": 500, "valid": 200, "seeds": (0,)}
MOST_STEPS = 300  # of L-BFGS

Parts = tuple[Any, Any, Any]  # training, validation and test inputs


def captions(digits: Sequence[int], wrong: float, random: np.random.Generator) -> list[str]:
    """Write a caption for every digit.

    Examples
    --------
    >>> captions([7, 7, 7], 0.5, np.random.default_rng(4))
    ['someone wrpte seven here', 'someone wrote something here', 'someone wrote seven here']
    """

    def choose(options: Sequence[str]) -> str:
        return options[int(random.integers(len(options)))]

    def typed(word: str) -> str:
        if random.random() >= MISTYPED:
            return word
        at, letter = int(random.integers(len(word))), chr(ord("a") + int(random.integers(26)))
        return word[:at] + letter + word[at + 1 :]

    def caption(digit: int) -> str:
        name, draw = NAMES[digit], random.random()
        if draw < UNNAMED:
            name = "something"
        elif draw < UNNAMED + wrong:
            name = choose([other for other in NAMES if other != name])
        words = choose(TEMPLATES).format(name=name, style=choose(STYLES)).split()
        return " ".join(typed(word) for word in words)

    return [caption(int(digit)) for digit in digits]


def side_by_side(images: Any, words: Any, factor: float = 1.0) -> sparse.csr_array:
    """Return pixels and words in one row for each example, the words times a factor."""
    return sparse.hstack([sparse.csr_array(images), words * factor], format="csr")


def explicit(groups: NDArray[np.int64] | None, smoothing: float) -> ExplicitClassifier:
    """Return the explicit solution, with a temperature for each group."""
    return ExplicitClassifier(smoothing=smoothing, groups=groups)


def logistic(C: float) -> LogisticRegression:
    """Return logistic regression."""
    return LogisticRegression(C=C, tol=1e-3, max_iter=MOST_STEPS)


SMOOTHING, FACTORS, STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0), (1, 3, 10, 30, 100), (0.003, 0.01, 0.1, 1.0, 10.0)
GROUPED, ONE, SCALED = "both, a temperature for each", "both, one temperature", "both, one temperature, words scaled"
IMAGE, WORDS, TRAINED = "image alone", "caption alone", "both, logistic regression"
IMAGE_TRAINED, WORDS_TRAINED = "image alone, logistic regression", "caption alone, logistic regression"
ARMS: dict[str, tuple[str, Sequence[float]]] = {
    GROUPED: ("smoothing", SMOOTHING),
    ONE: ("smoothing", SMOOTHING),
    SCALED: ("factor of the words", FACTORS),
    IMAGE: ("smoothing", SMOOTHING),
    WORDS: ("smoothing", SMOOTHING),
    TRAINED: ("C", STRENGTHS),
    IMAGE_TRAINED: ("C", STRENGTHS),
    WORDS_TRAINED: ("C", STRENGTHS),
}


def arm(name: str, sizes: dict[str, Any], wrong: float, seed: int, images: Callable[[], Any]) -> dict[str, Any]:
    """Choose the setting of an arm with validation images, and measure it on the test images."""
    (pixels, words), labels = inputs(sizes, wrong, seed, images)
    groups = np.repeat([0, 1], [pixels[0].shape[1], words[0].shape[1]])
    best: tuple[float, Any] = (np.inf, None)
    for value in ARMS[name][1]:
        factor = float(value) if name == SCALED else 1.0
        both = partial(map, partial(side_by_side, factor=factor), pixels, words)
        X = list(pixels if name.startswith("image") else words if name.startswith("caption") else both())
        model = (
            logistic(value)
            if "logistic" in name
            else explicit(groups if name == GROUPED else None, 1.0 if name == SCALED else value)
        )
        model.fit(X[0], labels[0])
        loss = classifier.measure(model, X[1], labels[1])["cross_entropy"]
        if loss is not None and loss < best[0]:
            best = loss, {"setting": value, **classifier.measure(model, X[2], labels[2])}
            best[1]["temperatures"] = np.atleast_1d(getattr(model, "temperature_", [])).tolist()
    return dict(best[1])


def inputs(
    sizes: dict[str, Any], wrong: float, seed: int, images: Callable[[], Any]
) -> tuple[tuple[Parts, Parts], Parts]:
    """Return pixels and words of training, validation and test images, and their digits; the seed draws the images."""
    X, y, X_test, y_test = images()
    random = np.random.default_rng(seed)
    order = random.permutation(len(y))
    train, valid = order[: sizes["train"]], order[sizes["train"] : sizes["train"] + sizes["valid"]]
    labels = (y[train], y[valid], y_test)
    texts = [captions(part, wrong, random) for part in labels]
    vectorizer = CountVectorizer(analyzer=str.split).fit(texts[0])
    first, second, third = (sparse.csr_array(vectorizer.transform(text), dtype=np.float32) for text in texts)
    return ((X[train], X[valid], X_test), (first, second, third)), labels


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Measure every arm; ``quick``: a few hundred images, one seed, one share of wrong names."""
    results = Results(None if quick else docs / "results" / "mixed.jsonl", __name__, progress=progress)
    sizes = SIZES | (QUICK if quick else {})
    cached = classifier.mnist(data)
    rows = []
    for wrong in harness.cut(WRONG, quick):
        for name, (setting, values) in ARMS.items():
            keys = [{"arm": name, "wrong": wrong, "seed": seed, setting: list(values)} for seed in sizes["seeds"]]
            keys = [{**key, "train": sizes["train"], "valid": sizes["valid"]} for key in keys]
            keys = [key | {"wrong": None} for key in keys] if name.startswith("image") else keys
            runs = [results.do(key, partial(arm, name, sizes, wrong, key["seed"], lambda: cached)) for key in keys]
            rows.append({"arm": name, "wrong": wrong, "setting": setting, "runs": runs, "mark": results.mark(*keys)})
    if not quick:
        render.write(docs, "mixed", "Image and text in one layer", *section(rows), results)
    return {"arms": rows}


def mean(row: dict[str, Any], measure: str) -> float:
    """Return the mean of a measure over the seeds."""
    return float(np.mean([run[measure] for run in row["runs"]]))


def section(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Return the conclusion and the body of the section."""
    tables, sentences = [], []
    for wrong in dict.fromkeys(row["wrong"] for row in rows):
        arms = {row["arm"]: row for row in rows if row["wrong"] == wrong}
        columns: dict[str, Any] = {"arm": "arm", "accuracy": lambda row: spread(row, "accuracy")}
        columns |= {"cross-entropy (nats)": lambda row: spread(row, "cross_entropy")}
        columns |= {"chosen": lambda row: f"{row['setting']} {', '.join(chosen(row))}"}
        columns |= {"temperatures, first seed": lambda row: temperatures(row["runs"][0])}
        tables.append(
            f"Another digit named in {wrong:.0%} of the captions:\n\n{render.rows_table(columns, [*arms.values()])}"
        )
        nats = {name: render.nats(mean(row, "cross_entropy")) for name, row in arms.items()}
        alone = render.nats(min(mean(arms[name], "cross_entropy") for name in (IMAGE, WORDS)))
        sentences.append(
            f"with {wrong:.0%} of wrong names a temperature for each block has {nats[GROUPED]} nats, one temperature "
            f"{nats[ONE]}, one with words scaled by hand {nats[SCALED]}, the better input alone {alone}, logistic "
            f"regression {nats[TRAINED]}"
        )
    conclusion = f"{'; '.join(sentences)}."
    body = f"""{claims.claimed("mixed")}

{SIZES["train"]:,} digits of MNIST and a caption of each, such as "{captions([7], 0, np.random.default_rng(4))[0]}".
{UNNAMED:.0%} of the captions name no digit, {MISTYPED:.0%} of the words have a wrong letter. Every arm has one setting,
the best of five by the cross-entropy of {SIZES["valid"]:,} other training images; "words scaled": the words times a
factor, the control of what one temperature can do. Mean and deviation of {len(SIZES["seeds"])} seeds, which draw images
and captions, on the 10,000 test images. Logistic regression has at most {MOST_STEPS} steps of L-BFGS.

{"".join(f"{table}" + chr(10) for table in tables)}"""
    return conclusion[0].upper() + conclusion[1:], body


def spread(row: dict[str, Any], measure: str) -> str:
    """Return mean and deviation of a measure over the seeds."""
    return render.spread([run[measure] for run in row["runs"]])


def chosen(row: dict[str, Any]) -> list[str]:
    """Return the settings that the seeds chose, without repetition."""
    return list(dict.fromkeys(f"{run['setting']:g}" for run in row["runs"]))


def temperatures(result: dict[str, Any]) -> str | None:
    """Return the fitted temperatures of a run."""
    return ", ".join(f"{tau:.3g}" for tau in result["temperatures"]) or None
