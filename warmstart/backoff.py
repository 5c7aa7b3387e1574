"""Back-off tables: the probabilities of n-grams and the weights of shorter contexts, for look-up in any language model.

A table is a tree of n-grams as in `warmstart.ngrams`, with all levels one after the other in flat arrays. M is the
number of n-grams, C the number of those that can be a context (all but the longest), V the vocabulary size; the number
of an n-gram of one token is the token. The probability of y after h is that of the n-gram hy if it is there, else
``gamma(h)`` times the probability of y after h without its first token.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from warmstart import files
from warmstart._threads import blocks, run_parts
from warmstart.errors import InputError
from warmstart.ids import as_array, whole_numbers
from warmstart.levels import Level, suffix_numbers
from warmstart.ngrams import check_text

TARGETS_PER_BLOCK = 1 << 16
ROWS_PER_BLOCK = 128
TOLERANCE = 1e-9

Ids = NDArray[np.integer]


class Scores(NamedTuple):
    """What a table says of targets.

    Attributes
    ----------
    probs : (n,) float64
    known : (n,) int8
        Number of tokens in the longest context that was counted.
    size : (n,) uint8
        Bits of the number of times that this context was counted (0 for none, 1 for 1, 2 for 2 and 3, ...).
    """

    probs: NDArray[np.float64]
    known: NDArray[np.int8]
    size: NDArray[np.uint8]

    def of(self, targets: slice) -> "Scores":
        """Return what is said of some of the targets."""
        return Scores(self.probs[targets], self.known[targets], self.size[targets])


@dataclass(eq=False)
class BackoffModel:
    """An n-gram model as tables, see the module.

    Attributes
    ----------
    vocab_size, separator, order : int
    bases : (order + 1,) int64
        Number of the first n-gram of every length, and M.
    last : (M,) uint16 or uint32
        Last token of every n-gram.
    offsets : (C + 1,) int
        Numbers of the extensions of every context.
    probs : (M,) float64
    gammas : (C,) float64
    sizes : (C,) uint8
        Bits of the total count of every context; 0 without counts.
    """

    vocab_size: int
    separator: int
    order: int
    bases: NDArray[np.int64]
    last: Ids = field(repr=False)
    offsets: Ids = field(repr=False)
    probs: NDArray[np.float64] = field(repr=False)
    gammas: NDArray[np.float64] = field(repr=False)
    sizes: NDArray[np.uint8] = field(repr=False)

    @property
    def n_ngrams(self) -> list[int]:
        """Number of n-grams of every length."""
        return [int(size) for size in np.diff(self.bases)]

    def score(self, tokens: Ids, documents: Ids, workers: int = 1) -> Scores:
        """Score every target of a text.

        Parameters
        ----------
        tokens, documents
            As for `warmstart.ngrams.count_ngrams`.
        workers : int
            Number of threads. The result does not depend on it.
        """
        tokens = self._checked(tokens, documents)
        return self.score_stream(tokens, 1, workers)

    def _checked(self, tokens: Ids, documents: Ids) -> Ids:
        """Return the tokens as an array. Refuse what is no text of this vocabulary, or has another separator."""
        tokens = as_array("tokens", tokens)
        if check_text(tokens, documents, self.vocab_size) != self.separator:
            raise InputError(
                f"expected documents that end with token {self.separator}, got {int(tokens[0])}; "
                "encode the text with the tokenizer of the model"
            )
        return tokens

    def score_stream(self, tokens: Ids, start: int, workers: int = 1) -> Scores:
        """Score ``tokens[start:]``; the tokens before are history, as far as the last separator."""
        from warmstart import _ngram_kernels as kernels  # numba is loaded here, not on import

        n = tokens.size - start
        scores = Scores(np.empty(n), np.empty(n, np.int8), np.empty(n, np.uint8))

        def score(part: slice) -> None:
            low = max(0, part.start + start - self.order)
            text = np.asarray(tokens[low : part.stop + start])
            probs, known, size = (array[part] for array in scores)
            tables = self.last, self.offsets, self.probs, self.gammas, self.sizes
            kernels.score(text, self.separator, self.order, *tables, part.start + start - low, probs, known, size)

        run_parts(score, blocks(n, TARGETS_PER_BLOCK), workers)
        return scores

    def log_probs(self, tokens: Ids, documents: Ids, workers: int = 1) -> NDArray[np.float64]:
        """Return ``log P(target)`` (n,) in nats of every target of a text, see `score`."""
        return np.log(self.score(tokens, documents, workers).probs)

    def row(self, context: ArrayLike) -> NDArray[np.float64]:
        """Return the probability of every token to come next (V,); they sum to 1.

        Parameters
        ----------
        context : (n,) array-like of int
            The tokens before, oldest first; the history begins at the last separator among them.
        """
        row = self.probs[: self.vocab_size].copy()
        for h in self.contexts(context):
            row *= self.gammas[h]
            start, stop = self.offsets[h], self.offsets[h + 1]
            row[self.last[start:stop]] = self.probs[start:stop]
        return row

    def rows(self, tokens: Ids, places: Ids, workers: int = 1) -> NDArray[np.float32]:
        """Return the probability of every token to come after places of a text (n, V) float32.

        Parameters
        ----------
        tokens : (m,) int
            The text. A history begins at the last separator, or at the first token.
        places : (n,) int
            Position of the last token of each history.
        workers : int
            Number of threads. The result does not depend on it.
        """
        from warmstart import _ngram_kernels as kernels  # numba is loaded here, not on import

        out = np.empty((places.size, self.vocab_size), np.float32)
        tables = self.last, self.offsets, self.probs, self.gammas

        def write(part: slice) -> None:
            kernels.next_rows(tokens, places[part], self.separator, self.order, *tables, out[part])

        run_parts(write, blocks(places.size, ROWS_PER_BLOCK), workers)
        return out

    def contexts(self, context: ArrayLike) -> list[int]:
        """Return the numbers of the n-grams that end a history and are in the tables, shortest first."""
        history = whole_numbers("token ids", context, self.vocab_size)
        ends = np.flatnonzero(history == self.separator)
        history = history[max(int(ends[-1]) if ends.size else 0, history.size - self.order + 1) :]
        found = []
        for length in range(1, min(history.size, self.order - 1) + 1):
            if (node := self.find(history[-length:].tolist())) < 0:
                break
            found.append(node)
        return found

    def find(self, ngram: list[int]) -> int:
        """Return the number of an n-gram, -1 if it is not in the tables."""
        node = ngram[0]
        for token in ngram[1:]:
            start, stop = int(self.offsets[node]), int(self.offsets[node + 1])
            node = start + int(np.searchsorted(self.last[start:stop], self.last.dtype.type(token)))
            if node == stop or self.last[node] != token:
                return -1
        return node

    def ngrams(self, length: int) -> Iterator[tuple[NDArray[np.int64], slice]]:
        """Yield blocks of the n-grams of one length, as tokens (n, length), with their numbers."""
        for block in blocks(int(self.bases[length] - self.bases[length - 1]), TARGETS_PER_BLOCK):
            numbers = np.arange(block.start, block.stop) + self.bases[length - 1]
            columns, nodes = [], numbers
            for level in range(length, 1, -1):
                columns.append(self.last[nodes].astype(np.int64))
                starts = self.offsets[self.bases[level - 2] : self.bases[level - 1] + 1]
                nodes = self.bases[level - 2] + np.searchsorted(starts, nodes.astype(starts.dtype), side="right") - 1
            columns.append(nodes.astype(np.int64))
            yield np.stack(columns[::-1], axis=1), slice(int(numbers[0]), int(numbers[-1]) + 1)

    @property
    def levels(self) -> tuple[Level, ...]:
        """The tables as levels, without counts, see `warmstart.ngrams`."""
        bounds = [int(base) for base in self.bases]
        lasts = [self.last[a:b] for a, b in itertools.pairwise(bounds)]
        offsets = [self.offsets[a : b + 1] - b for a, b in itertools.pairwise(bounds[:-1])]
        nothing = np.zeros(0, np.int32)
        return tuple(Level(last, nothing, offset) for last, offset in zip(lasts, [*offsets, nothing], strict=True))

    def save(self, path: Path) -> None:
        """Write an interpolated model to a safetensors file, in 6 bytes an n-gram and 5 a context.

        What is kept of an n-gram is its own part of the probability, ``P(y | h) - gamma(h) P(y | h')``, as float32.
        The rest of a row goes to the shorter context, so rows of the model that is read sum to 1.

        Raises
        ------
        InputError
            An n-gram is less probable than its context leaves to it, so the model does not interpolate.
        """
        size, own = self.vocab_size, self.own_parts()
        own[:size] -= own[:size].min()
        arrays = {"bases": self.bases, "last": self.last[size:], "offsets": self.offsets, "sizes": self.sizes}
        arrays["own"] = own.astype(np.float32)
        facts = {"tables": {"vocab_size": size, "separator": self.separator, "order": self.order}}
        files.save_arrays(path, arrays, facts | {files.CHECKSUMS: files.checksums(arrays, facts)})

    def own_parts(self) -> NDArray[np.float64]:
        """Return what every n-gram has of its own (M,): its probability less what the shorter context gives to it.

        Raises
        ------
        InputError
            See `save`.
        """
        own = self.probs.copy()
        for contexts, here, suffix in self._steps():
            weights = np.repeat(self.gammas[contexts], np.diff(self.offsets[contexts.start : contexts.stop + 1]))
            own[here] -= weights * self.probs[suffix]
        if own.min() < -TOLERANCE:
            raise InputError("expected an interpolated model, got one whose shorter contexts are more probable")
        return np.maximum(own, 0.0)

    @classmethod
    def load(cls, path: Path) -> "BackoffModel":
        """Read what `save` wrote.

        Raises
        ------
        InputError
            The file is missing, truncated, damaged or of another kind.
        """
        arrays, content = files.map_arrays(path)
        if "tables" not in content:
            raise InputError(f"{path}: expected n-gram tables, got another file; save the model again")
        facts = content["tables"]
        size, bases, offsets = facts["vocab_size"], arrays["bases"], arrays["offsets"]
        last = np.concatenate([np.arange(size, dtype=arrays["last"].dtype), arrays["last"]])
        probs, gammas = arrays["own"].astype(np.float64), np.ones(int(bases[-2]))
        probs[:size] += max(0.0, 1.0 - probs[:size].sum()) / size
        probs[:size] /= probs[:size].sum()
        model = cls(**facts, bases=bases, last=last, offsets=offsets, probs=probs, gammas=gammas, sizes=arrays["sizes"])
        for contexts, here, suffix in model._steps():
            extensions = np.diff(offsets[contexts.start : contexts.stop + 1])
            context = np.repeat(np.arange(extensions.size), extensions)
            total = np.bincount(context, probs[here], minlength=extensions.size)
            probs[here] /= np.maximum(total, 1.0)[context]  # rounding to float32 may have passed 1
            left = np.maximum(1.0 - np.bincount(context, probs[here], minlength=extensions.size), 0.0)
            gammas[contexts] = np.where(extensions > 0, left, 1.0)
            probs[here] += gammas[contexts][context] * probs[suffix]
        return model

    def _steps(self) -> Iterator[tuple[slice, slice, Ids]]:
        """Yield, level by level, the contexts, their extensions, and the numbers of these without the first token."""
        bounds = [int(base) for base in self.bases]
        for n, suffix in enumerate(suffix_numbers(self.levels)):
            yield slice(*bounds[n : n + 2]), slice(*bounds[n + 1 : n + 3]), suffix + bounds[n]
