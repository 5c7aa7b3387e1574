"""Whole numbers as they come in, such as token ids: arrays, lists or tensors, made arrays and checked once."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from warmstart.errors import InputError


def whole_numbers(name: str, values: Any, low: int | None = None, high: int | None = None) -> NDArray[Any]:
    """Return whole numbers (n,) as an array, without a copy where they are one.

    Parameters
    ----------
    name : str
        What they are, for the message.
    values : array-like or tensor of shape (n,)
    low, high : int, optional
        The smallest number that is allowed, and the one after the largest.

    Raises
    ------
    InputError
        There is more than one dimension, a value is no whole number, or one is out of range.

    Examples
    --------
    >>> whole_numbers("token ids", [3, 1], 0, 5)
    array([3, 1])
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()  # a tensor, on any device
    try:
        array = np.asarray(values)
    except ValueError as error:  # lists of different lengths
        raise InputError(f"expected {name} (n,), got lists of different lengths; give one list at a time") from error
    if array.ndim != 1:
        raise InputError(f"expected {name} (n,), got an array of shape {array.shape}; give one row at a time")
    if not array.size:
        return array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise InputError(f"expected {name} that are whole numbers, got an array of type {array.dtype}")
    least, most = int(array.min()), int(array.max())
    if (low is not None and least < low) or (high is not None and most >= high):
        raise InputError(f"expected {name} from {low} to {(high or 0) - 1}, got {least} to {most}")
    return array
