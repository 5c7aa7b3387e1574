"""Work on the parts of an array in threads; results come in the order of the parts, whatever the number of threads."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Part = TypeVar("Part")
Result = TypeVar("Result")


def run_parts(work: Callable[[Part], Result], parts: Iterable[Part], workers: int) -> list[Result]:
    """Call ``work`` with every part, in ``workers`` threads, and return the results in the order of the parts."""
    if workers == 1:
        return [work(part) for part in parts]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, parts))


def blocks(size: int, length: int) -> list[slice]:
    """Cut ``range(size)`` into slices of one length, of which the last may be shorter."""
    return [slice(start, min(start + length, size)) for start in range(0, size, length)]


def shares(size: int, count: int) -> list[slice]:
    """Cut ``range(size)`` into ``count`` slices of nearly equal length, one for each thread."""
    return [slice(size * i // count, size * (i + 1) // count) for i in range(count)]
