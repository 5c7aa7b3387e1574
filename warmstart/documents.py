"""Read documents of text from files, folders, standard input or strings, as a stream in bounded memory.

| term | meaning |
|---|---|
| source | a file, a folder, `-` (standard input), strings, or records, such as a data set of Hugging Face |
| document | a text file, a record, a string, or a part of them between two separators |
| piece | at most `PIECE` characters of one document; a document is one or more pieces |
| fragment | a stretch of text, and whether a document ends with it |

What a file is, and its encoding, are recognised: see `warmstart.formats`. A literal `<|endoftext|>`, as most public
corpora have it, ends a document everywhere; the expression of `Reading.split_documents` does so in text files. In text
files CR LF and CR become LF, as with Python's `open`; strings and JSON texts stay as they are. Documents with nothing
but whitespace are dropped.
"""

import ast
import contextlib
import functools
import hashlib
import itertools
import os
import stat
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from warmstart.errors import InputError, NoTextError
from warmstart.formats import PACKED, STDIN, TEXT, Reading, is_searched, notice, read_file
from warmstart.records import Report, check_text, named, text_of_record, usable

PIECE = 2**16  # characters; small pieces keep the tokenizer's threads busy and its buffers small
SEPARATOR = "<|endoftext|>"
ENDINGS = tuple(ending + packed for ending in TEXT for packed in ("", *PACKED))
AS_IT_IS = Reading()
NOT_PROSE = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib-dynload", "__pycache__"}

Sources = str | Path | Iterable[str] | Iterable[Path] | Iterable[Mapping[str, Any]] | None
Fragments = Iterator[tuple[str, bool]]


class Piece(NamedTuple):
    """A part of a document, and whether it is the last part."""

    text: str
    ends_document: bool


def read_documents(sources: Sources = None, reading: Reading = AS_IT_IS, report: Report = notice) -> Iterator[Piece]:
    """Stream the documents of the sources as pieces.

    A long document is cut before a newline, or else before a space, that comes before a non-space. There a tokenizer
    that cuts words as GPT-2's does gives the same tokens as for the whole text. A line without spaces that is longer
    than `PIECE` is cut anywhere. Memory does not grow with the size of a file, but a JSON record or a string must fit
    into memory.

    Parameters
    ----------
    sources : see `find_sources`
    reading : Reading
        How files are read.
    report : callable
        Called with a sentence on what was left out. Default: a warning.

    Yields
    ------
    Piece

    Raises
    ------
    InputError
        A file is missing, unreadable, damaged or of another kind, records have no text, or there is no text at all.

    Examples
    --------
    >>> list(read_documents(["one", " ", "two"]))
    [Piece(text='one', ends_document=True), Piece(text='two', ends_document=True)]
    """
    return _read(find_sources(sources, reading, report), reading, report)


def find_sources(
    sources: Sources = None, reading: Reading = AS_IT_IS, report: Report = notice
) -> list[Path] | Iterator[str]:
    """Return the files of the sources, or an iterator over the texts if they are strings or records.

    Parameters
    ----------
    sources : str, Path, iterable of Path, iterable of str, iterable of mappings, or None
        One path as str or Path, or several Paths. A path is a file, a folder or ``-`` for standard input. Of a folder,
        the files with a known ending, hidden and linked ones too, are read in the order of their relative paths; the
        others are reported. A file that is given twice, or linked, is read once; one that is there both compressed and
        not is reported. In an iterable of str each string is a document. In one of mappings, such as a ``Dataset`` or
        an ``IterableDataset`` of the package `datasets`, each is a record. None is `default_corpus`.
    reading : Reading
        Its ``text_field`` tells a single record in a ``.json`` file from settings. With ``skip_bad_records`` it says
        how records are read.
    report : callable
        Called with a sentence on what was left out. Default: a warning.

    Raises
    ------
    InputError
        A path is missing or a folder has no text files. The iterator raises it for an item that is no text.

    Examples
    --------
    >>> list(find_sources(iter(["one", "two"])))
    ['one', 'two']
    """
    if sources is None:
        return default_corpus()
    if isinstance(sources, str | Path):
        return _distinct(_files(Path(sources), reading, report), report)
    if not isinstance(sources, Iterable):
        raise InputError(f"expected a path, paths or strings as sources, got {type(sources).__name__}")
    if isinstance(sources, Mapping):  # its items are names of splits
        names = named([repr(name) for name in sources])
        raise InputError(f"expected one split of a data set, got {type(sources).__name__} with {names}; choose one")
    items: Iterator[Any] = iter(_narrowed(sources, reading.text_field))
    first = next(items, None)
    if isinstance(first, Mapping):
        records = enumerate(itertools.chain([first], items), 1)
        text_of = functools.partial(text_of_record, reading.text_field)
        return usable(type(sources).__name__, "record", records, text_of, reading.skip_bad_records, report)
    if not isinstance(first, Path):
        return _strings(items if first is None else itertools.chain([first], items))
    paths = [first, *items]
    if others := [item for item in paths if not isinstance(item, Path)]:
        raise InputError(f"expected only Paths after a Path, got {type(others[0]).__name__}; wrap names as Path(name)")
    return _distinct([file for path in paths for file in _files(path, reading, report)], report)


def _narrowed(sources: Iterable[Any], field: str) -> Iterable[Any]:
    """Leave out the other columns of a data set, which may be pictures or sound that would be decoded."""
    names = getattr(sources, "column_names", None)  # a data set of Hugging Face; a stream may have None
    return sources.select_columns([field]) if names and field in names else sources  # type: ignore[attr-defined]


def check_share(share: float) -> float:
    """Return the share of documents to read, if it can be one.

    Raises
    ------
    InputError
        It is not a number above 0, at most 1.
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise InputError(f"sample: expected a number above 0, at most 1, got {share!r}")
    return share


def is_sampled(content: bytes | memoryview, share: float) -> bool:
    """Return whether a document belongs to a sample, which is decided by a hash of its content.

    So neither order nor shards change the choice, and a sample contains every smaller one.

    Examples
    --------
    >>> [sum(is_sampled(b"%d" % i, share) for i in range(10_000)) for share in (0.1, 0.2, 1)]
    [1029, 1986, 10000]
    """
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()) < share * 2**64


def sampled(pieces: Iterable[Piece], share: float) -> Iterator[Piece]:
    """Yield the pieces of a share of the documents, chosen by their first pieces with `is_sampled`.

    Raises
    ------
    InputError
        No document is chosen.

    Examples
    --------
    >>> texts = [f"text {i}" for i in range(9)]
    >>> [piece.text for piece in sampled(read_documents(texts), 0.2)]
    ['text 2', 'text 3', 'text 6']
    """
    n_documents, begins, chosen, found = 0, True, False, False
    for piece in pieces:
        if begins:
            chosen, n_documents = is_sampled(piece.text.encode(), share), n_documents + 1
        begins, found = piece.ends_document, found or chosen
        if chosen:
            yield piece
    if not found:
        raise nothing_sampled(share, n_documents)


def nothing_sampled(share: float, n_documents: int) -> InputError:
    """Return the error of a sample without documents."""
    return InputError(f"sample: expected some of {n_documents} documents, got none with {share}; give a larger share")


def default_corpus(part: str = "all") -> Iterator[str]:
    """Yield the documentation that ships with Python: topics of the language reference, docstrings of the library.

    It has about 340,000 words. Every topic and every module is one document, in sorted order. Source files are parsed,
    not imported. The text depends only on the version of Python.

    Parameters
    ----------
    part : {"all", "train", "test"}
        "test" is every tenth document, "train" the others.

    Examples
    --------
    >>> next(default_corpus()).split()[:3]
    ['The', '"assert"', 'statement']
    """
    if part not in ("all", "train", "test"):
        raise InputError(f'expected the part "all", "train" or "test", got {part!r}')
    return (text for n, text in enumerate(_documentation()) if part == "all" or (n % 10 == 9) == (part == "test"))


@functools.cache
def _documentation() -> tuple[str, ...]:
    return tuple(filter(None, itertools.chain(_topics(), _docstrings())))


def _topics() -> Iterator[str]:
    path = _library() / "pydoc_data" / "topics.py"
    for statement in ast.parse(path.read_bytes()).body if path.exists() else []:
        if isinstance(statement, ast.Assign):
            topics: dict[str, str] = ast.literal_eval(statement.value)
            yield from (topics[name].strip() for name in sorted(topics))


def _docstrings() -> Iterator[str]:
    """Yield one text per module of the standard library: its docstrings, in the order of `ast.walk`."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for path in sorted(_library().rglob("*.py"), key=lambda path: path.relative_to(_library()).parts):
        if NOT_PROSE.isdisjoint(path.relative_to(_library()).parts):
            with warnings.catch_warnings(), contextlib.suppress(SyntaxError):
                warnings.simplefilter("ignore")  # some modules have invalid escapes
                nodes = [node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, documented)]
                text = "\n\n".join(filter(None, map(ast.get_docstring, nodes)))
                yield text.encode(errors="replace").decode()


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _files(path: Path, reading: Reading, report: Report) -> list[Path]:
    try:
        if path == STDIN or not stat.S_ISDIR(path.stat().st_mode):
            return [path]
    except (OSError, ValueError) as error:  # ValueError: a null byte
        hint = "put a text itself into a list"
        raise InputError(f"{str(path)[:200]}: expected a readable file or folder, got: {error}; {hint}") from error
    files: list[Path] = []
    others: list[Path] = []
    seen = set()
    for folder, folders, names in os.walk(path, onerror=_unreadable, followlinks=True):
        folders.sort()
        if _identity(Path(folder)) in seen:  # a link to it
            folders.clear()
            continue
        seen.add(_identity(Path(folder)))
        for file in (Path(folder, name) for name in names):
            (files if is_searched(file, reading.text_field) else others).append(file)
    endings = f"{', '.join(TEXT)}, also {', '.join(PACKED)}"
    if not files:
        raise InputError(f"{path}: expected a folder with text files ({endings}), got none, and {len(others)} others")
    if others:
        names = sorted(str(file.relative_to(path)) for file in others)
        report(
            f"{path}: left out {named(names)}; a folder is searched for text, JSON lines and tables with the endings "
            f"{endings}; give other files by name"
        )
    return sorted(files, key=lambda file: file.relative_to(path).parts)


def _identity(path: Path) -> tuple[int, int]:
    if path == STDIN:
        return -1, -1
    status = path.stat()
    return status.st_dev, status.st_ino


def _distinct(files: list[Path], report: Report) -> list[Path]:
    """Leave out files that are there already under the same or another name."""
    distinct: dict[tuple[int, int], Path] = {}
    for file in files:
        same = distinct.setdefault(_identity(file), file)
        if same is not file:
            report(f"{file}: read once, it is the same file as {same}")
    unpacked: dict[Path, Path] = {}
    for file in distinct.values():
        other = unpacked.setdefault(file.with_suffix("") if file.suffix.lower() in PACKED else file, file)
        if other is not file:
            report(f"{file}: read too, though {other} is beside it; if they are one text, give only one of them")
    return list(distinct.values())


def _unreadable(error: OSError) -> None:
    raise InputError(f"{error.filename}: expected a readable file or folder, got: {error.strerror or error}") from error


def _strings(items: Iterable[Any]) -> Iterator[str]:
    for number, text in enumerate(items, 1):
        check_text(text, f"document {number}")
        if text.endswith(ENDINGS) and os.path.isfile(text):  # noqa: PTH113 - Path.is_file raises where a name is too long
            raise InputError(f"document {number}: expected a text, got the name of a file; write Path({text!r})")
        yield text


def _read(sources: list[Path] | Iterator[str], reading: Reading, report: Report) -> Iterator[Piece]:
    fragments: Fragments
    if isinstance(sources, list):
        fragments = itertools.chain.from_iterable(read_file(path, reading, report) for path in sources)
    else:
        fragments = ((text, True) for text in sources)
    piece = None
    for piece in _pieces(_separated(fragments)):
        yield piece
    if piece is None:
        raise NoTextError("expected a corpus with text, got nothing but whitespace; give other files")


def _separated(fragments: Fragments) -> Fragments:
    """End documents at literal separators, where a tokenizer of Hugging Face reads the end of a document too."""
    held = len(SEPARATOR) - 1
    rest = ""
    for text, ends in fragments:
        *documents, rest = (rest + text).split(SEPARATOR)
        yield from ((document, True) for document in documents)
        stop = len(rest) if ends else max(0, len(rest) - held)  # the end may be the beginning of a separator
        yield rest[:stop], ends
        rest = rest[stop:]


def _pieces(fragments: Fragments) -> Iterator[Piece]:
    """Join fragments and cut them into pieces. The blank beginning of a document waits until a non-space comes."""
    buffer, blank, waiting = "", True, list[Piece]()
    for text, ends in fragments:
        buffer, start = buffer + text, 0
        while len(buffer) - start > PIECE:
            stop = _cut(buffer, start)
            waiting.append(Piece(buffer[start:stop], False))
            blank = blank and waiting[-1].text.isspace()
            if not blank:
                yield from waiting
                waiting.clear()
            start = stop
        buffer = buffer[start:]
        if ends:
            if not blank or buffer.strip():
                yield from waiting
                yield Piece(buffer, True)
            buffer, blank = "", True
            waiting.clear()


def _cut(text: str, start: int) -> int:
    """Return the end of the piece that begins at ``start``, in a text with more than `PIECE` characters after it."""
    for blank in "\n ":
        at = text.rfind(blank, start + 1, start + PIECE)
        while at > 0 and text[at + 1].isspace():
            at = text.rfind(blank, start + 1, at)
        if at > 0:
            return at
    return start + PIECE
