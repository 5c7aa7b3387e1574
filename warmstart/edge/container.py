"""Named arrays in one flat little-endian file, which a board can read where it lies in flash.

| byte | content |
|---|---|
| 0 | ``WARMEDGE`` |
| 8 | version, uint32 |
| 12 | CRC-32 of all that follows, uint32 |
| 16 | size of the file in bytes, uint64 |
| 24 | number of arrays, uint32, and four zeros |
| 32 | for each array 40 bytes: name (20), type (4, as in `TYPES`), offset in the file and number of items, uint64 |
| | the arrays, each at a multiple of 16 bytes |

Names and types are ASCII, filled up with zeros. The arrays of a model are listed in `warmstart.export`.
"""

import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from warmstart.errors import InputError

MODEL, COUNTS = NAMES = "model.bin", "counts.bin"
MAGIC, VERSION = b"WARMEDGE", 1
HEADER, ENTRY = struct.Struct("<8sIIQI4x"), struct.Struct("<20s4sQQ")
CHECKED_FROM = 16  # byte at which the checksum begins
TYPES = {b"u1": "u1", b"u2": "<u2", b"u4": "<u4", b"u8": "<u8", b"f4": "<f4"}
ALIGNMENT = 16
BLOCK = 1 << 16  # bytes read at once for the checksum, so that the file does not fill the memory
MOST = 1000  # arrays


def write(path: Path, arrays: Mapping[str, NDArray[Any]]) -> int:
    """Write a file, whole or not at all, and return its size in bytes. The same arrays give the same bytes.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.bin"
    >>> write(path, {"x": np.array([1, 2], np.uint16)})
    84
    >>> read(path)["x"].tolist()
    [1, 2]
    """
    from bitcipher.files import replacing  # it is not needed to read

    entries, content = [], []
    at = _up(HEADER.size + ENTRY.size * len(arrays))
    for name, array in arrays.items():
        kind = array.dtype.str[1:].encode()
        raw = np.ascontiguousarray(array, TYPES[kind]).tobytes()
        entries.append(ENTRY.pack(name.encode(), kind, at, array.size))
        content.append((at, raw))
        at = _up(at + len(raw))
    size = content[-1][0] + len(content[-1][1]) if content else at
    body = bytearray(size)
    HEADER.pack_into(body, 0, MAGIC, VERSION, 0, size, len(arrays))
    body[HEADER.size : HEADER.size + ENTRY.size * len(arrays)] = b"".join(entries)
    for start, raw in content:
        body[start : start + len(raw)] = raw
    struct.pack_into("<I", body, 12, zlib.crc32(memoryview(body)[CHECKED_FROM:]))
    with replacing(path) as temporary:
        temporary.write_bytes(body)
    return size


def read(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file, memory-mapped: the system loads a page when it is used, and may drop it again.

    The checksum is compared first, in blocks.

    Raises
    ------
    InputError
        The file is missing, truncated, damaged, of another version or another kind.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEADER.size)
            count = _checked_head(path, head, path.stat().st_size)
            sum_ = zlib.crc32(head[CHECKED_FROM:])
            entries = file.read(ENTRY.size * count)
            sum_ = zlib.crc32(entries, sum_)
            block = memoryview(bytearray(BLOCK))
            while n := file.readinto(block):
                sum_ = zlib.crc32(block[:n], sum_)
        if sum_ != struct.unpack_from("<I", head, 12)[0]:
            raise InputError(f"{path}: expected the content that was written, got other bytes; export the model again")
        whole = np.asarray(np.memmap(path, np.uint8, mode="r"))
    except OSError as error:
        raise InputError(f"{path}: expected a table, got: {error.strerror}; export the model again") from error
    arrays = {}
    for name, kind, at, size in ENTRY.iter_unpack(entries):
        dtype = np.dtype(TYPES[kind.rstrip(b"\0")])
        arrays[name.rstrip(b"\0").decode()] = whole[at : at + size * dtype.itemsize].view(dtype)
    return arrays


def _checked_head(path: Path, head: bytes, size: int) -> int:
    """Return the number of arrays. Refuse another kind, version or size."""
    if len(head) < HEADER.size or not head.startswith(MAGIC):
        raise InputError(f"{path}: expected a table of warmstart, got another file; export the model again")
    _, version, _, whole, count = HEADER.unpack(head)
    if version != VERSION:
        raise InputError(f"{path}: expected version {VERSION}, got {version}; export the model again")
    if whole != size or count > MOST:
        raise InputError(f"{path}: expected {whole} bytes, got {size}; the file is not whole, export the model again")
    return int(count)


def write_folder(path: Path, contents: Mapping[str, Mapping[str, NDArray[Any]]]) -> dict[str, int]:
    """Write the files of a model to a folder, whole or not at all, over an older model; return their sizes.

    Raises
    ------
    InputError
        The path is a file, or a folder with other files.
    """
    import tempfile  # it is not needed to read

    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: expected a folder, got a file; choose another name")
    if path.exists() and (others := {file.name for file in path.iterdir()} - {*NAMES}):
        raise InputError(
            f"{path}: expected a new folder, an empty one or an exported model, got {min(others)}; choose another name"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as work:
        new, old = Path(work, "new"), Path(work, "old")
        new.mkdir()
        sizes = {name: write(new / name, arrays) for name, arrays in contents.items()}
        if path.exists():
            path.rename(old)
        try:
            new.rename(path)
        finally:
            if old.exists() and not path.exists():
                old.rename(path)
    return sizes


def packed_facts(facts: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Return facts as the bytes of JSON, to be written as an array."""
    return np.frombuffer(json.dumps(facts, sort_keys=True).encode(), np.uint8)


def facts_of(array: NDArray[np.uint8]) -> dict[str, Any]:
    """Return what `packed_facts` was given."""
    return dict(json.loads(array.tobytes()))


def _up(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
