"""Named arrays as safetensors and facts as JSON: the same content gives the same bytes, written whole or not at all."""

import contextlib
import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bitcipher.files import replacing, writing
from warmstart.blocks import Stored
from warmstart.errors import InputError
from warmstart.records import parse_json

__all__ = [
    "blocks_of", "load_arrays", "load_facts", "map_arrays", "replacing", "save_arrays", "save_json", "writing",
    "writing_arrays",
]  # fmt: skip

FACTS = "warmstart"  # one metadata key: safetensors does not keep the order of several
CHECKSUMS = "checksums"
TYPES = {"U8": "u1", "U16": "<u2", "U32": "<u4", "I32": "<i4", "I64": "<i8", "F32": "<f4", "F64": "<f8"}
PLACES = ["U8", "U16", "I32", "U32", "F32", "F64", "I64"]  # in files of safetensors the last of these come first

Array = NDArray[Any] | Stored


def save_arrays(path: Path, arrays: Mapping[str, Array], facts: dict[str, Any] | None = None) -> None:
    """Write arrays and JSON facts to a safetensors file. Arrays that are stored on the disk are copied in blocks.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.safetensors"
    >>> save_arrays(path, {"x": np.arange(3)}, {"unit": 2})
    >>> arrays, facts = load_arrays(path)
    >>> arrays["x"].tolist(), facts
    ([0, 1, 2], {'unit': 2})
    """
    content = {FACTS: json.dumps(facts or {}, sort_keys=True)}
    with replacing(path) as temporary:
        if any(isinstance(array, Stored) for array in arrays.values()):
            _copy_arrays(temporary, arrays, content)
            return
        contiguous = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}  # safetensors scrambles
        try:  # views
            save_file(contiguous, temporary, content)
        except SafetensorError as error:  # a full disk raises it
            raise OSError(f"{path}: could not be written: {error}") from error


def _copy_arrays(path: Path, arrays: Mapping[str, Array], content: Mapping[str, str]) -> None:
    """Write what safetensors writes, to the byte, without holding it in memory."""
    kinds = {np.dtype(kind): name for name, kind in TYPES.items()}
    names = sorted(arrays, key=lambda name: (-PLACES.index(kinds[arrays[name].dtype]), name))
    header: dict[str, Any] = {"__metadata__": content}
    end = 0
    for name in names:
        array = arrays[name]
        start, end = end, end + math.prod(array.shape) * array.dtype.itemsize
        header[name] = {"dtype": kinds[array.dtype], "shape": array.shape, "data_offsets": (start, end)}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded = encoded.ljust(-(-len(encoded) // 8) * 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in names:
            for block in blocks_of(arrays[name]):
                file.write(block.data)


def blocks_of(array: Array) -> Iterable[NDArray[Any]]:
    """Return an array in contiguous blocks: one if it is in memory."""
    return array.blocks() if isinstance(array, Stored) else [np.ascontiguousarray(array)]


@contextlib.contextmanager
def writing_arrays(
    path: Path, shapes: Mapping[str, tuple[str, tuple[int, ...]]], facts: Mapping[str, Any]
) -> Iterator[dict[str, NDArray[Any]]]:
    """Give arrays to fill that are mapped to a new file; it is as if `save_arrays` had written them with `checksums`.

    Arrays that are larger than the memory can be written so. The file replaces ``path`` when the block ends without an
    error.

    Parameters
    ----------
    path : Path
    shapes : mapping of str to (type, shape)
        Types are the keys of `TYPES`.
    facts : mapping

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.safetensors"
    >>> with writing_arrays(path, {"x": ("I32", (3,))}, {"unit": 2}) as arrays:
    ...     arrays["x"][:] = [1, 2, 3]
    >>> map_arrays(path)[0]["x"].tolist(), load_arrays(path)[1]["unit"]
    ([1, 2, 3], 2)
    """
    header: dict[str, Any] = {}
    end = 0
    for name, (kind, shape) in sorted(shapes.items()):
        start, end = end, end + math.prod(shape) * np.dtype(TYPES[kind]).itemsize
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": (start, end)}

    def encoded(sums: Mapping[str, int]) -> bytes:
        content = json.dumps({**facts, CHECKSUMS: sums}, sort_keys=True)
        return json.dumps({"__metadata__": {FACTS: content}, **header}).encode()

    size = -(-len(encoded(dict.fromkeys([*shapes, FACTS], 2**32 - 1))) // 8) * 8  # the checksums may be shorter
    with replacing(path) as temporary:
        arrays = {}
        with temporary.open("wb") as file:
            file.truncate(8 + size + end)
        for name, entry in header.items():
            at = 8 + size + entry["data_offsets"][0]
            arrays[name] = np.memmap(temporary, TYPES[entry["dtype"]], "r+", at, entry["shape"])
        yield dict(arrays)
        sums = checksums(arrays, facts)
        for array in arrays.values():
            array.flush()
        with temporary.open("r+b") as begun:
            begun.write(size.to_bytes(8, "little") + encoded(sums).ljust(size))
        arrays.clear()  # Windows does not rename mapped files


def load_arrays(path: Path, *, checked: bool = False) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read arrays and facts.

    If the facts have ``checksums`` (see `checksums`), what was read is compared with them; ``checked`` refuses a file
    without.

    Raises
    ------
    InputError
        The file is missing, truncated, damaged or no safetensors file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            facts = parse_json((file.metadata() or {}).get(FACTS, "{}"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path}: expected a whole safetensors file, got: {error}; write it again") from error
    _compare(path, arrays, facts, checked)
    return arrays, facts


def map_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read what `save_arrays` wrote as memory-mapped arrays, which the operating system loads page by page.

    What was read is compared with the ``checksums`` of the facts (see `checksums`).

    Raises
    ------
    InputError
        The file is missing, truncated, damaged or of another kind.
    """
    try:
        with safe_open(path, framework="numpy") as file:  # it checks the header and the size of the file
            facts = parse_json((file.metadata() or {}).get(FACTS, "{}"))
            names = list(file.keys())
        with Path(path).open("rb") as raw:
            size = int.from_bytes(raw.read(8), "little")
            header = json.loads(raw.read(size))
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path}: expected a whole safetensors file, got: {error}; write it again") from error
    content = np.asarray(np.memmap(path, np.uint8, mode="c"))[8 + size :]  # private: what is written stays in memory
    arrays = {}
    for name in names:
        entry = header[name]
        start, stop = entry["data_offsets"]
        if entry["dtype"] not in TYPES:
            raise InputError(f"{path}: expected arrays of {', '.join(TYPES)}, got {entry['dtype']} in {name}")
        arrays[name] = content[start:stop].view(TYPES[entry["dtype"]]).reshape(entry["shape"])
    _compare(path, arrays, facts, checked=True)
    return arrays, facts


def load_facts(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the facts of a file with `checksums` alone, which takes no time. They are compared with their own.

    Raises
    ------
    InputError
        The file is missing, shorter than its header says, of another kind, or its facts are damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            facts = parse_json((file.metadata() or {}).get(FACTS, "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path}: expected a whole safetensors file, got: {error}; write it again") from error
    sums = facts.pop(CHECKSUMS, None) if isinstance(facts, dict) else None
    if not isinstance(sums, dict) or sums.get(FACTS) != checksums({}, facts)[FACTS]:
        raise InputError(f"{path}: expected facts with their checksum, got others; write it again")
    return dict(facts)


def _compare(path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]], facts: Any, checked: bool) -> None:
    """Take the checksums out of the facts of a file, and refuse other content, or none of them if it is ``checked``."""
    expected = facts.pop(CHECKSUMS, None) if isinstance(facts, dict) else None
    if checked and not isinstance(expected, dict):
        raise InputError(f"{path}: expected a file with checksums of its content, got one without; write it again")
    if expected is not None:
        found = checksums(arrays, facts if FACTS in expected else None)
        damaged = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        if damaged:
            raise InputError(
                f"{path}: expected the content that was written, got other bytes in {damaged[0]}; write it again"
            )


def checksums(arrays: Mapping[str, Array], facts: Mapping[str, Any] | None = None) -> dict[str, int]:
    """Return the CRC-32 of every array, and of the other facts, for the fact ``checksums``."""
    sums = {
        name: array.crc if isinstance(array, Stored) else zlib.crc32(np.ascontiguousarray(array).data)
        for name, array in arrays.items()
    }
    return sums if facts is None else sums | {FACTS: zlib.crc32(json.dumps(facts, sort_keys=True).encode())}


def save_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object with sorted keys."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
