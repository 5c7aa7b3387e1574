"""Rows of numbers in one file, written and read block by block, for what is larger than the memory.

| of the file | content |
|---|---|
| blocks | those of all rows, in the order in which they were written |
| index | JSON: for each row its type, its CRC-32, and the place in bytes and the length of each of its blocks; facts |
| end | the length of the index, its CRC-32: 8 bytes each |

The file is written whole or not at all.
"""

import contextlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from bitcipher.files import replacing
from warmstart.errors import InputError

READ = 1 << 20  # numbers of a row that are read at once where all of it is needed


@dataclass(frozen=True, eq=False)
class Stored:
    """A row of numbers on the disk.

    Attributes
    ----------
    path : Path
    dtype : dtype
    places : (b,) int64
        Where its blocks begin in the file, in bytes.
    ends : (b + 1,) int64
        Sum of the lengths of the blocks before each one, and of all.
    crc : int
        CRC-32 of its bytes.
    """

    path: Path
    dtype: np.dtype[Any]
    places: NDArray[np.int64]
    ends: NDArray[np.int64]
    crc: int

    @property
    def size(self) -> int:
        """Number of numbers."""
        return int(self.ends[-1])

    @property
    def shape(self) -> tuple[int]:
        """The same, as that of an array."""
        return (self.size,)

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Return the numbers ``start ... stop - 1``.

        Raises
        ------
        InputError
            The file ends before.
        """
        stop = self.size if stop is None else stop
        out = np.empty(stop - start, self.dtype)
        block, at = int(np.searchsorted(self.ends, start, "right")) - 1, start
        with self.path.open("rb", buffering=0) as file:
            while at < stop:
                end = min(stop, int(self.ends[block + 1]))
                file.seek(int(self.places[block]) + (at - int(self.ends[block])) * self.dtype.itemsize)
                view = out[at - start : end - start].data.cast("B")
                while view.nbytes:
                    if not (n := file.readinto(view)):
                        raise InputError(f"{self.path}: expected a whole file, got a shorter one; delete it")
                    view = view[n:]
                block, at = block + 1, end
        return out

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Return all numbers, some at a time."""
        for start in range(0, self.size, READ):
            yield self.read(start, min(start + READ, self.size))


Rows = Mapping[str, Stored]


class Writer:
    """Rows that grow; see `writing_rows`."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.at = 0
        self.rows: dict[str, dict[str, Any]] = {}

    def add(self, name: str, block: NDArray[Any]) -> None:
        """Append numbers to a row; those of its first block have the type of all."""
        row = self.rows.setdefault(name, {"type": block.dtype.str, "crc": 0, "places": [], "lengths": []})
        if row["type"] != block.dtype.str:
            raise TypeError(f"{name}: expected numbers of type {row['type']}, got {block.dtype.str}")
        content = np.ascontiguousarray(block)
        if content.size:
            self.file.write(content.data)
            row["crc"] = zlib.crc32(content.data, row["crc"])
            row["places"].append(self.at)
            row["lengths"].append(content.size)
            self.at += content.nbytes


@contextlib.contextmanager
def writing_rows(path: Path, facts: Mapping[str, Any]) -> Iterator[Writer]:
    """Give a writer of rows. The file replaces ``path`` when the block ends without an error.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with writing_rows(Path(folder, "a"), {"unit": 2}) as out:
    ...         out.add("x", np.arange(3))
    ...         out.add("y", np.ones(1))
    ...         out.add("x", np.arange(2))
    ...     rows, facts = read_rows(Path(folder, "a"))
    ...     rows["x"].read().tolist(), rows["x"].read(2, 4).tolist(), facts
    ([0, 1, 2, 0, 1], [2, 0], {'unit': 2})
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        out = Writer(file)
        yield out
        index = json.dumps({"rows": out.rows, "facts": facts}, sort_keys=True).encode()
        file.write(index + len(index).to_bytes(8, "little") + zlib.crc32(index).to_bytes(8, "little"))


def read_rows(path: Path, *, checked: bool = False) -> tuple[dict[str, Stored], dict[str, Any]]:
    """Return the rows of a file, of which only the index is read, and its facts; ``checked`` reads all to compare it.

    Raises
    ------
    InputError
        The file is truncated, damaged or of another kind.
    """
    damaged = InputError(f"{path}: expected the content that was written, got other bytes; delete it")
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 16))
        length, crc = (int.from_bytes(file.read(8), "little") for _ in range(2))
        if length > size - 16:
            raise damaged
        file.seek(size - 16 - length)
        index = file.read(length)
    if zlib.crc32(index) != crc or not index:
        raise damaged
    content = json.loads(index)
    rows = {}
    for name, row in content["rows"].items():
        ends = np.cumsum([0, *row["lengths"]], dtype=np.int64)
        rows[name] = Stored(path, np.dtype(row["type"]), np.array(row["places"], np.int64), ends, row["crc"])
    if checked and any(crc_of(row) != row.crc for row in rows.values()):
        raise damaged
    return rows, content["facts"]


def crc_of(row: Stored) -> int:
    """Return the CRC-32 of what the file holds of a row now."""
    crc = 0
    for block in row.blocks():
        crc = zlib.crc32(block.data, crc)
    return crc
