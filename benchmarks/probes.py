"""Probes of frozen word vectors: part of speech, named entities, word similarity. The same features for all vectors.

A word that has no vector is looked up in lower case, then stands as zeros. A token's features are its vector and those
of its two neighbours in the sentence, standardised on the training split.
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
SAMPLE = 2000  # sentences on which C is chosen
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
        middle = np.array([bool(token) for s in sentences for token in [*s, ()]], bool)  # not what stands between
        at = 1 + np.flatnonzero(middle)
        taken = np.array(rows)[np.stack([at, at - 1, at + 1], axis=1)]
        features: NDArray[np.float32] = table[taken].reshape(len(at), -1)
        return features


def part_of_speech(vectors: WordVectors, folder: Path) -> float:
    """Return the share of the words of UD English EWT, test, whose tag (UPOS, 17) is found."""
    splits = [read_conllu(folder / f"en_ewt-ud-{split}.conllu") for split in SPLITS]
    return _probe(vectors, splits, accuracy)


def named_entities(vectors: WordVectors, folder: Path) -> float:
    """Return the F1 of whole entities, boundaries and type, of WNUT17, test."""
    splits = [read_columns(folder / f"{split}.conll") for split in SPLITS]
    return _probe(vectors, splits, entity_f1)


SPLITS = ("train", "dev", "test")


def similarity(vectors: WordVectors, folder: Path) -> dict[str, tuple[float, float]]:
    """Return Spearman's correlation of cosines with human judgements, and the share of pairs that have vectors."""
    norms = np.linalg.norm(vectors.vectors, axis=1, keepdims=True)
    units = vectors.vectors / np.maximum(norms, np.finfo(np.float32).tiny)
    found = {}
    for name, file in PAIRS.items():
        pairs = [line.split() for line in _lines(folder / f"EN-{file}.txt")]
        known = [(vectors.row(a), vectors.row(b), float(s)) for a, b, s in pairs]
        kept = [pair for pair in known if min(pair[:2]) >= 0]
        left, right, scores = (np.array(column) for column in zip(*kept, strict=True)) if kept else ([], [], [])
        cosines = (units[left] * units[right]).sum(axis=1) if len(kept) > 2 else np.zeros(0)
        rho = float(spearmanr(cosines, scores).statistic) if len(kept) > 2 else 0.0
        found[name] = (rho, len(kept) / len(pairs))
    return found


def _probe(vectors: WordVectors, splits: Sequence[Sequence[Sentence]], score: Score) -> float:
    """Choose C on the dev split, train on all of the training split, score the test split."""
    train, dev, test = splits
    known = vectors.features(train)
    mean, deviation = known.mean(axis=0), known.std(axis=0) + np.finfo(np.float32).tiny
    scaled = [_clean((vectors.features(split) - mean) / deviation) for split in (dev, test)]
    inputs = _clean((known - mean) / deviation)
    tags = [tag for sentence in train for _, tag in sentence]
    few = sum(len(sentence) for sentence in train[:SAMPLE])

    def fitted(strength: float, n: int) -> LogisticRegression:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the same number of steps for all vectors
            return LogisticRegression(C=strength, max_iter=STEPS).fit(inputs[:n], tags[:n])

    def scored(model: LogisticRegression, X: NDArray[np.float32], split: Sequence[Sentence]) -> float:
        return score([[tag for _, tag in s] for s in split], list(_cut(model.predict(X).tolist(), split)))

    best = max(STRENGTHS, key=lambda strength: scored(fitted(strength, few), scaled[0], dev))
    return scored(fitted(best, len(tags)), scaled[1], test)


def _clean(x: NDArray[np.floating]) -> NDArray[np.float32]:
    """Features that never vary, divided by almost nothing, are zero."""
    return np.where(np.abs(x) < 1e6, x, 0).astype(np.float32)


def _cut(tags: list[str], sentences: Sequence[Sentence]) -> Iterator[list[str]]:
    start = 0
    for sentence in sentences:
        yield tags[start : start + len(sentence)]
        start += len(sentence)


def accuracy(true: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> float:
    """Return the share of equal tags.

    Examples
    --------
    >>> accuracy([["NOUN", "VERB"], ["X"]], [["NOUN", "NOUN"], ["X"]])
    0.6666666666666666
    """
    equal = [a == b for s, t in zip(true, found, strict=True) for a, b in zip(s, t, strict=True)]
    return sum(equal) / len(equal)


def entity_f1(true: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> float:
    """Return the harmonic mean of precision and recall of whole entities.

    Examples
    --------
    >>> entity_f1([["B-person", "I-person", "O", "B-group"]], [["B-person", "I-person", "O", "O"]])
    0.6666666666666666
    """
    both = sum(len(entities(s) & entities(t)) for s, t in zip(true, found, strict=True))
    total = sum(len(entities(s)) for s in [*true, *found])
    return 2 * both / total if total else 0.0


def entities(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """Return (start, end, type) of the entities of one sentence; an I- without its B- begins one, as in conlleval.

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
    """Read words and UPOS tags of syntactic words; lines of contractions and empty nodes are left out."""
    rows = ([] if line.startswith("#") else line.split("\t") for line in _lines(path, blank=True))
    return _sentences((row[1], row[3]) if row[0].isdigit() else None if row != [""] else () for row in rows if row)


def read_columns(path: Path) -> list[Sentence]:
    """Read words and BIO tags, two columns, blank lines between sentences."""
    rows = (line.strip().split("\t") for line in _lines(path, blank=True))
    return _sentences((row[0], row[1]) if len(row) > 1 else () for row in rows)


def _sentences(rows: Iterator[tuple[str, str] | tuple[()] | None]) -> list[Sentence]:
    """Cut rows at empty ones; None is left out."""
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
