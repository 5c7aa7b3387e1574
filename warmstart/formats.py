"""Files of text: unpack them, find out what they are by name and first bytes, and decode them, in bounded memory.

| what | how it is recognised |
|---|---|
| packed | first bytes of gzip, bzip2, xz or Zstandard, whatever the name |
| encoding | a byte order mark (UTF-8, UTF-16, UTF-32); without one it is UTF-8 |
| JSON lines | the ending `.jsonl` or `.ndjson`; or a first line that is a JSON object |
| Parquet, Arrow | first bytes, see `warmstart.columns` |
| text | what is nothing else; tables, JSON documents, HTML, XML, RTF, PDF, archives and files of tokens are refused |

A *record* is a line of JSON lines, which is a JSON object, or a row of a Parquet or Arrow file. Its text is in one of
its fields or columns.
"""

import bz2
import codecs
import contextlib
import functools
import gzip
import importlib
import io
import itertools
import json
import lzma
import re
import sys
import warnings
import zlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from warmstart import columns
from warmstart.errors import InputError
from warmstart.records import Report, check_text, line_text, parse_json, row_text, usable

HEAD = 2**16  # first bytes that decide what a file is
READ = 2**20  # bytes per read
CONTEXT = 2**16  # longest separator in characters, with the text that its look-arounds see
STDIN = Path("-")
PACKED = {".gz": b"\x1f\x8b", ".bz2": b"BZh", ".xz": b"\xfd7zXZ\0", ".zst": b"\x28\xb5\x2f\xfd"}
PLAIN = (".txt", ".md", ".text")
LINES = (".jsonl", ".ndjson")
TEXT = (*PLAIN, *LINES, ".json", *columns.ENDINGS)
TOKENS = (".bin", ".ds")
TABLES = (".csv", ".tsv")
KINDS = ("text", "jsonl")
MARKS = {  # the mark of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
MARKUP = {
    "<!doctype": "HTML or XML", "<html": "HTML", "<?xml": "XML", "{\\rtf": "RTF", "%pdf-": "PDF",
    "pk\3\4": "a zip archive, as .docx and .epub are",
}  # fmt: skip
HEADER = re.compile(r'"?[^\W\d]\w*"?(?:([,;\t])"?\w+"?)(?:\1"?\w+"?)*')


@dataclass(frozen=True)
class Reading:
    """How files and standard input are read. It does not concern strings. The last two say how records are read.

    Parameters
    ----------
    split_documents : str, optional
        Regular expression that matches the separators between documents in text. Separators are dropped. They may have
        up to 65,536 characters, look-arounds included.
    format : {"text", "jsonl"}, optional
        What all files are, whatever they look like. Default: it is recognised, file by file.
    text_field : str
        Field of a JSON record, or column of a Parquet or Arrow file, that has the text.
    skip_bad_records : bool
        Leave out the records that have no text, and name them; else they are an error.

    Raises
    ------
    InputError
        The expression is not valid or matches the empty text, or the format is unknown.
    """

    split_documents: str | None = None
    format: str | None = None
    text_field: str = "text"
    skip_bad_records: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("split_documents", "text_field"):
            check_text(getattr(self, name) or "", name)
        if self.format not in (None, *KINDS):
            raise InputError(f"format: expected {' or '.join(KINDS)}, got {self.format!r}")
        if (pattern := self.pattern) and pattern.match(""):
            raise InputError(
                f"split_documents: {self.split_documents!r} matches the empty text and would cut everywhere"
            )

    @property
    def pattern(self) -> re.Pattern[str] | None:
        """The compiled expression."""
        try:
            return None if self.split_documents is None else re.compile(self.split_documents)
        except (re.error, RecursionError, OverflowError) as error:
            raise InputError(
                f"split_documents: expected a regular expression, got {self.split_documents!r}: {error}"
            ) from error


_kept: ContextVar[list[str] | None] = ContextVar("kept notices", default=None)


def notice(sentence: str) -> None:
    """Warn of what was left out, or keep the sentence inside `keep_notices`."""
    kept = _kept.get()
    if kept is None:
        warnings.warn(sentence, stacklevel=2)
    else:
        kept.append(sentence)


@contextlib.contextmanager
def keep_notices() -> Iterator[list[str]]:
    """Keep the notices of this thread in a list, for a process whose warnings nobody reads.

    Examples
    --------
    >>> with keep_notices() as notices:
    ...     notice("a.txt: left out")
    >>> notices
    ['a.txt: left out']
    """
    notices: list[str] = []
    token = _kept.set(notices)
    try:
        yield notices
    finally:
        _kept.reset(token)


def encoding_of(start: bytes) -> str:
    """Return the encoding that a byte order mark tells, without one UTF-8.

    Examples
    --------
    >>> encoding_of("text".encode("utf-16")), encoding_of(b"text")
    ('utf-16', 'utf-8')
    """
    return next((name for mark, name in MARKS.items() if start.startswith(mark)), "utf-8")


def read_settings(path: Path) -> str:
    """Return the content of a small text file, with or without a byte order mark.

    Raises
    ------
    OSError, UnicodeDecodeError
    """
    content = path.read_bytes()
    return content.decode(encoding_of(content))


def is_packed(path: Path) -> bool:
    """Say whether a file is compressed, by its first bytes."""
    with path.open("rb") as file:
        return _packing(file.read(8)) is not None


def _packing(start: bytes) -> str | None:
    return next((ending for ending, magic in PACKED.items() if start.startswith(magic)), None)


def is_token_file(path: Path) -> bool:
    """Say whether a file is one of tokens, by its name."""
    return path.suffix.lower() in TOKENS


def is_searched(path: Path, text_field: str = "text") -> bool:
    """Say whether a file of a folder is read: one with a known ending; of ``.json`` only JSON lines, no settings.

    A single JSON object in one line is a record if it has the field.
    """
    name = _unpacked_name(path)
    if not name.endswith(TEXT) or not path.is_file():
        return False
    if not name.endswith(".json"):
        return True
    with _opened(path) as file:
        if _json_kind(*_start(head := file.peek())) != "lines":
            return False
        lines = (line for line in _lines(_decoded(path, file, head, "surrogateescape")) if line and not line.isspace())
        first, *more = itertools.islice(lines, 2)
    try:
        record = parse_json(first.lstrip("\ufeff"))
    except ValueError:
        return True  # and then the record is named
    return bool(more) or text_field in record


def read_file(path: Path, reading: Reading, report: Report) -> Iterator[tuple[str, bool]]:
    """Yield stretches of text, and whether a document ends with the stretch.

    Parameters
    ----------
    path : Path
        A file, or ``-`` for standard input.
    reading : Reading
    report : callable
        Called with one sentence if records were left out.

    Raises
    ------
    InputError
        The file is unreadable, damaged, in another encoding or of another kind, or records have no text.
    """
    with _opened(path) as file:
        head = file.peek()
        kind = reading.format or _recognised(path, head)
        field, skip = reading.text_field, reading.skip_bad_records
        if kind == "jsonl":
            lines = enumerate(_lines(_decoded(path, file, head, "surrogateescape")), 1)
            whole = ((number, line) for number, line in lines if line and not line.isspace())
            texts = usable(path, "line", whole, functools.partial(line_text, field), skip, report)
            yield from ((text, True) for text in texts)
            return
        if kind != "text":
            rows = enumerate(columns.read_column(path, kind, field, report), 1)
            texts = usable(path, "row", rows, functools.partial(row_text, field), skip, report)
            yield from ((text, True) for text in texts)
            return
        chunks = _decoded(path, file, head, "strict")
        if (pattern := reading.pattern) is None:
            yield from ((text, False) for text in chunks)
            yield "", True
        else:
            yield from split_text(chunks, pattern)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file for reading its unpacked bytes. Errors in the block become InputErrors that name the file."""
    suffix, damage = path.suffix.lower(), [gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError]
    found: str | None = None
    try:
        with contextlib.ExitStack() as stack:
            source: Any = sys.stdin.buffer if path == STDIN else stack.enter_context(path.open("rb"))
            file = io.BufferedReader(source, HEAD)
            stack.callback(file.detach)  # else standard input is closed with it
            found = _packing(file.peek())
            if suffix in PACKED and suffix != found:
                raise EOFError(f"{found or 'other'} data")
            if found:
                unpacked, error_type = _unpacked(file, found)
                damage.append(error_type)
                file = io.BufferedReader(stack.enter_context(unpacked), HEAD)
            yield file
    except tuple(damage) as error:
        kind = suffix if suffix in PACKED else found
        raise InputError(f"{path}: expected a whole {kind} file, got: {error}; pack or copy it again") from error
    except OSError as error:
        raise InputError(f"{path}: expected a readable file, got: {error.strerror or error}") from error


def _unpacked(file: IO[bytes], ending: str) -> tuple[Any, type[Exception]]:
    """Return the unpacked bytes as a file, and the type of error that damaged ones raise."""
    openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    if ending in openers:
        return openers[ending](file), EOFError
    try:
        zstd = importlib.import_module("compression.zstd")  # Python 3.14
    except ImportError:
        try:
            zstd = importlib.import_module("backports.zstd")
        except ImportError as error:
            raise InputError(
                "Zstandard (.zst): expected the package backports.zstd, found none; pip install 'warmstart[zstd]'"
            ) from error
    options = {zstd.DecompressionParameter.window_log_max: 31}  # as large corpora are packed: zstd --long=31
    return zstd.open(file, options=options), zstd.ZstdError


def _recognised(path: Path, head: bytes) -> str:
    """Return "jsonl", "text" or a kind of `columns`, or refuse a file that is not clearly one of them."""
    suffix = Path(_unpacked_name(path)).suffix
    if column_kind := columns.kind_of(head):
        return column_kind
    start, whole = _start(head)
    json_kind = _json_kind(start, whole)
    if suffix in LINES or (json_kind == "lines" and suffix not in PLAIN):
        return "jsonl"
    if json_kind == "lines":
        found = "JSON lines: read their records with format jsonl (--format jsonl)"
    elif json_kind == "document":
        found = "a JSON document: write one object a line, for instance with jq -c '.[]'"
    elif suffix in TABLES or _is_table(start):
        found = "a table: convert it to JSON lines"
    elif suffix in TOKENS:
        found = "a file of tokens by its name: give the tokenizer that wrote it (--tokenizer FILE, or TokenFiles)"
    elif suffix in columns.ENDINGS:
        found = "no first bytes of Parquet or Arrow"
    elif suffix == ".json":
        found = "no JSON object in the first line"
    else:
        found = next((what for sign, what in MARKUP.items() if start[:16].lower().startswith(sign)), "")
    if found:
        hint = "or take it as plain text with format text (--format text)"
        raise InputError(f"{path}: expected text or JSON lines, got {found}, {hint}")
    return "text"


def _unpacked_name(path: Path) -> str:
    name = path.name.lower()
    return name.removesuffix(next((ending for ending in PACKED if name.endswith(ending)), ""))


def _start(head: bytes) -> tuple[str, bool]:
    """Return the text at the beginning of a file, and whether it is the whole text."""
    return head.decode(encoding_of(head), "replace").lstrip("\ufeff \t\r\n"), len(head) < HEAD


def _is_table(start: str) -> bool:
    """Say whether a text begins with a row of names and a row of at least as many values."""
    first, second = [*start.split("\n", 2), "", ""][:2]
    header = HEADER.fullmatch(first.strip())
    return header is not None and second.count(header[1]) >= first.count(header[1])


def _json_kind(start: str, whole: bool) -> str | None:
    """Say whether a text begins like JSON lines of objects ("lines") or another JSON text ("document")."""
    if start[:1] not in ("{", "["):
        return None
    try:
        value, end = json.JSONDecoder().raw_decode(start)
    except RecursionError:
        return None
    except json.JSONDecodeError as error:
        cut = error.msg.startswith("Unterminated string") or error.pos > len(start) - 16
        if whole or not cut:
            return None
        value, end = True, len(start)
    rest = start[end:]
    if not value or (rest.split("\n", 1)[0] if start[0] == "{" else rest).strip():
        return None
    return "lines" if start[0] == "{" and "\n" not in start[:end] else "document"


def _decoded(path: Path, file: IO[bytes], head: bytes, errors: str) -> Iterator[str]:
    """Yield the text of a file. A NUL is refused: other encodings and other kinds of files have them at the start."""
    encoding = encoding_of(head)
    shown = encoding.upper().removesuffix("-SIG")
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(errors), translate=True)
    n_read, more = 0, True
    while more:
        data = file.read(READ)
        more = bool(data)
        if shown == "UTF-8" and (at := data.find(0)) >= 0 and (errors == "strict" or n_read + at < HEAD):
            raise InputError(
                f"{path}: expected {shown} text, got a NUL byte at offset {n_read + at}; if it is UTF-16 without a "
                "byte order mark, convert it with iconv -f UTF-16LE -t UTF-8; if it is text with a stray NUL, remove it"
            )
        n_read += len(data)
        try:
            yield decoder.decode(data, final=not more)
        except UnicodeDecodeError as error:
            offset = n_read - len(error.object) + error.start
            raise InputError(
                f"{path}: expected {shown} text, got byte 0x{error.object[error.start]:02x} at offset {offset}; "
                "convert the file, for instance with iconv"
            ) from error


def split_text(chunks: Iterator[str], pattern: re.Pattern[str]) -> Iterator[tuple[str, bool]]:
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


def _lines(chunks: Iterator[str]) -> Iterator[str]:
    begun: list[str] = []
    for chunk in chunks:
        *ended, rest = chunk.split("\n")
        for line in ended:
            yield "".join([*begun, line])
            begun.clear()
        begun.append(rest)
    yield "".join(begun)
