"""Compiled loops of the mixture: expectation-maximisation of its weights, and the mixture of whole rows."""

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from warmstart import _cache_kernels as caches
from warmstart import _ngram_kernels as ngrams


@nb.njit(cache=True, nogil=True)
def responsibilities(probs: NDArray[Any], index: NDArray[Any], weights: NDArray[Any], sums: NDArray[Any]) -> float:
    """Add the responsibility of every expert for every target to ``sums``, and return the sum of ``log P``.

    probs (n, m): probability of each target by each expert; index (n,): bucket of each target; weights, sums (B, m).
    """
    total = 0.0
    n, m = probs.shape
    for i in range(n):
        b = index[i]
        p = 0.0
        for j in range(m):
            p += weights[b, j] * probs[i, j]
        for j in range(m):
            sums[b, j] += weights[b, j] * probs[i, j] / p
        total += np.log(p)
    return total


@nb.njit(cache=True, nogil=True)
def cache_features(
    tokens: NDArray[Any], places: NDArray[Any], separator: int, orders: NDArray[Any], sizes: NDArray[Any],
    vocab_size: int, out: NDArray[Any],
) -> None:  # fmt: skip
    """Write the features of the caches after places of a text (n, 4), see `warmstart.mixture.features`.

    places (n,); orders, sizes (caches,): the first two speak; see `warmstart._cache_kernels.count`.
    """
    counts, seen = np.zeros((vocab_size, orders.max()), np.int32), np.empty(vocab_size, np.int64)
    contexts = np.empty((orders.max(), 2), np.int32)
    for i in range(places.size):
        for c in range(2):
            own = contexts[: orders[c]]
            n = caches.count(tokens, separator, places[i], sizes[c], own, counts, seen)
            for y in seen[:n]:
                counts[y] = 0
            longest = 0
            for k in range(1, orders[c]):
                longest += own[k, 0] > 0
            if c:
                out[i, 3] = longest
            else:
                out[i, 0] = longest
                out[i, 1], out[i, 2] = ngrams.bits(own[longest, 1]), ngrams.bits(own[longest, 0])


@nb.njit(cache=True, nogil=True)
def _contexts(
    tokens: NDArray[Any], place: int, separator: int, order: int, last: NDArray[Any], offsets: NDArray[Any],
    contexts: NDArray[Any],
) -> Any:  # fmt: skip
    """Write the numbers of the contexts that end at a place of a text, shortest first, and return how many there are.

    contexts (at least order - 1,).
    """
    for length in range(1, order):
        start = place - length + 1
        if start < 0 or (length > 1 and tokens[start + 1] == separator):
            return length - 1
        h = np.int64(tokens[start])
        for token in tokens[start + 1 : place + 1]:
            h = ngrams.find(last, offsets[h], offsets[h + 1], token) if h >= 0 else h
        if h < 0:
            return length - 1
        contexts[length - 1] = h
    return order - 1


@nb.njit(cache=True, nogil=True)
def _add_extensions(
    contexts: NDArray[Any], last: NDArray[Any], offsets: NDArray[Any], probs: NDArray[Any], gammas: NDArray[Any],
    weight: float, out: NDArray[Any], added: NDArray[Any], stamps: NDArray[Any], stamp: int,
) -> None:  # fmt: skip
    """Add the distribution after contexts (n,), times a weight, to ``out`` (V,).

    added (V,): what is added for the tokens whose ``stamps`` (V,) are ``stamp``, a new one for every call.
    """
    n = contexts.size
    weights = np.full(n + 1, weight)  # of what the extensions of shorter contexts say
    for k in range(n - 1, -1, -1):
        weights[k] = weights[k + 1] * gammas[contexts[k]]
    lowest = weights[0]
    for y in range(out.size):
        out[y] += lowest * probs[y]
    for k in range(n):
        for j in range(offsets[contexts[k]], offsets[contexts[k] + 1]):
            y, p = last[j], weights[k + 1] * probs[j]
            out[y] += p - (added[y] if stamps[y] == stamp else lowest * probs[y])
            added[y], stamps[y] = p, stamp


@nb.njit(cache=True, nogil=True)
def known_features(
    tokens: NDArray[Any], places: NDArray[Any], separator: int, order: int, last: NDArray[Any], offsets: NDArray[Any],
    sizes: NDArray[Any], out: NDArray[Any],
) -> None:  # fmt: skip
    """Write the length of the longest context that was counted and ends at each place of a text (n,)."""
    contexts = np.empty(order, np.int64)
    for i in range(places.size):
        n = _contexts(tokens, places[i], separator, order, last, offsets, contexts)
        while n > 0 and sizes[contexts[n - 1]] == 0:
            n -= 1
        out[i] = n


@nb.njit(cache=True, nogil=True)
def bucket_index(tokens: NDArray[Any], places: NDArray[Any], sizes: NDArray[Any], features: NDArray[Any]) -> Any:
    """Return the buckets (n,) of features (n, k), whose last is that of the token before, see `warmstart.gate`."""
    out = np.zeros(places.size, np.int64)
    for i in range(places.size):
        features[i, sizes.size - 1] = ngrams.bits(tokens[places[i]]) // 2
        for j in range(sizes.size):
            out[i] = out[i] * sizes[j] + min(features[i, j], sizes[j] - 1)
    return out


@nb.njit(cache=True, nogil=True)
def blend(prior: NDArray[Any], weights: NDArray[Any], shares: NDArray[Any], out: NDArray[Any]) -> None:
    """Weigh ``out`` (n, V) by shares (n,), and add probabilities (V,), times weights (n,); all are float32."""
    for i in range(len(out)):
        row, weight, share = out[i], weights[i], shares[i]
        for y in range(prior.size):
            row[y] = share * row[y] + weight * prior[y]


@nb.njit(cache=True, nogil=True)
def add_ngrams(
    tokens: NDArray[Any], places: NDArray[Any], separator: int, order: int, last: NDArray[Any], offsets: NDArray[Any],
    probs: NDArray[Any], gammas: NDArray[Any], weights: NDArray[Any], out: NDArray[Any],
) -> None:  # fmt: skip
    """Add the rows after places of a text by n-gram tables, times weights (n,), to ``out`` (n, V) float32."""
    contexts, added = np.empty(order, np.int64), np.empty(out.shape[1])
    stamps = np.full(out.shape[1], -1)
    for i in range(places.size):
        n = _contexts(tokens, places[i], separator, order, last, offsets, contexts)
        _add_extensions(contexts[:n], last, offsets, probs, gammas, weights[i], out[i], added, stamps, i)


@nb.njit(cache=True, nogil=True)
def add_caches(
    tokens: NDArray[Any], places: NDArray[Any], separator: int, orders: NDArray[Any], sizes: NDArray[Any],
    discount: float, weights: NDArray[Any], out: NDArray[Any],
) -> None:  # fmt: skip
    """Add the rows of caches after places of a text, times weights (n, caches), to ``out`` (n, V) float32.

    places (n,); orders, sizes (caches,); see `warmstart._cache_kernels.count`.
    """
    vocab_size, longest = out.shape[1], orders.max()
    counts, seen = np.zeros((vocab_size, longest), np.int32), np.empty(vocab_size, np.int64)
    contexts = np.empty((longest, 2), np.int32)
    for i in range(places.size):
        rest = 0.0
        for c in range(orders.size):
            own = contexts[: orders[c]]
            n = caches.count(tokens, separator, places[i], sizes[c], own, counts, seen)
            rest += caches.add_row(own, counts, seen[:n], discount, weights[i, c], out[i])
        out[i] += rest


@nb.njit(cache=True, nogil=True)
def add_classes(
    tokens: NDArray[Any], places: NDArray[Any], separator: int, size: int, added: float, labels: NDArray[Any],
    shares: NDArray[Any], rows: NDArray[Any], weights: NDArray[Any], out: NDArray[Any],
) -> None:  # fmt: skip
    """Add the rows of a class model after places of a text, times weights (n,), to ``out`` (n, V) float32.

    size: targets of the document that count for ``P(y | class)``, 0 for none; added: see `warmstart.classes`; labels,
    shares (V,); rows (n, classes): probabilities of the next class.
    """
    seen, of_class = np.zeros(labels.size), np.zeros(rows.shape[1])
    for i in range(places.size):
        first = places[i] + 1
        while first > 0 and first > places[i] + 1 - size and tokens[first - 1] != separator:
            first -= 1
        for y in tokens[first : places[i] + 1]:
            seen[y] += 1
            of_class[labels[y]] += 1
        for y in range(labels.size):
            own = (seen[y] + added * shares[y]) / (of_class[labels[y]] + added)
            out[i, y] += weights[i] * rows[i, labels[y]] * own
        for y in tokens[first : places[i] + 1]:
            seen[y] = 0
            of_class[labels[y]] = 0
