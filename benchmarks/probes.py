"""Probes of frozen word vectors: part of speech, named entities, word similarity.

A word without a vector is looked up in lower case; if it has none there either, its vector is zero. The features of a
token are its vector and those of its two neighbours in the sentence, standardised on the training split.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from warmstart.errors import InputError

STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # C of the logistic regression; chosen on the dev split
STEPS = 60  # of L-BFGS
SAMPLE = 2000  # training sentences of the models that choose C
SETTINGS = {"strengths": STRENGTHS, "steps": STEPS, "sample": SAMPLE}
SPLITS = ("train", "dev", "test")
PAIRS = {"SimLex": "SIMLEX-999", "WS-353": "WS-353-ALL", "MEN": "MEN-TR-3k", "RW": "RW-STANFORD"}

Sentence = list[tuple[str, str]]  # word, tag
Score = Callable[[Sequence[Sequence[str]], Sequence[Sequence[str]]], float]


@dataclass(frozen=True)
class WordVectors:
    """Vectors (V, d) and the row of each word."""

    rows: Mapping[str, int]
    vectors: NDArray[np.float32]

    def row(self, word: str) -> int:
        """Return the row of a word, else of the word in lower case, else -1."""
        return self.rows.get(word, self.rows.get(word.lower(), -1))

    def features(self, sentences: Sequence[Sentence]) -> NDArray[np.float32]:
        """Return (tokens, 3 d): the vectors of a token, of the one before it and of the one after it."""
        table = np.concatenate([self.vectors, np.zeros((1, self.vectors.shape[1]), np.float32)])  # -1: zeros
        windows: list[tuple[int, int, int]] = []
        for sentence in sentences:
            rows = [-1, *(self.row(word) for word, _ in sentence), -1]
            windows += zip(rows[1:-1], rows, rows[2:], strict=False)
        features: NDArray[np.float32] = table[np.array(windows)].reshape(len(windows), -1)
        return features


def part_of_speech(vectors: WordVectors, folder: Path) -> float:
    """Return the accuracy of predicted tags (UPOS, 17) on UD English EWT, test."""
    splits = [read_conllu(folder / f"en_ewt-ud-{split}.conllu") for split in SPLITS]
    return _probe(vectors, splits, accuracy)


def named_entities(vectors: WordVectors, folder: Path) -> float:
    """Return the F1 of whole entities (borders and type) on WNUT17, test."""
    splits = [read_columns(folder / f"{split}.conll") for split in SPLITS]
    return _probe(vectors, splits, entity_f1)


def similarity(vectors: WordVectors, folder: Path) -> dict[str, tuple[float, float]]:
    """Return Spearman's correlation of cosines with human judgements, and the share of pairs that have vectors."""
    norms = np.linalg.norm(vectors.vectors, axis=1, keepdims=True)
    units = vectors.vectors / np.maximum(norms, np.finfo(np.float32).tiny)
    correlations = {}
    for name, file in PAIRS.items():
        lines = [line.split() for block in _blocks(folder / f"EN-{file}.txt") for line in block]
        pairs = [(vectors.row(a), vectors.row(b), float(score)) for a, b, score in lines]
        covered = [pair for pair in pairs if min(pair[:2]) >= 0]
        rho = 0.0
        if len(covered) > 2:
            left, right, scores = (np.array(column) for column in zip(*covered, strict=True))
            rho = float(spearmanr((units[left] * units[right]).sum(axis=1), scores).statistic)
        correlations[name] = (rho, len(covered) / len(pairs))
    return correlations


def _probe(vectors: WordVectors, splits: Sequence[Sequence[Sentence]], score: Score) -> float:
    """Choose C on the dev split, train on all of the training split, score the test split."""
    train, dev, test = splits
    features = vectors.features(train)
    mean, deviation = features.mean(axis=0), features.std(axis=0) + np.finfo(np.float32).tiny
    tags = [tag for sentence in train for _, tag in sentence]

    def scaled(features: NDArray[np.float32]) -> NDArray[np.float32]:
        z = (features - mean) / deviation
        return np.where(np.abs(z) < 1e6, z, 0).astype(np.float32)  # zeros where a feature never varies

    def fitted(strength: float, n: int) -> LogisticRegression:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the same number of steps for all vectors
            return LogisticRegression(C=strength, max_iter=STEPS).fit(inputs[:n], tags[:n])

    def scored(model: LogisticRegression, split: Sequence[Sentence]) -> float:
        predicted = iter(model.predict(scaled(vectors.features(split))).tolist())
        return score([[tag for _, tag in s] for s in split], [list(islice(predicted, len(s))) for s in split])

    inputs, sample = scaled(features), sum(len(sentence) for sentence in train[:SAMPLE])
    best = max(STRENGTHS, key=lambda strength: scored(fitted(strength, sample), dev))
    return scored(fitted(best, len(tags)), test)


def accuracy(true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """Return the share of equal tags.

    Examples
    --------
    >>> accuracy([["NOUN", "VERB"], ["X"]], [["NOUN", "NOUN"], ["X"]])
    0.6666666666666666
    """
    equal = [a == b for s, t in zip(true, predicted, strict=True) for a, b in zip(s, t, strict=True)]
    return sum(equal) / len(equal)


def entity_f1(true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """Return the harmonic mean of precision and recall of whole entities.

    Examples
    --------
    >>> entity_f1([["B-person", "I-person", "O", "B-group"]], [["B-person", "I-person", "O", "O"]])
    0.6666666666666666
    """
    both = sum(len(entities(s) & entities(t)) for s, t in zip(true, predicted, strict=True))
    total = sum(len(entities(s)) for s in [*true, *predicted])
    return 2 * both / total if total else 0.0


def entities(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """Return (start, end, type) of the entities of one sentence; as in conlleval, an I- without a B- begins one.

    Examples
    --------
    >>> sorted(entities(["B-person", "I-person", "B-person", "O", "I-group"]))
    [(0, 2, 'person'), (2, 3, 'person'), (4, 5, 'group')]
    """
    spans, start = set(), 0
    for i in range(1, len(tags) + 1):
        goes_on = i < len(tags) and tags[i] == f"I-{tags[start][2:]}" and tags[start] != "O"
        if not goes_on:
            if tags[start] != "O":
                spans.add((start, i, tags[start][2:]))
            start = i
    return spans


def read_conllu(path: Path) -> list[Sentence]:
    """Read words and UPOS tags of syntactic words, without lines of contractions and empty nodes."""
    rows = ([line.split("\t") for line in lines if not line.startswith("#")] for lines in _blocks(path))
    sentences = ([(row[1], row[3]) for row in block if row[0].isdigit()] for block in rows)
    return [sentence for sentence in sentences if sentence]


def read_columns(path: Path) -> list[Sentence]:
    """Read words and BIO tags: two columns, blank lines between sentences."""
    return [[(word, tag) for word, tag in (line.strip().split("\t") for line in lines)] for lines in _blocks(path)]


def _blocks(path: Path) -> Iterator[list[str]]:
    """Yield the lines between blank lines of a UTF-8 file."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a UTF-8 file of the data sets, got: {error}; see the README") from error
    return (list(block) for has_text, block in groupby(lines, lambda line: bool(line.strip())) if has_text)
