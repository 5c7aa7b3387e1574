"""Read a text once and keep it as token ids on disk: in a temporary file, or in the file that a corpus already has.

Reading once is enough for texts larger than memory, and for iterators that cannot be read again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import chain, islice
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

BOUNDARY, UNKNOWN = -1, -2  # in place of a row number: the end of a sentence; a token without a row
_SENTENCES_PER_BATCH = 1 << 12
_POSITIONS_PER_BLOCK = 1 << 22


class Stream:
    """A text as token ids on disk.

    Attributes: ids (n,), where -1 ends a sentence; tokens: the token of each id; boundaries: positions in ids that are
    no tokens, for a corpus; id_counts: the count of each id; n_tokens: the sum of these counts.
    """

    def __init__(self, ids: Any, tokens: list[str], boundaries: NDArray[np.int64] | None, id_counts: Any) -> None:
        self.ids, self.tokens, self.boundaries, self.id_counts = ids, tokens, boundaries, id_counts
        self.n_tokens = int(id_counts.sum())

    @classmethod
    def of(cls, sentences: Any, spool: IO[bytes]) -> Stream:
        """Use the ids of a corpus as they are. Write the ids of any other text to ``spool``."""
        if all(hasattr(sentences, name) for name in ("tokens", "documents", "counts", "tokenizer", "separator")):
            tokens = [sentences.tokenizer.id_to_token(i) for i in range(len(sentences.counts))]
            id_counts = np.array(sentences.counts, np.int64)
            id_counts[sentences.separator] = 0
            return cls(sentences.tokens, tokens, sentences.documents, id_counts)
        tokens, id_counts = _spool(sentences, spool)
        spool.flush()
        size = spool.tell() // 4
        ids = np.memmap(spool, np.int32, "r", shape=(size,)) if size else np.zeros(0, np.int32)
        return cls(ids, tokens, None, id_counts)

    def counts(self) -> dict[str, int]:
        """Return the count of each token that occurs."""
        return {token: count for token, count in zip(self.tokens, self.id_counts.tolist(), strict=True) if count}

    def rows(self, vocabulary: dict[str, int]) -> NDArray[np.int32]:
        """Return the row of each id. The last element belongs to the id -1, the end of a sentence."""
        return np.array([*(vocabulary.get(token, UNKNOWN) for token in self.tokens), BOUNDARY], np.int32)

    def blocks(self, rows: NDArray[np.int32], radius: int) -> Iterator[tuple[NDArray[np.int32], int, int]]:
        """Yield blocks of rows with a margin of ``radius``, each with the first and last position to count."""
        size = len(self.ids)
        for start in range(0, size, _POSITIONS_PER_BLOCK):
            stop = min(start + _POSITIONS_PER_BLOCK, size)
            low, high = max(0, start - radius), min(size, stop + radius)
            block = rows[self.ids[low:high]]
            if self.boundaries is not None:
                inside = self.boundaries[(self.boundaries >= low) & (self.boundaries < high)]
                block[inside - low] = BOUNDARY
            yield block, start - low, stop - low


class _Numbers(dict[str, int]):
    """Number of each token. A new token gets the next number."""

    def __missing__(self, token: str) -> int:
        self[token] = number = len(self)
        return number


def _spool(sentences: Iterable[Sequence[str]], spool: IO[bytes]) -> tuple[list[str], NDArray[np.int64]]:
    """Write the numbers of the tokens as int32 with -1 after each sentence. Return the tokens and their counts."""
    numbers, counts = _Numbers(), np.zeros(0, np.int64)
    if isinstance(sentences, str | bytes) or not isinstance(sentences, Iterable):
        raise ValueError(f"expected an iterable of lists of tokens, got {type(sentences).__name__}; cut the text first")
    remaining = iter(sentences)
    while batch := list(islice(remaining, _SENTENCES_PER_BATCH)):
        for at, sentence in enumerate(batch):
            if type(sentence) is list:  # as most are; the checks below take longer
                continue
            if isinstance(sentence, str | bytes) or not isinstance(sentence, Iterable):
                raise ValueError(f"expected sentences that are lists of tokens, got {sentence!r}; cut them into tokens")
            if not isinstance(sentence, Sized):
                batch[at] = list(sentence)
        lengths = np.fromiter(map(len, batch), np.int64, len(batch))
        try:
            ids = np.fromiter(map(numbers.__getitem__, chain.from_iterable(batch)), np.int32, int(lengths.sum()))
        except TypeError as error:
            raise ValueError(f"expected tokens that are strings, got one that cannot be hashed: {error}") from error
        np.insert(ids, np.cumsum(lengths), BOUNDARY).tofile(spool)
        total = np.bincount(ids, minlength=len(numbers))
        total[: len(counts)] += counts
        counts = total
    tokens = list(numbers)
    for token in tokens:
        if not isinstance(token, str):
            raise ValueError(f"expected tokens that are strings, got {token!r}")
    return tokens, counts
