"""Readable twins of the package's kernels and formulas: slow, obvious, and without any code of the package.

Twins of kernels take dense matrices where the kernels take sparse rows, and return new arrays. Each adds in the order
of the examples, so that float sums can be compared with ``==``. Shapes are those of the kernels.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Kernels


def add_pairs(inputs: Array, targets: Array, bits: Array, units: Array, sums: Array) -> Array:
    sums = sums.copy()
    for s, y in zip(inputs, targets, strict=True):
        sums[y] += units[s] * bits[s]
    return sums


def add_examples(X: Array, Y: Array, sums: Array) -> Array:
    """Twin of `add_dense` and `add_sparse`; Y (n, C) holds a target for each example."""
    sums = sums.copy()
    for x, y in zip(X, Y, strict=True):
        sums += np.outer(y, x)
    return sums


def compare_codes(pivots: Array, windows: Array, codes: Array) -> Array:
    numbers = [sum(int(word) << 64 * i for i, word in enumerate(code)) for code in codes]
    q = np.zeros(windows.shape)
    for n, (pivot, window) in enumerate(zip(pivots, windows, strict=True)):
        for i, token in enumerate(window):
            u, v = numbers[pivot], numbers[token]
            q[n, i] = (u & v).bit_count() / (u.bit_count() * v.bit_count())
    return q


def compare(window: Array, E: Array) -> Array:
    q = np.zeros(window.T.shape)
    for n, tokens in enumerate(window.T):
        for i, token in enumerate(tokens):
            if token >= 0 and tokens[0] >= 0:
                for d in range(E.shape[1]):
                    q[n, i] += E[token, d] * E[tokens[0], d]
    return q


def superpose(window: Array, A: Array, G: Array) -> Array:
    out = np.zeros((window.shape[1], G.shape[1]))
    for n, tokens in enumerate(window.T):
        for i, token in enumerate(tokens):
            if token >= 0:
                out[n] += A[n, i] * G[token]
    return out


def running_mean(newest: Array, position: Array, G: Array) -> Array:
    """The mean of the rows of the last ``position + 1`` tokens."""
    rows = []
    for n, before in enumerate(position):
        total = np.zeros(G.shape[1])
        for token in newest[max(0, n - before) : n + 1]:
            total += G[token]
        rows.append(total / (before + 1))
    return np.array(rows).reshape(-1, G.shape[1])


def responsibilities(window: Array, targets: Array, A: Array, E: Array, L: Array, norm: Array) -> tuple[Array, float]:
    R = np.zeros(window.T.shape)
    total = 0.0
    for n, y in enumerate(targets):
        for i, token in enumerate(window[:, n]):
            if token >= 0:
                R[n, i] = A[n, i] * np.exp(E[token] @ L[:, y] - norm[token])
        total += float(np.log(R[n].sum()))
        R[n] /= R[n].sum()
    return R, total


def attend(window: Array, E: Array, W: Array) -> Array:
    """Empty positions are left out of q and of the softmax."""
    A = np.zeros(window.T.shape)
    for n, tokens in enumerate(window.T):
        filled = np.flatnonzero(tokens >= 0)
        q = E[tokens[filled]] @ E[tokens[0]]
        A[n, filled] = _softmax(q @ W[np.ix_(filled, filled)])
    return A


def remember(newest: Array, targets: Array, position: Array, keys: Array, labels: Array, strength: float) -> Array:
    """Reads (n, m); every document begins with an empty memory."""
    out = np.zeros((len(newest), labels.shape[1]))
    for n, (x, y) in enumerate(zip(newest, targets, strict=True)):
        if n == 0 or position[n] == 0:
            S = np.zeros((labels.shape[1], keys.shape[1]))
        out[n] = S @ keys[x]
        S = S + strength * np.outer(labels[y] - S @ keys[x], keys[x])
    return out


# Solution


def leave_one_out_cross_entropy(
    groups: Sequence[Array],
    Y: Array,
    sampled: Sequence[int],
    prior: Array,
    *,
    k: float,
    smoothing: float,
    temperatures: Sequence[float],
) -> float:
    """Nats per sampled example, each scored by a layer solved without it; the prior is kept.

    groups: G arrays (n, D_g), all the examples that were counted; Y (n, C): their target distributions.
    """
    loss = 0.0
    for i in sampled:
        rest = np.arange(Y.shape[0]) != i
        z = np.zeros(Y.shape[1])
        for X, tau in zip(groups, temperatures, strict=True):
            F = X[rest].T @ Y[rest] + smoothing * prior
            U = tau * (np.log(F) - np.log(F.sum(axis=0))) + np.log(prior) / k
            z += X[i] @ U
        loss -= float(Y[i] @ np.log(_softmax(z)))
    return loss / len(sampled)


# Near-shallow language model


def language_model_logits(config: Any, arrays: dict[str, Array], ids: Array) -> Array:
    """Logits (length, V) after each token of one sequence."""
    return sum(language_model_parts(config, arrays, ids).values())


def language_model_parts(config: Any, arrays: dict[str, Array], ids: Array) -> dict[str, Array]:
    """What each context adds to the logits (length, V), a position at a time, in float64.

    config: fields of `warmstart.near_shallow.Config`; arrays: dense weights by their names in the state_dict.
    """
    a = {name: np.asarray(array, dtype=np.float64) for name, array in arrays.items()}
    parts = {name: np.zeros((len(ids), config.vocab_size)) for name in config.contexts}
    document: list[int] = []  # oldest first
    for n, token in enumerate(ids):
        document = ([] if token == config.separator else document) + [int(token)]
        start = 0
        for name, x in _language_model_inputs(config, a, document):
            parts[name][n] += x @ a["output.weight"][start : start + x.size]
            start += x.size
    return parts


def _language_model_inputs(config: Any, a: dict[str, Array], document: list[int]) -> list[tuple[str, Array]]:
    """The inputs of the output layer after a document so far, oldest token first, each with its context."""
    E = a["embedding.weight"]
    history = [E[token] for token in document]
    inputs: list[tuple[str, Array]] = []
    if "radial" in config.contexts:
        padded = [E[config.separator]] * config.radius + history
        inputs += [("radial", x) for x in padded[: -config.radius - 1 : -1]]
    block = (len(history) - 1) // config.block_size * config.block_size
    for name, window in (("attended", history[-config.radius :]), ("block", history[block:]), ("document", history)):
        if name in config.contexts:
            W = a.get(f"contexts.{name}.attention.weight")
            context = np.mean(window, axis=0) if W is None else _attended(window, W)
            inputs.append((name, _softmax(context @ a[f"contexts.{name}.values.weight"])))
    if "memory" in config.contexts:
        inputs.append(("memory", _recalled(document, E, a["contexts.memory.labels.weight"])))
    return inputs


def _recalled(document: list[int], E: Array, labels: Array) -> Array:
    """What a memory of strength 0.15, written with the pairs of a document, reads for its last token."""
    S = np.zeros((labels.shape[1], E.shape[1]))
    for x, y in itertools.pairwise(document):
        key = E[x] / np.linalg.norm(E[x])
        S += 0.15 * np.outer(labels[y] - S @ key, key)
    h = np.maximum(S @ E[document[-1]] / np.linalg.norm(E[document[-1]]), 0) + 0.05 / labels.shape[1]
    return np.asarray(h / h.sum())


def _attended(window: list[Array], W: Array) -> Array:
    """The context of vectors, oldest first."""
    X = np.array(window[::-1])
    return np.asarray(_softmax(X @ X[0] @ W[: len(X), : len(X)]) @ X)


def _softmax(z: Array) -> Array:
    weights = np.exp(z - z.max())
    return np.asarray(weights / weights.sum())


# Spectral warm start


def discounted_bigram(counts: Array, discount: float, prior: Array) -> Array:
    """Twin of `spectral.Bigram`: P (V, V) of pair counts (V, V); rows without counts are the prior."""
    P = np.zeros(counts.shape)
    for x, row in enumerate(counts):
        n = row.sum()
        for y, c in enumerate(row):
            P[x, y] = max(c - discount, 0) / n + discount * (row > 0).sum() / n * prior[y] if n else prior[y]
    return P


def refit_rows(P: Array, A: Array, B: Array, prior: Array, damping: float) -> Array:
    """Twin of `spectral.refit_rows` for all rows: ``H = B^T (diag p - p p^T) B``."""
    H = B.T @ (np.diag(prior) - np.outer(prior, prior)) @ B
    H = H + damping * np.mean(np.diag(H)) * np.eye(len(H))
    out = A.copy()
    for x in range(len(A)):
        q = np.exp(B @ A[x]) * prior
        out[x] = A[x] + np.linalg.inv(H) @ (B.T @ (P[x] - q / q.sum()))
    return out


def refit_columns(P: Array, A: Array, B: Array, prior: Array, share: Array, damping: float, step: float) -> Array:
    """Twin of `spectral.refit_columns` for all rows: ``H = sum_x share_x a_x a_x^T``."""
    H = sum(s * np.outer(a, a) for s, a in zip(share, A, strict=True))
    H = H + damping * np.mean(np.diag(H)) * np.eye(len(H))
    gradient = np.zeros(B.shape)
    for x in range(len(A)):
        q = np.exp(B @ A[x]) * prior
        gradient += share[x] * np.outer(P[x] - q / q.sum(), A[x])
    return B + step * (gradient / (prior + 1e-5)[:, None]) @ np.linalg.inv(H)


def sum_rule(q: Array, k: Array, v: Array, S: Array, z: Array, normalise: bool) -> tuple[Array, Array, Array]:
    """Twin of `memory.sum_rule` for one head: q, k (length, d_phi), v (length, d_v); output, S and z after it."""
    output = []
    for t in range(len(k)):
        S = S + np.outer(v[t], k[t])
        z = z + k[t]
        total = float(z @ q[t]) if normalise else 1.0
        output.append(S @ q[t] / total if total else np.zeros(v.shape[1]))
    return np.array(output), S, z


def delta_rule(q: Array, k: Array, v: Array, beta: Array, S: Array) -> tuple[Array, Array]:
    """Twin of `memory.delta_rule` for one head: q, k (length, d_phi), v (length, d_v), beta (length,)."""
    output = []
    for t in range(len(k)):
        S = S + beta[t] * np.outer(v[t] - S @ k[t], k[t])
        output.append(S @ q[t])
    return np.array(output), S


# The cache of a document


def cache_window(tokens: Sequence[int], n: int, separator: int, size: int) -> tuple[list[int], range]:
    """What a cache knows before target n of a stream that follows a separator: the document so far, separator first,
    and the places in it of the targets that count.
    """
    past = [separator, *tokens[:n]]
    document = past[max(i for i, token in enumerate(past) if token == separator) :]
    return document, range(max(1, len(document) - size), len(document))


def cache_counts(tokens: Sequence[int], n: int, separator: int, order: int, size: int) -> tuple[list[list[int]], int]:
    """Twin of `DocumentCache.read` for target n: its counts (order, 3) and its position."""
    document, counted = cache_window(tokens, n, separator, size)
    counts = []
    for length in range(order):
        after = [
            document[i]
            for i in counted
            if length <= i and document[i - length : i] == document[len(document) - length :]
        ]
        counts.append([after.count(tokens[n]), len(after), len(set(after))])
    return counts, len(document) - 1


def cache_row(
    tokens: Sequence[int], separator: int, order: int, size: int, discount: float, vocab_size: int
) -> list[float]:
    """Twin of `DocumentCache.row` after these tokens, by the recursion as it is written in the books."""

    def probability(y: int, length: int) -> float:
        if length < 0:
            return 1 / vocab_size
        counts, _ = cache_counts([*tokens, y], len(tokens), separator, length + 1, size)
        pair, total, types = counts[-1]
        if total == 0:
            return probability(y, length - 1)
        return max(pair - discount, 0) / total + discount * types / total * probability(y, length - 1)

    return [probability(y, order - 1) for y in range(vocab_size)]


# N-grams: a text is a list of tokens that begins and ends with the separator, an n-gram is a tuple

Gram = tuple[int, ...]


def ngram_counts(
    text: Sequence[int], separator: int, order: int, targets: Iterable[int] | None = None
) -> Counter[Gram]:
    """Count what ends at the targets (all but the first token); no n-gram reaches behind the last separator before."""
    counts: Counter[Gram] = Counter()
    for i in range(1, len(text)) if targets is None else targets:
        history: Gram = ()
        for j in range(i - 1, -1, -1):
            history = (text[j], *history)
            if text[j] == separator:
                break
        for n in range(min(order - 1, len(history)) + 1):
            counts[(*history[len(history) - n :], text[i])] += 1
    return counts


class KneserNey:
    """Interpolated modified Kneser-Ney (Chen and Goodman 1999, section 3), from the definitions.

    thresholds: for every length, n-grams that occur at most so often are pruned; discounts: those of other counts.
    """

    def __init__(
        self,
        counts: Counter[Gram],
        vocab_size: int,
        separator: int,
        order: int,
        thresholds: Sequence[int] | None = None,
        discounts: dict[int, list[float]] | None = None,
    ) -> None:
        self.raw, self.vocab_size, self.order = counts, vocab_size, order
        self.separator, self.thresholds = separator, thresholds or [0] * order
        before: dict[Gram, set[int]] = {}
        for gram in counts:
            before.setdefault(gram[1:], set()).add(gram[0])
        self.counts: dict[Gram, int] = {}
        for gram, times in counts.items():
            whole = len(gram) == order or (len(gram) > 1 and gram[0] == separator)
            self.counts[gram] = times if whole else len(before[gram])
        self.extensions: dict[Gram, list[int]] = {}
        for gram in counts:
            self.extensions.setdefault(gram[:-1], []).append(gram[-1])
        self.discounts = discounts or {n: self._discounts(n) for n in range(1, order + 1)}

    def _discounts(self, n: int) -> list[float]:
        values = [count for gram, count in self.counts.items() if len(gram) == n]
        n1, n2, n3, n4 = (values.count(i) for i in (1, 2, 3, 4))
        if n1 and n2 and n3:
            y = n1 / (n1 + 2 * n2)
            found = [1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
            if all(0 < discount <= i for i, discount in enumerate(found, start=1)):
                return found
        return [0.5, 1.0, 1.5]

    def _is_kept(self, gram: Gram) -> bool:
        return len(gram) == 1 or self.raw[gram] > self.thresholds[len(gram) - 1]

    def _total(self, h: Gram) -> int:
        return sum(self.counts[(*h, y)] for y in self.extensions.get(h, []))

    def history(self, tokens: Sequence[int]) -> Gram:
        """The part of the tokens before a target that may be used."""
        out: Gram = ()
        for token in reversed(tokens):
            if len(out) == self.order - 1:
                break
            out = (token, *out)
            if token == self.separator:
                break
        return out

    def probability(self, y: int, h: Gram) -> float:
        lower = self.probability(y, h[1:]) if h else 1 / self.vocab_size
        total = self._total(h)
        if not total:
            return lower
        D = self.discounts[len(h) + 1]
        left = 0.0
        for token in self.extensions[h]:
            count = self.counts[(*h, token)]
            left += D[min(count, 3) - 1] if self._is_kept((*h, token)) else count
        count = self.counts.get((*h, y), 0)
        seen = count - D[min(count, 3) - 1] if count and self._is_kept((*h, y)) else 0.0
        return seen / total + left / total * lower

    def known(self, h: Gram) -> tuple[int, int]:
        """Length of the longest context that was counted and is in the tables, and the bits of its count."""
        for n in range(len(h), 0, -1):
            context = h[len(h) - n :]
            here = self._is_kept(context) or any(self._is_kept((*context, y)) for y in self.extensions.get(context, []))
            if here and self._total(context):
                return n, len(f"{self._total(context):b}")
        return 0, 0

    def score(self, text: Sequence[int], targets: Iterable[int]) -> list[tuple[float, int, int]]:
        """Probability of each target, length of the known context, bits of its count."""
        return [(self.probability(text[i], h), *self.known(h)) for i in targets for h in [self.history(text[:i])]]

    def without(self, text: Sequence[int], targets: Iterable[int]) -> "KneserNey":
        """The model counted again without what ends at some targets, with the discounts of this one."""
        counts = self.raw - ngram_counts(text, self.separator, self.order, targets)
        return KneserNey(counts, self.vocab_size, self.separator, self.order, self.thresholds, self.discounts)


# The mixture of experts


def expectation_maximisation(probs: Array, prior: Array, weights: Array, strength: float, floor: float) -> Array:
    """One step for the targets of one bucket: the weights (m,) after it. probs (n, m), prior (m,), weights (m,).

    The last expert has at least ``floor``; then the others share the rest as they would without this bound.
    """
    mass = strength * prior
    for row in probs:
        shares = weights * row
        mass = mass + shares / shares.sum()
    new = mass / mass.sum()
    if new[-1] < floor:
        new = np.append((1 - floor) * mass[:-1] / mass[:-1].sum(), floor)
    return np.asarray(new)


def bucket(values: Sequence[int], sizes: Sequence[int]) -> tuple[int, ...]:
    """The features of a target, each at most its largest value."""
    return tuple(min(value, size - 1) for value, size in zip(values, sizes, strict=True))


class Mixture:
    """The mixture from the definitions, token by token.

    prior (V,); ngrams, classes: models of the tokens and of the labels (V,); caches: order and size by name, "cache"
    and "cache 1024" at least, or empty; network: `Config` and dense weights; weights: by bucket and expert, the last
    feature fastest; sizes: number of values of the features.
    """

    DISCOUNT, ADDED = 0.5, 2.0

    def __init__(
        self,
        separator: int,
        prior: Array,
        *,
        ngrams: KneserNey | None = None,
        classes: KneserNey | None = None,
        labels: Sequence[int] = (),
        shares: Sequence[float] = (),
        caches: dict[str, tuple[int, int]] | None = None,
        network: tuple[Any, dict[str, Array]] | None = None,
        weights: Array | None = None,
        sizes: Sequence[int] = (),
    ) -> None:
        self.separator, self.prior, self.vocab_size = separator, prior, len(prior)
        self.ngrams, self.classes, self.labels, self.shares = ngrams, classes, labels, shares
        self.caches, self.network, self.weights, self.sizes = caches or {}, network, weights, sizes

    def rows(self, past: Sequence[int]) -> Array:
        """The distribution of the token after a document so far, without its separator, by each expert (m, V)."""
        rows, tokens = [], range(self.vocab_size)
        if self.ngrams is not None:
            history = self.ngrams.history([self.separator, *past])
            rows.append([self.ngrams.probability(y, history) for y in tokens])
        if self.classes is not None:
            history = self.classes.history([self.labels[token] for token in (self.separator, *past)])
            rows.append([self.classes.probability(self.labels[y], history) * self._in_class(past, y) for y in tokens])
        for order, size in self.caches.values():
            rows.append(cache_row(past, self.separator, order, size, self.DISCOUNT, self.vocab_size))
        if self.network is not None:
            config, arrays = self.network
            rows.append(list(_softmax(language_model_logits(config, arrays, np.array([self.separator, *past]))[-1])))
        return np.array([*rows, self.prior])

    def _in_class(self, past: Sequence[int], y: int) -> float:
        if not self.caches:
            return self.shares[y]
        seen = list(past)[-self.caches["cache"][1] :]
        of_class = [token for token in seen if self.labels[token] == self.labels[y]]
        return (seen.count(y) + self.ADDED * self.shares[y]) / (len(of_class) + self.ADDED)

    def features(self, past: Sequence[int]) -> list[int]:
        values = []
        if self.caches:
            known = {}
            for name, (order, size) in self.caches.items():
                counts, _ = cache_counts([*past, 0], len(past), self.separator, order, size)
                known[name] = max(k for k in range(order) if k == 0 or counts[k][1]), counts
            longest, counts = known["cache"]
            values = [longest, counts[longest][2].bit_length(), counts[longest][1].bit_length(), known["cache 1024"][0]]
        if self.ngrams is not None:
            values.append(self.ngrams.known(self.ngrams.history([self.separator, *past]))[0])
        return [*values, [self.separator, *past][-1].bit_length() // 2]

    def row(self, past: Sequence[int]) -> Array:
        assert self.weights is not None
        by_bucket = self.weights.reshape(*self.sizes, -1)
        return np.asarray(by_bucket[bucket(self.features(past), self.sizes)] @ self.rows(past))
