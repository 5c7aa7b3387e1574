"""Write a file whole or not at all, compressed where its name says so."""

import bz2
import contextlib
import errno
import gzip
import lzma
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path; when the block ends without an error, its file replaces ``path`` in one step.

    The temporary path is in a hidden folder beside ``path``, so both are on one file system. On an error the folder is
    removed and ``path`` stays as it was. The file gets the permissions of any new file (the umask).

    Raises
    ------
    OSError
        The name is that of a compressed file. `writing` compresses.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder, "a.txt")) as temporary:
    ...         size = temporary.write_text("whole")
    ...     Path(folder, "a.txt").read_text(), os.listdir(folder)
    ('whole', ['a.txt'])
    """
    target = Path(path)
    if target.suffix.lower() in PACKED:
        problem = f"expected a name without {target.suffix}, the file is not compressed; leave it out"
        raise OSError(errno.EINVAL, problem, str(path))
    with _replacing(target) as temporary:
        yield temporary


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Give a file to write, as `replacing`; it is compressed if the name ends in .gz, .bz2 or .xz.

    Equal content gives equal bytes.

    Raises
    ------
    OSError
        The name is that of another compressed file.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with writing(Path(folder, "a.txt.gz")) as file:
    ...         size = file.write(b"whole")
    ...     gzip.decompress(Path(folder, "a.txt.gz").read_bytes())
    b'whole'
    """
    target, ending = Path(path), Path(path).suffix.lower()
    if ending in PACKED[3:]:
        problem = f"expected a name that ends in {', '.join(PACKED[:3])} or an uncompressed file, got {target.suffix}"
        raise OSError(errno.EINVAL, problem, str(path))
    with contextlib.ExitStack() as stack:
        file: object = stack.enter_context(stack.enter_context(_replacing(target)).open("wb"))
        if ending == ".gz":
            file = stack.enter_context(gzip.GzipFile("", "wb", 3, cast(IO[bytes], file), mtime=0))
        elif ending == ".bz2":
            file = stack.enter_context(bz2.BZ2File(cast(IO[bytes], file), "wb"))
        elif ending == ".xz":
            file = stack.enter_context(lzma.LZMAFile(cast(IO[bytes], file), "wb", preset=3))
        yield cast(IO[bytes], file)


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        temporary = Path(folder, target.name)
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        temporary.chmod(mode)  # safetensors puts a file of its own there, which only its owner may read
        with temporary.open("rb+") as file:  # Windows flushes only files that are open for writing
            os.fsync(file.fileno())
        temporary.replace(target)
