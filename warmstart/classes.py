"""Classes of tokens: tokens that stand in similar places, and an n-gram model of their classes.

The log-ratio of the bigram model to the unigram model is factorised into ``A B^T`` (see `warmstart.spectral`), and the
rows of [A, B] are grouped by k-means. A token is then predicted as ``P(class | classes before) P(y | class)``. In
the second factor the tokens that the document has used count too, so that a document brings its own words to every
place where their class can stand:

    P(y | class) = (n(y) + ADDED p(y | class)) / (n(class) + ADDED)

where n counts in the document so far and ``p(y | class)`` is the share of y in the counts of its class. Sources: Brown
et al. 1992 (Computational Linguistics 18); Goodman 2001, arXiv cs/0108005 (clusters).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from warmstart.backoff import BackoffModel, Scores
from warmstart.counts import bigram_counts
from warmstart.errors import InputError
from warmstart.kneser_ney import KneserNey
from warmstart.levels import id_type
from warmstart.ngrams import NGramCounts, count_ngrams, joined
from warmstart.spectral import Bigram, decompose

ORDER = 3  # of the n-grams of classes, at most that of the tokens
RANK = 64
EXPONENTS = (0.35, 0.35)  # of the weights of rows and columns; these and the next were chosen on validation text
ROUNDS = 15  # of k-means
ADDED = 2.0  # tokens


def token_classes(counts: NGramCounts, numbers: tuple[int, ...] = (512,)) -> list[NDArray[np.int64]]:
    """Group the tokens of a statistic of order 2 or more into several numbers of classes.

    Returns
    -------
    list of (V,) int64
        The class of every token; 0 is the separator's own. A small vocabulary has one class for at least 8 tokens, and
        below 32 tokens each token is a class. No class is empty. So some of the numbers can become the same, which is
        then there once.
    """
    from sklearn.cluster import KMeans

    size, separator = counts.vocab_size, counts.separator
    numbers = tuple(dict.fromkeys(min(number, size // 8) for number in numbers))
    if min(numbers) < 4:
        others = np.cumsum(np.arange(size) != separator)
        return [np.where(np.arange(size) == separator, 0, others)]
    found: dict[int, NDArray[np.int64]] = {}
    with threadpool_limits(1):  # sums in threads have other last bits
        vectors = np.concatenate(decompose(Bigram.of(bigram_counts(counts)), EXPONENTS, min(RANK, size // 4)), axis=1)
        for number in numbers:
            means = KMeans(number - 1, init="random", n_init=1, max_iter=ROUNDS, random_state=0)
            means.fit(vectors, sample_weight=counts.levels[0].counts + 1.0)
            labels: NDArray[np.int64] = means.labels_.astype(np.int64) + 1
            labels[separator] = 0
            classes, labels = np.unique(labels, return_inverse=True)  # no class without a token
            found.setdefault(classes.size, labels.astype(np.int64))
    return list(found.values())


@dataclass(frozen=True, eq=False)
class ClassModel:
    """An n-gram model of classes, see the module.

    Attributes
    ----------
    labels : (V,) int64
        Class of every token.
    model : BackoffModel
        N-grams of the classes.
    shares : (V,) float64
        Share of every token in the counts of its class.
    """

    labels: NDArray[np.int64]
    model: BackoffModel
    shares: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        labels: NDArray[np.int64],
        unigrams: NDArray[np.int64],
        counts: NGramCounts | None,
        tables: BackoffModel | None = None,
        workers: int = 1,
        device: str | None = None,
    ) -> "ClassModel":
        """Return the model of some classes, from tables or from the documents of a statistic.

        Parameters
        ----------
        labels : (V,) int
        unigrams : (V,) int
            Number of times each token was counted.
        counts : NGramCounts or None
            Needed if there are no tables.
        tables : BackoffModel, optional
        workers : int
            Number of threads. The result does not depend on it.
        device : str, optional
            Device of PyTorch that counts and solves, see `warmstart.ngrams.count_ngrams`; nor on it.
        """
        if tables is None and counts is not None:
            tokens, borders = joined(counts.documents.all(), counts.separator, counts.vocab_size)
            n_classes, order = int(labels.max()) + 1, min(ORDER, counts.order)
            classes = labels[tokens].astype(id_type(n_classes))
            of_classes = count_ngrams(classes, borders, n_classes, order, workers=workers, device=device)
            tables = KneserNey(of_classes, device=device)
        if tables is None:
            raise InputError("expected counts or tables of classes, got none")
        frequency = unigrams + 0.5
        return cls(labels, tables, frequency / np.bincount(labels, frequency)[labels])

    @cached_property
    def n_classes(self) -> int:
        """Number of classes."""
        return self.model.vocab_size

    def within(
        self, targets: NDArray[np.integer], tokens_seen: NDArray[np.integer], classes_seen: NDArray[np.integer]
    ) -> NDArray[np.float64]:
        """Return ``P(y | class)`` (n,) of targets, from how often the document has used them and their classes (n,)."""
        shares: NDArray[np.float64] = (tokens_seen + ADDED * self.shares[targets]) / (classes_seen + ADDED)
        return shares

    def score(self, tokens: NDArray[np.integer], start: int, workers: int = 1) -> Scores:
        """Score the classes of ``tokens[start:]``."""
        return self.model.score_stream(self.labels[tokens], start, workers)
