"""A corpus in shards: count each where it lies, merge the statistics, solve the sum.

Three calls, and a file between them, so that any engine can run them: `count` reads one shard, `merge` adds statistics,
`solve` makes the model. It has the same bytes as that of ``warmstart fit`` with the same tokenizer on all the text,
whatever the shards (cut between documents) and the order in which they are merged: a `Statistic` holds all n-grams and
all documents as token ids, so that gate, classes, temperatures and network are solved from it alone.

| of the file | content |
|---|---|
| arrays and facts of `warmstart.ngrams.NGramCounts` | the counts, in the ids of the tokenizer |
| ``tokenizer`` | (n,) uint8: its ``tokenizer.json`` |
| facts ``shard`` | format, bytes of text, sha256 of the tokenizer; a checksum of everything |

The tokenizer is made before, of a sample of the text (`train`), or is one that you have. Its ids become frequency ranks
of the whole corpus in `solve`, as in ``fit``, so they do not depend on a shard.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from tokenizers import Tokenizer

from warmstart import files
from warmstart.corpus import Corpus, Meter, Text
from warmstart.device import check_device
from warmstart.documents import Sources, read_documents
from warmstart.errors import InputError
from warmstart.formats import Reading, notice
from warmstart.ngrams import ORDER, NGramCounts
from warmstart.progress import Progress
from warmstart.records import named
from warmstart.spill import SpilledCounts, Work, count_corpus
from warmstart.tokenizer import load_tokenizer, train_tokenizer, unknown_id

if TYPE_CHECKING:
    from warmstart.budget import Budget
    from warmstart.estimators import WarmStartLM

FORMAT = 1
SHARD, TOKENIZER = "shard", "tokenizer"

Name = str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class Statistic:
    """The counts of one shard or of several, with what else a model needs. Add two of them with ``+``.

    Attributes
    ----------
    counts : NGramCounts or SpilledCounts
        The latter if they are on the disk, see `count`; they are read where they are added or solved.
    tokenizer : str
        The content of its ``tokenizer.json``.
    n_bytes : int
        UTF-8 bytes of the counted text.

    Examples
    --------
    >>> tokenizer = train_tokenizer(["one two three"], "words")
    >>> both = count(["one two"], tokenizer) + count(["three", "one"], tokenizer)
    >>> both.n_bytes, both.counts.digest == count(["one two", "three", "one"], tokenizer).counts.digest
    (15, True)
    """

    counts: NGramCounts | SpilledCounts
    tokenizer: str
    n_bytes: int

    def __add__(self, other: "Statistic") -> "Statistic":
        """Return the statistic of both texts.

        Raises
        ------
        InputError
            They have other tokenizers or orders.
        """
        if self.tokenizer != other.tokenizer:
            raise InputError("expected statistics of one tokenizer, got two; count both texts with the same one")
        counts = self.counts.loaded() + other.counts.loaded()
        return replace(self, counts=counts, n_bytes=self.n_bytes + other.n_bytes)

    @property
    def n_unknown(self) -> int:
        """Number of targets that are the unknown token."""
        unknown = unknown_id(Tokenizer.from_str(self.tokenizer))
        return 0 if unknown is None else int(self.counts.unigrams[unknown])

    def save(self, path: Name) -> None:
        """Write one safetensors file, whole or not at all. The same statistic gives the same bytes.

        A file that is there is replaced.
        """
        arrays, facts = self.counts.content()
        arrays = {**arrays, TOKENIZER: np.frombuffer(self.tokenizer.encode(), np.uint8)}
        facts[SHARD] = {"format": FORMAT, "bytes": self.n_bytes, TOKENIZER: _digest(self.tokenizer)}
        files.save_arrays(Path(path), arrays, facts | {files.CHECKSUMS: files.checksums(arrays, facts)})

    @classmethod
    def load(cls, path: Name) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        InputError
            The file is missing, truncated, damaged or of another kind or format.
        """
        arrays, facts = files.map_arrays(path)
        shard = _shard(path, facts)
        if shard.get("format") != FORMAT:
            raise InputError(f"{path}: expected a statistic of format {FORMAT}, got another one; count the shard again")
        counts = NGramCounts.of_content(Path(path), arrays, facts)
        return cls(counts, arrays[TOKENIZER].tobytes().decode(), shard["bytes"])


def train(
    sample: Sources,
    folder: Name,
    *,
    kind: str = "bpe",
    vocab_size: int = 8192,
    progress: Progress | None = None,
    **reading: Any,
) -> Tokenizer:
    """Train a tokenizer on a sample of the text, and write it to a folder for `count`.

    Parameters
    ----------
    sample : see `warmstart.documents.find_sources`
    folder : path
        A new or an empty folder, or one with an older tokenizer only, which is replaced.
    kind, vocab_size
        See `warmstart.tokenizer.train_tokenizer`.
    progress : callable, optional
        Called as ``progress("train tokenizer", bytes, None)``.
    **reading
        Fields of `warmstart.formats.Reading`.

    Raises
    ------
    InputError
        The sample, a parameter or the folder cannot be used. Nothing is written.
    """
    path = Path(folder)
    if path.exists() and (not path.is_dir() or {file.name for file in path.iterdir()} - {"tokenizer.json"}):
        raise InputError(f"{path}: expected a new folder for a tokenizer, got other files; choose another name")
    _check_writable(path, next(parent for parent in path.absolute().parents if parent.exists()))
    meter = Meter("train tokenizer", None, progress)
    pieces = meter.watch(read_documents(sample, Reading(**reading)))
    tokenizer = train_tokenizer((piece.text for piece in pieces), kind, vocab_size)
    path.mkdir(parents=True, exist_ok=True)
    with files.replacing(path / "tokenizer.json") as temporary:
        temporary.write_text(tokenizer.to_str(), encoding="utf-8")
    return tokenizer


def count(
    shard: Text,
    tokenizer: Name | Tokenizer,
    *,
    order: int = ORDER,
    workers: int = 1,
    device: str | None = None,
    budget: "Budget | None" = None,
    work: Work | None = None,
    progress: Progress | None = None,
    **reading: Any,
) -> Statistic:
    """Count one shard of a corpus: whole documents.

    Parameters
    ----------
    shard : see `warmstart.documents.find_sources`; or TokenFiles
    tokenizer : path or Tokenizer
        The same for all shards: see `warmstart.tokenizer.load_tokenizer`.
    order : int
        Length of the longest n-grams, the same for all shards. A model may have a lower one.
    workers : int
        Number of threads. The result does not depend on it.
    device : str, optional
        Device of PyTorch that counts, see `warmstart.ngrams.count_ngrams`. The result does not depend on it.
    budget : Budget, optional
        A limit of memory: it chooses how much is counted at once, and refuses before what would not fit.
    work : Work, optional
        A folder for what is counted so far, see `warmstart.spill`. The same call goes on from it; delete it after
        `Statistic.save`.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.
    **reading
        Fields of `warmstart.formats.Reading`.

    Raises
    ------
    InputError
        The shard, the tokenizer, the order or the device cannot be used, or the budget does not suffice.
    """
    check_device(device)
    own = load_tokenizer(Path(tokenizer) if isinstance(tokenizer, os.PathLike) else tokenizer)
    with contextlib.ExitStack() as stack:
        if work is None:  # Windows does not delete mapped files
            temporary = tempfile.TemporaryDirectory(prefix="warmstart-", ignore_cleanup_errors=True)
            folder = Path(stack.enter_context(temporary))
        else:
            folder = work.folder / "corpus"
        corpus = Corpus.encode(shard, own, cache_dir=folder, progress=progress, **reading)
        options: dict[str, Any] = {"workers": workers, "device": device, "budget": budget, "work": work}
        counts = count_corpus(corpus, order, progress=progress, **options)
    return Statistic(counts, own.to_str(), corpus.n_bytes)


def merge(paths: Iterable[Name], *, progress: Progress | None = None) -> Statistic:
    """Add the statistics of several files. Any order gives the same sum, and sums can be merged again.

    At most one statistic a doubling is in memory: that of 1, 2, 4, ... files.

    A document that is in several files is counted as often, as ``fit`` counts it. If all documents of a file are in the
    others, a warning names it, because it may have been merged before.

    Parameters
    ----------
    paths : iterable of paths
    progress : callable, optional
        Called as ``progress("merge statistics", files, total)``.

    Raises
    ------
    InputError
        A file is missing, damaged, named twice or no statistic; or two of them have other tokenizers, orders or
        formats.

    Examples
    --------
    >>> tokenizer = train_tokenizer(["one two three"], "words")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name, text in {"a": "one two", "b": "three"}.items():
    ...         count([text], tokenizer).save(f"{folder}/{name}.stats")
    ...     merge([f"{folder}/a.stats", f"{folder}/b.stats"]).counts.n_tokens
    5
    """
    names = [Path(path) for path in paths]
    _check_kinds(names)
    sums: list[tuple[list[Path], Statistic]] = []
    for done, path in enumerate(names, 1):
        sums.append(([path], Statistic.load(path)))
        while len(sums) > 1 and (len(sums[-1][0]) == len(sums[-2][0]) or done == len(names)):
            second, first = sums.pop(), sums.pop()
            _report_repeated(first, second)
            sums.append((first[0] + second[0], first[1] + second[1]))
        if progress:
            progress("merge statistics", done, len(names))
    return sums[0][1]


def solve(
    statistic: Statistic, model: "WarmStartLM", *, device: str | None = None, progress: Progress | None = None
) -> "WarmStartLM":
    """Solve a statistic into a model: what ``model.fit`` gives for all its text with the same tokenizer.

    Parameters
    ----------
    statistic : Statistic
    model : WarmStartLM
        With the parameters of the model. It is fitted and returned.
    device : str, optional
        See `warmstart.WarmStartLM.fit`.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.

    Raises
    ------
    InputError
        See `warmstart.WarmStartLM.fit_counts`.
    """
    content = statistic.counts.loaded(), Tokenizer.from_str(statistic.tokenizer), statistic.n_bytes
    return model.fit_counts(*content, device=device, progress=progress)


def check_output(path: Name, inputs: Iterable[Name] = ()) -> Path:
    """Return the path if a statistic may be written there. Call this before a long computation.

    Raises
    ------
    InputError
        It is one of the inputs, or a file of another kind, or its folder is missing or cannot be written to.
    """
    target = Path(path)
    if target.exists():
        if any(Path(name).exists() and target.samefile(name) for name in inputs):
            raise InputError(f"{target}: expected a new file for the sum, got one of its parts; choose another name")
        try:
            _shard(target, files.load_facts(target))
        except InputError as error:
            raise InputError(
                f"{target}: expected a new file or a statistic to replace, got something else; choose another name"
            ) from error
    _check_writable(target, target.parent)
    return target


def _check_writable(path: Path, above: Path) -> None:
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"{path}: expected {above} to be a folder that can be written to; make it")


def _shard(path: Name, facts: dict[str, Any]) -> dict[str, Any]:
    shard = facts.get(SHARD)
    if not isinstance(shard, dict):
        raise InputError(f"{path}: expected a statistic of a shard, got another file; make one with `warmstart count`")
    return shard


def _digest(tokenizer: str) -> str:
    return hashlib.sha256(tokenizer.encode()).hexdigest()


def _check_kinds(paths: list[Path]) -> None:
    """Refuse files that cannot be added, before they are read."""
    if not paths:
        raise InputError("expected statistics to merge, got none; name the files that `warmstart count` wrote")
    first: dict[str, Any] = {}
    seen: dict[tuple[int, int], Path] = {}
    for path in paths:
        kind = _kind(path)
        first = first or kind
        for what, value in first.items():
            if kind[what] != value:
                raise InputError(
                    f"{path}: expected the {what} of {paths[0]}, {value}, got {kind[what]}; count both with the same "
                    f"{'version of warmstart' if what == 'format' else what}"
                )
        status = path.stat()
        if (same := seen.setdefault((status.st_dev, status.st_ino), path)) is not path:
            raise InputError(f"{path}: expected different files, got the same as {same}; name it once")


def _kind(path: Path) -> dict[str, Any]:
    """Return what statistics that are added have in common."""
    facts = files.load_facts(path)
    shard, ngrams = _shard(path, facts), facts.get("ngrams", {})
    formats = f"{shard.get('format')}.{ngrams.get('format')}"
    return {"format": formats, TOKENIZER: str(shard.get(TOKENIZER))[:8], "order": ngrams.get("order")}


def _report_repeated(first: tuple[list[Path], Statistic], second: tuple[list[Path], Statistic]) -> None:
    """Warn if all documents of some files are in others."""
    for (names, part), (others, whole) in ((second, first), (first, second)):
        if whole.counts.documents.includes(part.counts.documents):
            notice(
                f"{named([str(name) for name in names])}: counted too, though all documents are in "
                f"{named([str(name) for name in others])}; merge it once if it is the same text"
            )
            return
