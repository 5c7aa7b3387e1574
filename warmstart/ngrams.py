"""The statistic of a text: the counts of all its n-grams up to an order, and its documents.

N-grams are kept as a tree of levels. Level n holds the n-grams of n tokens, sorted; the number of an n-gram is its
place in its level. The extensions of one n-gram are a contiguous stretch of the next level, sorted by their last token,
so a look-up is a binary search a level. Level 1 has all V tokens.

| symbol | shape | meaning |
|---|---|---|
| ``last`` | (m,) | last token of each n-gram |
| ``counts`` | (m,) | how often it occurs |
| ``offsets`` | (m + 1,) | its extensions are ``offsets[i] ... offsets[i + 1]`` on the next level |

The separator between documents is the first history of a document and its last target; no n-gram goes past it. An
n-gram is counted where it ends, at a target, so level 1 counts targets.

Statistics are exact integers and form a commutative group: ``+`` and ``-``, in any order and with any sharding at the
borders of documents, give the same bytes. So a text can be taken out again, as if it had never been counted. The
documents are kept too, as token ids. What is fitted on counted text (discounts, weights, temperatures) must see a token
as if its document had not been counted; for that the n-grams of the document must be known. So nothing that is solved
reads the corpus again. The ids take 2 bytes a token, the levels about 12.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from warmstart import files
from warmstart._threads import run_parts, shares
from warmstart.device import check_device, if_it_fits
from warmstart.errors import InputError
from warmstart.ids import as_array
from warmstart.progress import Progress

FORMAT = 1
ORDER = 5
CHUNK = 1 << 21  # targets counted at once
DEVICE_CHUNK = 1 << 24  # the same on a device of PyTorch, which has room for a larger part: about 100 bytes a target
LARGE = 255  # in a file, a count of at least this is written apart
MOST = 2**31 - 1  # n-grams of a level, and occurrences of an n-gram
LONGEST = 100  # order
QUOTED = 32  # tokens in a row that only a copy has
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # of a hash: odd, its bits look random
DOCUMENTS = ("digests", "copies", "lengths", "tokens")
FACTS = ("vocab_size", "separator", "order", "vocabulary")

Ids = NDArray[Any]
_ON_DEVICE = Lock()  # one part at a time has the memory of a device


@dataclass(frozen=True, eq=False)
class Level:
    """All n-grams of one length, see the module. ``offsets`` of the longest n-grams is empty."""

    last: Ids
    counts: Ids
    offsets: Ids


Levels = tuple[Level, ...]


@dataclass(frozen=True, eq=False)
class Documents:
    """A multiset of documents, in the order of their digests.

    Attributes
    ----------
    digests : (n, 16) uint8
        Blake2b digest of every different document.
    copies : (n,) int64
        How often it was counted.
    lengths : (n,) int64
    tokens : (sum of lengths,) uint16 or uint32
        Their tokens, one document after the other, without separators.
    """

    digests: NDArray[np.uint8]
    copies: NDArray[np.int64]
    lengths: NDArray[np.int64]
    tokens: Ids

    @classmethod
    def of(cls, tokens: Ids, borders: Ids, dtype: np.dtype[Any]) -> Self:
        """Return the documents of a text; borders are the positions of its separators."""
        text = np.ascontiguousarray(tokens, dtype=dtype)
        starts, ends = np.asarray(borders[:-1], np.int64) + 1, np.asarray(borders[1:], np.int64)
        return cls._of_spans(_digests(text, starts, ends), np.ones(starts.size, np.int64), text, starts, ends)

    def known(self, tokens: Ids, borders: Ids) -> NDArray[np.bool_]:
        """Return for every document of a text whether it is here."""
        text = np.ascontiguousarray(tokens, dtype=self.tokens.dtype)
        keys = _keys(_digests(text, np.asarray(borders[:-1]) + 1, np.asarray(borders[1:])))
        return np.isin(keys, _keys(self.digests))

    def quoted(self, tokens: Ids, borders: Ids) -> NDArray[np.bool_]:
        """Return for every document of a text whether the `QUOTED` tokens in its middle stand in one of these.

        Runs are compared by hashes of 64 bits. A shorter document is not quoted.
        """
        lengths = np.diff(borders) - 1
        long = np.flatnonzero(lengths >= QUOTED)
        middles = np.asarray(borders)[long] + 1 + (lengths[long] - QUOTED) // 2
        runs = _run_hashes([np.asarray(tokens)[middles + i] for i in range(QUOTED)])
        wanted, here = (
            np.append(np.unique(runs), np.uint64(0)),
            np.zeros(lengths.size, np.bool_),
        )  # 0: a place after all
        for first in range(0, self.tokens.size - QUOTED + 1, CHUNK):
            block = self.tokens[first : first + CHUNK + QUOTED - 1]
            counted = _run_hashes([block[i : block.size - QUOTED + 1 + i] for i in range(QUOTED)])
            found = counted[wanted[np.searchsorted(wanted[:-1], counted)] == counted]
            here[long] |= np.isin(runs, found)
        return here

    @classmethod
    def _of_spans(cls, digests: Ids, copies: Ids, text: Ids, starts: Ids, ends: Ids) -> Self:
        """Return the multiset of documents that lie at some places of a text; those with 0 copies in all are left out.

        Raises
        ------
        InputError
            The copies of a document are negative in all.
        """
        keys, first, groups = np.unique(_keys(digests), return_index=True, return_inverse=True)
        total = np.zeros(keys.size, np.int64)
        np.add.at(total, groups, copies)
        if (missing := first[total < 0]).size:
            raise InputError(
                f"expected documents that were counted, got one of {(ends - starts)[missing[0]]} tokens that was not, "
                "or not so often; take out only what was added, encoded with the same tokenizer"
            )
        here = first[total > 0]
        starts, ends = starts[here], ends[here]
        cuts = np.flatnonzero(np.append(True, starts[1:] != ends[:-1])[: here.size])  # neighbours are copied at once
        runs = itertools.pairwise([*cuts.tolist(), here.size])
        tokens = np.concatenate([text[:0], *(text[starts[i] : ends[j - 1]] for i, j in runs)])
        return cls(digests[here], total[total > 0], ends - starts, tokens)

    def texts(self) -> dict[bytes, tuple[int, Ids]]:
        """Return copies and tokens of every different document by its digest."""
        ends = np.cumsum(self.lengths)
        spans = zip((ends - self.lengths).tolist(), ends.tolist(), strict=True)
        return {
            digest.tobytes(): (copies, self.tokens[start:end])
            for digest, copies, (start, end) in zip(self.digests, self.copies.tolist(), spans, strict=True)
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays of a file."""
        return {f"documents.{name}": getattr(self, name) for name in DOCUMENTS}

    def all(self) -> list[Ids]:
        """Return the tokens of all documents, equal ones as often as they were counted."""
        return [text for copies, text in self.texts().values() for _ in range(copies)]

    def plus(self, other: Self, sign: int) -> Self:
        """Add the documents of another multiset, or take them out.

        Raises
        ------
        InputError
            A document to be taken out is not there.
        """
        digests = np.concatenate([self.digests, other.digests])
        ends = np.cumsum(np.concatenate([self.lengths, other.lengths]))
        starts = np.append(0, ends[:-1])
        copies = np.concatenate([self.copies, sign * other.copies])
        return self._of_spans(digests, copies, np.concatenate([self.tokens, other.tokens]), starts, ends)

    def includes(self, other: Self) -> bool:
        """Return whether every document of another multiset is here, however often."""
        here, there = _keys(self.digests), _keys(other.digests)
        places = np.searchsorted(here, there)
        return not there.size or bool(here.size and (here[places % here.size] == there).all())


def _run_hashes(columns: Sequence[Ids]) -> NDArray[np.uint64]:
    """Return a hash (n,) of n runs of tokens; the columns (n,) hold the first token of every run, the second ..."""
    hashes = np.zeros(columns[0].size, np.uint64)
    for column in columns:
        hashes = (hashes ^ (hashes >> np.uint64(29))) * MULTIPLIER + column.astype(np.uint64)
    return hashes


def _digests(text: Ids, starts: Ids, ends: Ids) -> NDArray[np.uint8]:
    """Return the digests (n, 16) of documents that lie at some places of a text."""
    spans = zip(starts.tolist(), ends.tolist(), strict=True)
    digests = b"".join(hashlib.blake2b(text.data[start:end], digest_size=16).digest() for start, end in spans)
    return np.frombuffer(digests, np.uint8).reshape(-1, 16)


def _keys(digests: Ids) -> NDArray[np.void]:
    """Return digests (n, 16) uint8 as one value each (n,), which NumPy sorts by their bytes."""
    return np.ascontiguousarray(digests).view("V16").reshape(-1)


@dataclass(frozen=True, eq=False)
class NGramCounts:
    """The statistic of a text, made by `count_ngrams`. Add and take out texts with ``+`` and ``-``.

    Attributes
    ----------
    vocab_size, separator, order : int
    levels : tuple of Level
        Level n - 1 of the tuple holds the n-grams of n tokens.
    documents : Documents
    vocabulary : str
        Digest of the tokenizer's vocabulary, see `vocabulary_digest`; empty if it was not given.
    """

    vocab_size: int
    separator: int
    order: int
    levels: Levels
    documents: Documents
    vocabulary: str = ""

    @property
    def sizes(self) -> list[int]:
        """Number of different n-grams of every length."""
        return [int(np.count_nonzero(self.levels[0].counts)), *(level.last.size for level in self.levels[1:])]

    @property
    def n_tokens(self) -> int:
        """Number of counted targets."""
        return int(self.levels[0].counts.sum())

    @property
    def unigrams(self) -> NDArray[np.int64]:
        """How often each token is a target (V,)."""
        return self.levels[0].counts

    def loaded(self) -> Self:
        """Return the statistic in memory: itself."""
        return self

    def shortened(self, order: int) -> "NGramCounts":
        """Return the statistic of the n-grams up to an order.

        Raises
        ------
        InputError
            The order is not from 1 to that of the statistic.

        Examples
        --------
        >>> text = np.array([0, 1, 2, 1, 2, 0]), np.array([0, 5]), 3
        >>> count_ngrams(*text, order=3).shortened(2).digest == count_ngrams(*text, order=2).digest
        True
        """
        if not isinstance(order, int | np.integer) or not 1 <= order <= self.order:
            raise InputError(f"order: expected a number from 1 to {self.order}, that of the statistic, got {order!r}")
        top = replace(self.levels[order - 1], offsets=self.levels[-1].offsets)
        return replace(self, order=int(order), levels=(*self.levels[: order - 1], top))

    def __add__(self, other: "NGramCounts") -> "NGramCounts":
        """Return the statistic of both texts.

        Raises
        ------
        InputError
            The statistics have other vocabularies, separators or orders.
        """
        return self._plus(other, 1)

    def __sub__(self, other: "NGramCounts") -> "NGramCounts":
        """Return the statistic without a text, as if it had never been counted.

        If nothing is left, it is the neutral element: it has no n-grams and no documents, and a model of it is uniform.

        Raises
        ------
        InputError
            A document of the other statistic was never counted, or the statistics do not fit together.
        """
        return self._plus(other, -1)

    def _plus(self, other: "NGramCounts", sign: int) -> "NGramCounts":
        kinds = [(s.vocab_size, s.separator, s.order, s.vocabulary[:8]) for s in (self, other)]
        if kinds[0] != kinds[1]:
            raise InputError(
                "expected n-grams of one vocabulary (size, separator, order, digest), got "
                f"{kinds[0]} and {kinds[1]}; count both texts with the same tokenizer and order"
            )
        documents = self.documents.plus(other.documents, sign)
        return replace(self, levels=_merge(self.levels, other.levels, sign), documents=documents)

    @property
    def digest(self) -> str:
        """Blake2b digest of the whole statistic: equal texts give equal digests."""
        return digest_of(*self.content())

    def content(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return the arrays and the facts that `save` writes."""
        facts = {"format": FORMAT} | {name: getattr(self, name) for name in FACTS}
        return self.documents.arrays() | arrays_of(self.levels), {"ngrams": facts}

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all. The same statistic gives the same bytes."""
        arrays, facts = self.content()
        files.save_arrays(path, arrays, facts | {files.CHECKSUMS: files.checksums(arrays, facts)})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote. Tokens and offsets stay on the disk until they are used.

        Raises
        ------
        InputError
            The file is missing, truncated, damaged or of another kind.
        """
        return cls.of_content(path, *files.map_arrays(path))

    @classmethod
    def of_content(cls, path: Path, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> Self:
        """Return the statistic of a file's arrays and facts, see `content`.

        Raises
        ------
        InputError
            They are those of another kind of file, or of another format.
        """
        found = facts.get("ngrams")
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise InputError(f"{path}: expected n-grams of format {FORMAT}, got another file; count the text again")
        levels = []
        for n in range(1, found["order"] + 1):
            counts = arrays[f"{n}.counts"].astype(np.int64 if n == 1 else np.int32)
            counts[arrays[f"{n}.large"]] = arrays[f"{n}.large_counts"]
            levels.append(Level(arrays[f"{n}.last"], counts, arrays[f"{n}.offsets"]))
        documents = Documents(*(arrays[f"documents.{name}"] for name in DOCUMENTS))
        kind = {name: value for name, value in found.items() if name != "format"}
        return cls(levels=tuple(levels), documents=documents, **kind)


def count_ngrams(
    tokens: Ids,
    documents: Ids,
    vocab_size: int,
    order: int = ORDER,
    *,
    vocabulary: Mapping[str, int] | None = None,
    workers: int = 1,
    chunk: int | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> NGramCounts:
    """Count all n-grams of a text up to an order, in one pass. Time and memory are linear in the text.

    Parameters
    ----------
    tokens : (n + 1,) array-like or tensor of int, may be memory-mapped
        ``SEP d1 SEP d2 SEP ... dn SEP``, as in `warmstart.corpus.Corpus`.
    documents : (n_documents + 1,) array-like of int
        Positions of the separators.
    vocab_size : int
    order : int
        Length of the longest n-grams.
    vocabulary : mapping of str to int, optional
        The vocabulary of the tokenizer, so that counts of another one can be refused.
    workers : int
        Number of threads. The result does not depend on it.
    chunk : int, optional
        Targets that a thread counts at once. The result does not depend on it; `warmstart.budget` chooses it.
    device : str, optional
        Device of PyTorch, such as "cuda", that counts the chunks in place of the compiled loops, one at a time; a
        chunk that its memory does not hold is halved. They are merged on the CPU. The result does not depend on it.
    progress : callable, optional
        Called as ``progress("count n-grams", tokens, total)``, possibly from another thread.

    Raises
    ------
    InputError
        A token is outside the vocabulary, the documents do not end at separators, the order is below 1, or there is no
        such device, or none with free memory.

    Examples
    --------
    >>> counts = count_ngrams(np.array([0, 1, 2, 1, 2, 0]), np.array([0, 5]), vocab_size=3, order=2)
    >>> counts.levels[0].counts.tolist()  # separator, 1, 2
    [1, 2, 2]
    >>> pairs = zip(np.repeat(range(3), np.diff(counts.levels[0].offsets)), counts.levels[1].last, strict=True)
    >>> dict(zip([f"{first} {last}" for first, last in pairs], counts.levels[1].counts.tolist(), strict=True))
    {'0 1': 1, '1 2': 2, '2 0': 1, '2 1': 1}
    >>> (counts + counts - counts).digest == counts.digest
    True
    """
    tokens, documents = as_array("tokens", tokens), as_array("documents", documents)
    separator = check_text(tokens, documents, vocab_size)
    if not 1 <= order <= LONGEST:
        raise InputError(f"order: expected a number from 1 to {LONGEST}, got {order}")
    check_device(device)
    vocab_size, order, total = int(vocab_size), int(order), tokens.size - 1
    levels = count_levels(
        tokens, slice(0, total), separator, vocab_size, order, workers=workers, chunk=chunk, device=device,
        progress=progress and (lambda done: progress("count n-grams", done, total)),
    )  # fmt: skip
    bag = Documents.of(tokens, documents, id_type(vocab_size))
    digest = "" if vocabulary is None else vocabulary_digest(vocabulary)
    return NGramCounts(vocab_size, separator, order, levels, bag, digest)


def count_levels(
    tokens: Ids,
    targets: slice,
    separator: int,
    vocab_size: int,
    order: int,
    *,
    workers: int = 1,
    chunk: int | None = None,
    device: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Levels:
    """Count the n-grams that end at some targets of a text: target i is ``tokens[i + 1]``. See `count_ngrams`."""
    from warmstart import _ngram_kernels as kernels  # numba is loaded here, not on import

    done, lock = 0, Lock()
    most = (CHUNK if device is None else DEVICE_CHUNK) if chunk is None else max(1, int(chunk))

    def count(part: slice) -> Levels:
        """Count the n-grams that end at some targets, halving what is larger than a chunk or than the device holds."""
        levels = None if part.stop - part.start > most else count_at_once(part)
        if levels is None:
            middle = (part.start + part.stop) // 2
            return _merge(count(slice(part.start, middle)), count(slice(middle, part.stop)), 1)
        return levels

    def count_at_once(part: slice) -> Levels | None:
        nonlocal done
        low = max(0, part.start + 1 - (order - 1))
        text = np.asarray(tokens[low : part.stop + 1])
        history = kernels.histories(text, separator, order - 1, np.zeros(1, np.int64))
        counted = np.arange(text.size) > part.start - low
        if device is None:
            found: Levels | None = number_ngrams(text, vocab_size, history, counted, order)[0]
        else:
            with _ON_DEVICE:
                found = if_it_fits(_counted_on, device, text, vocab_size, history, counted, order)
        if found is None and part.stop - part.start > 1:
            return None
        if found is None:
            raise InputError(f"device: expected one with free memory, got {device} without; free some, or count on cpu")
        levels = _without_zeros(found)
        with lock:
            done += part.stop - part.start
            if progress:
                progress(done)
        return levels

    size, start = targets.stop - targets.start, targets.start
    parts = [slice(start + part.start, start + part.stop) for part in shares(size, min(workers, size))]
    sums = run_parts(count, parts, workers)
    while len(sums) > 1:
        sums = run_parts(_sum, [sums[i : i + 2] for i in range(0, len(sums), 2)], workers)
    return sums[0]


def arrays_of(levels: Levels) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file for levels of n-grams."""
    arrays: dict[str, NDArray[Any]] = {}
    for n, level in enumerate(levels, start=1):
        arrays |= {f"{n}.last": level.last, f"{n}.offsets": level.offsets} | packed_counts(n, level.counts)
    return arrays


def packed_counts(n: int, counts: Ids) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file for the counts of n-grams of n tokens: bytes, and apart from them large ones."""
    large = np.flatnonzero(counts >= LARGE)
    return {
        f"{n}.counts": np.minimum(counts, LARGE).astype(np.uint8),
        f"{n}.large": large,
        f"{n}.large_counts": counts[large].astype(np.int64),
    }


def digest_of(arrays: Mapping[str, files.Array], facts: Mapping[str, Any]) -> str:
    """Return the digest of a statistic from its arrays and facts, see `NGramCounts.content`."""
    whole = hashlib.blake2b(json.dumps(facts["ngrams"], sort_keys=True).encode(), digest_size=16)
    for _, array in sorted(arrays.items()):
        for block in files.blocks_of(array):
            whole.update(block.data)
    return whole.hexdigest()


def check_numbers(n: int, size: int, largest: int) -> None:
    """Refuse more n-grams of n tokens, or a larger count, than are numbered.

    Raises
    ------
    InputError
        See above.
    """
    if max(size, largest) > MOST:
        raise InputError(f"expected at most {MOST} n-grams of {n} tokens and occurrences of each, got more")


def joined(texts: Iterable[Ids], separator: int, vocab_size: int) -> tuple[Ids, NDArray[np.int64]]:
    """Return documents as one text, ``SEP d1 SEP d2 ... SEP``, and the positions of its separators.

    Examples
    --------
    >>> tokens, borders = joined([np.array([1, 2]), np.array([3])], separator=0, vocab_size=4)
    >>> tokens.tolist(), borders.tolist()
    ([0, 1, 2, 0, 3, 0], [0, 3, 5])
    """
    texts = list(texts)
    end = np.array([separator], id_type(vocab_size))
    parts = [end, *itertools.chain.from_iterable((text.astype(end.dtype, copy=False), end) for text in texts)]
    return np.concatenate(parts), np.cumsum([0, *(text.size + 1 for text in texts)])


def id_type(vocab_size: int) -> np.dtype[Any]:
    """Return the integer type of token ids."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def vocabulary_digest(vocabulary: Mapping[str, int]) -> str:
    """Return the sha256 of a mapping of tokens to ids, whatever its order."""
    return hashlib.sha256(json.dumps(sorted(vocabulary.items())).encode()).hexdigest()


def check_text(tokens: Ids, documents: Ids, vocab_size: int) -> int:
    """Refuse a text that is not ``SEP d1 SEP ... dn SEP``, and return the separator.

    Raises
    ------
    InputError
        See `count_ngrams`.
    """
    if tokens.ndim != 1 or tokens.size < 2 or tokens.dtype.kind not in "iu":
        raise InputError(
            f"tokens: expected whole numbers (n,), at least two separators, got {tokens.dtype} {tokens.shape}"
        )
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocab_size:
        raise InputError(
            f"expected tokens from 0 to {vocab_size - 1}, got {low} to {high}; "
            "encode the text with the tokenizer of the model"
        )
    borders = np.asarray(documents)
    ascending = borders.ndim == 1 and borders.dtype.kind in "iu" and (borders[1:] > borders[:-1]).all()
    whole = ascending and borders.size >= 2 and borders[0] == 0 and borders[-1] == tokens.size - 1
    if not whole or (tokens[borders] != tokens[0]).any():
        raise InputError(
            "documents: expected the ascending positions of separators, from the first token to the last, got "
            f"{borders.reshape(-1)[:3].tolist()} ... {borders.reshape(-1)[-1:].tolist()} for {tokens.size} tokens"
        )
    return int(tokens[0])


def number_ngrams(tokens: Ids, vocab_size: int, history: Ids, counted: Ids, order: int) -> tuple[Levels, list[Ids]]:
    """Count the n-grams of a text in memory, and number the one that ends at each position.

    Parameters
    ----------
    tokens : (n,) int
    vocab_size : int
    history : (n,) int
        How many tokens before each one belong to its history.
    counted : (n,) bool
        N-grams that end elsewhere are numbered but not counted.
    order : int

    Returns
    -------
    levels : tuple of Level
    ids : list of (n,) int32
        For every length: the n-gram that ends at each position, -1 where the history is too short.
    """
    from warmstart import _ngram_kernels as kernels  # numba is loaded here, not on import

    tokens = tokens.astype(id_type(vocab_size), copy=False)
    by_token = kernels.token_order(tokens, vocab_size)
    ids = [tokens.astype(np.int32)]
    lasts: list[Ids] = [np.arange(vocab_size, dtype=tokens.dtype)]
    counts: list[Ids] = [np.bincount(tokens[counted], minlength=vocab_size)]
    offsets: list[Ids] = []
    for n in range(2, order + 1):
        number, last, count, extensions = kernels.count_level(
            tokens, history, by_token, ids[-1], lasts[-1].size, n, counted
        )
        ids.append(number)
        lasts.append(last)
        counts.append(count)
        offsets.append(extensions)
    offsets.append(np.zeros(0, np.int32))
    return tuple(map(Level, lasts, counts, offsets)), ids


def _counted_on(device: str, tokens: Ids, vocab_size: int, history: Ids, counted: Ids, order: int) -> Levels:
    """Return the levels of `number_ngrams`, counted by PyTorch."""
    from warmstart import _ngram_torch  # torch is loaded here, not on import

    tokens = tokens.astype(id_type(vocab_size), copy=False)
    found = _ngram_torch.count_levels(tokens, vocab_size, history, counted, order, device)
    lasts = [np.arange(vocab_size, dtype=tokens.dtype), *(last for last, _, _ in found)]
    counts = [np.bincount(tokens[counted], minlength=vocab_size), *(count for _, count, _ in found)]
    offsets = [*(extensions for _, _, extensions in found), np.zeros(0, np.int32)]
    return tuple(map(Level, lasts, counts, offsets))


def _sum(parts: list[Levels]) -> Levels:
    return functools.reduce(lambda a, b: _merge(a, b, 1), parts)


def suffix_numbers(levels: Levels, device: str | None = None) -> list[Ids]:
    """Return the number of every n-gram without its first token, for the levels above the first.

    With a device of PyTorch, levels that its memory holds are searched there. The result does not depend on it.
    """
    from warmstart import _ngram_kernels as kernels  # numba is loaded here, not on import

    out = [level.last.astype(np.int32) for level in levels[1:2]]
    for below, upper, level in zip(levels, levels[1:], levels[2:], strict=False):
        arrays = upper.offsets, level.last, out[-1], below.offsets, upper.last
        found = None
        if device is not None:
            from warmstart import _ngram_torch  # torch is loaded here, not on import

            found = if_it_fits(_ngram_torch.suffixes, *arrays, levels[0].last.size, device)
        out.append(kernels.suffixes(*arrays) if found is None else found)
    return out


def _merge(a: Levels, b: Levels, sign: int) -> Levels:
    """Return ``a + sign * b`` without n-grams that no longer occur."""
    from warmstart import _ngram_kernels as kernels  # numba is loaded here, not on import

    a_ids = b_ids = np.arange(a[0].last.size, dtype=np.int32)
    levels = [Level(a[0].last, a[0].counts + sign * b[0].counts, a[0].offsets)]
    for n in range(1, len(a)):
        most = a[n].last.size + b[n].last.size
        last, counts = np.empty(most, a[n].last.dtype), np.empty(most, np.int32)
        a_next, b_next = (np.empty(most if n + 1 < len(a) else 0, np.int32) for _ in range(2))
        offsets, size, largest = kernels.merge_level(
            a_ids, a[n - 1].offsets, a[n].last, a[n].counts, b_ids, b[n - 1].offsets, b[n].last, b[n].counts, sign,
            last, counts, a_next, b_next,
        )  # fmt: skip
        check_numbers(n + 1, size, largest)
        last.resize(size, refcheck=False)  # shrinks in place, without a copy
        counts.resize(size, refcheck=False)
        a_ids, b_ids = a_next[:size], b_next[:size]
        levels[-1] = replace(levels[-1], offsets=offsets)
        levels.append(Level(last, counts, np.zeros(0, np.int32)))
    return tuple(levels) if sign > 0 else _without_zeros(tuple(levels))


def _without_zeros(levels: Levels) -> Levels:
    """Drop n-grams above level 1 that have no count and no extension with one."""
    from warmstart import _ngram_kernels as kernels  # numba is loaded here, not on import

    if all(level.counts.all() for level in levels[1:]):
        return levels
    out = [levels[-1]]
    alive = levels[-1].counts != 0
    for n in range(len(levels) - 1, 0, -1):
        upper, lower = levels[n], levels[n - 1]
        before = np.concatenate([np.zeros(1, np.int32), np.cumsum(alive, dtype=np.int32)])
        offsets = before[lower.offsets]
        out[0] = Level(upper.last[alive], upper.counts[alive], out[0].offsets)
        alive = kernels.live(lower.counts, lower.offsets, alive) if n > 1 else np.ones(lower.last.size, np.bool_)
        out.insert(0, replace(lower, offsets=np.append(offsets[:-1][alive], offsets[-1])))
    return tuple(out)
