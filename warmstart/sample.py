"""The sample of counted text on which a mixture is fitted, and the fit of its gate.

The sample is part of the statistic. Its documents come first in the order of their digests, so they are a random choice
that does not depend on how the text was cut into shards. Every target is scored as if its part (see
`warmstart.kneser_ney.parts`) had not been counted. The network would need a solution for every part; it is solved once
without all parts of a smaller sample, and judged there.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from warmstart._threads import blocks
from warmstart.backoff import BackoffModel
from warmstart.contexts import read
from warmstart.errors import InputError
from warmstart.gate import Gate, fit_gate, with_expert
from warmstart.kneser_ney import PIECES, KneserNey, parts
from warmstart.mixture import TARGETS_PER_CHUNK, Evidence, Experts, Ids, Mixture, network_losses
from warmstart.near_shallow import NearShallowModel
from warmstart.ngrams import NGramCounts, joined
from warmstart.progress import Progress

TARGETS = 1 << 19  # of the sample
READ = 4  # times as many tokens are read, so that stretches come from many documents
STRETCH = 4096  # targets
NETWORK_TARGETS = 1 << 16  # of the sample for the network

Solve = Callable[[list[Ids]], NearShallowModel]  # documents to a network


def fit_mixture(
    experts: Experts,
    counts: NGramCounts,
    solve: Solve | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> tuple[Mixture, dict[str, float]]:
    """Fit the weights of experts on a sample of the text that they have counted.

    Parameters
    ----------
    experts : Experts
        ``ngrams`` and the model of ``classes`` are solved from ``counts``.
    counts : NGramCounts
    solve : callable, optional
        Solves a network from documents, as ``experts.network`` was solved. Given if there is one.
    workers : int
        Number of threads. The result does not depend on it.
    progress : callable, optional
        Called as ``progress("weigh experts", targets, total)``.

    Returns
    -------
    mixture : Mixture
    losses : dict of str to float
        Nats a target on the sample, by the mixture and by every expert but the network.
    """
    tokens, borders = joined(first_documents(counts, READ * TARGETS), counts.separator, counts.vocab_size)
    scored = stretches(tokens.size - 1, TARGETS)
    evidence = left_out_evidence(experts, tokens, borders, scored, workers, progress)
    gate, losses = fit_gate(evidence.probs, evidence.features, experts.feature_sizes)
    names = [name for name in experts.names if name != "network"]
    report = {"mixture": losses[-1]} | dict(zip(names, (-np.log(evidence.probs).mean(axis=0)).tolist(), strict=True))
    if solve is not None:
        gate = _with_network(experts, counts, gate, solve, workers)
    return Mixture(experts, gate), report


def first_documents(counts: NGramCounts, limit: int) -> list[Ids]:
    """Return the first documents in the order of their digests, until they have so many tokens."""
    ends = np.cumsum(np.repeat(counts.documents.lengths + 1, counts.documents.copies))
    return counts.documents.all()[: int(np.searchsorted(ends, limit)) + 1]


def stretches(n: int, limit: int) -> NDArray[np.bool_]:
    """Return which of n targets are scored, stretch by stretch, so that they are about ``limit``."""
    every = max(1, round(n / limit))
    scored: NDArray[np.bool_] = np.arange(n) // STRETCH % every == 0
    return scored


def left_out_evidence(
    experts: Experts,
    tokens: Ids,
    borders: NDArray[np.int64],
    scored: NDArray[np.bool_],
    workers: int = 1,
    progress: Progress | None = None,
) -> Evidence:
    """Return the evidence for the scored targets of counted documents, each as if its part had not been counted."""
    found = []
    for part, evidence in left_out_scan(experts, tokens, borders, workers):
        found.append([array[scored[part]] for array in evidence])
        if progress:
            progress("weigh experts", part.stop, tokens.size - 1)
    return Evidence(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))


def left_out_scan(
    experts: Experts, tokens: Ids, borders: NDArray[np.int64], workers: int = 1
) -> Iterator[tuple[slice, Evidence]]:
    """Yield the evidence for all targets of counted documents chunk by chunk, each as if its part were not counted."""
    ngrams = None if experts.ngrams is None else _with_counts(experts.ngrams).left_out(tokens, borders, workers)
    classes = []
    for own in experts.classes:
        labels = own.labels[tokens].astype(own.model.last.dtype)
        classes.append(_with_counts(own.model).left_out(labels, borders, workers))
    memory = experts.start()
    for part in blocks(tokens.size - 1, TARGETS_PER_CHUNK):
        text, of_ngrams = tokens[part.start : part.stop + 1], None if ngrams is None else ngrams.of(part)
        yield part, experts.evidence(text, 1, memory, of_ngrams, [scores.of(part) for scores in classes])


def _with_counts(model: BackoffModel) -> KneserNey:
    """Return a model that can leave text out, refuse tables without counts."""
    if not isinstance(model, KneserNey):
        raise InputError("expected n-grams with their counts, from which text can be left out, got tables; fit again")
    return model


class Split(NamedTuple):
    """A text of which some parts are held out.

    Attributes
    ----------
    rest : list of (n,) int
        The documents without the parts; what is left of a long document before and after a part is a document.
    texts : list of (n,) int
        The documents that parts were taken from.
    held_out : list of slice
        The targets of the parts in ``texts``, one after the other, from 0.
    """

    rest: list[Ids]
    texts: list[Ids]
    held_out: list[slice]


def split(counts: NGramCounts) -> Split:
    """Hold out an eighth of a text: documents whole, long ones in part (see `warmstart.kneser_ney.parts`)."""
    documents, wanted = counts.documents.all(), counts.n_tokens / PIECES
    texts: list[Ids] = []
    held_out: list[slice] = []
    rest: list[Ids] = []
    taken = start = 0
    for text in documents:
        if taken >= wanted:
            rest.append(text)
            continue
        size = text.size + 1
        pieces = parts(np.array([0, size]), counts.n_tokens)
        chosen = pieces if len(pieces) == 1 else [pieces[3 % len(pieces)]]  # one from the middle of a long document
        for piece in chosen:
            held_out.append(slice(start + piece.start - 1, start + piece.stop - 1))
            taken += piece.stop - piece.start
            rest += [run for run in (text[: piece.start - 1], text[piece.stop - 1 :]) if run.size]
        texts.append(text)
        start += size
    return Split(rest, texts, held_out)


def _with_network(experts: Experts, counts: NGramCounts, gate: Gate, solve: Solve, workers: int) -> Gate:
    """Add the network, which is in no gate yet, judged on parts of the text that it was solved without."""
    rest, texts, held_out = split(counts)
    if not rest:
        raise InputError("expected more than one token of text to judge the network on, got less; give more text")
    network = solve(rest)
    tokens, borders = joined(texts, counts.separator, counts.vocab_size)
    inside = np.zeros(tokens.size - 1, np.bool_)
    for part in held_out:
        inside[part] = True
    scored = inside & stretches(inside.size, max(1, round(NETWORK_TARGETS * inside.size / inside.sum())))
    evidence = left_out_evidence(experts, tokens, borders, scored, workers)
    state, found = network.start(), []
    remembers = {"document", "memory"} & set(network.config.contexts)
    for part in blocks(inside.size, STRETCH):
        if scored[part].any():
            losses = network_losses(network, experts.prior, tokens, borders, part, state, workers)
            found.append(losses[0][scored[part]])
        elif remembers:
            network.inputs(read(tokens, borders, network.config.window, part.start + 1, part.stop + 1), state, workers)
    return with_expert(gate, evidence.probs, np.exp(-np.concatenate(found)), evidence.features)
