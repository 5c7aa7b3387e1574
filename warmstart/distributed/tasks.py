"""What an engine runs on many machines: count a shard, add statistics. Each task writes a file and returns its name.

All machines see the files of the corpus and one folder, under the same names. A task whose file is there already does
nothing, so that an engine can run it again where its result was lost: a file is written whole or not at all.
"""

import contextlib
import platform
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer

from warmstart import shards
from warmstart.corpus import Text
from warmstart.documents import AS_IT_IS, find_sources
from warmstart.errors import InputError, NoTextError
from warmstart.formats import STDIN, Reading, keep_notices, notice
from warmstart.ngrams import ORDER
from warmstart.token_files import TokenFiles
from warmstart.tokenizer import read_tokenizer

SHARD_BYTES = 64 << 20  # of the files of a shard, if they are not larger themselves
TOKENIZER = "tokenizer.json"

Shard = list[Path] | TokenFiles
Done = tuple[str | None, list[str]]  # name of the file, None without text; notices


@dataclass(frozen=True)
class Job:
    """What the tasks of a run have in common.

    Parameters
    ----------
    folder : str
        A folder that all machines see, with the ``tokenizer.json``. The statistics are written there.
    order : int
        Length of the longest n-grams.
    reading : Reading
        How text files are read.
    """

    folder: str
    order: int = ORDER
    reading: Reading = AS_IT_IS

    def path(self, name: str) -> Path:
        """Return the path of a statistic; refuse a machine that does not see the folder."""
        if not Path(self.folder).is_dir():
            raise InputError(
                f"{self.folder}: expected a folder that all machines see, got none on {platform.node()}; write the "
                "output to a shared file system"
            )
        return Path(self.folder, f"{name}.stats")


def count_shard(job: Job, name: str, shard: Shard) -> Done:
    """Count one shard into a file. A shard without text, which may be a part of a corpus with text, gives none.

    Raises
    ------
    InputError
        See `warmstart.shards.count`; or this machine does not see the folder of the job.
    """
    path = job.path(name)
    with keep_notices() as notices:
        if not path.exists():
            try:
                statistic = shards.count(shard, Path(job.folder), order=job.order, **asdict(job.reading))
            except NoTextError:
                return None, notices
            statistic.save(path)
    return str(path), notices


def merge_files(job: Job, name: str, parts: Iterable[Done]) -> Done:
    """Add the statistics of several tasks into a file; one by itself stays where it is.

    Raises
    ------
    InputError
        See `warmstart.shards.merge`; or this machine does not see the folder of the job.
    """
    files = [file for file, _ in parts if file is not None]
    if len(files) < 2:
        return (files[0] if files else None), []
    path = job.path(name)
    with keep_notices() as notices:
        if not path.exists():
            shards.merge(files).save(path)
    return str(path), notices


@contextlib.contextmanager
def started(
    sources: Text, tokenizer: shards.Name | Tokenizer, output: Path, order: int, reading: Reading, n: int
) -> Iterator[tuple[Job, list[Shard]]]:
    """Cut a corpus into shards, and give a job whose folder is beside the output until the block ends.

    Parameters
    ----------
    sources : paths or TokenFiles
        Files that all machines see. The ids of `TokenFiles` are those of ``tokenizer``.
    tokenizer : path or Tokenizer
    output : Path
        Where the sum will be written.
    order : int
    reading : Reading
    n : int
        About so many shards at least, if there are so many files.

    Raises
    ------
    InputError
        The sources are no files, the tokenizer cannot be used, or the output is none.
    """
    shards.check_output(output)
    found = find_sources(sources.files if isinstance(sources, TokenFiles) else sources, reading)
    if not isinstance(found, list) or STDIN in found:
        raise InputError("expected files or folders that all machines see, got text itself; write it to files")
    content = read_tokenizer(tokenizer if isinstance(tokenizer, Tokenizer) else Path(tokenizer)).to_str()
    prefix = f".{output.name}."
    where = output.parent.absolute()
    with tempfile.TemporaryDirectory(prefix=prefix, dir=where, ignore_cleanup_errors=True) as whole:
        folder = Path(whole, "parts")
        folder.mkdir()
        path = folder / TOKENIZER
        path.write_text(content, encoding="utf-8")
        parts = cut([file.absolute() for file in found], n)
        tokens = sources if isinstance(sources, TokenFiles) else None
        of_job = [replace(tokens, paths=part, tokenizer=path) if tokens else part for part in parts]
        try:
            yield Job(str(folder), order, reading), of_job
        finally:  # after an error tasks may still run; under another name the folder gets no more files from them
            with contextlib.suppress(OSError):  # Windows does not rename a folder with open files
                folder.rename(folder.with_name("ended"))


def cut(files: Sequence[Path], n: int) -> Iterator[list[Path]]:
    """Yield shards of files that follow each other: about n of like size, or more if they were too large.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files = [Path(folder, name) for name in "abcd"]
    ...     sizes = [file.write_text("text" * times) for file, times in zip(files, (1, 2, 5, 1))]
    ...     [[file.name for file in shard] for shard in cut(files, 3)]
    [['a', 'b'], ['c'], ['d']]
    """
    sizes = [file.stat().st_size for file in files]
    limit = min(SHARD_BYTES, sum(sizes) / n)
    shard: list[Path] = []
    held = 0
    for file, size in zip(files, sizes, strict=True):
        if shard and held + size > limit:
            yield shard
            shard, held = [], 0
        shard.append(file)
        held += size
    yield shard


def finish(done: Done, output: Path) -> None:
    """Move the sum of all shards to its place.

    Raises
    ------
    InputError
        There was no text in any shard.
    """
    name, notices = done
    if name is None:
        raise NoTextError("expected a corpus with text, got nothing but whitespace; give other files")
    for sentence in notices:
        notice(sentence)
    Path(name).replace(output)
