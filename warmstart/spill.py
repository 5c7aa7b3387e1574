"""Counting n-grams with little memory: sorted runs on the disk, merged as streams, and a killed run that goes on.

A text is halved until a part has at most ``run`` targets. The n-grams of a part are counted in memory and written to a
file, a *run*. Two runs are merged to that of their parts, level by level, in blocks: the n-grams of a level that extend
``BLOCK`` n-grams of the level below are neighbours in both runs, so both are read, and the sum is written, from
beginning to end. In memory are one run or some blocks, and the documents: 4 bytes for each token of the text, which
are mapped and copied ids, where levels take up to 88. The statistic is the same to the bit.

Every run is a file that is written whole or not at all, and knows the text that it is of. A run is deleted when that
of a larger part exists. So whoever is killed has lost one part, or one merge; counting goes on from the runs that are
there, also with other sizes of runs. One process at a time works in a folder.
"""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from warmstart.blocks import Rows, Stored, Writer, read_rows, writing_rows
from warmstart.corpus import Corpus
from warmstart.device import check_device
from warmstart.errors import InputError
from warmstart.files import Array
from warmstart.ids import as_array
from warmstart.levels import check_numbers, count_levels, id_type
from warmstart.ngrams import (
    FACTS,
    FORMAT,
    LONGEST,
    ORDER,
    Documents,
    NGramCounts,
    arrays_of,
    check_text,
    count_ngrams,
    digest_of,
    packed_counts,
    vocabulary_digest,
)
from warmstart.progress import Progress

if TYPE_CHECKING:
    from warmstart.budget import Budget

RUN = 1 << 22  # targets of a run, if no limit of memory asks for fewer
BLOCK = 1 << 19  # n-grams that are merged at once
FORMAT_OF_RUNS = 2  # n-grams are in the run in which they begin
OURS = re.compile(r"\.?(run-|whole).*|corpus")


@dataclass(frozen=True)
class Work:
    """A folder for the runs of one text.

    Parameters
    ----------
    folder : Path
        It is made when there is something to write.
    always : bool
        Write runs even if the text could be counted in memory, so that a killed process can go on.
    """

    folder: Path
    always: bool = True


@contextlib.contextmanager
def beside(output: str | os.PathLike[str], resume: bool) -> Iterator[Work]:
    """Give the folder ``OUTPUT.parts``, and delete it when the block ends without an error.

    A process that is killed or interrupted leaves it. So does one that is refused after it has counted; before, nothing
    is left.

    Parameters
    ----------
    output : path
    resume : bool
        Whether to go on from a folder that is there.

    Raises
    ------
    InputError
        The folder is there, without ``resume`` or with files of another kind.
    """
    path = Path(os.path.abspath(output))  # noqa: PTH100 - a symbolic link has its folder beside it
    folder, work = path.with_name(f"{path.name}.parts"), Path(f"{Path(output)}.parts")
    there = folder.exists()
    if there and (not folder.is_dir() or not all(OURS.fullmatch(file.name) for file in folder.iterdir())):
        raise InputError(f"{work}: expected a folder for parts of the counts, got something else; move it away")
    if there and not resume:
        raise InputError(
            f"{work}: expected no such folder, got that of a run which did not end; go on with --resume, or delete it"
        )
    try:
        yield Work(folder, resume)
    except InputError:
        if not there and not any(folder.glob("run-*")):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, eq=False)
class SpilledCounts:
    """The statistic of a text with its n-grams on the disk: `warmstart.ngrams.NGramCounts`, as far as files need it.

    Attributes
    ----------
    vocab_size, separator, order, documents, vocabulary
        As those of `NGramCounts`.
    rows : mapping of str to Stored
        The arrays that a file has for the levels.
    unigrams : (V,) int64
        How often each token is a target.
    """

    vocab_size: int
    separator: int
    order: int
    rows: Rows
    documents: Documents
    vocabulary: str
    unigrams: NDArray[np.int64] = field(repr=False)

    @property
    def sizes(self) -> list[int]:
        """Number of different n-grams of every length."""
        longer = (self.rows[f"{n}.last"].size for n in range(2, self.order + 1))
        return [int(np.count_nonzero(self.unigrams)), *longer]

    @property
    def n_tokens(self) -> int:
        """Number of counted targets."""
        return int(self.unigrams.sum())

    @property
    def digest(self) -> str:
        """That of `NGramCounts`."""
        return digest_of(*self.content())

    def content(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Return the arrays and the facts of a file, see `warmstart.files.save_arrays`."""
        facts = {"format": FORMAT} | {name: getattr(self, name) for name in FACTS}
        return {**self.documents.arrays(), **self.rows}, {"ngrams": facts}

    def loaded(self) -> NGramCounts:
        """Return the statistic in memory. The files are not needed any more."""
        arrays, facts = self.content()
        whole = {name: array.read() if isinstance(array, Stored) else array for name, array in arrays.items()}
        return NGramCounts.of_content(next(iter(self.rows.values())).path, whole, facts)


def count_corpus(
    corpus: Corpus,
    order: int,
    *,
    workers: int = 1,
    device: str | None = None,
    budget: "Budget | None" = None,
    work: Work | None = None,
    progress: Progress | None = None,
) -> NGramCounts | SpilledCounts:
    """Count a corpus: in memory, or with runs in a folder if a budget or the folder asks for it.

    Parameters
    ----------
    corpus : Corpus
    order, workers, device, progress
        See `warmstart.ngrams.count_ngrams`.
    budget : Budget, optional
        Chooses how much is counted at once.
    work : Work, optional
        Without a folder nothing is spilled.

    Raises
    ------
    InputError
        The budget does not suffice, or there is a device too; or the folder has runs of another text or order.
    """
    if budget is not None and device is not None:
        raise InputError(
            f"device: expected none with a limit of memory, which is for compiled loops, got {device!r}; leave one out"
        )
    text = corpus.tokens, corpus.documents, corpus.vocab_size, order
    options: dict[str, Any] = {"workers": workers, "device": device, "progress": progress}
    options["vocabulary"] = corpus.tokenizer.get_vocab()
    run = RUN if work and work.always else None
    if budget is not None:
        run = budget.counting(corpus.n_tokens, corpus.n_documents, corpus.vocab_size, order, work)
    if work is None or run is None:
        return count_ngrams(*text, **options)
    return count_spilled(*text, folder=work.folder, run=run, **options)


def count_spilled(
    tokens: NDArray[Any],
    documents: NDArray[Any],
    vocab_size: int,
    order: int = ORDER,
    *,
    folder: Path,
    run: int | None = None,
    vocabulary: Mapping[str, int] | None = None,
    workers: int = 1,
    device: str | None = None,
    progress: Progress | None = None,
) -> SpilledCounts:
    """Count all n-grams of a text up to an order, with runs in a folder; go on from those that are there.

    Parameters
    ----------
    tokens, documents, vocab_size, order, vocabulary, workers, device
        See `warmstart.ngrams.count_ngrams`.
    folder : Path
        It is made if it is not there, and keeps the files of the result. Its parent exists.
    run : int, optional
        Most targets of a run, `RUN` if it is not given. The result does not depend on it.
    progress : callable, optional
        Called as ``progress("count n-grams", tokens, total)``, where each merge passes its tokens once more.

    Raises
    ------
    InputError
        As in `count_ngrams`; or the folder has runs of another text or order, or damaged ones.

    Examples
    --------
    >>> text = np.array([0, 1, 2, 1, 2, 0]), np.array([0, 5]), 3
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     counts = count_spilled(*text, order=2, folder=Path(folder), run=2)
    ...     counts.sizes, counts.digest == count_ngrams(*text, order=2).digest
    ([3, 4], True)
    """
    tokens, documents = as_array("tokens", tokens), as_array("documents", documents)
    separator = check_text(tokens, documents, vocab_size)
    if not 1 <= order <= LONGEST:
        raise InputError(f"order: expected a number from 1 to {LONGEST}, got {order}")
    check_device(device)
    text = {"text": _text_digest(tokens, documents), "vocab_size": int(vocab_size), "order": int(order)}
    text |= {"format of runs": FORMAT_OF_RUNS}
    digest = "" if vocabulary is None else vocabulary_digest(vocabulary)
    options: dict[str, Any] = {"workers": workers, "device": device}
    counting = _Counting(tokens, separator, text | {"vocabulary": digest}, folder, run or RUN, options, progress)
    rows = counting.whole()
    bag = Documents.of(tokens, documents, id_type(vocab_size))
    unigrams = _Level(rows, 1).counts(0, int(vocab_size))
    return SpilledCounts(int(vocab_size), separator, int(order), rows, bag, digest, unigrams)


def _text_digest(tokens: NDArray[Any], documents: NDArray[Any]) -> str:
    """Return the digest of a text, whatever the types of its numbers."""
    whole = hashlib.blake2b(digest_size=16)
    for array, dtype in ((tokens, "<u4"), (documents, "<i8")):
        whole.update(len(array).to_bytes(8, "little"))
        for start in range(0, len(array), BLOCK):
            whole.update(np.ascontiguousarray(array[start : start + BLOCK], dtype).data)
    return whole.hexdigest()


@dataclass(frozen=True, eq=False)
class _Counting:
    """The runs of a text in a folder."""

    tokens: NDArray[Any]
    separator: int
    text: dict[str, Any]  # facts of every run
    folder: Path
    run: int
    options: dict[str, Any]  # of `count_levels`
    progress: Progress | None
    done: list[int] = field(default_factory=list)  # targets that were counted, or passed in a merge

    def whole(self) -> Rows:
        """Return the rows of the whole text."""
        self.folder.mkdir(exist_ok=True)
        for left in self.folder.glob(".run-*"):  # by a process that was killed while it wrote
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        for path in self.folder.glob("run-*"):
            self._check(read_rows(path)[1])
        return self._rows(0, self.tokens.size - 1)

    def _check(self, found: Mapping[str, Any]) -> None:
        for name, value in self.text.items():
            if found.get(name) != value:
                raise InputError(
                    f"{self.folder}: expected parts with the {name} {str(value)[:8]}, got those of another, "
                    f"{str(found.get(name))[:8]}; give the same text and settings, or delete the folder"
                )

    def _path(self, start: int, stop: int) -> Path:
        return self.folder / f"run-{start}-{stop}"

    def _rows(self, start: int, stop: int) -> Rows:
        """Return the rows of the n-grams that begin at places ``start ... stop - 1``."""
        path, middle = self._path(start, stop), (start + stop) // 2
        if path.exists():
            rows: Rows = read_rows(path, checked=True)[0]
            self._report(self._passes(start, stop))
        else:
            if stop - start <= self.run:
                self._count(path, slice(start, stop))
            else:
                parts = self._rows(start, middle), self._rows(middle, stop)
                merge(path, parts, self.text)
            rows = read_rows(path)[0]
            self._report(stop - start)
        if middle > start:
            for part in (self._path(start, middle), self._path(middle, stop)):
                part.unlink(missing_ok=True)
        return rows

    def _count(self, path: Path, targets: slice) -> None:
        levels = count_levels(
            self.tokens, targets, self.separator, self.text["vocab_size"], self.text["order"], **self.options
        )
        with writing_rows(path, self.text) as out:
            for name, array in arrays_of(levels).items():
                out.add(name, array)

    def _passes(self, start: int, stop: int) -> int:
        """Return how many targets are counted or merged for a part."""
        middle, size = (start + stop) // 2, stop - start
        return size if size <= self.run else size + self._passes(start, middle) + self._passes(middle, stop)

    def _report(self, n: int) -> None:
        self.done.append(n)
        if self.progress:
            self.progress("count n-grams", sum(self.done), self._passes(0, self.tokens.size - 1))


class _Level:
    """The n-grams of n tokens in a run."""

    def __init__(self, rows: Rows, n: int) -> None:
        self.last, self.offsets, self.small = (rows[f"{n}.{name}"] for name in ("last", "offsets", "counts"))
        self.large, self.large_counts = (rows[f"{n}.{name}"].read() for name in ("large", "large_counts"))
        self.dtype = np.int64 if n == 1 else np.int32

    def counts(self, start: int, stop: int) -> NDArray[Any]:
        """Return how often each of some n-grams occurs."""
        out = self.small.read(start, stop).astype(self.dtype)
        i, j = np.searchsorted(self.large, [start, stop])
        out[self.large[i:j] - start] = self.large_counts[i:j]
        return out


def merge(path: Path, parts: tuple[Rows, Rows], text: Mapping[str, Any]) -> None:
    """Write the sum of two runs. In memory are blocks of them, and the counts that are too large for a byte.

    Raises
    ------
    InputError
        There are too many n-grams, or occurrences of one.
    """
    order = text["order"]
    with writing_rows(path, text) as out, contextlib.ExitStack() as stack:
        # For the n-grams of each level: in which of the runs they are, a bit for each
        where = [stack.enter_context(tempfile.TemporaryFile(prefix=".run-", dir=path.parent)) for _ in range(order)]
        a, b = (_Level(part, 1) for part in parts)
        size = a.last.size
        out.add("1.last", a.last.read())
        _add_counts(out, 1, 0, a.counts(0, size) + b.counts(0, size))
        where[0].write(bytes([3]) * size)
        for n in range(2, order + 1):
            lower, upper = (tuple(_Level(part, m) for part in parts) for m in (n - 1, n))
            where[n - 2].seek(0)
            _merge_level(n, lower, upper, where[n - 2], None if n == order else where[n - 1], out)
        out.add(f"{order}.offsets", np.zeros(0, np.int32))


def _add_counts(out: Writer, n: int, start: int, counts: NDArray[Any]) -> None:
    """Append the counts of n-grams, of which ``start`` are written already."""
    arrays = packed_counts(n, counts)
    arrays[f"{n}.large"] += start
    for name, array in arrays.items():
        out.add(name, array)


def _merge_level(
    n: int,
    lower: tuple[_Level, ...],
    upper: tuple[_Level, ...],
    parents: IO[bytes],
    where: IO[bytes] | None,
    out: Writer,
) -> None:
    """Append the n-grams of n tokens of both runs, and the offsets of the level below.

    parents: for each (n-1)-gram of the sum, in which of the runs it is; the same is written to ``where``.
    """
    from warmstart import _ngram_kernels as kernels  # numba is loaded here, not on import

    size, at = 0, [0, 0]  # n-grams that are written, (n-1)-grams of either run that are read
    out.add(f"{n - 1}.offsets", np.zeros(1, np.int32))
    while block := parents.read(BLOCK):
        here = [(np.frombuffer(block, np.uint8) >> side & 1).astype(np.bool_) for side in (0, 1)]
        nodes = [int(flags.sum()) for flags in here]
        offsets = [lower[side].offsets.read(at[side], at[side] + nodes[side] + 1) for side in (0, 1)]
        at = [at[side] + nodes[side] for side in (0, 1)]
        for part in _pieces(here, offsets):
            a, b = ((_extensions(upper[side], here[side], offsets[side], part)) for side in (0, 1))
            most = a[2].size + b[2].size
            last, counts = np.empty(most, a[2].dtype), np.empty(most, np.int32)
            numbers = [np.empty(0 if where is None else most, np.int32) for _ in range(2)]
            ends, found, largest = kernels.merge_level(
                a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], 1, last, counts, numbers[0], numbers[1]
            )
            check_numbers(n, size + found, largest)
            out.add(f"{n}.last", last[:found])
            _add_counts(out, n, size, counts[:found])
            out.add(f"{n - 1}.offsets", (ends[1:] + np.int64(size)).astype(np.int32))
            if where is not None:
                where.write(((numbers[0][:found] >= 0) + 2 * (numbers[1][:found] >= 0)).astype(np.uint8).data)
            size += found
    if not size:  # the types of rows that have no numbers
        out.add(f"{n}.last", np.empty(0, upper[0].last.dtype))
        _add_counts(out, n, 0, np.empty(0, np.int32))


def _pieces(here: list[NDArray[np.bool_]], offsets: list[NDArray[np.int32]]) -> Iterator[slice]:
    """Cut n-grams so that at most ``BLOCK`` extend those of a piece, or as many as extend one."""
    sizes = np.zeros(here[0].size, np.int64)
    for flags, ends in zip(here, offsets, strict=True):
        sizes[flags] += np.diff(ends)
    sums, start = np.cumsum(sizes), 0
    while start < sizes.size:
        before = int(sums[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(sums, before + BLOCK, "right")))
        yield slice(start, stop)
        start = stop


def _extensions(
    level: _Level, here: NDArray[np.bool_], offsets: NDArray[np.int32], part: slice
) -> tuple[NDArray[Any], ...]:
    """Return what extends some n-grams in one run: their numbers or -1, the offsets, last tokens and counts."""
    flags, first = here[part], int(np.count_nonzero(here[: part.start]))
    numbers = np.where(flags, np.cumsum(flags) - 1, -1).astype(np.int32)
    ends = offsets[first : first + int(flags.sum()) + 1]
    start, stop = int(ends[0]), int(ends[-1])
    return numbers, ends - ends[0], level.last.read(start, stop), level.counts(start, stop)
