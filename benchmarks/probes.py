"""Probes of frozen word vectors: part of speech, named entities, word similarity.

A word without a vector is looked up in lower case; if it has none there either, its vector is zero. The features of a
token are its vector and those of its two neighbours in the sentence, standardised on the training split.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
        rows = [-1]
        for sentence in sentences:
            rows += [*(self.row(word) for word, _ in sentence), -1]
        is_token = np.array([bool(token) for s in sentences for token in [*s, ()]], bool)  # else a border
        at = 1 + np.flatnonzero(is_token)
        windows = np.array(rows)[np.stack([at, at - 1, at + 1], axis=1)]
        features: NDArray[np.float32] = table[windows].reshape(len(at), -1)
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
        lines = [line.split() for line in _lines(folder / f"EN-{file}.txt")]
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
    scaled = [_clean((vectors.features(split) - mean) / deviation) for split in (dev, test)]
    inputs = _clean((features - mean) / deviation)
    tags = [tag for sentence in train for _, tag in sentence]
    sample = sum(len(sentence) for sentence in train[:SAMPLE])

    def fitted(strength: float, n: int) -> LogisticRegression:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the same number of steps for all vectors
            return LogisticRegression(C=strength, max_iter=STEPS).fit(inputs[:n], tags[:n])

    def scored(model: LogisticRegression, X: NDArray[np.float32], split: Sequence[Sentence]) -> float:
        return score([[tag for _, tag in s] for s in split], list(_cut(model.predict(X).tolist(), split)))

    best = max(STRENGTHS, key=lambda strength: scored(fitted(strength, sample), scaled[0], dev))
    return scored(fitted(best, len(tags)), scaled[1], test)


def _clean(x: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the features with zeros for those that never vary, which were divided by almost nothing."""
    return np.where(np.abs(x) < 1e6, x, 0).astype(np.float32)


def _cut(tags: list[str], sentences: Sequence[Sentence]) -> Iterator[list[str]]:
    start = 0
    for sentence in sentences:
        yield tags[start : start + len(sentence)]
        start += len(sentence)


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
    rows = ([] if line.startswith("#") else line.split("\t") for line in _lines(path, blank=True))
    return _sentences((row[1], row[3]) if row[0].isdigit() else None if row != [""] else () for row in rows if row)


def read_columns(path: Path) -> list[Sentence]:
    """Read words and BIO tags: two columns, blank lines between sentences."""
    rows = (line.strip().split("\t") for line in _lines(path, blank=True))
    return _sentences((row[0], row[1]) if len(row) > 1 else () for row in rows)


def _sentences(rows: Iterator[tuple[str, str] | tuple[()] | None]) -> list[Sentence]:
    """Return the rows between empty ones as sentences, without rows that are None."""
    sentences: list[Sentence] = [[]]
    for row in rows:
        if row:
            sentences[-1].append(row)
        elif row == () and sentences[-1]:
            sentences.append([])
    return [sentence for sentence in sentences if sentence]


def _lines(path: Path, blank: bool = False) -> list[str]:
    """Return the lines of a UTF-8 file."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a UTF-8 file of the data sets, got: {error}; see the README") from error
    return lines if blank else [line for line in lines if line.strip()]
