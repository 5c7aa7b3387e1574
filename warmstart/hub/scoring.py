"""A text scored in order: the experts read whole documents, the decoder reads windows that overlap."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from warmstart._threads import blocks
from warmstart.errors import InputError

LONGEST = 1024  # tokens of a window, if the decoder can read more

Nats = Callable[[Tensor, Tensor, slice, Tensor], Tensor]


class Scores(NamedTuple):
    """Natural logarithms of the probabilities of targets (n,), by the whole model and by the decoder alone."""

    log_probs: NDArray[np.float64]
    network: NDArray[np.float64]


def window_size(config: Any, length: int | None, stride: int | None) -> tuple[int, int]:
    """Return the tokens of a window, and the targets from one window to the next.

    Parameters
    ----------
    config : PreTrainedConfig
        That of the decoder.
    length, stride : int, optional
        What was asked for.

    Raises
    ------
    InputError
        The decoder cannot read so many tokens, or the stride is longer than a window.
    """
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    found = min(most or LONGEST, LONGEST) if length is None else length
    if found < 1 or found > (most or found):
        raise InputError(f"length: expected from 1 to {most} tokens, which the decoder can read, got {found}")
    step = max(1, found // 2) if stride is None else stride
    if not 1 <= step <= found:
        raise InputError(f"stride: expected from 1 to {found} targets, the length of a window, got {step}")
    return found, step


def windows(part: slice, length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yield the windows for targets ``part`` (from 0) of a text: first token, first target, and end of both.

    Examples
    --------
    >>> list(windows(slice(0, 7), 4, 3))
    [(0, 0, 3), (2, 3, 6), (3, 6, 7)]
    """
    for first in range(part.start, part.stop, stride):
        end = min(first + stride, part.stop)
        yield max(0, end - length), first, end


def documents(tokens: NDArray[np.integer], part: slice, separator: int) -> Iterator[tuple[int, int, int]]:
    """Yield the documents, from their separators, for targets ``part`` (from 0) of a text, as `windows` does.

    Examples
    --------
    >>> list(documents(np.array([0, 5, 6, 0, 7, 0]), slice(1, 5), separator=0))
    [(0, 1, 3), (3, 3, 5)]
    """
    begins = np.flatnonzero(tokens[: part.stop] == separator)
    inside = begins[begins > part.start]
    firsts = [part.start, *inside.tolist()]
    starts = [int(begins[begins <= part.start][-1]), *inside.tolist()]
    yield from zip(starts, firsts, [*firsts[1:], part.stop], strict=True)


def window_nats(
    nats: Nats, tokens: NDArray[np.integer], part: slice, found: Iterable[tuple[int, int, int]], batch: int
) -> Tensor:
    """Return ``-log P`` (k, n) of targets ``part`` (from 0) of a text by k models that read windows.

    Parameters
    ----------
    nats : callable
        Called with inputs (rows, length), targets (rows, n), the slice of the last tokens before these, and the places
        of the targets in ``part`` (rows, n). It returns ``-log P`` (k, rows, n).
    tokens : (m + 1,) int
    part : slice
    found : iterable
        The windows, see `windows` and `documents`.
    batch : int
        Number of windows that are read at once.
    """
    groups: dict[tuple[int, int], list[int]] = {}  # by length and number of targets
    for start, first, end in found:
        groups.setdefault((end - start, end - first), []).append(end)
    out: Tensor | None = None
    for (length, n), ends in groups.items():
        for block in blocks(len(ends), batch):
            at = np.array(ends[block])[:, None]
            inputs, targets = tokens[at + np.arange(-length, 0)], tokens[at + np.arange(-n, 0) + 1]
            places = torch.from_numpy(at + np.arange(-n, 0) - part.start)
            own = nats(_tensor(inputs), _tensor(targets), slice(length - n, length), places).float().cpu()
            out = own.new_empty(len(own), part.stop - part.start) if out is None else out
            out[:, places] = own
    return torch.empty(0, 0) if out is None else out


def _tensor(ids: NDArray[np.integer]) -> Tensor:
    return torch.from_numpy(ids.astype(np.int64))
