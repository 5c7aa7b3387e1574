"""What speaks for each tag of an utterance: four experts that are solved from counts, none by a gradient.

| symbol | shape | meaning |
|---|---|---|
| ``n``, ``C`` | | lessons, that is utterances with their tags; tags |
| ``Y`` | (n, C) | 1 at the tag of each lesson |
| ``left out`` | (n, C) or (n,) | what an expert says of a lesson as if it had never been given |

Each expert has a ``fit``, which also gives what it says of each lesson left out: on this the gate is fitted. `Words` is
the explicit solution of `warmstart.solution`. `Similar` solves a ridge regression in closed form. The n-grams are those
of `warmstart.kneser_ney`, see `model`. `recent` is a cache of the last lessons.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from examples.lamp.features import Features, Ids, Table, find

SMOOTHING = 0.05  # co-occurrences added to each feature
SHARPNESS = 1.0  # of the similarity
RIDGE = 0.3  # over the similarity of a lesson to itself, which is 1
TEMPERATURES = np.geomspace(0.05, 1.0, 31)
USUAL, FIRM = 0.2, 3.0  # temperature before any lesson, and how firmly it is believed, in nats a squared nat
RECENT, ENDING, DISCOUNT = 100, 16, 0.5  # lessons and bytes of the cache, and its discount

Array = NDArray[np.float64]


def softmax(z: Array) -> Array:
    """Return probabilities (..., C) of logits."""
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


@dataclass(frozen=True, eq=False)
class Words:
    """The explicit solution: phrases and pieces of an utterance, each group with a fitted temperature.

    Attributes
    ----------
    ids : tuple of two (m,) uint32
        Features that were seen: phrases, pieces.
    weights : tuple of two (m, C) float64
        Their evidence for each tag, in nats, up to a constant of the feature.
    log_prior : (C,)
        Added once for every feature of an utterance, over k.
    """

    ids: tuple[Ids, Ids]
    weights: tuple[Array, Array]
    log_prior: Array

    @classmethod
    def fit(cls, tables: tuple[Table, Table], Y: Array, newest: slice) -> tuple[Self, Array]:
        """Return the expert, and the probability of the own tag of each of the newest lessons, left out."""
        from scipy import sparse

        from warmstart import solution
        from warmstart.accumulators import Accumulator

        X = [table.matrix() for table in tables]
        sums = [Accumulator(np.asarray(Y.T @ x), len(Y)) for x in X]
        prior, k = solution.class_prior(Y.sum(axis=0)), max(1.0, sum(each.mean_norm for each in sums))
        targets = sparse.csr_array(Y[newest])
        X, own = [x[newest] for x in X], targets.indices
        found = solution.fit(solution.Sample(X, targets, keep_scores=True), sums, prior, k=k, smoothing=SMOOTHING)
        weights = [
            tau * solution.log_likelihood(each, prior, SMOOTHING, np.float64)
            for tau, each in zip(found.temperatures, sums, strict=True)
        ]
        log_prior = np.log(prior) / k
        z = np.outer(sum(np.diff(x.indptr) for x in X), log_prior)
        at = np.arange(own.size), own
        left_out = z[at]
        for tau, x, each, table in zip(found.temperatures, X, sums, weights, strict=True):
            z += x @ table
            left_out = left_out + tau * solution.leave_one_out(x, targets, each, prior, SMOOTHING)
        z[at] = left_out
        return cls((tables[0].ids, tables[1].ids), (weights[0], weights[1]), log_prior), softmax(z)[at]

    def evidence(self, group: int, row: Ids) -> Array:
        """Return the evidence (f, C) of those f features of a group that were seen."""
        return np.asarray(self.weights[group][find(self.ids[group], row)])

    def predict(self, said: Features) -> Array:
        """Return the probability of each tag (C,)."""
        z = np.zeros(self.log_prior.size)
        for group, row in enumerate((said.phrases, said.pieces)):
            evidence = self.evidence(group, row)
            z += evidence.sum(axis=0) + len(evidence) * self.log_prior
        return softmax(z)


@dataclass(frozen=True, eq=False)
class Similar:
    """Similar lessons: a ridge regression of the tags on the similarity of utterances.

    The similarity of two utterances is ``exp(-s (1 - c))`` with the sharpness s and the mean c of the cosines of their
    words and of their pieces: 1 for the same words, ``exp(-s)`` for no piece in common. All tags weigh the same, so
    lessons of a rare tag weigh more.

    Attributes
    ----------
    words, pieces : Table
        Of the lessons.
    alphas : (n, C) float64
        What the similarity to each lesson adds to the score of each tag.
    mean : (C,)
        Score of an utterance that is like no lesson.
    temperature, sharpness : float
    """

    words: Table
    pieces: Table
    alphas: Array
    mean: Array
    temperature: float
    sharpness: float

    @classmethod
    def fit(
        cls, words: Table, pieces: Table, Y: Array, start: Array, sharpness: float, ridge: float
    ) -> tuple[Self, Array, Array]:
        """Return the expert, the probability of the own tag of each lesson left out, and its highest similarity.

        Tags are counted ``start`` (C,) times more for the mean. With ``A = (K + L)^-1`` and ``alphas = A (Y - mean)``,
        the score of lesson i without itself is ``Y_i - alphas_i / A_ii``: no second solution is needed.
        """
        K = (cosines(words) + cosines(pieces)) / 2
        K = np.exp(-sharpness * (1 - K))
        counts = Y.sum(axis=0)
        weights = Y @ (len(Y) / (np.count_nonzero(counts) * np.maximum(counts, 1)))
        mean = weights @ Y + start
        mean /= mean.sum()
        inverse = np.linalg.inv(K + np.diag(ridge / weights))
        alphas = inverse @ (Y - mean)
        left_out = Y - alphas / np.diag(inverse)[:, None]
        own = Y.argmax(axis=1)
        losses = [-np.log(softmax(left_out / t)[np.arange(own.size), own]).sum() for t in TEMPERATURES]
        losses += FIRM * np.log(TEMPERATURES / USUAL) ** 2
        temperature = float(TEMPERATURES[int(np.argmin(losses))])
        np.fill_diagonal(K, 0.0)
        probs = softmax(left_out / temperature)[np.arange(own.size), own]
        return cls(words, pieces, alphas, mean, temperature, sharpness), probs, K.max(axis=1)

    def similarity(self, said: Features) -> Array:
        """Return the similarity of an utterance to each lesson (n,)."""
        both = [(self.words, said.words), (self.pieces, said.pieces)]
        cosine = sum(table.shared(row) / np.sqrt(np.maximum(table.sizes * row.size, 1)) for table, row in both) / 2
        return np.asarray(np.exp(-self.sharpness * (1 - cosine)))

    def predict(self, similarity: Array) -> Array:
        """Return the probability of each tag (C,), given the similarity to each lesson."""
        return softmax((similarity @ self.alphas + self.mean) / self.temperature)


def cosines(table: Table) -> Array:
    """Return the cosine of the features of every two utterances (n, n)."""
    X, sizes = table.matrix(), table.sizes.astype(np.float64)
    return np.asarray((X @ X.T).toarray() / np.sqrt(np.maximum(np.outer(sizes, sizes), 1)))


def recent(same: NDArray[np.integer], tags: NDArray[np.integer], prior: Array) -> Array:
    """Return what the last lessons say of the next tag (n, C): the longer an ending is the same, the more it counts.

    It is the cache of `warmstart.cache`, absolute discounting of counts, read only where a tag comes.

    Parameters
    ----------
    same : (n, r) int
        For each of n utterances and each lesson before it: how many of their last bytes are the same; -1 for no lesson.
    tags : (n, r) int
        The tags of these lessons.
    prior : (n, C)

    Examples
    --------
    >>> recent(np.array([[-1, 0, 3]]), np.array([[0, 0, 1]]), np.array([[0.5, 0.5]])).round(3).tolist()
    [[0.062, 0.938]]
    """
    P = prior
    for length in range(int(same.max(initial=-1)) + 1):
        alike = same >= length
        counts = np.stack([(alike & (tags == tag)).sum(axis=1) for tag in range(prior.shape[1])], axis=1)
        total, types = counts.sum(axis=1, keepdims=True), np.count_nonzero(counts, axis=1)[:, None]
        mixed = (np.maximum(counts - DISCOUNT, 0) + DISCOUNT * types * P) / np.maximum(total, 1)
        P = np.where(total > 0, mixed, P)
    return P


def same_ends(endings: NDArray[np.uint8], ending: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how many of the last bytes (..., `ENDING`) are the same."""
    return np.asarray(np.cumprod(endings == ending, axis=-1, dtype=np.uint8).sum(axis=-1, dtype=np.int64))


def endings_of(texts: Sequence[str]) -> NDArray[np.uint8]:
    """Return the last `ENDING` bytes of each utterance, the last one first; zeros where it is shorter."""
    out: Any = np.zeros((len(texts), ENDING), np.uint8)
    for row, text in zip(out, texts, strict=True):
        last = text.encode()[: -ENDING - 1 : -1]
        row[: len(last)] = np.frombuffer(last, np.uint8)
    return np.asarray(out)
