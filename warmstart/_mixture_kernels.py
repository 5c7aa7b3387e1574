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
def buckets(
    tokens: NDArray[Any], places: NDArray[Any], separator: int, vocab_size: int, feature_sizes: NDArray[Any],
    order: int, last: NDArray[Any], offsets: NDArray[Any], context_sizes: NDArray[Any],
    orders: NDArray[Any], sizes: NDArray[Any],
) -> Any:  # fmt: skip
    """Return the buckets (n,) of the gate for the token after places of a text, see `warmstart.gate`.

    feature_sizes (k,); the others as for `mix`; context_sizes: of the n-gram tables.
    """
    features, k = np.empty((places.size, feature_sizes.size), np.int64), feature_sizes.size
    if orders.size:
        cache_features(tokens, places, separator, orders, sizes, vocab_size, features)
    if order:
        known_features(tokens, places, separator, order, last, offsets, context_sizes, features[:, k - 2])
    out = np.zeros(places.size, np.int64)
    for i in range(places.size):
        features[i, k - 1] = ngrams.bits(tokens[places[i]]) // 2
        for j in range(k):
            out[i] = out[i] * feature_sizes[j] + min(features[i, j], feature_sizes[j] - 1)
    return out


@nb.njit(cache=True, nogil=True)
def gate_weights(
    logits: NDArray[Any], state: NDArray[Any], hidden: NDArray[Any], scale: float, least: float, out: NDArray[Any]
) -> None:
    """Write the weights of experts (n, m) by logits (n, m), states (n, width) and their matrix (m, width).

    They are ``softmax(logits + scale hidden state')``, of which the last gets at least ``least``.
    """
    n, m = out.shape
    for i in range(n):
        highest = -np.inf
        for j in range(m):
            added = np.float32(0.0)
            for d in range(state.shape[1]):
                added += hidden[i, d] * state[j, d]
            out[i, j] = logits[i, j] + scale * added
            highest = max(highest, out[i, j])
        total = 0.0
        for j in range(m):
            out[i, j] = np.exp(out[i, j] - highest)
            total += out[i, j]
        for j in range(m):
            out[i, j] *= (1.0 - least) / total
        out[i, m - 1] += least


@nb.njit(cache=True, nogil=True)
def mix(
    tokens: NDArray[Any], places: NDArray[Any], separator: int, prior: NDArray[Any],
    order: int, last: NDArray[Any], offsets: NDArray[Any], probs: NDArray[Any], gammas: NDArray[Any],
    orders: NDArray[Any], sizes: NDArray[Any], discount: float, weights: NDArray[Any], out: NDArray[Any],
) -> None:  # fmt: skip
    """Turn rows of the network after places of a text (n, V) float32 into those of the mixture without class models.

    prior (V,): of the unigram model; order, last, offsets, probs, gammas: n-gram tables, order 0 for none; orders,
    sizes (caches,): see `warmstart._cache_kernels.count`; weights (n, m) float32: of the n-grams first, of caches,
    network and unigram model last.

    The tokens that followed a context are few. The others take two passes over a row.
    """
    vocab_size, longest = out.shape[1], orders.max() if orders.size else 0
    counts, seen = np.zeros((vocab_size, longest), np.int32), np.empty(vocab_size, np.int64)
    of_caches, numbers = np.empty((orders.size, longest, 2), np.int32), np.empty(max(order, 1), np.int64)
    unigram, base = prior.astype(np.float32), np.zeros(vocab_size, np.float32)
    base[: probs[:vocab_size].size] = probs[:vocab_size]  # of the n-grams of one token
    others, first = np.empty(vocab_size, np.float32), weights.shape[1] - 2 - orders.size
    for i in range(places.size):
        row, share, least = out[i], weights[i, -2], weights[i, -1]
        _add(others, share, row, least, unigram, np.float32(0.0))
        rest = np.float32(0.0)
        for c in range(orders.size):
            of_cache = of_caches[c, : orders[c]]
            n = caches.count(tokens, separator, places[i], sizes[c], of_cache, counts, seen)
            rest += np.float32(caches.add_row(of_cache, counts, seen[:n], discount, weights[i, first + c], others))
        contexts = numbers[: _contexts(tokens, places[i], separator, order, last, offsets, numbers) if order else 0]
        lowest = weights[i, 0] if order else np.float32(0.0)
        for h in contexts:
            lowest *= np.float32(gammas[h])
        _add(row, np.float32(1.0), others, lowest, base, rest)
        if order:
            _write_extensions(contexts, last, offsets, probs, gammas, weights[i, 0], others, rest, row)


@nb.njit(cache=True, nogil=True)
def _add(out: NDArray[Any], a: Any, x: NDArray[Any], b: Any, y: NDArray[Any], c: Any) -> None:
    """Write ``a x + b y + c`` to ``out`` (V,)."""
    for i in range(out.size):
        out[i] = a * x[i] + b * y[i] + c


@nb.njit(cache=True, nogil=True)
def _write_extensions(
    contexts: NDArray[Any], last: NDArray[Any], offsets: NDArray[Any], probs: NDArray[Any], gammas: NDArray[Any],
    weight: Any, others: NDArray[Any], rest: Any, row: NDArray[Any],
) -> None:  # fmt: skip
    """Write the tokens that followed contexts (n,), shortest first, to a row (V,): longer contexts write over shorter.

    weight: of the n-grams; others (V,) and rest, for every token: what other experts say.
    """
    weights = np.full(contexts.size, weight)
    for k in range(contexts.size - 1, 0, -1):
        weights[k - 1] = weights[k] * np.float32(gammas[contexts[k]])
    for k in range(contexts.size):
        low, high = offsets[contexts[k]], offsets[contexts[k] + 1]
        tokens, said, own = last[low:high], probs[low:high], weights[k]
        for j in range(tokens.size):
            y = np.intp(tokens[j])
            row[y] = others[y] + rest + own * np.float32(said[j])


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
