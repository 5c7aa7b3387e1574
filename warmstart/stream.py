"""A document read token by token: the distribution of the next token, text written from it, and what speaks for it."""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from numbers import Integral

import numpy as np

from warmstart._softmax import softmax
from warmstart.classes import ClassModel
from warmstart.contexts import Chunk
from warmstart.errors import InputError
from warmstart.ids import whole_numbers
from warmstart.mixture import CACHES, Floats, Mixture, features
from warmstart.sampling import check_sampling, draw


class Stream:
    """A document that is read token by token, with the distribution of the next token. A token costs the same always.

    Parameters
    ----------
    mixture : Mixture

    Attributes
    ----------
    history : list of int
        Tokens since the separator, which is the first.
    """

    def __init__(self, mixture: Mixture) -> None:
        self.mixture, self.experts = mixture, mixture.experts
        self.start()

    def start(self) -> None:
        """Forget the document."""
        experts = self.experts
        self.history = [experts.separator]
        self.memory = experts.start()
        self.state = None if experts.network is None else experts.network.start()
        self.seen = np.zeros(len(experts.prior), np.int64)  # tokens in the cache

    def advance(self, tokens: Iterable[int]) -> None:
        """Read tokens. A separator begins a new document.

        Raises
        ------
        InputError
            A token is outside the vocabulary. Nothing has changed.
        """
        ids = tokens if hasattr(tokens, "__len__") else list(tokens)
        window = CACHES["cache"][1]
        for token in whole_numbers("token ids", ids, len(self.experts.prior)).tolist():
            if token == self.experts.separator:
                self.start()
                continue
            for cache in self.memory.caches.values():
                cache.read([token])
            if self.experts.network is not None and self.state is not None:
                self.experts.network.inputs(self._chunk(token), self.state)
            self.seen[token] += 1
            if len(self.history) > window:
                self.seen[self.history[-window]] -= 1
            self.history.append(int(token))

    def rows(self) -> Floats:
        """Return the distribution of the next token by each expert (m, V), in the order of ``experts.names``."""
        experts = self.experts
        rows = {"unigram": experts.prior}
        if experts.ngrams is not None:
            rows["ngrams"] = experts.ngrams.row(self.history[-experts.ngrams.order :])
        rows |= dict(zip(experts.class_names, map(self._class_row, experts.classes), strict=True))
        rows |= {name: cache.row() for name, cache in self.memory.caches.items()}
        if experts.network is not None and self.state is not None:
            inputs = experts.network.inputs(self._chunk(experts.separator), deepcopy(self.state))
            rows["network"] = softmax(np.sum(experts.network.logits(inputs), axis=0).astype(np.float64))[0]
        return np.stack([rows[name] for name in experts.names])

    def weights(self) -> Floats:
        """Return the weights of the experts (m,) for the next token."""
        counts = {name: cache.contexts() for name, cache in self.memory.caches.items()}
        ngrams = self.experts.ngrams
        known = None
        if ngrams is not None:
            found = ngrams.contexts(self.history[-ngrams.order :])
            known = np.array([sum(1 for h in found if ngrams.sizes[h] > 0)], np.int8)
        row = features(counts, known, np.array(self.history[-1:]))
        weights: Floats = self.mixture.gate.weights[self.mixture.gate.index(row)[0]]
        return weights

    def row(self) -> Floats:
        """Return the distribution of the next token (V,) float64; it sums to 1."""
        row: Floats = (self.weights()[:, None] * self.rows()).sum(axis=0)  # equal tokens stay equal, unlike with BLAS
        return row

    def _class_row(self, classes: ClassModel) -> Floats:
        labels = classes.labels
        rows = classes.model.row(labels[self.history[-classes.model.order :]])
        share = classes.shares
        if self.experts.cache:
            seen = np.bincount(labels, self.seen, minlength=classes.n_classes)[labels]
            share = classes.within(np.arange(len(labels)), self.seen, seen)
        return np.asarray(rows[labels] * share)

    def _chunk(self, target: int) -> Chunk:
        """Return the next target with its history, as `warmstart.contexts.read` does."""
        size = 1 if self.experts.network is None else self.experts.network.config.window
        window = np.full((size, 1), -1, np.int32)
        newest = self.history[: -size - 1 : -1]
        window[: len(newest), 0] = newest
        return Chunk(1, np.array([target], np.int32), np.array([len(self.history) - 1]), window)

    def generate(self, max_new_tokens: int, temperature: float = 1.0, top_p: float = 1.0, seed: int = 0) -> list[int]:
        """Write on, at most so many tokens; the document ends before a separator.

        Parameters
        ----------
        max_new_tokens : int
        temperature : float
            Below 1 favours probable tokens; 0 always takes the most probable one.
        top_p : float
            In (0, 1]. Sample from the most probable tokens that together have this probability.
        seed : int
            The same seed gives the same tokens.

        Raises
        ------
        InputError
            A number is out of range.
        """
        check_sampling(max_new_tokens, temperature, top_p, seed)
        rng, written = np.random.default_rng(seed), []
        for _ in range(max_new_tokens):
            token = draw(self.row(), temperature, top_p, rng)
            if token == self.experts.separator:
                break
            self.advance([token])
            written.append(token)
        return written

    def explain(self, top: int = 5) -> "Explanation":
        """Return what speaks for the most probable next tokens, see `Explanation`."""
        if not isinstance(top, Integral) or top < 0:
            raise InputError(f"top: expected a whole number of at least 0, got {top!r}")
        names, weights, rows = self.experts.names, self.weights(), self.rows()
        added = weights[:, None] * rows
        total = added.sum(axis=0)
        reasons = []
        for token in np.argsort(-total, kind="stable")[:top].tolist():
            shares = dict(zip(names, (added[:, token] / total[token]).tolist(), strict=True))
            ngrams = [(gram, part * shares["ngrams"]) for gram, part in self._ngram_parts(token)]
            places = [(place, part * shares["cache"]) for place, part in self._places(token)]
            reasons.append(Reason(token, float(total[token]), shares, ngrams, places))
        return Explanation(reasons, dict(zip(names, weights.tolist(), strict=True)))

    def _ngram_parts(self, token: int) -> list[tuple[tuple[int, ...], float]]:
        """Return the n-grams that end in a token and their parts of its probability by the n-grams, largest first."""
        model = self.experts.ngrams
        if model is None:
            return []
        whole = float(model.probs[token])
        parts: list[tuple[tuple[int, ...], float]] = [((token,), whole)]
        for length, h in enumerate(model.contexts(self.history[-model.order :]), start=1):
            gram, gamma = (*self.history[-length:], token), float(model.gammas[h])
            parts, lower = [(shorter, gamma * part) for shorter, part in parts], gamma * whole
            node = model.find(list(gram))
            whole = float(model.probs[node]) if node >= 0 else lower
            if whole > lower:
                parts.append((gram, whole - lower))
        return sorted(((gram, part / max(whole, 1e-300)) for gram, part in parts), key=lambda entry: -entry[1])

    def _places(self, token: int) -> list[tuple[int, float]]:
        """Return where the document had the token after the longest context that it shares with the end.

        Each place is the position of the token in ``history``. All places of the longest context have an equal part.
        """
        cache = self.memory.caches.get("cache")
        if cache is None:
            return []
        history = np.array(self.history)
        found = np.flatnonzero(history[1:] == token) + 1
        found = found[found > len(history) - 1 - cache.size]
        length = np.zeros(found.size)
        for k in range(1, cache.order):
            same = (found >= k) & (length == k - 1)
            same[same] = history[found[same] - k] == history[-k] if len(history) >= k else False
            length[same] = k
        if not found.size:
            return []
        longest = found[length == length.max()]
        return [(int(place), 1.0 / longest.size) for place in longest[::-1]]


@dataclass(frozen=True)
class Reason:
    """What speaks for one token.

    Attributes
    ----------
    token : int
    probability : float
    shares : dict of str to float
        Share of every expert in the probability; they sum to 1.
    ngrams : list of (tuple of int, float)
        N-grams of the counted text that end in the token, and their shares: together that of the n-grams.
    places : list of (int, float)
        Positions in the history where the token followed the longest context that is here too, newest first, and their
        shares: together that of the cache.
    """

    token: int
    probability: float
    shares: dict[str, float]
    ngrams: list[tuple[tuple[int, ...], float]]
    places: list[tuple[int, float]]


@dataclass(frozen=True)
class Explanation:
    """What speaks for the next token: the reasons for the most probable ones, and the weights of the experts."""

    reasons: list[Reason]
    weights: dict[str, float]
