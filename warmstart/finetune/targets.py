"""Counted targets: a whole row of probabilities of what follows a history elsewhere in the training text.

The loss of a target y after the history h is

    (1 - a) (-log q(y | h)) + a (-sum_y' P(y' | h) log q(y' | h))

with the network's probability q, the probability P of an n-gram model, and a weight a that falls to 0 over a phase. A
row says more than one token, so the network needs less text to learn. The trained network needs no n-grams.

An n-gram model that has counted the target is too sure of it. So the text is cut into two halves, each half is counted,
and the rows of its targets come from the model of the other half. Parts (see `warmstart.kneser_ney.parts`) stay whole.
"""

from dataclasses import fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from warmstart.backoff import BackoffModel
from warmstart.corpus import Corpus
from warmstart.kneser_ney import KneserNey, parts
from warmstart.ngrams import count_ngrams, joined
from warmstart.progress import Progress

ORDER = 5


class CountedTargets:
    """Rows of probabilities for the targets of a training text, from n-gram models of its halves.

    Parameters
    ----------
    corpus : Corpus
        The training text.
    order : int
        Length of the longest n-grams.
    progress : callable, optional
        Called as ``progress("count targets", tokens, total)``.

    Attributes
    ----------
    half : (n_tokens,) int8
        Half of every target, 0 or 1.
    """

    def __init__(self, corpus: Corpus, order: int = ORDER, progress: Progress | None = None) -> None:
        self.corpus = corpus
        spans = parts(corpus.documents, corpus.n_tokens)
        sizes = [span.stop - span.start for span in spans]
        own = halves(sizes)
        self.half = np.repeat(own, sizes)
        self.models = []
        for half in (1, 0):  # rows of half 0 come from the counts of half 1
            texts = [np.asarray(corpus.tokens[spans[i]]) for i in np.flatnonzero(own == half)]
            texts = [text[: text.size - (text[-1] == corpus.separator)] for text in texts]
            tokens, documents = joined(texts, corpus.separator, corpus.vocab_size)
            model = KneserNey(count_ngrams(tokens, documents, corpus.vocab_size, order))
            self.models.append(BackoffModel(**{each.name: getattr(model, each.name) for each in fields(BackoffModel)}))
            if progress:
                progress("count targets", tokens.size, corpus.n_tokens)

    def rows(self, places: NDArray[np.int64]) -> Tensor:
        """Return the probabilities of all tokens (n, V) float32 at targets, which are given by their places from 0."""
        out = np.empty((places.size, self.corpus.vocab_size), np.float32)
        for half, model in enumerate(self.models):
            chosen = self.half[places] == half
            out[chosen] = model.rows(self.corpus.tokens, places[chosen], torch.get_num_threads())
        return torch.from_numpy(out)


def halves(sizes: list[int]) -> NDArray[np.int8]:
    """Return the half, 0 or 1, of parts (n,), given their sizes: each goes to the half that is smaller so far.

    Examples
    --------
    >>> halves([3, 1, 1, 2]).tolist()
    [0, 1, 1, 1]
    """
    out, totals = np.zeros(len(sizes), np.int8), [0, 0]
    for i, size in enumerate(sizes):
        out[i] = totals[1] < totals[0]
        totals[out[i]] += size
    return out
