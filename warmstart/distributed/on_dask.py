"""Count on a Dask cluster: shards and their sums are its tasks, with its retries, its progress and its dashboard.

A task that ends has written a file, so a worker that dies loses no more than the shards that it was counting. Dask
gives them to others, and for results that it has to ask for again the files are there.
"""

import asyncio
import contextlib
import uuid
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

from distributed import Client, as_completed
from distributed.scheduler import KilledWorker
from tokenizers import Tokenizer

from warmstart.corpus import Text
from warmstart.distributed.tasks import count_shard, finish, merge_files, started
from warmstart.errors import InputError
from warmstart.formats import Reading, notice
from warmstart.ngrams import ORDER
from warmstart.progress import Progress
from warmstart.shards import Name

SHARDS_PER_THREAD = 4  # of different speed, so that all threads end at about the same time
FAN_IN = 8  # statistics that one task adds
RETRIES = 2  # of a task that ends with an error, such as one of a network drive


@contextlib.contextmanager
def connected(address: str) -> Iterator[Client]:
    """Give a client of the scheduler at an address.

    Raises
    ------
    InputError
        No scheduler answers there within the time-out of Dask's configuration, ``distributed.comm.timeouts.connect``.
    """
    asyncio.run(_reach(address))
    with Client(address, set_as_default=False) as client:
        yield client


async def _reach(address: str) -> None:
    client = Client(address, asynchronous=True, set_as_default=False)  # one in threads would outlive its failure
    try:
        await client
    except Exception as error:  # another server's answer can raise any
        hint = "start one with `dask scheduler`, and give the address that it prints"
        raise InputError(f"{address}: expected a Dask scheduler, got: {error}; {hint}") from error
    finally:
        await client.close()


def count(
    client: Client,
    sources: Text,
    tokenizer: Name | Tokenizer,
    output: Name,
    *,
    order: int = ORDER,
    progress: Progress | None = None,
    **reading: Any,
) -> None:
    """Count a corpus on a cluster into one statistic, for `warmstart.shards.solve`.

    Parameters
    ----------
    client : distributed.Client
        Its workers have this version of warmstart. They and this process see the sources and the folder of the output
        under the same names.
    sources : paths or TokenFiles
        A file is the smallest shard; small ones are counted together.
    tokenizer : path or Tokenizer
        For `TokenFiles`, the one that wrote them.
    output : path
        File for the statistic. The shards' are in a folder beside it as long as it is not done.
    order : int
        Length of the longest n-grams.
    progress : callable, optional
        Called as ``progress(stage, done, total)`` with shards and sums.
    **reading
        Fields of `warmstart.formats.Reading`.

    Raises
    ------
    InputError
        The sources, the tokenizer, the order or the output cannot be used, all workers died that counted a shard, or
        the cluster was lost. Nothing is written.
    """
    threads = sum(client.nthreads().values())
    if not threads:
        notice(f"{client.scheduler.address}: no workers there so far; start some with `dask worker ADDRESS`")
    n = SHARDS_PER_THREAD * max(threads, 1)
    run = uuid.uuid4().hex[:8]
    with started(sources, tokenizer, Path(output), order, Reading(**reading), n) as (job, parts):
        names = [f"count-{number}" for number in range(len(parts))]
        level = counted = [
            client.submit(count_shard, job, name, part, key=f"count_shard-{run}-{name}", retries=RETRIES)
            for name, part in zip(names, parts, strict=True)
        ]
        merged: list[Any] = []
        while len(level) > 1:
            groups = [level[first : first + FAN_IN] for first in range(0, len(level), FAN_IN)]
            names = [f"merge-{len(merged) + number}" for number in range(len(groups))]
            level = [
                client.submit(merge_files, job, name, group, key=f"merge_files-{run}-{name}", retries=RETRIES)
                for name, group in zip(names, groups, strict=True)
            ]
            merged += level
        try:
            _wait("count shards", counted, client, progress)
            _wait("merge statistics", merged, client, progress)
            finish((level[0].result()[0], []), Path(output))
        finally:
            client.cancel([*counted, *merged])


def _wait(stage: str, futures: list[Any], client: Client, progress: Progress | None) -> None:
    """Wait for tasks, pass on what they noticed, raise what they raised."""
    for done, future in enumerate(as_completed(futures, loop=client.loop), 1):
        try:
            _, notices = future.result()
        except KilledWorker as error:
            raise InputError(
                f"{stage}: expected workers that live, got {error.allowed_failures + 1} that died one after the other "
                f"at {error.task}; give them more memory or fewer threads, or cut the files into smaller ones"
            ) from error
        except CancelledError as error:
            raise InputError(
                f"{client.scheduler.address}: expected a scheduler that answers until all is counted, got: {error}; "
                "start it again, and count again"
            ) from error
        for sentence in notices:
            notice(sentence)
        if progress:
            progress(stage, done, len(futures))
