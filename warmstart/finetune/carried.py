"""The memories of documents at the start of segments, for networks that have the memory context.

A memory goes from a segment to the next one of its document, detached: it is a constant of the steps that begin with
it. Where a document is entered in the middle, the text before is read first, from the last place whose memory is known.
So every target sees the true memory of its document; what older weights wrote into it stays until the epoch ends.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from warmstart.finetune.batches import Batches
from warmstart.layers import NearShallowLM
from warmstart.layers.near_shallow import Segments

PIECE = 4096  # tokens that are read at once


class Carried:
    """The memories of the documents of a text, from batch to batch.

    Parameters
    ----------
    network : NearShallowLM
    batches : Batches

    Attributes
    ----------
    known : dict of int to (m, b) Tensor
        Memory at the start of segments, by their numbers: those of the present batch or of the next one.
    """

    def __init__(self, network: NearShallowLM, batches: Batches) -> None:
        self.network, self.batches = network, batches
        self.known: dict[int, Tensor] = {}

    def segments(self, batch: NDArray[np.int64]) -> Segments:
        """Return the tensors of a batch with the memories before it, on the device of the network."""
        segments = self.batches.segments(batch)._replace(memory=self.before(batch))
        return segments.to(self.network.embedding.weight.device)

    def before(self, batch: NDArray[np.int64]) -> Tensor | None:
        """Return the memories (n, m, b) at the start of a batch, None if every segment begins its document."""
        document, start, _ = self.batches.table[:, batch]
        if "memory" not in self.network.config.contexts or (document == start).all():
            return None
        for number in np.sort(batch).tolist():  # a row may continue from another one of its document
            if number not in self.known:
                self.known[number] = self._read(number)
        return torch.stack([self.known[number] for number in batch.tolist()])

    def complete(self, batch: NDArray[np.int64], segments: Segments) -> None:
        """Go on from a batch, of whose segments the memory is that of `before`, with the present weights."""
        document, start, _ = self.batches.table[:, batch]
        following = np.append(self.batches.table[0], -1)[batch + 1] == document
        if "memory" not in self.network.config.contexts or not (following | (start > document)).any():
            return
        after = self.network.remember(segments.ids, segments.history[:, -1], segments.position, segments.memory)
        self.known = {int(batch[row]) + 1: after[row] for row in np.flatnonzero(following)}

    def _read(self, number: int) -> Tensor:
        """Return the memory at the start of a segment."""
        table, tokens, weight = self.batches.table, self.batches.corpus.tokens, self.network.embedding.weight
        document, stop, _ = table[:, number].tolist()
        first = number - (stop - document) // self.batches.length
        known = max((n for n in self.known if first <= n < number), default=first)
        shape, dtype = (
            (self.network.config.hidden_bits, weight.shape[1]),
            torch.promote_types(weight.dtype, torch.float32),
        )
        memory = self.known.get(known, weight.new_zeros(shape, dtype=dtype))[None]
        for start in range(int(table[1, known]), stop, PIECE):
            piece = np.asarray(tokens[max(start - 1, 0) : min(start + PIECE, stop)], dtype=np.int64)
            ids = torch.from_numpy(piece)[None].to(weight.device)
            position = torch.tensor([start - document], device=weight.device)
            memory = self.network.remember(ids[:, start > 0 :], ids[:, 0], position, memory)
        return memory[0]


@torch.no_grad()
def score(
    network: NearShallowLM, batches: Batches, scored: Iterable[NDArray[np.int64]]
) -> Iterator[tuple[NDArray[np.int64], Segments, Tensor]]:
    """Yield batches of a text in their order, their segments, and ``-log P(target)`` of their targets."""
    carried = Carried(network, batches)
    for batch in scored:
        segments = carried.segments(batch)
        yield batch, segments, network.token_losses(segments)
        carried.complete(batch, segments)
