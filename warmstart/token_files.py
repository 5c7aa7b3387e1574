"""Files of token ids that other programs wrote: what they are, and their documents as a stream, in bounded memory.

| file | ids | documents end |
|---|---|---|
| `.bin` (nanoGPT) | nothing but uint16, or uint32 if the tokenizer has more than 65,536 tokens | at ids |
| `.bin` (llm.c) | after 256 int32 (magic, version, number of ids, zeros): uint16 or uint32, see `LLM_C` | at ids |
| `.bin`, `.idx` (Megatron) | of the type in the index: `HEAD`, lengths, offsets, documents | by index, at ids |
| `.ds`, `.ds.index` (datatrove) | uint16 or uint32, as the size says; the index has uint64 ends | by index, at ids |

All numbers are little-endian. "At ids": the tokenizer's `<|endoftext|>`, and the token that the user names, end a
document wherever they come, and so does the end of a file. Documents without another token are dropped. Sources:
`data/openwebtext/prepare.py` of karpathy/nanoGPT, `dev/data/data_common.py` of karpathy/llm.c,
`megatron/core/datasets/indexed_dataset.py` of NVIDIA/Megatron-LM, `pipeline/tokens/tokenizer.py` of
huggingface/datatrove.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from warmstart.errors import InputError
from warmstart.formats import TOKENS, is_token_file
from warmstart.tokenizer import SEPARATOR, check_ids, read_tokenizer

BLOCK = 2**22  # ids read at once
LLM_C = {20240520: (1, "<u2"), 20240801: (7, "<u4")}  # magic: version, type of the ids
LLM_C_HEADER = 1024  # bytes
LLM_C_EVAL = 20240522
MAGIC = b"MMIDIDX\0\0"
HEAD = struct.Struct("<9sQBQQ")  # MAGIC, version 1, code of the type, number of sequences, of documents and one more
CODES = {1: "u1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
WIDE = 64  # so many ids tell that they have 32 bits

Numbers = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class TokenFiles:
    """Files of token ids, as a source of `warmstart.Corpus`: text that is already in the tokens of a tokenizer.

    Parameters
    ----------
    paths : str, Path, or iterable of Path
        The ``.bin`` and ``.ds`` files, in order. Indexes are found beside them.
    tokenizer : path or Tokenizer
        The tokenizer that wrote the ids, a ``tokenizer.json`` or its folder.
    end_of_text : int or str, optional
        Id or text of a token that ends documents, besides ``<|endoftext|>``.

    Raises
    ------
    InputError
        A path is not that of a file of tokens.

    Examples
    --------
    >>> import tempfile
    >>> from warmstart import Corpus
    >>> from warmstart.tokenizer import train_tokenizer
    >>> tokenizer = train_tokenizer(["b a b", "b"], "words")  # 0 <|endoftext|>, 1 <unk>, 2 b, 3 a
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "train.bin")
    ...     np.array([2, 3, 2, 0, 2, 0], "<u2").tofile(path)
    ...     corpus = Corpus.build(TokenFiles(path, tokenizer), cache_dir=folder)
    ...     print(corpus.tokens.tolist(), corpus.documents.tolist())
    [1, 0, 2, 0, 1, 0, 1] [0, 4, 6]
    """

    paths: str | Path | Iterable[Path]
    tokenizer: str | Path | Tokenizer
    end_of_text: int | str | None = None

    def __post_init__(self) -> None:
        """Make a tuple of the paths and check their names."""
        paths = (self.paths,) if isinstance(self.paths, str | Path) else tuple(self.paths)
        object.__setattr__(self, "paths", tuple(map(Path, paths)))
        for path in self.files:
            if not is_token_file(path):
                raise InputError(
                    f"{path}: expected a file of tokens ({' or '.join(TOKENS)}; an index is found beside it), got "
                    "another name; give text and tokens in different runs"
                )

    @property
    def files(self) -> tuple[Path, ...]:
        """The paths."""
        return tuple(map(Path, self.paths))  # type: ignore[arg-type]  # a tuple since __post_init__


def id_table(files: TokenFiles, tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Return the id in a tokenizer of each id of the files. Tokens that end documents become its separator.

    Parameters
    ----------
    files : TokenFiles
    tokenizer : Tokenizer
        It has a separator, and all tokens of the files' tokenizer, maybe under other ids.

    Returns
    -------
    (n_ids,) int64

    Raises
    ------
    InputError
        Tokens are missing, or ``end_of_text`` is none of them.
    """
    own, ids = check_ids(read_tokenizer(files.tokenizer)), check_ids(tokenizer)
    if missing := sorted(own.keys() - ids.keys()):
        raise InputError(
            f"expected files in the tokens of the model, got a tokenizer with {len(missing):,} others, such as "
            f"{missing[0]!r}; give the text itself"
        )
    table = np.empty(len(own), np.int64)
    table[list(own.values())] = [ids[token] for token in own]
    if (end := files.end_of_text) is not None:
        place = own.get(end, -1) if isinstance(end, str) else end
        if not isinstance(place, int) or not 0 <= place < len(own):
            raise InputError(
                f"end_of_text: expected a token of the tokenizer, or an id from 0 to {len(own) - 1}, got {end!r}"
            )
        table[place] = ids[SEPARATOR]
    return table


def index_of(path: Path) -> Path | None:
    """Return the index that belongs to a file of tokens; None if it has none."""
    if path.suffix.lower() == ".ds":
        return path.with_name(path.name + ".index")
    index = path.with_suffix(".idx")
    return index if index.exists() else None


class Layout(NamedTuple):
    """Where the ids of a file are."""

    path: Path
    kind: str
    dtype: np.dtype[Any]
    start: int  # offset of the first id, in bytes
    n_tokens: int
    ends: NDArray[np.int64] | None  # a document ends before each of these ids

    def offset(self, place: int) -> int:
        """Return the offset in bytes of an id."""
        return self.start + place * self.dtype.itemsize


def layout_of(path: Path, vocab_size: int) -> Layout:
    """Find out what a file of tokens is, and compare its size with its header or index.

    Parameters
    ----------
    path : Path
    vocab_size : int
        Number of tokens of the tokenizer. It decides the type of the ids in a file that does not tell.

    Raises
    ------
    InputError
        The file is empty or cut, of another width, version or kind, or its index is missing or does not fit it.
    """
    try:
        size, index = path.stat().st_size, index_of(path)
        if not size:
            raise InputError(f"{path}: expected token ids, got an empty file; write it again")
        if path.suffix.lower() == ".ds":
            return _datatrove(path, size, path.with_name(path.name + ".index"))
        return _bin(path, size, vocab_size) if index is None else _megatron(path, size, index)
    except OSError as error:
        raise InputError(
            f"{error.filename or path}: expected a readable file, got: {error.strerror or error}"
        ) from error


def _bin(path: Path, size: int, vocab_size: int) -> Layout:
    """Lay out a file without an index: bare ids, or ids after a header."""
    with path.open("rb") as file:
        start = file.read(LLM_C_HEADER)
    header = np.frombuffer(start[: len(start) // 4 * 4], "<i4").tolist()
    magic, version, n_tokens = [*header, 0, 0, 0][:3]
    body = size - LLM_C_HEADER
    if magic == LLM_C_EVAL:
        raise InputError(f"{path}: expected token ids, got questions for llm.c (magic {magic}); give a training file")
    if magic in LLM_C:
        known, code = LLM_C[magic]
        dtype = np.dtype(code)
        if version != known:
            raise InputError(
                f"{path}: expected version {known} of llm.c's files (magic {magic}), got {version}; write it again"
            )
        if n_tokens * dtype.itemsize != body:
            raise _unfit(path, f"{n_tokens:,} ids of {dtype.itemsize} bytes after its header", max(body, 0))
        return Layout(path, "llm.c", dtype, LLM_C_HEADER, n_tokens, None)
    if body > 0 and n_tokens > 0 and not any(header[3:]) and body in (n_tokens * 2, n_tokens * 4):
        raise InputError(
            f"{path}: expected bare ids or the header of llm.c (magic {' or '.join(map(str, LLM_C))}), got a header of "
            f"magic {magic}; write it with one of these"
        )
    dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
    n_tokens, rest = divmod(size, dtype.itemsize)
    if rest:
        raise InputError(
            f"{path}: expected whole ids of {dtype.itemsize} bytes, got {rest} bytes at offset {size - rest}; the file "
            "is cut or of another width, write it again"
        )
    return Layout(path, "bare", dtype, 0, n_tokens, None)


def _megatron(path: Path, size: int, index: Path) -> Layout:
    with index.open("rb") as file:
        start = file.read(HEAD.size)
    if not start.startswith(MAGIC) or len(start) < HEAD.size:
        raise InputError(
            f"{index}: expected the index of a Megatron file ({MAGIC!r}), got {start[: len(MAGIC)]!r}; write it again, "
            f"or move it away if {path.name} is no Megatron file"
        )
    _, version, code, n_sequences, n_documents = HEAD.unpack(start)
    if version != 1 or code not in CODES:
        raise InputError(
            f"{index}: expected version 1 and a type of whole numbers ({', '.join(map(str, CODES))}), got version "
            f"{version} and type {code}; write it again"
        )
    dtype, n_bytes = np.dtype(CODES[code]), index.stat().st_size
    if n_bytes != HEAD.size + 12 * n_sequences + 8 * n_documents:
        what = f"{n_sequences:,} sequences and {n_documents:,} borders of documents"
        raise InputError(f"{index}: expected {what}, got {n_bytes:,} bytes; the file is cut or damaged, write it again")
    lengths = np.fromfile(index, "<i4", n_sequences, offset=HEAD.size)
    pointers = np.fromfile(index, "<i8", n_sequences, offset=HEAD.size + 4 * n_sequences)
    documents = np.fromfile(index, "<i8", n_documents, offset=HEAD.size + 12 * n_sequences)
    places = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    if np.any(lengths < 0) or np.any(pointers != places[:-1] * dtype.itemsize):
        raise InputError(f"{index}: expected sequences one after the other, got other offsets; write it again")
    if not n_documents or documents[0] or documents[-1] != n_sequences or np.any(np.diff(documents) < 0):
        raise InputError(
            f"{index}: expected borders of documents from 0 to {n_sequences:,}, got others; write it again"
        )
    n_tokens = int(places[-1])
    if n_tokens * dtype.itemsize != size:
        raise _unfit(path, f"the {n_tokens:,} ids of {dtype.itemsize} bytes that {index.name} has", size)
    return Layout(path, "Megatron", dtype, 0, n_tokens, places[documents[1:]])


def _datatrove(path: Path, size: int, index: Path) -> Layout:
    n_bytes = index.stat().st_size
    ends = np.fromfile(index, "<i8")  # ends above 2^63 are negative and refused
    if n_bytes % 8 or not len(ends) or ends[0] < 0 or np.any(np.diff(ends) < 0):
        raise InputError(f"{index}: expected rising ends of documents of 8 bytes, got others; write it again")
    n_tokens = int(ends[-1])
    width = size // max(n_tokens, 1)
    if width not in (2, 4) or width * n_tokens != size:
        raise _unfit(path, f"the {n_tokens:,} ids of 2 or 4 bytes that {index.name} has", size)
    return Layout(path, "datatrove", np.dtype(f"<u{width}"), 0, n_tokens, ends)


def _unfit(path: Path, expected: str, n_bytes: int) -> InputError:
    hint = "the file is cut, longer or of another width, write it again"
    return InputError(f"{path}: expected {expected}, got {n_bytes:,} bytes; {hint}")


def read_tokens(
    layout: Layout, table: NDArray[np.unsignedinteger[Any]], separator: int
) -> Iterator[tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.int64], int]]:
    """Yield the documents of a file as blocks of targets, with a separator after each document.

    Parameters
    ----------
    layout : Layout
    table : (n_ids,) unsigned int
        What to write for each id of the file. An id whose entry is the separator ends a document.
    separator : int

    Yields
    ------
    targets : (n,) as the table
    ends : (n_ends,) int64
        Places of the separators among the targets of the block.
    n_bytes : int
        Size of what the block was read from.

    Raises
    ------
    InputError
        An id is not one of the table, ids have another width, or the file became shorter.
    """
    open_tokens = 0  # of the document that has begun
    for first, block in _blocks(layout):
        _check(layout, first, block, len(table))
        targets = table[block]
        kept = targets != separator
        cuts = np.flatnonzero(~kept)  # a document ends before each of these places of the block
        if layout.ends is not None:
            low, high = np.searchsorted(layout.ends, [first, first + len(block)], side="right")
            cuts = np.union1d(cuts, layout.ends[low:high] - first)
        if first + len(block) == layout.n_tokens:
            cuts = np.union1d(cuts, [len(block)])
        before = np.concatenate([[0], np.cumsum(kept)])  # tokens before each place
        ends = np.unique(before[cuts])  # each document once; empty ones end where another one does
        if len(ends) and not ends[0] and not open_tokens:
            ends = ends[1:]
        open_tokens = int(before[-1] - ends[-1]) if len(ends) else open_tokens + int(before[-1])
        yield np.insert(targets[kept], ends, separator), ends + np.arange(len(ends)), block.nbytes


def _blocks(layout: Layout) -> Iterator[tuple[int, Numbers]]:
    """Yield the ids of a file, and the place of the first id of each block."""
    with layout.path.open("rb") as file:
        file.seek(layout.start)
        for first in range(0, layout.n_tokens, BLOCK):
            wanted = min(BLOCK, layout.n_tokens - first)
            block: Numbers = np.fromfile(file, layout.dtype, wanted)
            if len(block) < wanted:
                place = layout.offset(first + len(block))
                raise InputError(
                    f"{layout.path}: expected {wanted - len(block):,} more ids at offset {place}, got the end"
                )
            yield first, block


def _check(layout: Layout, first: int, block: Numbers, n_ids: int) -> None:
    if block.min() < 0 or block.max() >= n_ids:
        place = int(np.flatnonzero((block < 0) | (block >= n_ids))[0])
        raise InputError(
            f"{layout.path}: expected ids of the tokenizer, 0 to {n_ids - 1}, got {block[place]} at offset "
            f"{layout.offset(first + place)}; give the tokenizer that wrote the file, and ids of "
            f"{layout.dtype.itemsize} bytes"
        )
    wide = layout.kind == "bare" and layout.dtype.itemsize == 2 and len(block) >= WIDE
    if wide and not first and not block[1::2].any() and block[::2].any():
        raise InputError(
            f"{layout.path}: expected ids of 2 bytes, got 0 in every second one from offset 2 on, as ids of 4 bytes "
            "have; write them as uint16"
        )
