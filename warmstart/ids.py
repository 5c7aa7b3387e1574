"""Whole numbers as they come in, such as token ids: arrays, lists or tensors, made arrays and checked once."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from warmstart.errors import InputError


def as_array(name: str, values: Any) -> NDArray[Any]:
    """Return numbers as an array, without a copy where they are one; a tensor may be on any device.

    Raises
    ------
    InputError
        They are lists of different lengths.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise InputError(f"expected {name} (n,), got lists of different lengths; give one row at a time") from error
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))  # numba reads no others


def whole_numbers(name: str, values: Any, size: int | None = None) -> NDArray[Any]:
    """Return whole numbers (n,) as an array, without a copy where they are one.

    Parameters
    ----------
    name : str
        What they are, for the message.
    values : array-like or tensor of shape (n,)
    size : int, optional
        They are to be from 0 to ``size - 1``.

    Raises
    ------
    InputError
        There is more than one dimension, a value is no whole number, or one is out of range.

    Examples
    --------
    >>> whole_numbers("token ids", [3, 1], 5)
    array([3, 1])
    """
    array = as_array(name, values)
    if array.ndim != 1:
        raise InputError(f"expected {name} (n,), got an array of shape {array.shape}; give one row at a time")
    if not array.size:
        return array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise InputError(f"expected {name} that are whole numbers, got an array of type {array.dtype}")
    unsigned = np.dtype(f"{array.dtype.byteorder}u{array.dtype.itemsize}")  # negative numbers are above the largest
    if size is not None and array.view(unsigned).max() >= min(size, int(np.iinfo(array.dtype).max) + 1):
        raise InputError(f"expected {name} from 0 to {size - 1}, got {array.min()} to {array.max()}")
    return array
