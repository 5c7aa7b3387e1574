"""The mixture: what the n-grams, their classes, the document so far and the network say of the next token, weighed.

| expert | what it knows |
|---|---|
| ``ngrams`` | the text that was counted: Kneser-Ney, see `warmstart.kneser_ney` |
| ``classes`` | the same for classes of tokens, with the words of this document, see `warmstart.classes` |
| ``cache`` | this document so far: its last 131,072 tokens, n-grams up to order 4, see `warmstart.cache` |
| ``cache 1024``, ``cache 128`` | the last 1,024 and 128 tokens of the document, up to order 3 |
| ``network`` | the near-shallow model, see `warmstart.near_shallow` |
| ``unigram`` | how frequent each token is; at least `warmstart.gate.FLOOR` of the weight |

The weights depend on what is known before the target, see `features`. They are fitted on counted text of which each
document, or piece of a long one, is left out of the counts in turn; the network is solved once more without the sample.
A network without counts beside it has weights that are not fitted, see `Mixture.alone`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from warmstart._threads import blocks
from warmstart.backoff import BackoffModel, Scores
from warmstart.cache import CacheCounts, DocumentCache
from warmstart.classes import ADDED, ClassModel
from warmstart.contexts import read
from warmstart.errors import InputError
from warmstart.gate import FLOOR, Gate
from warmstart.ids import as_array
from warmstart.near_shallow import NearShallowModel, State, token_losses
from warmstart.ngrams import check_text
from warmstart.progress import Progress

CACHES = {"cache": (4, 131_072), "cache 1024": (3, 1024), "cache 128": (3, 128)}  # order, size
CACHE_SHAPES = tuple(np.array(list(CACHES.values())).T.copy())
NO_CACHES = np.zeros(0, np.int64), np.zeros(0, np.int64)
NO_TABLES = 0, np.zeros(0, np.uint16), np.zeros(0, np.int32), np.zeros(0), np.zeros(0)
NO_CONTEXTS = (*NO_TABLES[:3], np.zeros(0, np.uint8))
DISCOUNT = 0.5  # of the caches, chosen on validation text; a cache without other experts needs a larger one
TARGETS_PER_CHUNK = 1 << 17
NETWORK_TARGETS = 8192  # that the network scores at once
CACHE_FEATURES = (4, 8, 10, 3)  # number of values of the features of the caches

Ids = NDArray[np.integer]
Floats = NDArray[np.float64]


class Evidence(NamedTuple):
    """Probabilities of targets by each expert but the network (n, m), and the features of the gate (n, k)."""

    probs: Floats
    features: NDArray[np.int64]


@dataclass(eq=False)
class Experts:
    """The experts of a mixture, without their weights.

    Attributes
    ----------
    separator : int
    prior : (V,) float64
        Probabilities of the unigram model, all positive.
    ngrams : BackoffModel or None
    classes : tuple of ClassModel
    cache : bool
        Whether the caches take part.
    network : NearShallowModel or None
    """

    separator: int
    prior: Floats = field(repr=False)
    ngrams: BackoffModel | None = None
    classes: tuple[ClassModel, ...] = ()
    cache: bool = False
    network: NearShallowModel | None = None

    @property
    def names(self) -> list[str]:
        """The experts in the order of the weights, the unigram model last."""
        names = ["ngrams"] if self.ngrams is not None else []
        names += self.class_names
        names += CACHES if self.cache else []
        return [*names, *([] if self.network is None else ["network"]), "unigram"]

    @property
    def counted(self) -> bool:
        """Whether an expert of counts takes part beside the unigram model."""
        return self.names[0] not in ("network", "unigram")

    @property
    def class_names(self) -> list[str]:
        """The names of the class models."""
        return ["classes"] if len(self.classes) == 1 else [f"classes {model.n_classes}" for model in self.classes]

    @property
    def feature_sizes(self) -> tuple[int, ...]:
        """Number of values of each feature of the gate."""
        known = (self.ngrams.order,) if self.ngrams is not None else ()
        return (*(CACHE_FEATURES if self.cache else ()), *known, (len(self.prior) - 1).bit_length() // 2 + 1)

    def start(self) -> "Memory":
        """Return what is remembered of a document at its separator: nothing."""
        size, separator = len(self.prior), self.separator
        caches = {n: DocumentCache(size, separator, *shape, DISCOUNT) for n, shape in CACHES.items() if self.cache}
        window = CACHES["cache"][1]
        classes = [
            DocumentCache(model.n_classes, int(model.labels[separator]), 1, window, DISCOUNT)
            for model in self.classes
            if self.cache
        ]
        return Memory(caches, classes)

    def evidence(
        self, tokens: Ids, start: int, memory: "Memory", ngrams: Scores | None, classes: list[Scores]
    ) -> Evidence:
        """Return what the experts say of ``tokens[start:]``.

        Parameters
        ----------
        tokens : (start + n,) int
            The token before the first target must be among them.
        start : int
        memory : Memory
            As after ``tokens[:start]``; it is changed.
        ngrams : Scores or None
        classes : list of Scores
            Of the targets, by ``self.ngrams`` and each of ``self.classes``.
        """
        targets = np.asarray(tokens[start:], dtype=np.int64)
        said = {name: cache.read(targets) for name, cache in memory.caches.items()}
        columns = [] if ngrams is None else [ngrams.probs]
        for i, (model, scores) in enumerate(zip(self.classes, classes, strict=True)):
            share = model.shares[targets]
            if self.cache:
                seen = memory.classes[i].read(model.labels[targets]).counts[:, 0, 0]
                share = model.within(targets, said["cache"].counts[:, 0, 0], seen)
            columns.append(scores.probs * share)
        columns += [counts.probabilities(DISCOUNT) for counts in said.values()]
        columns.append(self.prior[targets])
        known = None if ngrams is None else ngrams.known
        return Evidence(np.stack(columns, axis=1), features(said, known, np.asarray(tokens[start - 1 : -1])))

    def scan(self, tokens: Ids, workers: int = 1) -> Iterator[tuple[slice, Evidence]]:
        """Yield the evidence for every target of a text, chunk by chunk, and the slice of targets (from 0)."""
        tables = [model for model in (self.ngrams, *(own.model for own in self.classes)) if model is not None]
        memory, longest = self.start(), max((table.order for table in tables), default=1)
        for chunk in blocks(tokens.size - 1, TARGETS_PER_CHUNK):
            low = max(0, chunk.start + 1 - longest)
            text = np.asarray(tokens[low : chunk.stop + 1])
            first = chunk.start + 1 - low
            ngrams = None if self.ngrams is None else self.ngrams.score_stream(text, first, workers)
            classes = [model.score(text, first, workers) for model in self.classes]
            yield chunk, self.evidence(text, first, memory, ngrams, classes)

    def buckets_after(self, tokens: Ids, places: Ids) -> NDArray[np.int64]:
        """Return the buckets of the gate (n,) for the token after places of a text, see `mix_rows`."""
        from warmstart import _mixture_kernels as kernels  # numba is loaded here, not on import

        own, (orders, sizes) = self.ngrams, CACHE_SHAPES if self.cache else NO_CACHES
        tables: tuple[int, Any, Any, Any] = NO_CONTEXTS
        if own is not None:
            tables = own.order, own.last, own.offsets, own.sizes
        text, of_features = (tokens, places, self.separator, len(self.prior)), np.array(self.feature_sizes)
        return np.asarray(kernels.buckets(*text, of_features, *tables, orders, sizes))

    def mix_rows(self, tokens: Ids, places: Ids, weights: NDArray[np.float32], rows: NDArray[np.float32]) -> None:
        """Turn rows of the network into rows of the mixture: probabilities of every token after places of a text.

        Nothing is kept between calls. The work for a place is that of V, and of the last tokens of its document that
        the caches hold.

        Parameters
        ----------
        tokens : (m,) int
            Documents, each after a separator. The text begins with one.
        places : (n,) int
            Positions of the newest tokens.
        weights : (n, m) float32
            Of the experts, the network last but one, whether there is one or not.
        rows : (n, V) float32
            Changed in place.
        """
        from warmstart import _mixture_kernels as kernels  # numba is loaded here, not on import

        own, (orders, sizes) = self.ngrams, CACHE_SHAPES if self.cache else NO_CACHES
        tables: tuple[int, Any, Any, Any, Any] = NO_TABLES
        if own is not None:
            tables = own.order, own.last, own.offsets, own.probs, own.gammas
        kernels.mix(tokens, places, self.separator, self.prior, *tables, orders, sizes, DISCOUNT, weights, rows)
        columns = weights.T[0 if own is None else 1 :]
        for model, column in zip(self.classes, columns, strict=False):
            of_classes, size = model.model.rows(model.labels[tokens], places), CACHES["cache"][1] if self.cache else 0
            shares = model.labels, model.shares
            kernels.add_classes(tokens, places, self.separator, size, ADDED, *shares, of_classes, column, rows)


@dataclass(eq=False)
class Memory:
    """What the caches hold of a document; `Experts.evidence` changes it."""

    caches: dict[str, DocumentCache]
    classes: list[DocumentCache]


def features(caches: dict[str, CacheCounts], known: NDArray[np.int8] | None, previous: Ids) -> NDArray[np.int64]:
    """Return the features of the gate (n, k), the most useful ones first.

    With caches: the length of the longest context that the cache knows, the bits of the number of different tokens and
    of all tokens after it, the longest context that the last 1,024 tokens know. With n-grams: the longest context
    ``known`` in the counted text. Always: the bits of the rank of the token before.
    """
    columns = []
    if caches:
        counts = caches["cache"].counts
        longest = caches["cache"].known
        rows = np.arange(len(longest))
        columns = [longest, _bits(counts[rows, longest, 2]), _bits(counts[rows, longest, 1])]
        columns.append(caches["cache 1024"].known)
    if known is not None:
        columns.append(known)
    columns.append(rank_bits(previous))
    return np.stack([np.asarray(column, dtype=np.int64) for column in columns], axis=1)


def rank_bits(tokens: Ids | int) -> NDArray[np.int64]:
    """Return half the number of bits of token ids, which are ranks by frequency."""
    return _bits(np.asarray(tokens)) // 2


def _bits(numbers: NDArray[np.integer]) -> NDArray[np.int64]:
    return np.asarray(np.frexp(numbers.astype(np.float64))[1], dtype=np.int64)


def network_losses(
    network: NearShallowModel, prior: Floats, tokens: Ids, documents: Ids, part: slice, state: State, workers: int = 1
) -> Floats:
    """Return ``-log P`` (1 + contexts, n) of the targets ``part`` (from 0) by the network, see `token_losses`."""
    chunks = [
        read(tokens, documents, network.config.window, part.start + block.start + 1, part.start + block.stop + 1)
        for block in blocks(part.stop - part.start, NETWORK_TARGETS)
    ]
    return np.concatenate([token_losses(network, chunk, state, prior, workers) for chunk in chunks], axis=1)


class MixtureScores(NamedTuple):
    """Scores of a text of n targets.

    Attributes
    ----------
    log_probs : (n,) float64
        ``log P(target)`` in nats.
    experts, contexts : dict of str to float
        Mean of ``-log P`` by each expert alone, and by each context of the network alone.
    shares : dict of str to float
        Mean share of each expert in the probability of the targets; they sum to 1.
    """

    log_probs: Floats
    experts: dict[str, float]
    contexts: dict[str, float]
    shares: dict[str, float]


@dataclass(eq=False)
class Mixture:
    """Experts and the gate that weighs them.

    Raises
    ------
    InputError
        The gate is that of other experts.
    """

    experts: Experts
    gate: Gate

    @classmethod
    def alone(cls, experts: Experts) -> Self:
        """Return the mixture of one expert and the unigram model, which gets the least weight, `FLOOR`."""
        sizes = experts.feature_sizes
        return cls(experts, Gate(sizes, np.tile([1 - FLOOR, FLOOR], (int(np.prod(sizes)), 1))))

    def __post_init__(self) -> None:
        """Refuse a gate that does not fit."""
        names, sizes = self.experts.names, self.experts.feature_sizes
        shape = (int(np.prod(sizes)), len(names))
        if self.gate.sizes != sizes or self.gate.weights.shape != shape:
            raise InputError(
                f"expected weights {shape} of {', '.join(names)} by features of sizes {sizes}, got "
                f"{self.gate.weights.shape} by {self.gate.sizes}; fit the mixture again"
            )

    def score(self, tokens: Ids, documents: Ids, workers: int = 1, progress: Progress | None = None) -> MixtureScores:
        """Score every target of a text.

        Parameters
        ----------
        tokens, documents
            As for `warmstart.ngrams.count_ngrams`.
        workers : int
            Number of threads. The result does not depend on it.
        progress : callable, optional
            Called as ``progress("scoring", targets, total)``.
        """
        tokens, documents = as_array("tokens", tokens), as_array("documents", documents)
        experts, network = self.experts, self.experts.network
        check_text(tokens, documents, len(experts.prior))
        n = tokens.size - 1
        names = experts.names
        log_probs, losses, shares = np.empty(n), np.zeros(len(names)), np.zeros(len(names))
        state = None if network is None else network.start()
        contexts = np.zeros(0 if network is None else len(network.config.contexts))
        for part, (probs, features) in experts.scan(tokens, workers):
            if network is not None and state is not None:
                own = network_losses(network, experts.prior, tokens, documents, part, state, workers)
                probs = np.insert(probs, -1, np.exp(-own[0]), axis=1)
                contexts += own[1:].sum(axis=1)
            added = self.gate.mix(probs, features)
            total = added.sum(axis=1)
            log_probs[part] = np.log(total)
            losses -= np.log(probs).sum(axis=0)
            shares += (added / total[:, None]).sum(axis=0)
            if progress:
                progress("scoring", part.stop, n)
        of_contexts = () if network is None else network.config.contexts
        means = [(values / n).tolist() for values in (losses, contexts, shares)]
        keys = (names, of_contexts, names)
        return MixtureScores(log_probs, *(dict(zip(k, v, strict=True)) for k, v in zip(keys, means, strict=True)))
