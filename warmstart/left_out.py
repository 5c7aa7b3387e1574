"""Kneser-Ney rows of counted text: what follows a history, as if the part of the text had not been counted.

A row is sparse: the tokens that follow the history elsewhere, and a mass that is left for the unigram level, whose row
is dense but the same for all targets of a part:

    P(y | h) = probs[y] + rest * base[part][y]

The rule is that of `warmstart.kneser_ney.KneserNey.left_out`: the counts are those of the text without the part, the
discounts those of the whole. The n-grams of every part and their counts without it are found once and written to a
file beside the corpus, with the tables of the whole; all is memory-mapped.

| array | shape | meaning |
|---|---|---|
| ``last``, ``counts`` | (M,) | last token and count of Kneser-Ney of every n-gram, level by level |
| ``offsets`` | (C + 1,) | n-grams that extend each context are ``offsets[h] ... offsets[h + 1]`` |
| ``own_last``, ``own_counts``, ``own_offsets`` | | the n-grams of all parts, and their counts without their part |
| ``roots`` | (parts + 1,) | the tokens of each part among these |

Source of leaving out to fit what counted text trains: Ney, Essen and Kneser 1995; formulas: docs/math.md, section 8.

A context that only its part knows says nothing without it, so its extensions are not kept. The file takes about 6 bytes
an n-gram of the whole and of the parts, and 4 bytes a context. Beside the statistic and 4 bytes for each n-gram of it,
memory is about 200 bytes for each token of the longest part while the file is made (short parts go together, see
`warmstart.kneser_ney.TARGETS_PER_BATCH`). Afterwards it is that of the rows, and of what is in use of the mapped file.
"""

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from warmstart._threads import run_parts, shares
from warmstart.corpus import Corpus
from warmstart.errors import InputError
from warmstart.files import map_arrays, writing_arrays
from warmstart.ids import whole_numbers
from warmstart.kneser_ney import (
    Own,
    adjusted_counts,
    batches,
    check_counted,
    level_discounts,
    own_ngrams,
    parts,
)
from warmstart.levels import Levels, id_type, suffix_numbers
from warmstart.ngrams import NGramCounts, vocabulary_digest
from warmstart.progress import Progress

FORMAT = 1

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class SparseRows:
    """Rows of probabilities of all tokens, see the module.

    Attributes
    ----------
    tokens : (m,) int32
        Tokens of the entries, row after row, ascending in a row.
    probs : (m,) float32
    offsets : (n + 1,) int64
        Entries of row i are ``offsets[i] ... offsets[i + 1]``.
    rest : (n,) float32
        Mass of every row that is spread over all tokens.
    part : (n,) int64
        How it is spread: row of ``base``.
    base : (parts, V) float32

    Examples
    --------
    >>> base = np.full((1, 4), 0.25, np.float32)
    >>> rows = SparseRows(np.array([2]), np.array([0.5]), np.array([0, 1]), np.array([0.5]), np.array([0]), base)
    >>> rows.dense().tolist()
    [[0.125, 0.125, 0.625, 0.125]]
    """

    tokens: NDArray[np.int32]
    probs: NDArray[np.float32]
    offsets: NDArray[np.int64]
    rest: NDArray[np.float32]
    part: NDArray[np.int64]
    base: NDArray[np.float32]

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.rest.size

    def __getitem__(self, rows: slice) -> "SparseRows":
        """Return some of the rows, one after the other."""
        start, stop, _ = rows.indices(len(self))
        first, last = self.offsets[start], self.offsets[stop]
        offsets = self.offsets[start : stop + 1] - first
        entries = self.tokens[first:last], self.probs[first:last]
        return SparseRows(*entries, offsets, self.rest[rows], self.part[rows], self.base)

    def dense(self, scale: float = 1.0) -> NDArray[np.float32]:
        """Return the rows (n, V) float32, times a number."""
        from warmstart import _ngram_kernels as kernels  # numba is loaded here, not on import

        out = np.empty((len(self), self.base.shape[1]), np.float32)
        kernels.dense_rows(self.tokens, self.probs, self.offsets, self.rest, self.part, self.base, scale, out)
        return out


@dataclass(frozen=True, eq=False)
class LeftOut:
    """The n-grams of a counted text and of its parts, see the module; made by `left_out`.

    Attributes
    ----------
    tokens, starts
        Tokens of the text; first target of every part, from 0, and the number of targets.
    separator, vocab_size
    key : str
        Digest of the text, the statistic and the order.
    discounts : (order, 4) float64
    tables : dict of str to arrays
    """

    tokens: Array
    starts: NDArray[np.int64]
    separator: int
    vocab_size: int
    key: str
    discounts: NDArray[np.float64]
    tables: dict[str, Array]

    def rows(self, places: Any, top: int | None = None, temperature: float = 1.0, workers: int = 1) -> SparseRows:
        """Return the rows of targets.

        Parameters
        ----------
        places : (n,) array-like of int
            Targets of the text, from 0: target i is ``tokens[i + 1]``.
        top : int, optional
            Keep the so many entries of a row with the most mass; the mass of the others is spread as ``rest`` is. This
            is an approximation.
        temperature : float
            Rows are raised to the power of ``1 / temperature`` and normalised, before ``top``.
        workers : int
            Number of threads. The result does not depend on it.

        Raises
        ------
        InputError
            A place is outside the text, ``top`` is no whole number of at least 0, or the temperature is not positive.
        """
        from warmstart import _ngram_kernels as kernels  # numba is loaded here, not on import

        places = whole_numbers("places", places, int(self.starts[-1]))
        most = self.vocab_size if top is None else top
        if not isinstance(most, int | np.integer) or most < 0 or not 0 < temperature < np.inf:
            raise InputError(
                f"top, temperature: expected a whole number of at least 0 and a positive number, got {top!r} and "
                f"{temperature!r}; correct them"
            )
        tables, discounts = self.tables, self.discounts
        own = tables["roots"], tables["own_last"], tables["own_counts"]
        parts = np.searchsorted(self.starts, places, side="right") - 1
        some, part = np.unique(parts, return_inverse=True)
        plain = np.empty((some.size, self.vocab_size), np.float32)
        kernels.base_rows(some, tables["counts"], *own, discounts[0], plain)
        base, masses = _tempered(plain, temperature)
        bounds = self._bounds(places, most)

        def write(share: slice) -> tuple[Array, ...]:
            tokens, probs = np.empty(bounds[share].sum(), np.int32), np.empty(bounds[share].sum(), np.float32)
            ends, rest = np.empty(share.stop - share.start, np.int64), np.empty(share.stop - share.start, np.float32)
            n = kernels.left_out_rows(
                self.tokens, places[share], parts[share], self.separator,
                tables["last"], tables["counts"], tables["offsets"], *own, tables["own_offsets"], discounts,
                part[share], plain, base, masses, 1.0 / temperature, most, tokens, probs, ends, rest,
            )  # fmt: skip
            return tokens[:n], probs[:n], np.diff(ends, prepend=0), rest

        found = run_parts(write, shares(places.size, workers), workers)
        tokens, probs, sizes, rest = (
            arrays[0] if workers == 1 else np.concatenate(arrays) for arrays in zip(*found, strict=True)
        )
        return SparseRows(tokens, probs, np.append(0, np.cumsum(sizes)), rest, part, base)

    def _bounds(self, places: Array, most: int) -> Array:
        """Return the largest number of entries that each row can have."""
        if len(self.discounts) == 1:
            return np.zeros(places.size, np.int64)
        before, offsets = np.asarray(self.tokens[places], np.int64), self.tables["offsets"]
        return np.minimum(offsets[before + 1].astype(np.int64) - offsets[before], most)


def _tempered(base: NDArray[np.float32], temperature: float) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return the unigram rows at a temperature, and their sums before they were normalised."""
    if temperature == 1.0:
        return base, np.ones(len(base))
    power = base.astype(np.float64) ** (1.0 / temperature)
    masses = power.sum(axis=1)
    return (power / masses[:, None]).astype(np.float32), masses


def left_out(
    counts: NGramCounts,
    corpus: Corpus,
    order: int | None = None,
    *,
    folder: Path | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> LeftOut:
    """Read the n-grams of a counted corpus and of its parts, or find and write them.

    Parameters
    ----------
    counts : NGramCounts
        The statistic. It holds all documents of the corpus, and may hold more.
    corpus : Corpus
        Its tokenizer may have more tokens than were counted, such as one for padding, if none of them occurs.
    order : int, optional
        Length of the longest n-grams; that of the statistic by default.
    folder : Path, optional
        Folder of the file; that of the corpus by default.
    workers : int
        Number of threads. The result does not depend on it.
    progress : callable, optional
        Called as ``progress("leave out", targets, total)``, possibly from another thread.

    Raises
    ------
    InputError
        A document was not counted, the statistic has another vocabulary, or the file is damaged; delete it, and it is
        made again.

    Examples
    --------
    >>> from warmstart.ngrams import count_ngrams
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     corpus = Corpus.build(["a b a b", "a b", "b a"], tokenizer="words", cache_dir=Path(folder))
    ...     statistic = count_ngrams(corpus.tokens, corpus.documents, corpus.vocab_size, order=2)
    ...     rows = left_out(statistic, corpus).rows([0, 1])  # of the first two targets
    >>> len(rows), rows.dense().sum(axis=1).round(6).tolist()
    (2, [1.0, 1.0])
    """
    _check(counts, corpus)
    counts = counts if order is None else counts.shortened(order)
    spans = parts(corpus.documents, counts.n_tokens)
    facts = [FORMAT, corpus.digest, counts.digest]
    key = hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()
    path = (folder or corpus.folder) / f"left-out-{key}.safetensors"
    if not path.exists():
        _write(path, key, counts, corpus, spans, workers, progress)
    tables, found = map_arrays(path)
    found = found.get("left_out", {})
    if (found.get("format"), found.get("key")) != (FORMAT, key):
        raise InputError(f"{path}: expected the n-grams of this corpus, got another file; delete it")
    starts = np.array([*(span.start - 1 for span in spans), corpus.n_tokens])
    discounts = tables.pop("discounts")
    return LeftOut(corpus.tokens, starts, corpus.separator, counts.vocab_size, key, discounts, tables)


def _check(counts: NGramCounts, corpus: Corpus) -> None:
    """Refuse a statistic of another vocabulary or text."""
    if not isinstance(counts, NGramCounts):
        raise InputError(
            f"expected the statistic of n-grams, from which text can be left out, got {type(counts).__name__}; "
            "count the text with count_ngrams"
        )
    size, digest = counts.vocab_size, ""  # tokens of the corpus above it are padding if none occurs
    used = corpus.vocab_size if corpus.vocab_size <= size or corpus.counts[size:].any() else size
    if counts.vocabulary:
        digest = vocabulary_digest({token: i for token, i in corpus.tokenizer.get_vocab().items() if i < size})
    kinds = [(size, counts.separator, counts.vocabulary[:8]), (used, corpus.separator, digest[:8])]
    if kinds[0] != kinds[1]:
        raise InputError(
            f"expected a corpus in the tokens of the counts (size, separator, digest) {kinds[0]}, got {kinds[1]}; "
            "encode the text with the tokenizer of the counts"
        )
    check_counted(counts, corpus.tokens, corpus.documents)


def _write(
    path: Path,
    key: str,
    counts: NGramCounts,
    corpus: Corpus,
    spans: list[slice],
    workers: int,
    progress: Progress | None,
) -> None:
    """Write the file."""
    levels, order = counts.levels, counts.order
    adjusted = adjusted_counts(counts, suffix_numbers(levels))
    tokens, ends = np.asarray(corpus.tokens), np.flatnonzero(corpus.tokens == corpus.separator)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".left-out-") as place:
        own = _Levels(Path(place), order, id_type(counts.vocab_size))
        groups = batches(spans)
        for first in range(0, len(groups), workers):
            some = groups[first : first + workers]
            for found in run_parts(lambda batch: own_ngrams(tokens, ends, batch, counts, adjusted), some, workers):
                own.add(found, levels)
            if progress:
                progress("leave out", some[-1][-1].stop - 1, corpus.n_tokens)
        sizes = [level.last.size for level in levels]
        bases, own_bases = np.cumsum([0, *sizes]), np.cumsum([0, *own.sizes])
        ids = "U16" if counts.vocab_size <= 2**16 else "U32"
        kind = "I32" if max(int(values.max(initial=0)) for values in adjusted) < 2**31 else "I64"
        shapes = {
            "last": (ids, (int(bases[-1]),)),
            "counts": (kind, (int(bases[-1]),)),
            "offsets": (_index(bases), (int(bases[-2]) + 1,)),
            "own_last": (ids, (int(own_bases[-1]),)),
            "own_counts": (kind, (int(own_bases[-1]),)),
            "own_offsets": (_index(own_bases), (int(own_bases[-2]) + 1,)),
            "roots": (_index(own_bases), (len(spans) + 1,)),
            "discounts": ("F64", (order, 4)),
        }
        with writing_arrays(path, shapes, {"left_out": {"format": FORMAT, "key": key}}) as arrays:
            arrays["discounts"][:] = [level_discounts(values)[0] for values in adjusted]
            arrays["roots"][:] = np.append(0, np.cumsum(own.roots))
            arrays["offsets"][0], arrays["own_offsets"][0] = bases[1], own_bases[1]
            for k, level in enumerate(levels):
                here, there = slice(*bases[k : k + 2]), slice(*own_bases[k : k + 2])
                arrays["last"][here], arrays["counts"][here] = level.last, adjusted[k]
                arrays["own_last"][there], arrays["own_counts"][there] = own.read(k, "last"), own.read(k, "counts")
                if k + 1 < order:
                    arrays["offsets"][here.start + 1 : here.stop + 1] = level.offsets[1:] + bases[k + 1]
                    following = own_bases[k + 1] + np.cumsum(own.read(k, "extensions"), dtype=np.int64)
                    arrays["own_offsets"][there.start + 1 : there.stop + 1] = following


def _index(bases: Array) -> str:
    return "I32" if bases[-1] < 2**31 else "I64"


class _Levels:
    """The n-grams of parts, level by level, in files that grow.

    Attributes
    ----------
    sizes : list of int
        Number of n-grams of every length.
    roots : list of int
        Number of tokens of every part.
    """

    def __init__(self, folder: Path, order: int, ids: np.dtype[Any]) -> None:
        self.folder, self.sizes = folder, [0] * order
        self.roots: list[int] = []
        self.types = {"last": ids, "counts": np.dtype(np.int64), "extensions": np.dtype(np.int32)}

    def add(self, own: Own, whole: Levels) -> None:
        """Add the n-grams of a batch, without the extensions of contexts that only their part knows."""
        size = whole[0].last.size
        self.roots += np.bincount(own.types // size, minlength=int(own.part[-1]) + 1).tolist()
        known = _known(own, whole)
        kept = np.ones(own.types.size, np.bool_)
        for k, level in enumerate(own.levels):
            extensions = np.diff(level.offsets) if level.offsets.size else np.zeros(kept.size, np.int32)
            arrays = own.types[level.last] % size, own.reduced[k], np.where(known[k], extensions, 0)
            for (name, dtype), array in zip(self.types.items(), arrays, strict=True):
                with (self.folder / f"{k}-{name}").open("ab") as file:
                    file.write(array[kept].astype(dtype).tobytes())
            self.sizes[k] += int(kept.sum())
            kept = np.repeat(known[k], extensions)

    def read(self, k: int, name: str) -> Array:
        """Return what was added of a level."""
        return np.fromfile(self.folder / f"{k}-{name}", self.types[name])


def _known(own: Own, whole: Levels) -> list[NDArray[np.bool_]]:
    """Return for every length which n-grams of a part have an extension that occurs elsewhere, or lead to one that has.

    The latter: a piece of a document may end with a context whose own extension is the first token of the next piece.
    """
    out = [np.zeros(own.levels[-1].last.size, np.bool_)]
    for k in reversed(range(len(own.levels) - 1)):
        offsets = own.levels[k].offsets
        elsewhere = whole[k].offsets[own.places[k] + 1] - whole[k].offsets[own.places[k]] > np.diff(offsets)
        out.insert(0, elsewhere | (np.diff(np.append(0, np.cumsum((own.raw[k + 1] > 0) | out[0]))[offsets]) > 0))
    return out
