"""Byte-level byte-pair encoding in plain Python, with the ids of the library `tokenizers`.

Text is cut into runs of letters, of digits and of other signs, each with a space before it, and endings such as 's. The
bytes of each run are merged pair by pair, the earliest merge first. Source: Radford et al. 2019, section 2.2.
"""

import itertools
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from warmstart.errors import InputError

RUNS = re.compile(r"'(?:[stmd]|ll|ve|re)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII)
SPACES = frozenset("\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000") | {chr(c) for c in range(0x2000, 0x200B)}
MOST_RUNS = 1 << 12  # that are remembered
LONGEST_RUN = 64  # characters of a run that is remembered
NO_MERGE = 1 << 62  # a rank


class _Classes(dict[int, str]):
    """What stands for a character in `RUNS`: ASCII for itself, an `a`, a `0`, a line break or an `!` for others."""

    def __missing__(self, code: int) -> str:
        sign = chr(code)
        kind = unicodedata.category(sign)[0]
        self[code] = sign if code < 128 else "\n" if sign in SPACES else {"L": "a", "N": "0"}.get(kind, "!")
        return self[code]


_CLASSES = _Classes()


class BytesBPE:
    """A tokenizer, from arrays that stay on the disk.

    Parameters
    ----------
    arrays : mapping of str to array
        ``text``: the bytes of all tokens, one after the other; ``ends`` (V,): where each ends; ``bytes`` (256,): the
        tokens of the single bytes; ``pairs`` (merges,), ascending: V times the left token of a merge, plus the right
        one; ``ranks``, ``merged`` (merges,): the place of each merge among all, and the token that it gives.

    Examples
    --------
    >>> import numpy as np
    >>> ids = np.zeros(256, np.uint16)
    >>> ids[list(b"hat")] = [0, 1, 2]
    >>> merges = {"pairs": np.array([1]), "ranks": np.array([0]), "merged": np.array([3])}  # h and a
    >>> words = {"text": np.frombuffer(b"hatha", np.uint8), "ends": np.array([1, 2, 3, 5]), "bytes": ids}
    >>> tokenizer = BytesBPE(words | merges)
    >>> tokenizer.encode("hath"), tokenizer.decode([3, 2])
    ([3, 2, 0], 'hat')
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.text, self.ends = arrays["text"], arrays["ends"]
        self.pairs, self.ranks, self.merged = arrays["pairs"], arrays["ranks"], arrays["merged"]
        self.of_bytes: list[int] = arrays["bytes"].tolist()
        self.known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text without borders of documents; a separator in it is text.

        Raises
        ------
        InputError
            It is no Unicode text.
        """
        if not isinstance(text, str):
            raise InputError(f"text: expected a string, got {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"text: expected Unicode text, got a lone surrogate at character {error.start}; give valid UTF-8"
            ) from error
        return [token for run in runs(text) for token in self._run(run)]

    def _run(self, run: str) -> list[int]:
        ids = self.known.get(run)
        if ids is None:
            ids = self._merge([self.of_bytes[byte] for byte in run.encode()])
            if len(run) <= LONGEST_RUN:
                if len(self.known) >= MOST_RUNS:
                    self.known.clear()
                self.known[run] = ids
        return ids

    def _merge(self, ids: list[int]) -> list[int]:
        """Merge neighbours until there is no merge for any pair, always the earliest merge and its first pair."""
        merges = [self._find(*pair) for pair in itertools.pairwise(ids)]
        while merges and (best := min(merges))[0] < NO_MERGE:
            i = merges.index(best)
            ids[i : i + 2] = [best[1]]
            del merges[i]
            if i > 0:
                merges[i - 1] = self._find(ids[i - 1], ids[i])
            if i < len(merges):
                merges[i] = self._find(ids[i], ids[i + 1])
        return ids

    def _find(self, left: int, right: int) -> tuple[int, int]:
        """Return rank and token of the merge of two tokens."""
        pair = left * len(self.ends) + right
        place = bisect_left(self.pairs, pair)
        if place == len(self.pairs) or self.pairs[place] != pair:
            return NO_MERGE, 0
        return int(self.ranks[place]), int(self.merged[place])

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of tokens; bytes that are no UTF-8 become U+FFFD."""
        return self.bytes_of(ids).decode("utf-8", "replace")

    def bytes_of(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of tokens."""
        ends = self.ends
        spans = ((int(ends[token - 1]) if token else 0, int(ends[token])) for token in ids)
        return b"".join(self.text[start:end].tobytes() for start, end in spans)


def runs(text: str) -> Iterator[str]:
    """Yield the runs of a text, in order; together they are the text.

    Examples
    --------
    >>> list(runs("I'm 21,  ok"))
    ['I', "'m", ' 21', ',', ' ', ' ok']
    """
    classes = text if text.isascii() else text.translate(_CLASSES)
    for run in RUNS.finditer(classes):
        yield text[run.start() : run.end()]
