"""Count with `torch.distributed`, for those who have `torchrun`: every rank counts its shards, rank 0 adds the sums."""

import contextlib
from pathlib import Path
from typing import Any

import torch.distributed
from tokenizers import Tokenizer

from warmstart.corpus import Text
from warmstart.distributed.tasks import Done, count_shard, finish, merge_files, started
from warmstart.formats import Reading, notice
from warmstart.ngrams import ORDER
from warmstart.shards import Name


def count(sources: Text, tokenizer: Name | Tokenizer, output: Name, *, order: int = ORDER, **reading: Any) -> None:
    """Count a corpus on all ranks into one statistic, for `warmstart.shards.solve`.

    All ranks call it after `torch.distributed.init_process_group` with gloo. Its time-out has to be longer than the
    counting, because ranks that are done wait for the others.

    Parameters
    ----------
    sources : paths or TokenFiles
        Files that all ranks see under the same names. A file is the smallest shard.
    tokenizer : path or Tokenizer
        For `TokenFiles`, the one that wrote them.
    output : path
        File for the statistic, which rank 0 writes. The shards' are in a folder beside it as long as it is not done.
    order : int
        Length of the longest n-grams.
    **reading
        Fields of `warmstart.formats.Reading`.

    Raises
    ------
    InputError
        The sources, the tokenizer, the order or the output cannot be used. `torchrun` ends the other ranks.
    """
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    with contextlib.ExitStack() as stack:
        plan: list[Any] = [None]
        if not rank:  # the others have its list of files and its folder
            plan = [stack.enter_context(started(sources, tokenizer, Path(output), order, Reading(**reading), size))]
        torch.distributed.broadcast_object_list(plan)
        job, parts = plan[0]
        own = [count_shard(job, f"count-{i}", part) for i, part in enumerate(parts) if i % size == rank]
        merged = merge_files(job, f"rank-{rank}", own)
        for sentence in [sentence for _, notices in (*own, merged) for sentence in notices]:
            notice(sentence)
        sums: list[Done] | None = None if rank else [(None, [])] * size
        torch.distributed.gather_object(merged, sums)
        if sums is not None:
            finish(merge_files(job, "all", sums), Path(output))
