"""Write a file whole or not at all."""

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path; when the block ends without an error, its file replaces ``path`` in one step.

    The temporary path is in a hidden folder beside ``path``, so both are on one file system. On an error the folder is
    removed and ``path`` stays as it was. The file gets the permissions of any new file (the umask).

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder, "a.txt")) as temporary:
    ...         size = temporary.write_text("whole")
    ...     Path(folder, "a.txt").read_text(), os.listdir(folder)
    ('whole', ['a.txt'])
    """
    target = Path(path)
    if target.exists() and not target.is_file():  # a folder, or a device such as /dev/null, which root could replace
        raise OSError(errno.EINVAL, "expected a file to write, got something else of this name", str(path))
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        temporary = Path(folder, target.name)
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        temporary.chmod(mode)  # safetensors puts a file of its own there, which only its owner may read
        with temporary.open("rb+") as file:  # Windows flushes only files that are open for writing
            os.fsync(file.fileno())
        temporary.replace(target)
