"""A document read token by token: the distribution of the next token, text written from it, and what speaks for it."""

from collections.abc import Iterable
from copy import deepcopy

import numpy as np

from warmstart._softmax import softmax
from warmstart.classes import ClassModel
from warmstart.contexts import Chunk
from warmstart.mixture import CACHES, Floats, Mixture, features


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
        """Read tokens. A separator begins a new document."""
        for token in tokens:
            if token == self.experts.separator:
                self.start()
                continue
            for cache in self.memory.caches.values():
                cache.read([token])
            if self.experts.network is not None and self.state is not None:
                self.experts.network.inputs(self._chunk(token), self.state)
            self.seen[token] += 1
            size = CACHES["cache"][1]
            if len(self.history) > size:
                self.seen[self.history[-size]] -= 1
            self.history.append(int(token))

    def rows(self) -> Floats:
        """Return the distribution of the next token by each expert (m, V), in the order of ``experts.names``."""
        experts = self.experts
        rows = {"unigram": experts.prior}
        if experts.ngrams is not None:
            rows["ngrams"] = experts.ngrams.row(self.history[-experts.ngrams.order :])
        if experts.classes is not None:
            rows["classes"] = self._class_row(experts.classes)
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
        row: Floats = self.weights() @ self.rows()
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
        window = np.full((size, 1), -1, np.int64)
        newest = self.history[: -size - 1 : -1]
        window[: len(newest), 0] = newest
        return Chunk(1, np.array([target]), np.array([len(self.history) - 1]), window)
