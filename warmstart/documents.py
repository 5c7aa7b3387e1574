"""Read documents of text from files, folders, standard input or strings, as a stream in bounded memory.

| term | meaning |
|---|---|
| source | a file, a folder, `-` (standard input), or strings |
| document | a text file, a JSONL record, a string, or a part of a text file between two separators |
| piece | at most `PIECE` characters of one document; a document is one or more pieces |
| fragment | a stretch of text, and whether a document ends with it |

Text is UTF-8. A byte order mark at the start is dropped. In text files CR LF and CR become LF, as with Python's `open`.
Strings and JSON texts stay as they are. Documents with nothing but whitespace are dropped. Standard input is one text
file.
"""

import ast
import codecs
import contextlib
import functools
import gzip
import io
import itertools
import json
import lzma
import os
import re
import stat
import sys
import sysconfig
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from warmstart.errors import InputError

PIECE = 2**16  # characters; small pieces keep the tokenizer's threads busy and its buffers small
READ = 2**20  # bytes per read
CONTEXT = 2**16  # longest separator in characters, with the text that its look-arounds see
TEXT = (".txt", ".md", ".text", ".jsonl")
ENDINGS = tuple(ending + packed for ending in TEXT for packed in ("", ".gz", ".xz"))
STDIN = Path("-")
NOT_PROSE = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib-dynload", "__pycache__"}

Sources = str | Path | Iterable[str] | Iterable[Path] | None
Fragments = Iterator[tuple[str, bool]]


class Piece(NamedTuple):
    """A part of a document, and whether it is the last part."""

    text: str
    ends_document: bool


def read_documents(sources: Sources = None, split_documents: str | None = None) -> Iterator[Piece]:
    """Stream the documents of the sources as pieces.

    A long document is cut before a newline, or else before a space, that comes before a non-space. There a tokenizer
    that cuts words as GPT-2's does gives the same tokens as for the whole text. A line without spaces that is longer
    than `PIECE` is cut anywhere. Memory does not grow with the size of a file, but a JSONL record or a string must fit
    into memory.

    Parameters
    ----------
    sources : see `find_sources`
    split_documents : str, optional
        Regular expression that matches the separators between documents in text files and standard input. Separators
        are dropped. They may have up to 65,536 characters, look-arounds included.

    Yields
    ------
    Piece

    Raises
    ------
    InputError
        A file is missing, unreadable, damaged or not UTF-8; a JSONL line has no ``text``; the expression is not valid
        or matches the empty text; or there is no text at all.

    Examples
    --------
    >>> list(read_documents(["one", " ", "two"]))
    [Piece(text='one', ends_document=True), Piece(text='two', ends_document=True)]
    """
    return _read(find_sources(sources), None if split_documents is None else _separator(split_documents))


def find_sources(sources: Sources = None) -> list[Path] | Iterator[str]:
    """Return the files of the sources, or an iterator over the sources if they are strings.

    Parameters
    ----------
    sources : str, Path, iterable of Path, iterable of str, or None
        One path as str or Path, or several Paths. A path is a file, a folder or ``-`` for standard input. Of a folder,
        the files with a known ending are read in the order of their relative paths. In an iterable of str each string
        is a document. None is `default_corpus`.

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
        return _files(Path(sources))
    if not isinstance(sources, Iterable):
        raise InputError(f"expected a path, paths or strings as sources, got {type(sources).__name__}")
    items: Iterator[Any] = iter(sources)
    first = next(items, None)
    if not isinstance(first, Path):
        return _strings(items if first is None else itertools.chain([first], items))
    paths = [first, *items]
    if others := [item for item in paths if not isinstance(item, Path)]:
        raise InputError(f"expected only Paths after a Path, got {type(others[0]).__name__}; wrap names as Path(name)")
    return [file for path in paths for file in _files(path)]


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


def _files(path: Path) -> list[Path]:
    try:
        if path == STDIN or not stat.S_ISDIR(path.stat().st_mode):
            return [path]
    except (OSError, ValueError) as error:  # ValueError: a null byte
        hint = "put a text itself into a list"
        raise InputError(f"{str(path)[:200]}: expected a readable file or folder, got: {error}; {hint}") from error
    files = []
    for folder, _, names in os.walk(path, onerror=_unreadable):
        files += [Path(folder, name) for name in names if name.lower().endswith(ENDINGS)]
    if not files:
        raise InputError(f"{path}: expected a folder with text files ({', '.join(TEXT)}, also .gz or .xz), got none")
    return sorted(files, key=lambda file: file.relative_to(path).parts)


def _unreadable(error: OSError) -> None:
    raise InputError(f"{error.filename}: expected a readable file or folder, got: {error.strerror or error}") from error


def _strings(items: Iterable[Any]) -> Iterator[str]:
    for number, text in enumerate(items, 1):
        _check_text(text, f"document {number}")
        if text.endswith(ENDINGS) and os.path.isfile(text):  # noqa: PTH113 - Path.is_file raises where a name is too long
            raise InputError(f"document {number}: expected a text, got the name of a file; write Path({text!r})")
        yield text


def _check_text(text: Any, where: str) -> None:
    if not isinstance(text, str):
        raise InputError(f"{where}: expected a string, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: expected Unicode text, got a lone surrogate at character {error.start}") from error


def _separator(expression: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise InputError(f"split_documents: expected a regular expression, got {expression!r}: {error}") from error
    if pattern.match(""):
        raise InputError(f"split_documents: {expression!r} matches the empty text and would cut everywhere")
    return pattern


def _read(sources: list[Path] | Iterator[str], pattern: re.Pattern[str] | None) -> Iterator[Piece]:
    if isinstance(sources, list):
        fragments = itertools.chain.from_iterable(_fragments(path, pattern) for path in sources)
    else:
        fragments = itertools.chain((text, True) for text in sources)
    piece = None
    for piece in _pieces(fragments):
        yield piece
    if piece is None:
        raise InputError("expected a corpus with text, got nothing but whitespace; give other files")


def _fragments(path: Path, pattern: re.Pattern[str] | None) -> Fragments:
    if path.name.lower().removesuffix(".gz").removesuffix(".xz").endswith(".jsonl"):
        return ((text, True) for text in _records(path))
    if pattern is None:
        return itertools.chain(((text, False) for text in _text(path)), [("", True)])
    return _split(_text(path), pattern)


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


def _split(chunks: Iterator[str], pattern: re.Pattern[str]) -> Fragments:
    """Yield the texts that `re.split` would return, from a stream."""
    buffer, yielded = "", 0  # the text before ``yielded`` stays in the buffer for look-behinds
    for chunk in itertools.chain(chunks, [None]):
        past = max(0, yielded - CONTEXT)
        buffer, yielded = buffer[past:] + (chunk or ""), yielded - past
        safe = len(buffer) if chunk is None else len(buffer) - CONTEXT
        for match in pattern.finditer(buffer, yielded):
            if match.start() > safe:
                break
            yield buffer[yielded : match.start()], True
            yielded = match.end()
        if yielded < safe:
            yield buffer[yielded:safe], False
            yielded = safe
    yield "", True


def _text(path: Path) -> Iterator[str]:
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
    n_read = 0
    with _opened(path) as file:
        while data := file.read(READ):
            n_read += len(data)
            with _utf8(path, n_read):
                yield decoder.decode(data)
    with _utf8(path, n_read):
        yield decoder.decode(b"", final=True)


def _records(path: Path) -> Iterator[str]:
    """Yield the ``text`` of each JSONL record. Blank lines are skipped."""
    n_read = 0
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            n_read += len(line)
            with _utf8(path, n_read):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if not text.isspace():
                yield _record(text, f"{path}, line {number}")


def _record(line: str, where: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f'{where}: expected a JSON object {{"text": "..."}}, got: {error}') from error
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise InputError(f'{where}: expected a JSON object with a string "text", got {line.strip()[:60]}')
    _check_text(record["text"], where)
    return str(record["text"])


@contextlib.contextmanager
def _utf8(path: Path, n_read: int) -> Iterator[None]:
    """Turn a decoding error into an InputError that names the file and the byte, after ``n_read`` bytes were read."""
    try:
        yield
    except UnicodeDecodeError as error:
        offset = n_read - len(error.object) + error.start
        raise InputError(
            f"{path}: expected UTF-8 text, got byte 0x{error.object[error.start]:02x} at offset {offset}; "
            "convert the file, for instance with iconv"
        ) from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading its unpacked bytes. Errors in the block become InputErrors that name the file."""
    try:
        if path == STDIN:
            yield sys.stdin.buffer
            return
        unpack: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix.lower(), io.open)
        with unpack(path, "rb") as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{path}: expected a whole {path.suffix} file, got: {error}; pack or copy it again") from error
    except OSError as error:
        raise InputError(f"{path}: expected a readable file, got: {error.strerror or error}") from error
