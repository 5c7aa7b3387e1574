"""Text as ids on disk, read once: token lists through a temporary file, a corpus as it lies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

BOUNDARY, UNKNOWN = -1, -2  # instead of a row: between sentences; a token without a row, which keeps its place
_SENTENCES = 1 << 12  # encoded at once
_BLOCK = 1 << 22  # positions at once


class Stream:
    """Tokens of a text as ids on disk: an array with boundaries, and the token of each id."""

    def __init__(self, ids: Any, tokens: list[str], boundaries: NDArray[np.int64] | None, present: Any) -> None:
        self.ids, self.tokens, self.boundaries, self.present = ids, tokens, boundaries, present
        self.n_tokens = int(present.sum())

    @classmethod
    def of(cls, sentences: Any, spool: IO[bytes]) -> Stream:
        """Take a corpus as it is; write the ids of anything else to ``spool``."""
        if all(hasattr(sentences, name) for name in ("tokens", "documents", "counts", "tokenizer", "separator")):
            tokens = [sentences.tokenizer.id_to_token(i) for i in range(len(sentences.counts))]
            present = np.array(sentences.counts, np.int64)
            present[sentences.separator] = 0
            return cls(sentences.tokens, tokens, sentences.documents, present)
        tokens, present = _spool(sentences, spool)
        spool.flush()
        size = spool.tell() // 4
        ids = np.memmap(spool, np.int32, "r", shape=(size,)) if size else np.zeros(0, np.int32)
        return cls(ids, tokens, None, present)

    def counts(self) -> dict[str, int]:
        """Count of each token that occurs."""
        return {token: count for token, count in zip(self.tokens, self.present.tolist(), strict=True) if count}

    def rows(self, vocabulary: dict[str, int]) -> NDArray[np.int32]:
        """Row of each id; the last element is for the id -1, which stands between sentences."""
        known = [vocabulary.get(token, UNKNOWN) for token in self.tokens]
        return np.array([*known, BOUNDARY], np.int32)

    def blocks(self, rows: NDArray[np.int32], radius: int) -> Iterator[tuple[NDArray[np.int32], int, int]]:
        """Yield rows with a margin of ``radius`` on both sides, and where the positions to count begin and end."""
        size = len(self.ids)
        for start in range(0, size, _BLOCK):
            low, high = max(0, start - radius), min(size, start + _BLOCK + radius)
            block = rows[self.ids[low:high]]
            if self.boundaries is not None:
                inside = self.boundaries[(self.boundaries >= low) & (self.boundaries < high)]
                block[inside - low] = BOUNDARY
            yield block, start - low, min(start + _BLOCK, size) - low


class _Numbers(dict[str, int]):
    """Token to number; a new token gets the next one."""

    def __missing__(self, token: str) -> int:
        self[token] = number = len(self)
        return number


def _spool(sentences: Iterable[Sequence[str]], spool: IO[bytes]) -> tuple[list[str], NDArray[np.int64]]:
    """Write the numbers of the tokens as int32, -1 after each sentence; return tokens and counts by number."""
    numbers, counts = _Numbers(), np.zeros(0, np.int64)
    if isinstance(sentences, str | bytes) or not isinstance(sentences, Iterable):
        raise ValueError(f"expected an iterable of lists of tokens, got {type(sentences).__name__}; cut the text first")
    parts = iter(sentences)
    while batch := list(islice(parts, _SENTENCES)):
        for sentence in batch:
            if isinstance(sentence, str | bytes) or not isinstance(sentence, Iterable):
                raise ValueError(f"expected sentences that are lists of tokens, got {sentence!r}; cut them into tokens")
        try:
            ids = np.fromiter(chain.from_iterable([*map(numbers.__getitem__, s), BOUNDARY] for s in batch), np.int32)
        except TypeError as error:
            raise ValueError(f"expected tokens that are strings, got one that cannot be hashed: {error}") from error
        ids.tofile(spool)
        found = np.bincount(ids[ids >= 0], minlength=len(numbers))
        found[: len(counts)] += counts
        counts = found
    tokens = list(numbers)
    if wrong := [token for token in tokens if not isinstance(token, str)]:
        raise ValueError(f"expected tokens that are strings, got {wrong[0]!r}")
    return tokens, counts
