"""What an utterance is made of: words, pairs of words, and short pieces of words, as sets of numbers.

Pieces make words similar that share a stem, an ending or most of a misspelling. Words are runs of letters and digits in
any script; a sign such as an emoji is a word of its own. The number of a feature is a checksum of its text, so that no
list of all that was ever said has to be kept, and nothing of it remains when it is forgotten.
"""

import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

WORD = re.compile("[\\w'\u2019]+|[^\\w\\s.,;:!?\u2026\"()'\u2019-]")
PIECES = range(2, 6)  # lengths, with a space in front of the word and behind it

Ids = NDArray[np.uint32]


class Features(NamedTuple):
    """Sorted numbers of the words, of words and their pairs, and of the pieces of an utterance."""

    words: Ids
    phrases: Ids
    pieces: Ids


def words(text: str) -> list[str]:
    """Return the words of a text, without capitals.

    Examples
    --------
    >>> words("Don't turn it ON, please! 💡")
    ["don't", 'turn', 'it', 'on', 'please', '💡']
    """
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def phrases(text: str) -> list[str]:
    """Return the words of a text, and its pairs of neighbours.

    Examples
    --------
    >>> phrases("lights on please")
    ['lights', 'on', 'please', 'lights on', 'on please']
    """
    single = words(text)
    return single + [f"{first} {second}" for first, second in itertools.pairwise(single)]


def features(text: str) -> Features:
    """Return the features of an utterance."""
    single = words(text)
    padded = [f" {word} " for word in single]
    pieces = {word[i : i + n] for word in padded for n in PIECES for i in range(len(word) - n + 1)}
    return Features(numbers(single), numbers(phrases(text)), numbers(pieces))


def numbers(texts: Iterable[str]) -> Ids:
    """Return the sorted numbers of some features, each once."""
    return np.unique(np.array([crc32(text.encode()) for text in texts], np.uint32))


def find(ids: Ids, row: Ids) -> NDArray[np.intp]:
    """Return the places in sorted numbers of those features of a row that are among them.

    Examples
    --------
    >>> find(np.array([2, 5, 7], np.uint32), np.array([1, 5, 9], np.uint32)).tolist()
    [1]
    """
    places = np.searchsorted(ids, row)
    known = places < ids.size
    known[known] = ids[places[known]] == row[known]
    return places[known]


@dataclass(frozen=True, eq=False)
class Table:
    """The features of n utterances as a sparse table of ones.

    Attributes
    ----------
    ids : (m,) uint32
        The features, sorted.
    columns : (k,) int32
        Places in ``ids``, utterance by utterance.
    starts : (n + 1,) int32
        Where the columns of each utterance begin.
    """

    ids: Ids
    columns: NDArray[np.int32]
    starts: NDArray[np.int32]

    @classmethod
    def of(cls, rows: Sequence[Ids]) -> Self:
        """Return the table of some sets of features."""
        ids, columns = np.unique(np.concatenate([np.zeros(0, np.uint32), *rows]), return_inverse=True)
        return cls(ids, columns.astype(np.int32), np.cumsum([0, *(row.size for row in rows)]).astype(np.int32))

    @property
    def sizes(self) -> NDArray[np.int32]:
        """Number of features of each utterance (n,)."""
        return np.diff(self.starts)

    def matrix(self) -> Any:
        """Return the table (n, m) as a sparse matrix of scipy."""
        from scipy import sparse  # what predicts does not need it

        ones = np.ones(self.columns.size)
        return sparse.csr_array((ones, self.columns, self.starts), (self.sizes.size, self.ids.size))

    def shared(self, row: Ids) -> NDArray[np.int64]:
        """Return how many features every utterance shares with another one (n,).

        Examples
        --------
        >>> table = Table.of([numbers("ab"), numbers("bc"), numbers("")])
        >>> table.shared(numbers("bx")).tolist(), table.shared(numbers("abc")).tolist()
        ([1, 1, 0], [2, 2, 0])
        """
        known = np.zeros(self.ids.size, bool)
        known[find(self.ids, row)] = True
        hits = np.concatenate([[0], np.cumsum(known[self.columns])])
        return np.asarray(hits[self.starts[1:]] - hits[self.starts[:-1]])
