"""Token ids as they come in: checked once, at the border."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from warmstart.errors import InputError


def as_tensor(ids: Any, device: torch.device | None = None) -> Tensor:
    """Return ids as a tensor: a tensor as it is, and a copy of an array or of lists on a device."""
    if isinstance(ids, Tensor):
        return ids
    try:
        array = np.asarray(ids)
        return torch.tensor(array.astype(np.int64) if array.dtype.kind in "iu" else array, device=device)
    except (TypeError, ValueError) as error:  # lists of different lengths
        raise InputError(f"expected token ids (batch, length), got: {error}; pad them with separators") from error


def checked_ids(ids: Any, vocab_size: int, device: torch.device | None = None) -> Tensor:
    """Return token ids (batch, length) as int64. A compiled graph does not look at the values.

    Raises
    ------
    InputError
        The shape or type is wrong, or an id is outside the vocabulary.
    """
    ids = as_tensor(ids, device)
    if ids.dim() != 2 or not ids.shape[1] or not _whole(ids):
        raise InputError(
            f"expected token ids (batch, length) int64 of length at least 1, got {tuple(ids.shape)} {ids.dtype}; "
            "start a text with the separator"
        )
    return _within(ids.long(), 0, vocab_size)


def checked_targets(targets: Any, shape: torch.Size, vocab_size: int, device: torch.device | None = None) -> Tensor:
    """Return targets of the given shape as int64; a negative one stands for a place that does not count.

    Raises
    ------
    InputError
        See `checked_ids`.
    """
    targets = as_tensor(targets, device)
    if targets.shape != shape or not _whole(targets):
        raise InputError(
            f"expected one target for every context, {tuple(shape)} int64, got {tuple(targets.shape)} {targets.dtype}"
        )
    return _within(targets.long(), None, vocab_size)


def positions(ids: Tensor, separator: int) -> Tensor:
    """Return the position of each token in its document (batch, length); that of its first token is 0.

    Examples
    --------
    >>> positions(torch.tensor([[5, 3, 0, 4]]), separator=0).tolist()
    [[0, 1, 0, 1]]
    """
    index = torch.arange(ids.shape[1], device=ids.device)
    return index - torch.where(ids == separator, index, 0).cummax(dim=1).values


def _whole(ids: Tensor) -> bool:
    return not (ids.dtype.is_floating_point or ids.dtype.is_complex or ids.dtype == torch.bool)


def _within(ids: Tensor, low: int | None, vocab_size: int) -> Tensor:
    if torch.compiler.is_compiling() or not ids.numel():
        return ids
    least, most = int(ids.min()), int(ids.max())
    if most >= vocab_size or (low is not None and least < low):
        raise InputError(
            f"expected token ids from 0 to {vocab_size - 1}, got {least} to {most}; use the tokenizer of this model"
        )
    return ids
