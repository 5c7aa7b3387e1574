"""Batches of document segments with similar lengths, in an order that depends on the seed and the epoch only.

A long document is cut into segments at multiples of the segment length. Each segment carries the tokens just before it
(for the radial context) and the counts of all tokens before it in the document (for the document context). So segments
can be read in any order, a row never holds two documents, and epoch and index determine a batch.

The memory context needs a state instead (see `warmstart.finetune.carried`). With it, the long documents of an epoch are
laid out in one list of segments, which is cut into equal runs, and a batch holds the next segment of every run. So the
state goes from batch to batch. Batches of documents of one segment stand between these batches at random.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from warmstart.corpus import Corpus
from warmstart.errors import InputError
from warmstart.finetune.evidence import ExpertTable
from warmstart.layers.near_shallow import IGNORED, Segments
from warmstart.near_shallow import Config

SEGMENT = 256  # tokens in a row; one block if that is longer
POOL = 64  # number of batches whose rows are sorted by length together


@dataclass(frozen=True)
class Batches:
    """The segments of a corpus and the batches of every epoch.

    Parameters
    ----------
    corpus : Corpus
    config : Config
    batch_tokens : int
        Largest number of positions in a batch, padding included.
    seed : int
        Seed of the order.
    experts : ExpertTable, optional
        What counts say of the targets, for a network that trains beside them.

    Raises
    ------
    InputError
        A batch is smaller than one segment, or the corpus has another vocabulary than the model.
    """

    corpus: Corpus
    config: Config
    batch_tokens: int = 2048
    seed: int = 0
    experts: ExpertTable | None = None

    def __post_init__(self) -> None:
        corpus, config = self.corpus, self.config
        if (corpus.vocab_size, corpus.separator) != (config.vocab_size, config.separator):
            raise InputError(
                f"{corpus.folder}: expected text in the tokens of the model ({config.vocab_size} tokens, separator "
                f"{config.separator}), got {corpus.vocab_size} and {corpus.separator}; encode it with its tokenizer"
            )
        if self.batch_tokens < self.length:
            raise InputError(f"batch_tokens: expected at least a segment of {self.length}, got {self.batch_tokens}")

    @property
    def length(self) -> int:
        """Number of tokens in a full segment, a multiple of the block size."""
        block = self.config.block_size
        return max(1, SEGMENT // block) * block

    @cached_property
    def table(self) -> NDArray[np.int64]:
        """Start of the document, start of the segment, and length of every segment (3, n)."""
        first, sizes = self.corpus.documents[:-1], np.diff(self.corpus.documents)
        segments = -(-sizes // self.length)  # of each document
        document = np.repeat(first, segments)
        index = np.arange(document.size) - np.repeat(np.cumsum(segments) - segments, segments)
        start = document + index * self.length
        return np.stack([document, start, np.minimum(self.length, np.repeat(first + sizes, segments) - start)])

    def order(self, epoch: int) -> list[NDArray[np.int64]]:
        """Return the batches of an epoch, each an array of segment numbers."""
        rng = np.random.default_rng([self.seed, epoch])
        shuffled, lengths = rng.permutation(self._free), self.table[2]
        pool = np.cumsum(lengths[shuffled]) // (POOL * self.batch_tokens)
        free = list(self._packed(shuffled[np.lexsort((lengths[shuffled], pool))]))
        free = [free[i] for i in rng.permutation(len(free))]
        bound = self._in_runs(rng.permutation(self._bound[0]))
        kinds, batches = rng.permutation(np.repeat([0, 1], [len(free), len(bound)])), (iter(free), iter(bound))
        return [next(batches[kind]) for kind in kinds]

    def in_order(self) -> list[NDArray[np.int64]]:
        """Return batches of all segments for scoring: those in any order by length, then the long documents."""
        by_length = self._free[np.argsort(self.table[2][self._free], kind="stable")]
        return [*self._packed(by_length), *self._in_runs(self._bound[0])]

    @cached_property
    def _bound(self) -> NDArray[np.int64]:
        """First segment and number of segments (2, n) of the documents whose segments need their order."""
        first = np.flatnonzero(self.table[0] == self.table[1])
        bound = np.stack([first, np.diff(first, append=self.table.shape[1])])
        return bound[:, (bound[1] > 1) & ("memory" in self.config.contexts)]

    @cached_property
    def _free(self) -> NDArray[np.int64]:
        """The other segments."""
        free = np.ones(self.table.shape[1], np.bool_)
        for first, n in self._bound.T.tolist():
            free[first : first + n] = False
        return np.flatnonzero(free)

    def _in_runs(self, documents: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Lay documents, given by their first segments, out in runs; return the segments of every turn."""
        sizes = dict(self._bound.T.tolist())
        segments = [np.arange(first, first + sizes[first]) for first in documents.tolist()]
        if not segments:
            return []
        runs = np.array_split(np.concatenate(segments), self.batch_tokens // self.length)
        return [np.array([run[i] for run in runs if i < run.size]) for i in range(runs[0].size)]

    def _packed(self, segments: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Cut a sequence of segments into batches of at most `batch_tokens` positions, padding included."""
        lengths, first, longest = self.table[2][segments].tolist(), 0, 0
        for i, length in enumerate(lengths):
            longest = max(longest, length)
            if (i + 1 - first) * longest > self.batch_tokens:
                yield segments[first:i]
                first, longest = i, length
        if segments.size:
            yield segments[first:]

    def padded_share(self, batches: list[NDArray[np.int64]]) -> float:
        """Return the share of positions that are padding."""
        lengths = [self.table[2][batch] for batch in batches]
        tokens: int = sum(int(x.sum()) for x in lengths)
        positions: int = sum(x.size * int(x.max()) for x in lengths)
        return 1.0 - tokens / positions

    def segments(self, batch: NDArray[np.int64]) -> Segments:
        """Return the tensors of a batch, without the memory before it."""
        config, tokens = self.config, self.corpus.tokens
        document, start, lengths = self.table[:, batch]
        rows, longest = batch.size, int(lengths.max())
        before = max(config.radius - 1, int("memory" in config.contexts))
        ids = np.full((rows, longest), config.separator, dtype=np.int64)
        targets = np.full((rows, longest), IGNORED, dtype=np.int64)
        history = np.full((rows, before), config.separator, dtype=np.int64)
        counts = np.zeros((rows, config.vocab_size), dtype=np.float32)
        for row, (d, s, n) in enumerate(zip(document.tolist(), start.tolist(), lengths.tolist(), strict=True)):
            ids[row, :n] = tokens[s : s + n]
            targets[row, :n] = tokens[s + 1 : s + n + 1]
            if known := min(before, s - d):  # tokens before the segment in its document
                history[row, before - known :] = tokens[s - known : s]
            if s > d and "document" in config.contexts:
                counts[row] = np.bincount(tokens[d:s], minlength=config.vocab_size)
        return Segments(*map(torch.from_numpy, (ids, targets, history, start - document, counts)))

    def targets(self, batch: NDArray[np.int64], mask: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """Return the places of the targets of a batch in the corpus (n,), from 0, row by row.

        The targets are those under a mask (rows, L), or all.
        """
        _, start, lengths = self.table[:, batch]
        column = np.arange(int(lengths.max()))
        places: NDArray[np.int64] = (start[:, None] + column)[column < lengths[:, None] if mask is None else mask]
        return places

    def said(self, targets: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the counts say of targets, given by their places: probabilities (n, m) and buckets (n,).

        Raises
        ------
        InputError
            There is no table of what the counts say.
        """
        if self.experts is None:
            raise InputError("expected a table of what the counts say of the text, got none; see expert_table")
        probs, buckets = self.experts.probs[targets], self.experts.buckets[targets]
        return torch.from_numpy(probs), torch.from_numpy(buckets.astype(np.int64))
