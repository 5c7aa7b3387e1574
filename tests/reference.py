"""Readable twins of the kernels and of the solution, for tests: slow, obviously right, sharing no helper with them.

Twins of kernels take dense matrices where the kernels take sparse rows, and return new arrays. Each adds in the order
of the examples, so that float sums can be compared with ``==``.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def add_pairs(inputs: Array, targets: Array, bits: Array, units: Array, sums: Array) -> Array:
    """Twin of `_kernels.add_pairs`: ``sums + sum_n units[s_n] * outer(onehot(y_n), bits[s_n])``; bits (V, D)."""
    sums = sums.copy()
    for s, y in zip(inputs, targets, strict=True):
        sums[y] += units[s] * bits[s]
    return sums


def add_examples(X: Array, Y: Array, sums: Array) -> Array:
    """Twin of `_kernels.add_dense` and `add_sparse`: ``sums + sum_n outer(y_n, x_n)``; X (n, D), Y (n, C)."""
    sums = sums.copy()
    for x, y in zip(X, Y, strict=True):
        sums += np.outer(y, x)
    return sums


def compare_codes(pivots: Array, windows: Array, codes: Array) -> Array:
    """Twin of `_kernels.compare_codes`, with Python's integers: codes (V, words) uint64."""
    numbers = [sum(int(word) << 64 * i for i, word in enumerate(code)) for code in codes]
    q = np.zeros(windows.shape)
    for n, (pivot, window) in enumerate(zip(pivots, windows, strict=True)):
        for i, token in enumerate(window):
            u, v = numbers[pivot], numbers[token]
            q[n, i] = (u & v).bit_count() / (u.bit_count() * v.bit_count())
    return q


def compare(window: Array, E: Array) -> Array:
    """Twin of `_kernels.compare`: ``q[n, i] = <x_i, x_0>``; window (B, n), -1 empty; E (V, D)."""
    q = np.zeros(window.T.shape)
    for n, tokens in enumerate(window.T):
        for i, token in enumerate(tokens):
            if token >= 0 and tokens[0] >= 0:
                for d in range(E.shape[1]):
                    q[n, i] += E[token, d] * E[tokens[0], d]
    return q


def superpose(window: Array, A: Array, G: Array) -> Array:
    """Twin of `_kernels.superpose`: ``sum_i A[n, i] * G[window[i, n]]`` (n, m)."""
    out = np.zeros((window.shape[1], G.shape[1]))
    for n, tokens in enumerate(window.T):
        for i, token in enumerate(tokens):
            if token >= 0:
                out[n] += A[n, i] * G[token]
    return out


def running_mean(newest: Array, position: Array, G: Array) -> Array:
    """Twin of `_kernels.running_mean` from its first token: mean of the rows of the last ``position + 1`` tokens."""
    rows = []
    for n, before in enumerate(position):
        total = np.zeros(G.shape[1])
        for token in newest[max(0, n - before) : n + 1]:
            total += G[token]
        rows.append(total / (before + 1))
    return np.array(rows).reshape(-1, G.shape[1])


def responsibilities(window: Array, targets: Array, A: Array, E: Array, L: Array, norm: Array) -> tuple[Array, float]:
    """Twin of `_kernels.responsibilities`: R (n, B) and the log-likelihood; E (V, D), L (D, C)."""
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
    """Twin of `_kernels.attend`: ``softmax(q W)`` (n, B) with the empty positions left out of q and of the softmax."""
    A = np.zeros(window.T.shape)
    for n, tokens in enumerate(window.T):
        filled = np.flatnonzero(tokens >= 0)
        q = E[tokens[filled]] @ E[tokens[0]]
        scores = np.exp(q @ W[np.ix_(filled, filled)])
        A[n, filled] = scores / scores.sum()
    return A


def explicit_solution(F: Array, k: float) -> Array:
    """Return ``log F - (k - 1) / k * log F.`` as published (arXiv 2311.07498, theorem 1); F (D, C) positive."""
    return np.asarray(np.log(F) - (k - 1) / k * np.log(F.sum(axis=0)))


def leave_one_out_cross_entropy(
    groups: Sequence[Array],
    Y: Array,
    chosen: Sequence[int],
    prior: Array,
    *,
    k: float,
    smoothing: float,
    temperatures: Sequence[float],
) -> float:
    """Return nats an example over the chosen rows, each scored by a layer solved without it; the prior is kept.

    groups: G arrays (n, D_g), all the examples that were counted; Y (n, C) their target distributions.
    """
    loss = 0.0
    for i in chosen:
        others = np.arange(Y.shape[0]) != i
        z = np.zeros(Y.shape[1])
        for X, tau in zip(groups, temperatures, strict=True):
            F = X[others].T @ Y[others] + smoothing * prior
            U = tau * (np.log(F) - np.log(F.sum(axis=0))) + np.log(prior) / k
            z += X[i] @ U
        loss -= float(Y[i] @ (z - np.log(np.exp(z - z.max()).sum()) - z.max()))
    return loss / len(chosen)


def language_model_logits(config: Any, arrays: dict[str, Array], ids: Array) -> Array:
    """Return the logits (length, V) after each token of one sequence, a position at a time, in float64.

    config: fields of `warmstart.near_shallow.Config`; arrays: dense weights by their names in the state_dict.
    """
    a = {name: np.asarray(array, dtype=np.float64) for name, array in arrays.items()}
    out = []
    for newest in range(len(ids)):
        document: list[int] = []  # oldest first
        for token in ids[: newest + 1]:
            document = ([] if token == config.separator else document) + [token]
        history = [a["embedding.weight"][token] for token in document]
        separator = a["embedding.weight"][config.separator]
        inputs: list[Array] = []
        if "radial" in config.contexts:
            inputs += ([separator] * config.radius + history)[: -config.radius - 1 : -1]
        if "attended" in config.contexts:
            context = _attend(history[-config.radius :], a["contexts.attended.attention.weight"])
            inputs.append(_softmax(context @ a["contexts.attended.values.weight"]))
        if "block" in config.contexts:
            begin = (len(history) - 1) // config.block_size * config.block_size
            context = _attend(history[begin:], a["contexts.block.attention.weight"])
            inputs.append(_softmax(context @ a["contexts.block.values.weight"]))
        if "document" in config.contexts:
            inputs.append(_softmax(np.mean(history, axis=0) @ a["contexts.document.values.weight"]))
        if "memory" in config.contexts:
            inputs.append(_recall(document, a["embedding.weight"], a["contexts.memory.labels.weight"]))
        out.append(np.concatenate(inputs) @ a["output.weight"])
    return np.array(out)


def _recall(document: list[int], E: Array, labels: Array) -> Array:
    """Return what a memory of strength 0.15 of the pairs of a document, oldest first, reads for its last token."""
    S = np.zeros((E.shape[1], labels.shape[1]))
    for x, y in itertools.pairwise(document):
        k = E[x] / np.linalg.norm(E[x])
        S += 0.15 * np.outer(k, labels[y] - k @ S)
    h = np.maximum(E[document[-1]] / np.linalg.norm(E[document[-1]]) @ S, 0) + 0.05 / labels.shape[1]
    return np.asarray(h / h.sum())


def _attend(window: list[Array], W: Array) -> Array:
    """Return the context of vectors, oldest first."""
    X = np.array(window[::-1])
    q = np.array([x @ X[0] for x in X])
    return np.asarray(_softmax(q @ W[: len(X), : len(X)]) @ X)


def _softmax(z: Array) -> Array:
    weights = np.exp(z - z.max())
    return np.asarray(weights / weights.sum())


def remember(newest: Array, targets: Array, position: Array, keys: Array, labels: Array, strength: float) -> Array:
    """Twin of `_kernels.remember`: reads (n, m), every document begins with an empty S; keys (V, b), labels (V, m)."""
    out = np.zeros((len(newest), labels.shape[1]))
    for n, (x, y) in enumerate(zip(newest, targets, strict=True)):
        if n == 0 or position[n] == 0:
            S = np.zeros((labels.shape[1], keys.shape[1]))
        out[n] = S @ keys[x]
        S = S + strength * np.outer(labels[y] - S @ keys[x], keys[x])
    return out


def discounted_bigram(counts: Array, discount: float, prior: Array) -> Array:
    """Twin of `spectral.Bigram`: P (V, V) of pair counts (V, V), rows without counts are the prior."""
    P = np.zeros(counts.shape)
    for x, row in enumerate(counts):
        n = row.sum()
        for y, c in enumerate(row):
            P[x, y] = max(c - discount, 0) / n + discount * (row > 0).sum() / n * prior[y] if n else prior[y]
    return P


def refit_rows(P: Array, A: Array, B: Array, prior: Array, damping: float) -> Array:
    """Twin of `spectral.refit_rows`: a damped Newton step of every row of A, ``H = B^T (diag p - p p^T) B``."""
    H = B.T @ (np.diag(prior) - np.outer(prior, prior)) @ B
    H = H + damping * np.mean(np.diag(H)) * np.eye(len(H))
    out = A.copy()
    for x in range(len(A)):
        q = np.exp(B @ A[x]) * prior
        out[x] = A[x] + np.linalg.inv(H) @ (B.T @ (P[x] - q / q.sum()))
    return out


def refit_columns(P: Array, A: Array, B: Array, prior: Array, share: Array, damping: float, step: float) -> Array:
    """Twin of `spectral.refit_columns`: a damped Newton step of every row of B, ``H = sum_x share_x a_x a_x^T``."""
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


def ttt_linear(
    q: Array, k: Array, v: Array, eta: Array, W: Array, norm: tuple[Array, Array] | None, mini_batch: int
) -> tuple[Array, Array]:
    """Twin of `memory.ttt_rule` with one matrix and one head, a token at a time: q, k, v (length, d), eta (length,).

    The gradient goes through the whole Jacobian of the norm; ``norm`` is its scale and shift (d,), or None.
    """
    d, output = q.shape[1], []
    for t in range(len(k)):
        if t % mini_batch == 0:
            start = W
        z = k[t] @ start
        if norm is None:
            gradient = z - v[t]
        else:
            deviation = np.sqrt(z.var() + 1e-6)
            unit = (z - z.mean()) / deviation
            jacobian = (np.eye(d) - 1 / d - np.outer(unit, unit) / d) / deviation
            gradient = jacobian @ (norm[0] * (norm[0] * unit + norm[1] + k[t] - v[t]))
        W = W - eta[t] * np.outer(k[t], gradient)
        read = q[t] @ W
        if norm is not None:
            unit = (read - read.mean()) / np.sqrt(read.var() + 1e-6)
            read = norm[0] * unit + norm[1] + q[t]
        output.append(read)
    return np.array(output), W
