"""Columns of text in Parquet and Arrow files, row by row, in bounded memory (needs the extra ``parquet``).

| file | first bytes |
|---|---|
| Parquet | `PAR1` |
| Arrow file, Feather 2 | `ARROW1` |
| Arrow stream, as `datasets` keeps its tables | `FF FF FF FF` |
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from warmstart.errors import InputError

SIGNS = {b"PAR1": "Parquet", b"ARROW1": "Arrow file", b"\xff\xff\xff\xff": "Arrow stream"}
ENDINGS = (".parquet", ".arrow")
TYPES = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")  # of UTF-8, all of them
ROWS = 1024  # read at once
BUFFER = 2**20  # bytes
END = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream


def kind_of(start: bytes) -> str | None:
    """Return what a file with these first bytes is: "Parquet", "Arrow file", "Arrow stream" or None.

    Examples
    --------
    >>> kind_of(b"PAR1"), kind_of(b"text")
    ('Parquet', None)
    """
    return next((kind for sign, kind in SIGNS.items() if start.startswith(sign)), None)


def read_column(path: Path, kind: str, column: str, report: Callable[[str], None]) -> Iterator[bytes | None]:
    """Yield the values of a column of strings or of binary data; None is a missing value.

    Of Parquet, a few pages are in memory. Arrow is memory-mapped; only of a compressed file a whole batch is in memory.

    Parameters
    ----------
    path : Path
        An unpacked file.
    kind : str
        From `kind_of`.
    column : str
    report : callable
        Called with one sentence if a stream has no end.

    Raises
    ------
    InputError
        pyarrow is not installed, the file is damaged or cut, or it has no such column or one of another type.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise InputError(
            f"{path}: {kind}: expected the package pyarrow, found none; pip install 'warmstart[parquet]'"
        ) from error
    if not path.is_file():
        raise InputError(f"{path}: expected {kind} from a file, got a stream; save it to a file first")
    try:
        for values in _parquet(path, column) if kind == "Parquet" else _arrow(path, kind, column):
            yield from _plain(values).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        hint = "write it again, unpacked and whole"
        raise InputError(f"{path}: expected a whole {kind}, got: {error}; {hint}") from error
    if kind == "Arrow stream":
        with path.open("rb") as file:
            file.seek(-len(END), 2)
            if file.read() != END:
                report(f"{path}: read to the last whole batch; the stream does not say that it ends there")


def _parquet(path: Path, column: str) -> Iterator[Any]:
    from pyarrow import parquet

    with parquet.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False, page_checksum_verification=True) as file:
        _place(path, file.schema_arrow, column)
        for batch in file.iter_batches(ROWS, columns=[column], use_threads=False):
            yield batch.column(0)


def _arrow(path: Path, kind: str, column: str) -> Iterator[Any]:
    import pyarrow

    opened = pyarrow.ipc.open_file if kind == "Arrow file" else pyarrow.ipc.open_stream
    with pyarrow.memory_map(str(path)) as source, opened(source) as reader:
        place = _place(path, reader.schema, column)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if kind == "Arrow file" else reader
        for batch in batches:
            yield from (batch.column(place).slice(row, ROWS) for row in range(0, batch.num_rows, ROWS))


def _plain(values: Any) -> Any:
    """Return strings as the same bytes. Places outside of these bytes, as in a damaged file, are an ArrowInvalid."""
    import pyarrow

    if pyarrow.types.is_dictionary(values.type):
        values.validate(full=True)
        values = values.dictionary_decode()
    plain = values.view(pyarrow.type_for_alias(str(values.type).replace("string", "binary")))
    plain.validate(full=True)
    return plain


def _place(path: Path, schema: Any, column: str) -> int:
    """Return the number of the column with a name, if it is one of text."""
    import pyarrow

    if schema.names.count(column) != 1:
        names = ", ".join(map(repr, itertools.islice(schema.names, 20)))
        raise InputError(
            f"{path}: expected one column {column!r}, got {names[:200] or 'none'}; name another one (--text-field)"
        )
    place: int = schema.get_field_index(column)
    found = schema.field(place).type
    values = found.value_type if pyarrow.types.is_dictionary(found) else found
    if str(values) not in TYPES:
        raise InputError(f"{path}: expected strings in column {column!r}, got {found}; name another one (--text-field)")
    return place
