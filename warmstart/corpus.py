"""A corpus on disk: the token ids of a text, the borders of its documents, token counts and the tokenizer.

| file | content |
|---|---|
| `tokens.npy` | (n_tokens + 1,) uint16, or uint32 if ``V > 65536``: ``SEP d1 SEP d2 SEP ... dn SEP`` |
| `documents.npy` | (n_documents + 1,) int64: positions of SEP; document i ends at ``documents[i + 1]`` |
| `counts.npy` | (V,) int64: number of positions of each id, the first SEP left out; falling after `Corpus.build` |
| `tokenizer.json` | the tokenizer, with the ids of `tokens.npy` |
| `manifest.json` | sizes, settings, sha256 of the sources and of the files above |

The same text and settings give the same bytes. Text is streamed: once to train a tokenizer, once to encode. Every token
but the first separator is a *target*, a token to predict.
"""

import array
import contextlib
import functools
import hashlib
import io
import itertools
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import Tokenizer

from warmstart.documents import (
    Piece,
    Sources,
    check_share,
    find_sources,
    is_sampled,
    nothing_sampled,
    read_documents,
    sampled,
)
from warmstart.errors import InputError, NoTextError
from warmstart.files import save_json
from warmstart.formats import STDIN, Reading, is_packed, notice
from warmstart.progress import Progress
from warmstart.records import Report, named, parse_json
from warmstart.token_files import TokenFiles, id_table, index_of, layout_of, read_tokens
from warmstart.tokenizer import (
    KINDS,
    SEPARATOR,
    check_ids,
    load_tokenizer,
    rank_tokens,
    refused,
    token_bytes,
    token_ranks,
    train_tokenizer,
    unknown_id,
)

FORMAT = 2
BATCH = 2**21  # characters encoded at once
BLOCK = 2**22  # ids renumbered at once
REPORT_EVERY = 2**20  # bytes between two reports of progress
BUILDING = ".building-"  # prefix of the folder of an unfinished corpus
STALE = 2 * 24 * 3600
FILES = ("counts.npy", "documents.npy", "tokenizer.json", "tokens.npy")
SIZES = ("n_bytes", "n_documents", "n_tokens", "n_unknown", "separator", "vocab_size")

Folder = str | os.PathLike[str] | None
Text = Sources | TokenFiles


@dataclass(frozen=True, eq=False)
class Corpus:
    """A folder of memory-mapped tokens, created by `build` or `encode` and read by `open`.

    Attributes
    ----------
    folder : Path
    tokens : (n_tokens + 1,) uint16 or uint32 memmap
    documents : (n_documents + 1,) int64
        Positions of the separators. They tell where documents end; ids do not.
    counts : (V,) int64
        Number of targets of each id.
    manifest : dict
        Content of ``manifest.json``.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as cache:
    ...     corpus = Corpus.build(["b a b", "b"], tokenizer="words", cache_dir=cache)
    ...     print(corpus.tokens.tolist(), corpus.documents.tolist(), corpus.counts.tolist())
    ...     print([corpus.tokenizer.id_to_token(i) for i in range(corpus.vocab_size)])
    [1, 0, 2, 0, 1, 0, 1] [0, 4, 6] [3, 2, 1, 0]
    ['b', '<|endoftext|>', 'a', '<unk>']
    """

    folder: Path
    tokens: "np.memmap[Any, np.dtype[np.unsignedinteger]]" = field(repr=False)
    documents: NDArray[np.int64] = field(repr=False)
    counts: NDArray[np.int64] = field(repr=False)
    manifest: dict[str, Any] = field(repr=False)

    @classmethod
    def build(
        cls,
        sources: Text = None,
        *,
        tokenizer: str | Path | Tokenizer = "bpe",
        vocab_size: int = 8192,
        sample: float = 1,
        cache_dir: Folder = None,
        progress: Progress | None = None,
        **reading: Any,
    ) -> Self:
        """Train or load a tokenizer, renumber its ids by frequency in the text, and encode the text.

        The corpus is kept in a cache. A later call with the same text and settings checks and returns it.

        Parameters
        ----------
        sources : str, Path, iterable of Path, of str or of records, TokenFiles, or None
            See `warmstart.documents.find_sources`. None is the documentation that ships with Python. `TokenFiles` are
            text that is in tokens already; their tokenizer takes the place of ``tokenizer``.
        tokenizer : {"bpe", "words", "characters"}, path or Tokenizer
            A kind to train, or an existing tokenizer: see `warmstart.tokenizer`.
        vocab_size : int
            Largest ``V`` of a trained tokenizer.
        sample : float
            Share of the documents to read. A hash of its content decides on each, so that a sample contains every
            smaller one. The tokenizer is trained on the sample; to compare shares, give one that is trained.
        cache_dir : path, optional
            Folder of the cache. Default: ``$WARMSTART_CACHE``, else ``$XDG_CACHE_HOME/warmstart``, else
            ``~/.cache/warmstart``.
        progress : callable, optional
            Called as ``progress(stage, done, total)`` after every MiB of text, possibly from another thread. ``done``
            and ``total`` are bytes. Stages are "train tokenizer" and "encode text", or "read tokens". An unknown total
            is None.
        **reading
            ``split_documents``, ``format``, ``text_field``, ``skip_bad_records``: see `warmstart.formats.Reading`.

        Raises
        ------
        InputError
            The sources, the tokenizer or the cache folder cannot be used, the disk is full, or the text is empty or
            gives no token. No file is left.
        """
        if isinstance(sources, TokenFiles):
            if tokenizer not in ("bpe", sources.tokenizer):
                raise InputError("expected no tokenizer besides that of the files of tokens, got one; leave it out")
            tokenizer = sources.tokenizer
        kind = tokenizer if isinstance(tokenizer, str) and tokenizer in KINDS else load_tokenizer(tokenizer)
        recipe = _Recipe(kind, vocab_size, Reading(**reading), ranked=True, sample=check_share(sample))
        return cls._make(recipe, sources, cache_dir, progress)

    @classmethod
    def encode(
        cls,
        sources: Text,
        tokenizer: str | Path | Tokenizer,
        *,
        cache_dir: Folder = None,
        progress: Progress | None = None,
        **reading: Any,
    ) -> Self:
        """Encode another text, such as a test split, with the ids of an existing tokenizer.

        Parameters and errors are those of `build`. ``counts`` do not fall with the ids. `TokenFiles` may have the same
        tokens under other ids, such as those before a renumbering by `build`.

        Examples
        --------
        >>> with tempfile.TemporaryDirectory() as cache:
        ...     train = Corpus.build(["b a b", "b"], tokenizer="words", cache_dir=cache)
        ...     test = Corpus.encode(["a c"], train.tokenizer, cache_dir=cache)
        ...     print(test.tokens.tolist(), test.counts.tolist(), test.n_unknown)
        [1, 2, 3, 1] [0, 1, 1, 1] 1
        """
        recipe = _Recipe(load_tokenizer(tokenizer), 0, Reading(**reading), ranked=False)
        return cls._make(recipe, sources, cache_dir, progress)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Self:
        """Open the folder of a corpus.

        Raises
        ------
        InputError
            The folder has no complete corpus of this format, or a file is damaged. All files are read to know.
        """
        folder = Path(folder)
        try:
            manifest = parse_json((folder / "manifest.json").read_bytes())
            if manifest["format"] != FORMAT:
                raise ValueError(f"format {manifest['format']} instead of {FORMAT}")
            if not all(type(manifest[name]) is int and manifest[name] >= 0 for name in SIZES):
                raise ValueError(f"a manifest without whole numbers for {', '.join(SIZES)}")
            header = _header(_id_type(manifest["vocab_size"]), manifest["n_tokens"] + 1)
            with (folder / "tokens.npy").open("rb") as file:
                if file.read(len(header)) != header:
                    raise ValueError("tokens of another number or type than the manifest says")
            if changed := [name for name, sha in _digests(folder).items() if manifest["files"][name] != sha]:
                raise ValueError(f"other content of {', '.join(changed)} than the manifest says")
            tokens = np.load(folder / "tokens.npy", mmap_mode="r")
            documents, counts = (np.load(folder / name) for name in ("documents.npy", "counts.npy"))
            said = [manifest[name] for name in ("n_documents", "vocab_size", "separator")]
            if [documents.size - 1, counts.size, int(tokens[0])] != said:
                raise ValueError("arrays of other sizes than the manifest says")
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder}: expected the folder of a corpus, got: {error}; build it again") from error
        return cls(folder, tokens, documents, counts, manifest)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, with the ids of ``tokens``."""
        return load_tokenizer(self.folder)

    @property
    def vocab_size(self) -> int:
        """Number of ids, ``V``."""
        return int(self.manifest["vocab_size"])

    @property
    def separator(self) -> int:
        """Id of the separator."""
        return int(self.manifest["separator"])

    @property
    def n_tokens(self) -> int:
        """Number of targets."""
        return int(self.manifest["n_tokens"])

    @property
    def n_documents(self) -> int:
        """Number of documents."""
        return int(self.manifest["n_documents"])

    @property
    def n_bytes(self) -> int:
        """UTF-8 bytes of the documents' text."""
        return int(self.manifest["n_bytes"])

    @property
    def n_unknown(self) -> int:
        """Number of targets that are the unknown token."""
        return int(self.manifest["n_unknown"])

    @property
    def digest(self) -> str:
        """Sha256 of tokens, documents, counts and tokenizer. The sources and the folder do not change it."""
        return hashlib.sha256(json.dumps(self.manifest["files"], sort_keys=True).encode()).hexdigest()

    @classmethod
    def _make(cls, recipe: "_Recipe", sources: Text, cache_dir: Folder, progress: Progress | None) -> Self:
        cache = Path(cache_dir) if cache_dir is not None else default_cache()
        files_or_texts = find_sources(sources.files if isinstance(sources, TokenFiles) else sources, recipe.reading)
        if isinstance(sources, TokenFiles):
            recipe = replace(recipe, table=_check_tokens(sources, recipe))
        if not isinstance(files_or_texts, list):
            recipe = replace(recipe, reading=Reading())
        try:
            cache.mkdir(parents=True, exist_ok=True)
            _sweep(cache)
            with tempfile.TemporaryDirectory(prefix=BUILDING, dir=cache) as temporary:
                work = Path(temporary)
                files = _spool(files_or_texts, work / "spool")
                settings = recipe.settings(files)
                _report_copies(settings["sources"])
                folder = cache / hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]
                corpus = cls._whole(folder)
                if corpus is None:
                    _write(work / "corpus", recipe, files, settings, progress)
                    corpus = cls._whole(folder)
                if corpus is None:  # else another process was faster
                    shutil.rmtree(folder, ignore_errors=True)
                    (work / "corpus").rename(folder)
                    corpus = cls.open(folder)
        except OSError as error:
            hint = "set WARMSTART_CACHE to another folder" if cache_dir is None else "give another cache_dir"
            raise InputError(
                f"{error.filename or cache}: expected readable sources and a writable cache folder with free space, "
                f"got: {error.strerror or error}; free space, or {hint}"
            ) from error
        for sentence in corpus.manifest["left_out"]:
            notice(sentence)
        return corpus

    @classmethod
    def _whole(cls, folder: Path) -> Self | None:
        try:
            return cls.open(folder)
        except InputError:
            return None


def default_cache() -> Path:
    """Return the folder where corpora are kept: ``$WARMSTART_CACHE`` or the user's cache folder."""
    if folder := os.environ.get("WARMSTART_CACHE"):
        return Path(folder)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "warmstart"
    except RuntimeError as error:
        raise InputError(f"expected a home folder for the cache, got: {error}; set WARMSTART_CACHE to one") from error


def _sweep(cache: Path) -> None:
    """Delete what killed runs left in the cache: unfinished corpora in which nothing changed for `STALE` seconds."""
    for folder in cache.glob(f"{BUILDING}*"):
        with contextlib.suppress(OSError):  # another process deletes it too
            if max(path.stat().st_mtime for path in (folder, *folder.rglob("*"))) < time.time() - STALE:
                shutil.rmtree(folder)


@dataclass(frozen=True)
class _Recipe:
    """The settings that, with the sources, decide the content of a corpus."""

    tokenizer: str | Tokenizer  # a kind to train, or a loaded tokenizer
    vocab_size: int
    reading: Reading
    ranked: bool  # whether ids become frequency ranks
    table: NDArray[np.int64] | None = None  # of `id_table`, for files of tokens
    sample: float = 1  # share of the documents

    def settings(self, files: Iterable[Path]) -> dict[str, Any]:
        """Return the part of the manifest that is known in advance. Its digest names the folder in the cache."""
        if isinstance(self.tokenizer, str):
            tokenizer = {"kind": self.tokenizer, "vocab_size": self.vocab_size}
        else:
            tokenizer = {"sha256": hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest()}
        reading = asdict(self.reading)
        if self.table is not None:
            indexes = [_sha256(index) for path in files if (index := index_of(path)) is not None]
            reading = {"ids": hashlib.sha256(self.table.tobytes()).hexdigest(), "indexes": indexes}
        return {
            "format": FORMAT,
            "ranked": self.ranked,
            "sources": [{"name": path.name, "sha256": _sha256(path)} for path in files],
            "reading": reading,
            "tokenizer": tokenizer | {"tokenizers": tokenizers.__version__},
            **({"sample": self.sample} if self.sample < 1 else {}),
        }

    def pieces(self, files: list[Path], report: Report) -> Iterator[Piece]:
        """Read text files."""
        pieces = read_documents(files, self.reading, report)
        return sampled(pieces, self.sample) if self.sample < 1 else pieces


def _check_tokens(files: TokenFiles, recipe: _Recipe) -> NDArray[np.int64]:
    """Return the `id_table` of files of tokens, if they are what they say."""
    if recipe.reading != Reading():
        raise InputError(
            "expected files of tokens without settings of how text is read, such as split_documents, got some; "
            "end_of_text names the token that ends documents"
        )
    table = id_table(files, load_tokenizer(recipe.tokenizer))
    for path in files.files:
        layout_of(path, len(table))
    return table


class Meter:
    """Counts the bytes of the pieces that pass, and reports them."""

    def __init__(self, stage: str, total: int | None, progress: Progress | None) -> None:
        self.stage, self.total, self.progress, self.done = stage, total, progress, 0

    def watch(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """Yield the pieces."""
        reported = 0
        for piece in pieces:
            yield piece
            self.done += len(piece.text.encode())
            if self.progress and self.done - reported >= REPORT_EVERY:
                self.progress(self.stage, self.done, self.total)
                reported = self.done
        if self.progress:
            self.progress(self.stage, self.done, self.done)


def _spool(sources: list[Path] | Iterator[str], folder: Path) -> list[Path]:
    """Return the sources as files. Strings and streams, which can be read only once, are written to a new folder."""
    folder.mkdir()
    if isinstance(sources, list):
        return [
            path if path != STDIN and path.is_file() else _spool_stream(path, folder / str(number))
            for number, path in enumerate(sources)
        ]
    path = folder / "documents.jsonl"
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in sources)
    return [path]


def _report_copies(sources: list[dict[str, str]]) -> None:
    """Name the sources whose content came before."""
    seen: set[str] = set()
    copies = []
    for source in sources:
        if source["sha256"] in seen:
            copies.append(source["name"])
        seen.add(source["sha256"])
    if copies:
        notice(f"{named(copies)}: read too, though a file before has the same content")


def _spool_stream(path: Path, folder: Path) -> Path:
    folder.mkdir()  # two streams may have the same name
    copy = folder / ("standard input" if path == STDIN else path.name)
    stream = contextlib.nullcontext(sys.stdin.buffer) if path == STDIN else path.open("rb")
    with stream as source, copy.open("wb") as target:
        shutil.copyfileobj(source, target)
    return copy


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digests(folder: Path) -> dict[str, str]:
    return {name: _sha256(folder / name) for name in FILES}


def _write(
    folder: Path, recipe: _Recipe, files: list[Path], settings: dict[str, Any], progress: Progress | None
) -> None:
    """Write the five files of a corpus into a new folder."""
    folder.mkdir()
    raw = folder.with_name("raw")
    with raw.open("wb") as file:
        written = (_write_text if recipe.table is None else _write_tokens)(recipe, files, file, progress)
    if recipe.table is not None and recipe.sample < 1:
        raw, written = _sample_tokens(raw, written, recipe.sample)
    tokenizer, counts, documents = written.tokenizer, written.counts, written.documents
    ranks = token_ranks(counts) if recipe.ranked else np.arange(len(counts))
    tokenizer = rank_tokens(tokenizer, counts) if recipe.ranked else tokenizer
    unknown = unknown_id(tokenizer)
    counts[ranks] = counts.copy()
    _renumber(raw, folder / "tokens.npy", ranks, int(documents[-1]) + 1)
    np.save(folder / "documents.npy", documents)
    np.save(folder / "counts.npy", counts)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    manifest = settings | {
        "files": _digests(folder),
        "left_out": written.left_out,
        "n_bytes": written.n_bytes,
        "n_documents": len(documents) - 1,
        "n_tokens": int(documents[-1]),
        "n_unknown": 0 if unknown is None else int(counts[unknown]),
        "separator": tokenizer.token_to_id(SEPARATOR),
        "vocab_size": len(counts),
    }
    save_json(folder / "manifest.json", manifest)


class _Written(NamedTuple):
    """What is known of tokens that were written, in ids before a renumbering."""

    tokenizer: Tokenizer
    counts: NDArray[np.int64]  # (V,): number of targets of each id
    documents: NDArray[np.int64]  # (n_documents + 1,): positions of the separators
    n_bytes: int
    left_out: list[str]


def _write_text(recipe: _Recipe, files: list[Path], raw: IO[bytes], progress: Progress | None) -> _Written:
    """Train the tokenizer, if there is none, and write the tokens of text files."""
    unknown = recipe.sample < 1 or any(map(is_packed, files))
    total = None if unknown else sum(path.stat().st_size for path in files)
    tokenizer = recipe.tokenizer
    if isinstance(tokenizer, str):
        meter = Meter("train tokenizer", total, progress)
        pieces = meter.watch(recipe.pieces(files, lambda _: None))  # the second pass says it
        tokenizer = train_tokenizer((piece.text for piece in pieces), tokenizer, recipe.vocab_size)
        total = meter.done
    meter = Meter("encode text", total, progress)
    left_out: list[str] = []
    pieces = meter.watch(recipe.pieces(files, left_out.append))
    counts, documents = _encode(pieces, tokenizer, raw)
    return _Written(tokenizer, counts, documents, meter.done, left_out)


def _write_tokens(recipe: _Recipe, files: list[Path], raw: IO[bytes], progress: Progress | None) -> _Written:
    """Write the tokens of files of tokens."""
    tokenizer: Any = recipe.tokenizer
    vocab_size, separator = tokenizer.get_vocab_size(), tokenizer.token_to_id(SEPARATOR)
    table = np.asarray(recipe.table, _id_type(vocab_size))
    layouts = [layout_of(path, len(table)) for path in files]
    total, done = sum(layout.n_tokens * layout.dtype.itemsize for layout in layouts), 0
    counts, documents, position = np.zeros(vocab_size, np.int64), [np.zeros(1, np.int64)], 0
    left_out: list[str] = []
    raw.write(np.array(separator, table.dtype).tobytes())
    for layout in layouts:
        borders = 0
        for targets, ends, n_bytes in read_tokens(layout, table, separator):
            raw.write(targets.tobytes())
            counts += np.bincount(targets, minlength=vocab_size)
            documents.append(position + 1 + ends)
            position += len(targets)
            borders += len(ends)
            done += n_bytes
            if progress:
                progress("read tokens", done, total)
        if layout.ends is None and borders == 1:
            hint = "end_of_text (--end-of-text) names another token that ends documents"
            left_out.append(f"{layout.path.name}: read as one document; {hint}")
    if position == counts[separator]:
        raise NoTextError("expected files with tokens, got none; give other files")
    text_bytes = _text_bytes(tokenizer, counts)
    return _Written(tokenizer, counts, np.concatenate(documents), text_bytes, left_out)


def _text_bytes(tokenizer: Tokenizer, counts: NDArray[np.int64]) -> int:
    return int(counts @ token_bytes(tokenizer) - counts[tokenizer.token_to_id(SEPARATOR)] * len(SEPARATOR))


def _sample_tokens(raw: Path, written: _Written, share: float) -> tuple[Path, _Written]:
    """Write a share of the documents of a file of tokens to another file."""
    counts, ends = np.zeros_like(written.counts), [0]
    dtype, target = _id_type(counts.size), raw.with_name("sample")
    tokens = np.memmap(raw, dtype, "r")
    with target.open("wb") as file:
        file.write(tokens[:1].tobytes())
        for start, end in itertools.pairwise(written.documents.tolist()):
            if is_sampled(tokens.data[start + 1 : end], share):
                targets = tokens[start + 1 : end + 1]
                targets.tofile(file)
                counts += np.bincount(targets, minlength=counts.size)
                ends.append(ends[-1] + targets.size)
    if len(ends) == 1:
        raise nothing_sampled(share, written.documents.size - 1)
    documents, n_bytes = np.array(ends), _text_bytes(written.tokenizer, counts)
    return target, written._replace(counts=counts, documents=documents, n_bytes=n_bytes)


def _id_type(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def _encode(
    pieces: Iterator[Piece], tokenizer: Tokenizer, raw: IO[bytes]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Write a separator and the tokens of the pieces to a file.

    Returns
    -------
    counts : (V,) int64
        Number of targets of each id.
    documents : (n_documents + 1,) int64
        Positions of the separators.
    """
    vocabulary = check_ids(tokenizer)
    separator, vocab_size = vocabulary[SEPARATOR], len(vocabulary)
    dtype = _id_type(vocab_size)
    counts, documents, position = np.zeros(vocab_size, np.int64), array.array("q", [0]), 0
    raw.write(np.array(separator, dtype).tobytes())
    for batch in _batches(pieces):
        with refused("expected a tokenizer that reads every text", "give it an unknown token, or use another one"):
            encodings = tokenizer.encode_batch_fast([piece.text for piece in batch], add_special_tokens=False)
        blocks = []
        for piece, encoding in zip(batch, encodings, strict=True):
            ids = encoding.ids
            if piece.ends_document:
                ids.append(separator)
                documents.append(position + len(ids))
            position += len(ids)
            blocks.append(np.array(ids, dtype))
        block = np.concatenate(blocks)
        counts += np.bincount(block, minlength=vocab_size)
        raw.write(block.tobytes())
    if position == len(documents) - 1:
        raise NoTextError("expected a tokenizer that gives tokens for this text, got none; use another tokenizer")
    return counts, np.frombuffer(documents, np.int64)


def _batches(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _header(dtype: np.dtype[np.unsignedinteger], n: int) -> bytes:
    """Return the beginning of a npy file of ``n`` numbers."""
    header = io.BytesIO()
    fields = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (n,)}
    np.lib.format.write_array_header_1_0(header, fields)
    return header.getvalue()


def _renumber(raw: Path, path: Path, ranks: NDArray[np.int64], n: int) -> None:
    """Write the ``n`` ids of a raw file to a npy file, each replaced by its rank."""
    dtype = _id_type(len(ranks))
    table = ranks.astype(dtype)
    with raw.open("rb") as source, path.open("wb") as target:
        target.write(_header(dtype, n))
        while block := source.read(BLOCK * dtype.itemsize):
            target.write(table[np.frombuffer(block, dtype)].tobytes())
